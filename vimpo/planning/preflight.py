"""Checks of everything a study reads besides its configuration, before anything is computed.

Models, training data and benchmarks, local and from the hub. Downloads go into the Hugging Face
cache, where later jobs find them with or without a network.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from vimpo.config import (
    Benchmark,
    ConfigError,
    DatasetTask,
    OwnBenchmark,
    RealBenchmark,
    RegisteredBenchmark,
    Study,
    TextTask,
    digest,
    load_study,
)
from vimpo.config.algorithms import read_own_file
from vimpo.config.contents import check_content, definitions_digest
from vimpo.config.load import setting_differences
from vimpo.config.model_paths import check_model_path
from vimpo.config.models import NO_RECIPE, NO_RESULT
from vimpo.config.task import check_step_grades, uses_gym
from vimpo.config.training import PLACEMENT
from vimpo.config.types import local_path
from vimpo.planning.shown import ends_line, prompt_warnings, show_prompt
from vimpo.storage.continued import check_continued
from vimpo.storage.shipped import check_shipped
from vimpo.tasks.sources import check_sources

if TYPE_CHECKING:
    from vimpo.tasks import Task
    from vimpo.tasks.dataset import DatasetProblems
    from vimpo.tasks.gym.problems import GymProblems

WARNING = "warning: "


def check_inputs(
    study: Study, sizes: Iterable[str] | None = None, say: Callable[[str], None] | None = None
) -> dict[str, Task]:
    """Read all that the named sizes need: tokenizer, training data, benchmarks, and no weights.

    Returns the datasets that were read, by size, so that training need not read them again. Raises
    ConfigError for what training or evaluation would refuse: a model or dataset that is not
    available, a model that cannot be trained (vimpo/models/fitness.py), a tokenizer without pad or
    EOS, a missing column, gold answers that cannot be read, prompts that are too long or lack their
    problem; user-supplied files that hold no algorithm. Sizes made from scratch read nothing and
    cost nothing. say: is told each model's ends of responses and one of its prompts. Warnings go to
    stderr.
    """
    if own := study.own_algorithms():
        from vimpo.algorithms import make_algorithm

        for name, objective in own.items():
            if make_algorithm(objective).needs_steps:
                check_step_grades(f"algorithms.{name}", study.task)
    named = sizes if sizes is not None else study.used_sizes()
    read = {
        size: _read_size(study, size, path, say or (lambda _: None))
        for size in named
        if (path := study.sizes[size].path) is not None
    }
    return {size: task for size, task in read.items() if task is not None}


def check_before_jobs(study: Study, config: Path) -> None:
    """The same in a separate process, to keep torch out of this one; config: the study's file.

    Skipped if there is nothing to read, or if the study has already begun to run in its folder.
    Raises ConfigError.
    """
    from_scratch = all(study.sizes[size].path is None for size in study.used_sizes())
    if (from_scratch and not study.own_algorithms()) or _began(study):
        return
    command = [sys.executable, "-m", "vimpo", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    lines = done.stderr.splitlines()
    for line in lines:
        if line.startswith(WARNING):
            print(line, file=sys.stderr)
    if done.returncode:
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise ConfigError("\n".join(errors or lines))


def _began(study: Study) -> bool:
    """Has one of this study's first jobs written its resolved copy?"""
    written = study.folder / "config.yaml"
    return written.is_file() and digest(load_study(written)) == digest(study)


def _read_size(study: Study, size: str, path: str, say: Callable[[str], None]) -> Task | None:
    """The dataset of a size, with everything else that the size needs checked; None for chains."""
    from vimpo.evaluation.lm_eval import check_length
    from vimpo.models.ends import declared_ends, generation_config
    from vimpo.models.fitness import check_tokens, check_trainable
    from vimpo.models.networks import load_model_config, load_tokenizer
    from vimpo.tasks import make_task, prompt_room, set_aside

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.utils import resolve_max_length

    spec, field, trust = study.sizes[size], f"sizes.{size}.path", study.runtime.trust_remote_code
    config = load_model_config(path, trust, field)
    tokenizer = load_tokenizer(path, trust, field)
    rows = check_trainable(spec, config, tokenizer, study.runtime, field)
    task = None
    if isinstance(study.task, TextTask):
        demonstrations = study.pretrain.batch_size if spec.pretrain_steps else 0
        made = make_task(
            study.task,
            tokenizer,
            batch_size=max(study.train.prompts_per_step, demonstrations),
            room=prompt_room(config, study.train.max_response),
            held_out=set_aside(study.train),
        )
        task = cast("DatasetProblems | GymProblems", made)
        (first,) = task.training_problems(0, 0, 1)  # shows the tokens of a chat template
        check_tokens(tokenizer(first.prompt).input_ids, rows, tokenizer, field)
    # The parts of lm-eval's model that check_length needs, with lm-eval's own default.
    lm = SimpleNamespace(
        tokenizer=tokenizer, max_length=resolve_max_length(config, tokenizer, default=2048)
    )
    real = [n for n, b in study.task.benchmarks.items() if not isinstance(b, Benchmark)]
    check_length(lm, study, real)
    ends = declared_ends(tokenizer, config, generation_config(path))
    say(ends_line(size, tokenizer, ends))
    if task is not None:
        show_prompt(size, task, tokenizer, say)
        for line in prompt_warnings(study, size, task, tokenizer, ends):
            print(f"{WARNING}{line}", file=sys.stderr)
    return task


