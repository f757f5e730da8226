"""Any task of lm-eval as a benchmark: one that it ships, or one that a user's YAML file defines.

Problems, prompt, shots, stop texts, filters and metric are those of the task's own definition, so
the score of a response is lm-eval's. Free answers are drawn k times under each of the study's
decoders, as for all benchmarks, and each is filtered and scored apart. Multiple choice compares
likelihoods: nothing is drawn, and the score is the same under every decoder.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimpo.config import ConfigError, RegisteredBenchmark, Study
from vimpo.config.cache import remembered
from vimpo.config.task import VerifierLimits
from vimpo.config.texts import Pattern
from vimpo.evaluation.asked import BenchmarkTask
from vimpo.evaluation.benchmarks import load_definition
from vimpo.tasks.golds import accepted
from vimpo.tasks.sources import quiet_datasets
from vimpo.tasks.verifier import shared_verifier

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

FREE, CHOICES = "generate_until", ("multiple_choice", "loglikelihood")
SHOTS_SEED = 1234  # lm-eval's own default
SHOWN = 6  # names in a message


class RegisteredTask(BenchmarkTask):
    """A benchmark scored by a metric of its own definition, or by the suite's verifier."""

    def __init__(self, study: Study, name: str, spec: RegisteredBenchmark) -> None:
        self.name, self.spec, self.field = name, spec, f"task.benchmarks.{name}"
        self.samples, self.pass_at = study.samples_of(name), study.evaluation.pass_at
        self.stock = load_task(spec.task, spec.include_path, self.field)
        self.chooses = self.stock.OUTPUT_TYPE in CHOICES
        self.max_response = spec.max_response or study.train.max_response
        if self.chooses:
            self.max_response = 1  # nothing is generated; prompts below end in a choice
        self.stock_metric = spec.metric if spec.extract else None
        self.verifier = shared_verifier(getattr(study.task, "verifier", VerifierLimits()))
        self.docs = self._docs()
        self.filter = self._filter()
        self._check()

    def _docs(self) -> list[dict]:
        docs = list(self.stock.eval_docs)
        if self.spec.limit and self.spec.limit > len(docs):
            raise ConfigError(
                f"{self.field}.limit: {self.spec.limit} is more than the {len(docs)} problems of "
                f"{self.spec.task}; allowed: 1 to {len(docs)}"
            )
        return docs[: self.spec.limit]

    def _filter(self) -> str:
        names = [ensemble.name for ensemble in self.stock._filters]
        if self.spec.filter is not None and self.spec.filter not in names:
            raise ConfigError(
                f"{self.field}.filter: '{self.spec.filter}' is no filter of {self.spec.task}; "
                f"allowed: {', '.join(names)}"
            )
        return self.spec.filter or names[0]

    def _check(self) -> None:
        """Raise ConfigError for what cannot be scored, before anything is generated."""
        from lm_eval.api.metrics import mean

        kind = self.stock.OUTPUT_TYPE
        if kind != FREE and not self.chooses:
            raise ConfigError(
                f"{self.field}.task: '{self.spec.task}' is of lm-eval's type {kind}, which has no "
                f"right answers; allowed: tasks of type {', '.join((FREE, *CHOICES))}"
            )
        found = self.stock.aggregation()
        means = [name for name, how in found.items() if how is mean]
        if self.spec.metric not in means:
            fault = "is not averaged over problems" if self.spec.metric in found else "is no metric"
            raise ConfigError(
                f"{self.field}.metric: '{self.spec.metric}' {fault} of {self.spec.task}; allowed: "
                f"{', '.join(means) or 'none, so another task'}"
            )
        if self.chooses:
            if self.spec.extract or self.spec.samples:
                field = "extract" if self.spec.extract else "samples"
                raise ConfigError(
                    f"{self.field}.{field}: {getattr(self.spec, field)!r} is for free answers, and "
                    f"'{self.spec.task}' is of type {kind}; allowed: null"
                )
            return
        if self.spec.extract:
            golds = [self.gold(doc) for doc in self.docs]
            own = accepted(golds, self.verifier)
            for i, both in enumerate(zip(own, self.verifier.readable(golds), strict=True)):
                if not all(both):
                    raise ConfigError(
                        f"{self.field}.extract: the gold answer {golds[i][:80]!r} of problem "
                        f"{i + 1} cannot be judged by the verifier; allowed: null, for the task's "
                        "own metric, or with an answer_pattern that finds it"
                    )
        self.score(self.docs[0], "")  # a fault of the definition shows here

    def gold(self, doc: dict) -> str:
        """The gold answer; of several, the first. Empty if answer_pattern does not find it."""
        target = self.stock.doc_to_target(doc)
        text = str(target[0] if isinstance(target, list) else target).strip()
        if self.spec.answer_pattern is None:
            return text
        match = re.search(self.spec.answer_pattern, text)
        return (match[1] or "").strip() if match else ""

    @functools.cached_property
    def _prompts(self) -> list[str]:
        self.stock.set_fewshot_seed(SHOTS_SEED)
        shots = self.stock.config.num_fewshot or 0
        return [self.stock.fewshot_context(doc, num_fewshot=shots) for doc in self.docs]

    def rows(self) -> list[dict]:
        return [{"prompt": prompt, "number": i} for i, prompt in enumerate(self._prompts)]

    def prompts(self) -> list[str]:
        if not self.chooses:
            return self._prompts
        # A choice follows the prompt after a space.
        return [
            f"{prompt} {max(self._choices(doc), key=len)}"
            for prompt, doc in zip(self._prompts, self.docs, strict=True)
        ]

    def _choices(self, doc: dict) -> list[str]:
        if self.stock.OUTPUT_TYPE == "multiple_choice":
            return list(map(str, self.stock.doc_to_choice(doc)))
        return [self.gold(doc)]

    def definition(self) -> dict:
        template = self._with_rows_and_marks(load_definition("chain.yaml"))
        stops = (self.stock.config.generation_kwargs or {}).get("until", [])
        until = [stops] if isinstance(stops, str) else list(stops)
        return template | {
            "doc_to_text": lambda doc: doc["prompt"],
            "doc_to_target": lambda doc: self.gold(self.docs[doc["number"]]),
            "generation_kwargs": {"until": until},
        }

    def describe(self, doc: dict) -> tuple[str, str]:
        """The problem is the longest field of the source that the prompt holds."""
        source = self.docs[doc["number"]]
        asked = self.stock.doc_to_text(source)
        text = asked if isinstance(asked, str) else doc["prompt"]
        fields = [v.strip() for v in source.values() if isinstance(v, str)]
        return max((v for v in fields if v and v in text), key=len, default=text), self.gold(source)

    def chosen(self, lm: LM) -> dict:
        """What lm-eval's `evaluate` says of a task whose answers are not drawn."""
        from lm_eval import evaluate

        self.stock.set_fewshot_seed(SHOTS_SEED)
        tasks: Any = {"tasks": {self.spec.task: self.stock}, "groups": {}, "group_map": {}}
        found: Any = evaluate(lm, tasks, limit=self.spec.limit, bootstrap_iters=1)
        scores = found["results"][self.spec.task]
        stderr = scores.get(f"{self.spec.metric}_stderr,{self.filter}", "N/A")
        return {
            "value": scores[f"{self.spec.metric},{self.filter}"],
            "stderr": None if stderr == "N/A" else stderr,
            "samples": sorted(found["samples"][self.spec.task], key=lambda s: s["doc_id"]),
        }

    def score(self, source: dict, response: str) -> float:
        """lm-eval's own score of one response, by filter and metric. Raises ConfigError if none."""
        from lm_eval.api.instance import Instance

        request = Instance(request_type=FREE, doc=source, arguments=("", {}), idx=0)
        request.resps = [response]
        (ensemble,) = [e for e in self.stock._filters if e.name == self.filter]
        ensemble.apply([request])
        scores = self.stock.process_results(source, [request.filtered_resps[self.filter]])
        value = scores.get(self.spec.metric)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not 0 <= number <= 1:
            raise ConfigError(
                f"{self.field}.metric: '{self.spec.metric}' gives a response {value!r:.80}; "
                "allowed: a metric that gives each response a number in [0, 1]"
            )
        return number

    def scores(self, doc: dict, responses: Sequence[str], marks: Sequence[bool]) -> Sequence[float]:
        if self.spec.extract:
            return marks
        return [self.score(self.docs[doc["number"]], response) for response in responses]

    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        source = self.docs[doc["number"]]
        if self.spec.extract is None:
            return [self.score(source, response) == 1 for response in responses]
        rule = self.spec.extract
        plain = rule.model_dump() if isinstance(rule, Pattern) else rule
        return self.verifier.grade_by(plain, [self.gold(source)] * len(responses), responses)

    def stock_marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        source = self.docs[doc["number"]]
        return [self.score(source, response) == 1 for response in responses]


