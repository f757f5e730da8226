"""What a study reads beside its configuration, looked at before anything is computed.

Models, training data and benchmarks, local and from the hub. What comes from the hub goes into the
Hugging Face cache, so that later jobs find it there, with a network or without.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from vimpo.config import ConfigError, DatasetTask, RealBenchmark, Study, digest, load_study


def check_inputs(study: Study, sizes: Iterable[str] | None = None) -> None:
    """Read all that the named sizes need: tokenizer, training data, benchmarks; not the weights.

    Raises ConfigError for what training or evaluation would refuse: a model or dataset that cannot
    be had, a tokenizer without pad or EOS, a missing column, gold answers that cannot be read,
    prompts that are too long; files of the user's that hold no algorithm. Sizes made from scratch
    read nothing, and cost nothing.
    """
    if own := study.own_algorithms():
        from vimpo.training.algorithms import make_algorithm

        for objective in own.values():
            make_algorithm(objective)
    for size in sizes if sizes is not None else study.used_sizes():
        if study.sizes[size].path is not None:
            _check_size(study, size)


def check_before_jobs(study: Study, config: Path) -> None:
    """The same in a process of its own, so that torch stays out of this one; config: the study's.

    Not for what has nothing to look at, nor once more for a study that began to run in its folder.
    Raises ConfigError.
    """
    from_scratch = all(study.sizes[size].path is None for size in study.used_sizes())
    if (from_scratch and not study.own_algorithms()) or _began(study):
        return
    command = [sys.executable, "-m", "vimpo", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise ConfigError("\n".join(errors or lines))


def _began(study: Study) -> bool:
    """Is the resolved copy, which one of the first jobs writes, that of this very study?"""
    written = study.folder / "config.yaml"
    return written.is_file() and digest(load_study(written)) == digest(study)


def _check_size(study: Study, size: str) -> None:
    from vimpo.evaluation.lm_eval import check_length
    from vimpo.models.networks import load_model_config, load_tokenizer
    from vimpo.tasks import make_task, prompt_room

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.utils import resolve_max_length

    spec, field, trust = study.sizes[size], f"sizes.{size}.path", study.runtime.trust_remote_code
    config = load_model_config(spec.path, trust, field)
    tokenizer = load_tokenizer(spec.path, trust, field)
    if isinstance(study.task, DatasetTask):
        demonstrations = study.pretrain.batch_size if spec.pretrain_steps else 0
        make_task(
            study.task,
            tokenizer,
            batch_size=max(study.train.prompts_per_step, demonstrations),
            room=prompt_room(config, study.train.max_response),
        )
    # All that the check of lengths asks of lm-eval's model; its default is that of lm-eval.
    lm = SimpleNamespace(
        tokenizer=tokenizer, max_length=resolve_max_length(config, tokenizer, default=2048)
    )
    real = [n for n, b in study.task.benchmarks.items() if isinstance(b, RealBenchmark)]
    check_length(lm, study, real)
