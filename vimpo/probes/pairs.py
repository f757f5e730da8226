"""Pairs: does the value fall where a right response goes wrong?

The task draws a place in a right response where a carry can be forgotten (`Task.fork`). The
response up to there is continued by the right token and by the wrong one, the same pairs for every
algorithm, and each predictor is read after either:

    ordered     share of pairs in which the right token has the higher value, ties one half
    difference  V(right) - V(wrong), a mean over pairs; of the implied value it is the difference of
                two td, which share their KL: beta times that of log pi/pi_ref

Predictor `truth` is the difference of mean rewards of continuations under the run's own policy,
with the same random draws after either token. Pairs that the limit of a response leaves no room for
are left out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from vimpo.probes.baselines import LOG_PROBABILITY, NOTHING, Fitted
from vimpo.probes.measures import cluster_mean, row
from vimpo.probes.subject import Subject
from vimpo.probes.value import continuation_rewards, predictions
from vimpo.storage.codes import Reason, Why
from vimpo.tasks import Problem

PURPOSE = 3  # of the problems' seed
TRUTH = "truth"
NO_FORK = Why(Reason.NO_WRONG_STEP, "no problem has a step that carries")
NOT_FINITE = Why(Reason.NOT_FINITE, "a value is not finite")


def pairs_probe(subject: Subject, fitted: Fitted = NOTHING) -> list[dict]:
    """Values after the right and the wrong token of each pair. -> rows of probes.parquet"""
    drawn = draw_pairs(subject, subject.probes.pairs)
    if not drawn:
        return pair_rows({"implied": (np.zeros(0), np.zeros(0))}, np.zeros(0))
    problems, *ends = map(list, zip(*drawn, strict=True))
    right, wrong = (_values(subject, problems, responses, fitted) for responses in ends)
    values = {name: (right[name], wrong[name]) for name in right}
    _, clusters = np.unique([p.id for p in problems], return_inverse=True)
    return pair_rows(values, clusters)


def draw_pairs(subject: Subject, count: int) -> list[tuple[Problem, list[int], list[int]]]:
    """Problem, and tokens up to the right and to the wrong one; none without a place for them."""
    assert subject.task.fork is not None  # the study has been checked
    rng = random.Random(f"pairs:{subject.probes.seed}")
    pairs = []
    for problem in subject.problems(count, PURPOSE):
        if fork := subject.task.fork(problem, rng):
            texts = [fork.prefix + fork.right, fork.prefix + fork.wrong]
            right, wrong = subject.tokenizer(texts, add_special_tokens=False)["input_ids"]
            if max(len(right), len(wrong)) < subject.train.max_response:
                pairs.append((problem, list(right), list(wrong)))
    return pairs


def _values(
    subject: Subject,
    problems: Sequence[Problem],
    responses: Sequence[Sequence[int]],
    fitted: Fitted,
) -> dict[str, np.ndarray]:
    """V after each response by each predictor. -> [P]"""
    prompts = [subject.encode(p) for p in problems]
    # Values are read before a token, so one more follows, which changes none of them.
    more = [[*ids, ids[-1]] for ids in responses]
    cuts = np.array([[len(ids)] for ids in responses])
    found = predictions(subject, subject.written(prompts, more), cuts, fitted)
    count = subject.probes.continuations
    rewards = continuation_rewards(subject, problems, responses, count, "pairs")
    values = {TRUTH: rewards.mean(1), "implied": found.implied[:, 0]}
    if found.critic is not None:
        values["critic"] = found.critic[:, 0]
    return values | {name: value[:, 0] for name, (value, _) in found.more.items()}


def pair_rows(
    values: Mapping[str, tuple[np.ndarray, np.ndarray]], clusters: np.ndarray
) -> list[dict]:
    """values: of each predictor after the right and the wrong token [P]; clusters [P]: problems."""
    rows = []
    for name, (right, wrong) in values.items():
        gaps = right - wrong
        finite = bool(np.isfinite(gaps).all())
        numbers = {"difference": gaps}
        if name != TRUTH:  # which mean of few rewards is higher would be chance
            numbers["ordered"] = np.where(gaps == 0, 0.5, gaps > 0)
        for metric, found in numbers.items():
            used = found if finite else found[:0]
            mean, stderr = cluster_mean(used, clusters[: len(used)])
            unit = "nats" if name == LOG_PROBABILITY else "reward"
            labels = ("pairs", name, "value", "all", metric)
            why = NO_FORK if finite else NOT_FINITE
            unit = "share" if metric == "ordered" else unit
            rows.append(row(*labels, mean, stderr, len(gaps), unit, why))
    return rows
