"""Scores of benchmarks, of a stub that answers as it is told: over samples, and over problems."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest
from lm_eval.api.model import LM
from two_benchmarks import make_study, right_answer

from vimpo.config import load_study
from vimpo.evaluation import lm_eval as evaluate
from vimpo.tasks.chain import held_out_problems


class StubLM(LM):
    """Answers right where `is_right(prompt, index of the sample)`."""

    def __init__(self, is_right):
        super().__init__()
        self.is_right, self.seen = is_right, Counter()

    def generate_until(self, requests, disable_tqdm=False):
        return [self._respond(*request.args) for request in requests]

    def _respond(self, prompt, settings):
        key = (prompt, settings["do_sample"])
        index, self.seen[key] = self.seen[key], self.seen[key] + 1
        return f"0+0=0#{right_answer(prompt) + (not self.is_right(prompt, index))}"

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def scores_of(study, is_right):
    names = list(study.task.benchmarks)
    results, logs = evaluate.run_benchmarks(StubLM(is_right), study, names)
    return {(r["benchmark"], r["metric"]): r for r in results}, logs


def test_every_sample_counts_and_not_only_the_first():
    scores, _ = scores_of(make_study(), lambda prompt, index: index > 0)
    for name in ("chain_easy", "chain_hard"):
        assert scores[name, "sampled"]["value"] == pytest.approx(2 / 3)
        assert scores[name, "sampled"]["samples"] == 3
        assert scores[name, "greedy"]["value"] == 0
        assert scores[name, "greedy"]["samples"] == 1


def test_average_and_standard_error_are_over_problems():
    def is_right(prompt, index):
        return index < len(prompt.replace("-", "")) % 4

    study = make_study()
    scores, logs = scores_of(study, is_right)
    for name in ("chain_easy", "chain_hard"):
        prompts = [problem.prompt for problem in held_out_problems(study.task, name)]
        means = [statistics.mean(is_right(p, index) for index in range(3)) for p in prompts]
        assert len(set(means)) > 2
        score = scores[name, "sampled"]
        assert score["problems"] == len(prompts)
        assert score["value"] == pytest.approx(statistics.mean(means))
        assert score["stderr"] == pytest.approx(statistics.stdev(means) / math.sqrt(len(means)))
        marks = [
            log["marks"] for log in logs if (log["benchmark"], log["metric"]) == (name, "sampled")
        ]
        assert marks == [[int(is_right(p, index)) for index in range(3)] for p in prompts]


def test_a_single_problem_has_no_standard_error():
    study = load_study({"task": {"benchmarks": {"one": {"operators": 2, "problems": 1}}}})
    scores, _ = scores_of(study, lambda prompt, index: True)
    assert {(s["value"], s["stderr"], s["problems"]) for s in scores.values()} == {(1.0, None, 1)}
