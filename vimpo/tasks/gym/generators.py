"""Generators of reasoning-gym as a configuration names them, checked against the library."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from typing import Any

from vimpo.config.asked import GymBenchmark
from vimpo.config.sources import GymSource
from vimpo.config.task import GymTask, TaskConfig
from vimpo.errors import ConfigError
from vimpo.tasks.gym.entries import canonical, data_set

SHOWN = 6  # names that a message suggests
OWN_FIELDS = {"seed", "size"}  # of a data set's configuration; the suite sets them


@dataclass(frozen=True)
class Generator:
    """A data set of reasoning-gym with its settings; field: its place in the configuration."""

    name: str
    settings: str
    field: str

    def entry(self, seed: int) -> dict[str, Any]:
        """Raises ConfigError if the settings, though valid, let no problem be made."""
        try:
            return data_set(self.name, self.settings, seed)[0]
        except Exception as error:  # a generator may fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{self.field}.settings: {self.settings} give no problem ({reason:.100}); allowed: "
                f"settings with which {self.name} makes problems"
            ) from None


@dataclass(frozen=True)
class GymProblem:
    """A prompt, the answer that its generator gives, and where both come from."""

    id: str
    prompt: str
    answer: str
    text: str
    generator: Generator
    seed: int
    drawn: str


def check_gym(task: TaskConfig) -> None:
    """Check names and settings of all that a task takes from reasoning-gym. Raises ConfigError."""
    if isinstance(task, GymTask):
        for i, source in enumerate(task.datasets):
            check_generator(generator_of(source, f"task.datasets[{i}]"), "name")
    for name, benchmark in task.benchmarks.items():
        if isinstance(benchmark, GymBenchmark):
            check_generator(generator_of(benchmark, f"task.benchmarks.{name}"), "dataset")


def generator_of(source: GymSource | GymBenchmark, field: str) -> Generator:
    """What a section of the configuration describes."""
    name = source.name if isinstance(source, GymSource) else source.dataset
    return Generator(name, canonical(source.settings), field)


def check_generator(generator: Generator, named: str) -> None:
    """Raise ConfigError unless reasoning-gym has this data set, and it takes these settings.

    named: the field of its name.
    """
    known = _data_sets(f"{generator.field}.{named}", generator.name)
    if generator.name not in known:
        near = difflib.get_close_matches(generator.name, known, n=SHOWN, cutoff=0.5)
        raise ConfigError(
            f"{generator.field}.{named}: '{generator.name}' is no data set of reasoning-gym; "
            f"allowed: {', '.join(near or sorted(known)[:SHOWN])}, ... ({len(known)} names: "
            "`reasoning_gym.factory.DATASETS`)"
        )
    fields = {f.name for f in dataclasses.fields(known[generator.name][1])} - OWN_FIELDS
    settings = _settings(generator)
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(
                f"{generator.field}.settings.{name}: {value!r:.80} is for a setting that "
                f"{generator.name} does not have; allowed: {', '.join(sorted(fields))}"
            )
    try:
        data_set(generator.name, generator.settings, 0)
    except Exception as error:  # `validate` asserts; values of a wrong type fail in other ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{generator.field}.settings: {generator.settings} is not allowed for "
            f"{generator.name}; allowed: {reason:.200}"
        ) from None


def _settings(generator: Generator) -> dict[str, Any]:
    return json.loads(generator.settings)


def _data_sets(field: str, name: str) -> dict[str, Any]:
    """The data sets that reasoning-gym has, but for mixtures. Raises ConfigError without it."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f"{field}: '{name}' needs the package reasoning-gym, which cannot be imported "
            f"({error}); allowed: after pip install -e '.[reasoning-gym]', or a task without it"
        ) from None
    # `composite` is a mixture: task.datasets is one already.
    return {name: found for name, found in DATASETS.items() if name != "composite"}
