"""The scaling caveat, measured on a saved policy: is its implied value true, fine and stable?

vimpo/probes/run.py writes two small tables next to a run. `probes.parquet` is tidy, one measured
number per row, with the columns of :data:`COLUMNS`:

    probe      value, credit, consistency or precision; if asked for, common (as value and credit,
               on prefixes and responses of the base policy), pairs, and baselines (how they fit)
    predictor  what is judged: implied, critic, group_mean, truth, and of baselines ceiling, linear,
               log_probability (value, common, pairs); implied_td, implied_gae, critic_td,
               critic_gae, group, position (credit); policy (consistency); float32,
               bfloat16_float32_softmax, bfloat16 (precision)
    target     on what: value, change (value, common); value (pairs); outcome (baselines); step,
               profile (credit); td, terminal (consistency); log_ratio, implied_value (precision)
    position   where, as text: `all`, or a share of the response (value), a token relative to the
               first wrong one (profile), a number of summed tokens (precision)
    metric     what was computed; vimpo/probes/<probe>.py says how
    value      the number; NaN if there is none, for the reason in `reason`
    stderr     its standard error over problems; NaN if there is none
    n          number of observations
    unit       share, reward, reward^2, nats, std or 1
    reason_code, reason
               why the value is NaN, as a code (vimpo/storage/codes.py) and in words; else empty

`prefixes.parquet` has one row per prefix of the value probe (vimpo/probes/value.py), enough to plot
prediction against truth. Both repeat byte for byte on the CPU; the digest of what they depend on is
`digest` in their schema's metadata.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vimpo.storage.codes import Reason, Why

if TYPE_CHECKING:
    from vimpo.config import Study

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
    """Sequences that probes sample at once.

    No more than lm-eval if the study limits memory by train.micro_batch; vLLM manages its own.
    """
    if study.runtime.sampler == "vllm":
        return sys.maxsize
    return min(SAMPLE_ROWS, study.evaluation.batch_size) if study.train.micro_batch else SAMPLE_ROWS


def read_together(study: Study) -> int:
    """Sequences that probes read in one forward pass: no more than training."""
    return min(READ_ROWS, study.train.micro_batch or READ_ROWS)
