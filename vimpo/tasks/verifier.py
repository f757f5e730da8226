r"""Answer verifier: what a response answers, and whether that is the gold answer.

Extraction is ours and linear in the text: the last `\boxed{}`. Equivalence is math-verify's
(:mod:`vimpo.tasks.equivalence`), in worker processes with a limit of time and of memory an answer,
because sympy may need endless amounts of both. What ends outside its limits is wrong, costs a new
worker, and nothing else. Verdicts are cached by (gold, answer).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from vimpo.config.task import VerifierLimits

LONGEST_ANSWER = 1000  # characters; what is longer is no answer
LONGEST_TAIL = 2000  # characters at the end of an unboxed response that may hold its answer
LONGEST_STATEMENT = 300  # characters from "the answer is" to the end
BOXES_TRIED = 20  # unclosed boxes that are passed over
CACHED_VERDICTS = 200_000
STARTUP_SECONDS = 120.0
WALL_FACTOR = 4.0  # a stuck worker is ended after this many times its CPU limit

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
INTEGER = re.compile(r"[+-]?\d{1,18}")
STATEMENT = re.compile(
    r"(?:final answer|answer)(?:\s+is)?\s*:?\s*(?:is\b)?\s*|^\s*A\s*:\s*|####\s*",
    re.IGNORECASE | re.MULTILINE,
)
FORMULA = r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?\s*\\?%?"
# What may be an answer in running text: a formula, something in bold, a number.
VALUE = re.compile(rf"{FORMULA}|\*\*([^*\n]+)\*\*|({NUMBER})", re.DOTALL)
LINKED = re.compile(r"\s*(?:,|,?\s*and|,?\s*or)\s*")
SYMBOL = re.compile(r"\s*\\?[A-Za-z]+(?:\(\w\))?\s*")


# --- Extraction ----------------------------------------------------------------------------------


def last_boxed(response: str) -> str | None:
    r"""Content of the last closed `\boxed{}` or `\fbox{}`; None where there is none."""
    return next(iter(_boxes(response, 1)), None)


def answers(response: str, boxed_only: bool = True) -> list[str]:
    r"""What a response may be said to answer, the likeliest first; empty where it answers nothing.

    The last box; then all boxes of the sentence that it ends, for problems with several answers
    ("p and q are \boxed{3} and \boxed{4}"). Without a box and with `boxed_only` false: what stands
    behind the last "answer is" or "####", the last formula, or the last number.
    """
    boxes = _boxes(response, BOXES_TRIED)
    if boxes:
        together = ",".join(reversed(boxes))
        return [boxes[0]] if len(boxes) == 1 else [boxes[0], together]
    return [] if boxed_only else _unboxed(response[-LONGEST_TAIL:])


def _boxes(response: str, most: int) -> list[str]:
    """The last box and those before it in the same paragraph, from right to left."""
    found: list[str] = []
    end = len(response)
    for _ in range(BOXES_TRIED):
        start = max(response.rfind("\\boxed", 0, end), response.rfind("\\fbox", 0, end))
        if start < 0 or len(found) == most:
            break
        content, close = _braced(response, start)
        if found and "\n\n" in response[start:end]:
            break
        if content is not None and (not found or close <= end):
            found.append(content)
        end = start
    return found


def _braced(text: str, start: int) -> tuple[str | None, int]:
    """Content of the box at `start`, and where it ends; None where it does not close in time."""
    match = BOX.match(text, start)
    if not match:
        return None, start
    depth = 1
    for i in range(match.end(), min(len(text), match.end() + LONGEST_ANSWER)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[match.end() : i], i
    return None, start


def _unboxed(tail: str) -> list[str]:
    closing = tail[-LONGEST_STATEMENT:]
    if statements := list(STATEMENT.finditer(closing)):
        rest = closing[statements[-1].end() :].split("\n\n")[0].strip()
        said = re.split(r"\.\s|\.$|\n| I hope", rest)[0].strip(" *.$:")
        if values := _last_values(said if VALUE.search(said) else rest):
            return [said, *values]
        if said:
            return [said]
    return _last_values(tail.rstrip().split("\n\n")[-1])


def _last_values(text: str) -> list[str]:
    """The last value in running text, together with those that `and` or a comma links to it."""
    found = [m for m in VALUE.finditer(text) if not SYMBOL.fullmatch(m[0].strip("$\\()[]"))]
    if not found:
        return []
    first = len(found) - 1
    while first and LINKED.fullmatch(text, found[first - 1].end(), found[first].start()):
        first -= 1
    values = ["".join(filter(None, m.groups())).strip(" *.,:") for m in found[first:]]
    last = values[-1]
    forms = [last] if "=" not in last else [last, last.rpartition("=")[2].strip()]
    return forms if len(values) == 1 else [*forms, ",".join(values)]


# --- Guarded processes ---------------------------------------------------------------------------


class _Worker:
    """One process and the end of the pipe that leads to it."""

    def __init__(self, limits: VerifierLimits) -> None:
        self.connection, theirs = Pipe()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        descriptor = theirs.fileno()
        budget = [str(limits.seconds), str(limits.memory_mb)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vimpo.tasks.verifier_worker", str(descriptor), *budget],
            pass_fds=[descriptor],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self.ready = False
        self.job: int | None = None
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def give(self, index: int, job: Sequence, seconds: float) -> None:
        self.job, self.deadline = index, time.monotonic() + seconds
        self.connection.send_bytes(json.dumps(job).encode())

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class GuardedPool:
    """Runs judgements in worker processes; one that does not end within its limits is False.

    Raises RuntimeError where workers cannot be started at all.
    """

    def __init__(self, limits: VerifierLimits) -> None:
        self.limits = limits
        self.restarts = 0
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        atexit.register(self.close)

    def run(self, jobs: Sequence[Sequence]) -> list[bool]:
        """A verdict a job; a job is a judge of verifier_worker and its arguments, all JSON."""
        verdicts = [False] * len(jobs)
        pending = deque(range(len(jobs)))
        while pending or any(worker.job is not None for worker in self._workers):
            missing = min(self.limits.workers, len(jobs)) - len(self._workers)
            self._workers += [_Worker(self.limits) for _ in range(missing)]
            for worker in self._workers:
                if worker.ready and worker.job is None and pending:
                    index = pending.popleft()
                    try:
                        worker.give(index, jobs[index], WALL_FACTOR * self.limits.seconds)
                    except OSError:  # it died while idle
                        worker.job = None
                        pending.appendleft(index)
                        self._replace(worker)
                        break
            for worker in self._answered():
                self._collect(worker, verdicts)
        return verdicts

    def _answered(self) -> list[_Worker]:
        """Workers with news or out of time; waits until there is one."""
        waited = {w.connection: w for w in self._workers if w.job is not None or not w.ready}
        if not waited:
            return []
        patience = min(w.deadline for w in waited.values()) - time.monotonic()
        news: list[Connection] = wait(list(waited), timeout=max(0.0, patience))
        now = time.monotonic()
        return [w for c, w in waited.items() if c in news or w.deadline <= now]

    def _collect(self, worker: _Worker, verdicts: list[bool]) -> None:
        try:
            message = worker.connection.recv_bytes() if worker.connection.poll() else None
        except (EOFError, OSError):
            message = None
        if message is None:  # out of time, out of memory or crashed: the answer is wrong
            self._replace(worker)
        elif not worker.ready:
            worker.ready, self._failed_starts = True, 0
        else:
            verdicts[worker.job] = json.loads(message) is True
            worker.job = None

    def _replace(self, worker: _Worker) -> None:
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > 3:
                self.close()
                raise RuntimeError(
                    "the verifier's workers do not start; see what "
                    "`python -m vimpo.tasks.verifier_worker 0 1 1024` says"
                )
        worker.end()
        self._workers.remove(worker)
        self.restarts += 1

    def close(self) -> None:
        """End all workers; the next run starts new ones."""
        while self._workers:
            self._workers.pop().end()


# --- Verdicts ------------------------------------------------------------------------------------


def obvious(gold: str, answer: str) -> bool | None:
    """The verdict that needs no mathematics: equal texts, and integers. None: ask a worker."""
    gold, answer = gold.strip(), answer.strip()
    if not gold or not answer:
        return False
    if gold == answer:
        return True
    if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    return False if len(answer) > LONGEST_ANSWER else None


class Verifier:
    """Grades responses against gold answers, many at a time."""

    def __init__(self, limits: VerifierLimits | None = None) -> None:
        self.limits = limits or VerifierLimits()
        self.pool = GuardedPool(self.limits)
        self._verdicts: OrderedDict[tuple, bool] = OrderedDict()

    def grade(
        self, golds: Sequence[str], responses: Sequence[str], boxed_only: bool = True
    ) -> list[bool]:
        """Is each response right? A response is right if one of its :func:`answers` is."""
        found = [answers(response, boxed_only) for response in responses]
        pairs = [(g, a) for g, given in zip(golds, found, strict=True) for a in given]
        right = dict(zip(pairs, self.equivalent(pairs), strict=True))
        return [any(right[g, a] for a in given) for g, given in zip(golds, found, strict=True)]

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Does each answer equal its gold? pairs: (gold, answer), an answer as it stands boxed."""
        jobs: dict[tuple, bool | None] = {}
        for gold, answer in pairs:
            verdict = obvious(gold, answer)
            jobs["is_equivalent", gold, answer] = verdict
        self._ask([job for job, verdict in jobs.items() if verdict is None])
        return [
            self._verdicts[key] if jobs[key] is None else jobs[key]
            for key in (("is_equivalent", *pair) for pair in pairs)
        ]

    def readable(self, golds: Sequence[str]) -> list[bool]:
        """Can each gold answer be judged? Prose, fragments and empty texts cannot."""
        known = {g: True for g in golds if INTEGER.fullmatch(g.strip())}
        known |= {g: False for g in golds if len(g) > LONGEST_ANSWER or not g.strip()}
        jobs = [("is_readable", g) for g in dict.fromkeys(golds) if g not in known]
        self._ask(jobs)
        return [known[g] if g in known else self._verdicts["is_readable", g] for g in golds]

    def stock(self, file: str, metric: str, doc: dict, responses: Sequence[str]) -> list[bool]:
        """The marks of lm-eval's own scoring function in `file`, in a guarded process."""
        return self.pool.run([("stock_score", file, metric, doc, text) for text in responses])

    def _ask(self, jobs: Sequence[tuple]) -> None:
        """Let the pool judge what is not cached, and cache it; the oldest verdicts go."""
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
    """One verifier a process and set of limits: training and evaluation share its cache."""
    return Verifier(limits)
