"""Answer verifier: does a response give the gold answer?

Answers are extracted by :mod:`vimpo.tasks.answers`. They are compared by
:mod:`vimpo.tasks.equality`, in guarded worker processes (:mod:`vimpo.tasks.pool`), because
sympy may need unlimited time and memory. Verdicts are cached by (gold, answer).
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Sequence

from vimpo.config.task import VerifierLimits
from vimpo.tasks.answers import LONGEST_ANSWER, answers
from vimpo.tasks.extraction import extracted
from vimpo.tasks.pool import GuardedPool

CACHED_VERDICTS = 200_000
INTEGER = re.compile(r"[+-]?\d{1,18}")


def obvious(gold: str, answer: str) -> bool | None:
    """The verdict if it needs no mathematics: equal texts, or integers. None: ask a worker."""
    gold, answer = gold.strip(), answer.strip()
    if not gold or not answer:
        return False
    if gold == answer:
        return True
    if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    return False if len(answer) > LONGEST_ANSWER else None


class Verifier:
    """Grades many responses against their gold answers at a time."""

    def __init__(self, limits: VerifierLimits | None = None) -> None:
        self.limits = limits or VerifierLimits()
        self.pool = GuardedPool(self.limits)
        self._verdicts: OrderedDict[tuple, bool] = OrderedDict()

    def grade(
        self,
        golds: Sequence[str],
        responses: Sequence[str],
        boxed_only: bool = True,
        evaluated_only: bool = False,
    ) -> list[bool]:
        """Is each response right? A response is right if one of its :func:`answers` is.

        evaluated_only: and if that one is a number that is worked out, which `4 + 3` is not.
        """
        found = [answers(response, boxed_only, evaluated_only) for response in responses]
        if evaluated_only:
            worked_out = self.evaluated([answer for given in found for answer in given])
            found = [[answer for answer in given if worked_out[answer]] for given in found]
        pairs = [(g, a) for g, given in zip(golds, found, strict=True) for a in given]
        right = dict(zip(pairs, self.equivalent(pairs), strict=True))
        return [any(right[g, a] for a in given) for g, given in zip(golds, found, strict=True)]

    def grade_by(
        self,
        rule: str | dict[str, str],
        golds: Sequence[str],
        responses: Sequence[str],
        evaluated_only: bool = False,
    ) -> list[bool]:
        """Is what each response answers by a rule of vimpo/tasks/extraction.py the gold answer?

        evaluated_only: as in :meth:`grade`.
        """
        if rule == "boxed":
            return self.grade(golds, responses, evaluated_only=evaluated_only)
        if isinstance(rule, dict):  # a pattern may take time without limit
            both = zip(golds, responses, strict=True)
            return self.pool.run([("is_found", g, rule, text, evaluated_only) for g, text in both])
        found = [extracted(rule, response) for response in responses]
        if evaluated_only:
            worked_out = self.evaluated([answer for answer in found if answer is not None])
            found = [answer if worked_out.get(answer or "") else None for answer in found]
        pairs = [(g, answer) for g, answer in zip(golds, found, strict=True) if answer is not None]
        right = dict(zip(pairs, self.equivalent(pairs), strict=True))
        return [right.get((g, a or ""), False) for g, a in zip(golds, found, strict=True)]

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Does each answer equal its gold? pairs: (gold, answer), the answer as it is boxed."""
        jobs: dict[tuple, bool | None] = {}
        for gold, answer in pairs:
            verdict = obvious(gold, answer)
            jobs["is_equivalent", gold, answer] = verdict
        self._ask([job for job, verdict in jobs.items() if verdict is None])
        return [
            self._verdicts[key] if (known := jobs[key]) is None else known
            for key in (("is_equivalent", *pair) for pair in pairs)
        ]

    def evaluated(self, given: Sequence[str]) -> dict[str, bool]:
        """Is each answer a number that is worked out?"""
        known = {a: bool(INTEGER.fullmatch(a.strip())) for a in given}
        known |= {a: False for a in given if len(a) > LONGEST_ANSWER}
        asked = [a for a in known if not known[a] and len(a) <= LONGEST_ANSWER]
        self._ask([("is_evaluated", a) for a in asked])
        return known | {a: self._verdicts["is_evaluated", a] for a in asked}

    def readable(self, golds: Sequence[str]) -> list[bool]:
        """Can each gold answer be judged? Prose, fragments and empty texts cannot be."""
        known = {g: True for g in golds if INTEGER.fullmatch(g.strip())}
        known |= {g: False for g in golds if len(g) > LONGEST_ANSWER or not g.strip()}
        jobs = [("is_readable", g) for g in dict.fromkeys(golds) if g not in known]
        self._ask(jobs)
        return [known[g] if g in known else self._verdicts["is_readable", g] for g in golds]

    def stock(self, file: str, metric: str, doc: dict, responses: Sequence[str]) -> list[bool]:
        """The marks of lm-eval's own scoring function in `file`, in a guarded process."""
        return self.pool.run([("stock_score", file, metric, doc, text) for text in responses])

    def _ask(self, jobs: Sequence[tuple]) -> None:
        """Let the pool judge what is not cached, and cache it; the oldest verdicts are dropped."""
        unknown = [job for job in jobs if job not in self._verdicts]
        for job, verdict in zip(unknown, self.pool.run(unknown), strict=True):
            self._verdicts[job] = verdict
        for job in jobs:
            self._verdicts.move_to_end(job)
        while len(self._verdicts) > max(CACHED_VERDICTS, len(jobs)):
            self._verdicts.popitem(last=False)

    def close(self) -> None:
        self.pool.close()


@functools.cache
def shared_verifier(limits: VerifierLimits) -> Verifier:
    """One verifier per process and set of limits: training and evaluation share its cache."""
    return Verifier(limits)