def check_before_running(study: Study) -> None:
    """Check what a valid study needs on this machine. Raises ConfigError, writes nothing."""
    for size in study.used_sizes():
        if path := study.sizes[size].path:
            check_model_path(path, f"sizes.{size}.path")
    for objective in study.own_algorithms().values():
        read_own_file(objective.objective, objective.sha256)
    check_sources(study.task)
    if uses_gym(study.task):
        from vimpo.tasks.gym.generators import check_gym

        check_gym(study.task)
    _check_contents(study)
    check_shipped(study)
    for path in study.sweeps:
        if not local_path(path, "sweeps")[1]:
            raise ConfigError(f"sweeps: '{path}' is not a file; allowed: a table made by `sweep`")
    if study.continues is not None:
        check_continued(study)
    check_results_folder(study)


def _check_contents(study: Study) -> None:
    """Raise ConfigError if local data or a model is not what the study was resolved with."""
    for size in study.used_sizes():
        spec = study.sizes[size]
        check_content(f"sizes.{size}.path", spec.path, spec.sha256)
    if isinstance(study.task, DatasetTask):
        for i, source in enumerate(study.task.datasets):
            check_content(f"task.datasets[{i}].path", source.path, source.sha256)
    for name, benchmark in study.task.benchmarks.items():
        if isinstance(benchmark, RealBenchmark | OwnBenchmark):
            check_content(f"task.benchmarks.{name}.path", benchmark.path, benchmark.sha256)
        if isinstance(benchmark, RegisteredBenchmark):
            field, folder = f"task.benchmarks.{name}.include_path", benchmark.include_path
            check_content(field, folder, benchmark.sha256, definitions_digest)


# Changing one of these makes new cells incomparable with those a folder already holds.
FOUNDATION = ("task", "sizes", "pretrain", "train", "runtime")


def check_results_folder(study: Study) -> None:
    """Refuse a results folder that cannot be written, or that another study made.

    Raises ConfigError, writes nothing.

    New cells, algorithms and evaluation settings may be added to a folder. What all its cells share
    may not change, because the old cells would silently be replaced.
    """
    _check_writable(study.folder)
    recorded_path = study.folder / "config.yaml"
    if not recorded_path.is_file():
        return
    recorded = load_study(recorded_path)
    used = set(recorded.used_sizes()) & set(study.used_sizes())
    differences = []
    for section in FOUNDATION:
        old, new = getattr(recorded, section), getattr(study, section)
        if section == "sizes":
            old = {k: v.model_dump(exclude=NO_RESULT) for k, v in old.items() if k in used}
            new = {k: v.model_dump(exclude=NO_RESULT) for k, v in new.items() if k in used}
        else:
            left_out = {"runtime": PLACEMENT, "pretrain": NO_RECIPE}.get(section)
            old, new = (s.model_dump(mode="json", exclude=left_out) for s in (old, new))
        differences += setting_differences(old, new, section)
    if differences:
        raise ConfigError(
            f"results: '{study.folder}' was made by another configuration "
            f"({'; '.join(differences)}); allowed: the recorded values, another `study` name, or a "
            "folder that you removed"
        )


def _check_writable(folder: Path) -> None:
    """Raise ConfigError unless the folder, or the first above it that exists, can be written."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    fault = None
    if not there.exists():
        fault = "is a link to nothing"
    elif not there.is_dir():
        fault = "is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = "is a folder that you may not write to"
    if fault:
        raise ConfigError(
            f"results: '{there}' {fault}; allowed: a folder that can be written, or made"
        )