@functools.cache
def load_task(name: str, include_path: str | None, field: str) -> Task:
    """The task with its problems. Raises ConfigError if there is none, or it cannot be loaded."""
    from lm_eval.tasks import TaskManager

    quiet_datasets()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise ConfigError(
            f"{field}.include_path: '{include_path}' is not a folder; allowed: one with YAML files "
            "in lm-eval's format"
        )
    own = include_path and str(Path(include_path).expanduser())
    manager = TaskManager(include_path=own, include_defaults=False)
    place: str = name
    if name not in manager.all_subtasks:
        key = f"{find_spec('lm_eval')}\n{version('lm_eval')}\n{name}"
        place = remembered("lm_eval_task", key, lambda: _shipped(name))
        if not place:
            manager = _all_tasks(own)
            raise ConfigError(_unknown(name, manager.all_subtasks, manager.all_tasks, field))
    try:
        found = manager.load(place)["tasks"]
    except Exception as error:  # the hub, its data, or the definition may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{field}.task: '{name}' cannot be loaded ({type(error).__name__}: {reason:.200}); "
            "allowed: a task whose problems are at hand, or on the hub with network"
        ) from None
    (task,) = found.values()
    return task


def _shipped(name: str) -> str:
    """The file that defines one of lm-eval's own tasks; empty for groups and unknown names."""
    from lm_eval.tasks._index import Kind

    entry = _all_tasks(None).task_index.get(name)
    return str(entry.yaml_path) if entry and entry.kind in (Kind.TASK, Kind.PY_TASK) else ""


@functools.cache
def _all_tasks(include_path: str | None) -> Any:
    """An index of lm-eval's thousands of definitions, which takes ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _unknown(name: str, tasks: Sequence[str], everything: Sequence[str], field: str) -> str:
    if name in everything:
        return f"{field}.task: '{name}' is a group or tag of tasks; allowed: one of its tasks"
    near = difflib.get_close_matches(name, tasks, n=SHOWN, cutoff=0.6) or tasks[:SHOWN]
    return (
        f"{field}.task: '{name}' is no task of lm-eval {version('lm_eval')}; allowed: "
        f"{', '.join(near)}, ... ({len(tasks)} names: `lm-eval ls tasks`), or one of a folder "
        "include_path"
    )
