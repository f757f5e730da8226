"""The scaling caveat, measured on a saved policy: is its implied value true, fine and stable?

:func:`probe_run` writes two small tables beside a run. `probes.parquet` is tidy, one measured
number a row, with the columns of :data:`COLUMNS`:

    probe      value, credit, consistency or precision
    predictor  who is measured: implied, critic, group_mean, truth (value); implied_td, implied_gae,
               critic_td, critic_gae, group, position (credit); policy (consistency); float32,
               bfloat16_float32_softmax, bfloat16 (precision)
    target     of what: value, change (value); step, profile (credit); td, terminal
               (consistency); log_ratio, implied_value (precision)
    position   where, as text: `all`, or a share of the response (value), a token relative to the
               first wrong one (profile), a number of summed tokens (precision)
    metric     what was computed; vimpo/probes/<probe>.py says how
    value      the number; NaN if there is none, for the reason given
    stderr     its standard error over problems; NaN if there is none
    n          how many observations it rests on
    unit       share, reward, reward^2, nats, std or 1
    reason_code, reason
               why the value is NaN, as a code (vimpo/storage/codes.py) and in words; else empty

`prefixes.parquet` has a row for each prefix of the value probe (vimpo/probes/value.py), enough to
draw prediction against truth. Both repeat byte for byte on the CPU; the digest of what they depend
on is in their schema's metadata as `digest`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.storage.codes import Reason, Why

if TYPE_CHECKING:
    from vimpo.config import Cell, Study

COLUMNS = (
    "probe",
    "predictor",
    "target",
    "position",
    "metric",
    "value",
    "stderr",
    "n",
    "unit",
    "reason_code",
    "reason",
)


NO_ORACLE = Why(Reason.NO_ORACLE, "no oracle grades the steps of this task")
IS_THE_TRUTH = Why(Reason.IS_THE_TRUTH, "it is the truth here: the policy is too large for float64")
SAMPLE_ROWS = 640  # sequences that are sampled together
READ_ROWS = 256  # sequences in one forward pass


def sampled_together(study: Study) -> int:
    """Sequences that probes sample at once: of a study that reckons with its memory (it sets
    train.micro_batch), no more than lm-eval does; vLLM sees to its own memory.
    """
    if study.runtime.sampler == "vllm":
        return sys.maxsize
    return min(SAMPLE_ROWS, study.evaluation.batch_size) if study.train.micro_batch else SAMPLE_ROWS


def read_together(study: Study) -> int:
    """Sequences that probes read in one forward pass: no more than training does."""
    return min(READ_ROWS, study.train.micro_batch or READ_ROWS)


def probe_run(study: Study, cell: Cell, output: Path) -> None:
    """Probe the finished run of `cell`; write the file `output` and `prefixes.parquet` beside it.

    `output` is written last, so it vouches for the other. Sets torch's threads. Raises ConfigError
    for an unknown cell, and where the run, its base policy or its critic is missing.
    """
    # Only here does a probe need torch: the table's format is known without it.
    from vimpo.probes.run import probe_cell

    probe_cell(study, cell, output)
