"""What a running workflow prints: cells and steps done, time left, what failed.

Snakemake says five to ten lines per job. This formatter takes the place of the one on its terminal
handler, and prints one line per finished job; Snakemake's own log file stays as it is. It reads the
events of Snakemake's log records by name and never imports Snakemake.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

CELL_RULES = ("train", "evaluate", "probe")
CELL_WILDCARDS = ("algorithm", "size", "noise", "seed")
# What the line of a finished job replaces, and the header with host, user and paths.
REPLACED = {
    "workflow_started",
    "job_info",
    "group_info",
    "job_started",
    "job_finished",
    "resources_info",
    "shellcmd",
}


@dataclass(frozen=True)
class Job:
    rule: str
    name: str
    started: float


class Progress(logging.Formatter):
    """Formatter and filter of one handler. cells: of the study; clock: seconds, monotonic.

    Time left is the work left over the pace so far. The work left counts each remaining job as the
    mean of the finished ones of its rule (of all rules while its own has none); the pace is seconds
    of work done per second, so that jobs side by side count as such.
    """

    def __init__(
        self,
        default: logging.Formatter | None,
        cells: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._default = default or logging.Formatter()
        self._cells = cells
        self._clock = clock
        self._begun = clock()
        self._planned: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = {}
        self._running: dict[int, Job] = {}
        self._ended: list[str] = []
        self._failed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Take note of a record. False if it is not printed."""
        event = _event(record)
        facts = vars(record)
        if event == "run_info":
            jobs = {rule: n for rule, n in facts["stats"].items() if rule != "total"}
            self._planned = Counter(jobs)
            self._begun = self._clock()
        elif event == "job_info":
            name = _name(facts["rule_name"], facts["wildcards"] or {})
            self._running[facts["jobid"]] = Job(facts["rule_name"], name, self._clock())
        elif event == "job_finished":
            if job := self._running.pop(facts["job_id"], None):
                self._failed.discard(job.name)  # it was tried again
                self._seconds.setdefault(job.rule, []).append(self._clock() - job.started)
                self._ended.append(f"{job.name} ({_duration(self._clock() - job.started)})")
        elif event == "job_error" and (job := self._running.pop(facts["jobid"], None)):
            self._failed.add(job.name)
        # The scheduler announces what it is about to choose and start.
        announced = not event and record.module == "job_scheduler"
        return not (event in REPLACED or (announced and record.levelno <= logging.INFO))

    def format(self, record: logging.LogRecord) -> str:
        if _event(record) != "progress":
            return self._default.format(record)
        done, total = vars(record)["done"], vars(record)["total"]
        ended, self._ended = ", ".join(self._ended), []
        failed = f", {len(self._failed)} FAILED" if self._failed else ""
        # A run of `figures` or `reproduce` works on no cell.
        planned = any(self._planned[rule] for rule in CELL_RULES)
        cells = f"{self.cells_done()} of {self._cells} cells, " if planned else ""
        left = self._time_left(total - done)
        return f"[{time.strftime('%H:%M:%S')}] {cells}{done} of {total} jobs{failed}{left}: {ended}"

    def cells_done(self) -> int:
        """Cells with none of their jobs left, those of earlier runs included."""
        left = [self._planned[r] - len(self._seconds.get(r, ())) for r in CELL_RULES]
        return self._cells - max(*left, 0)

    def _time_left(self, jobs: int) -> str:
        known = [s for seconds in self._seconds.values() for s in seconds]
        if not jobs or not known or not sum(known):
            return ""
        pace = sum(known) / max(self._clock() - self._begun, 1e-9)
        work = 0.0
        for rule, planned in self._planned.items():
            seconds = self._seconds.get(rule, [])
            work += max(0, planned - len(seconds)) * _mean(seconds or known)
        return f", about {_duration(work / pace)} left"


def _event(record: logging.LogRecord) -> str:
    """The event's name in Snakemake's interface for loggers; empty for plain messages."""
    event = getattr(record, "event", None)
    return getattr(event, "value", event) or ""


def _name(rule: str, wildcards: dict[str, str]) -> str:
    """`train vimpo/xs/noise-0/seed-1`, `pretrain xs`, `report`."""
    if all(key in wildcards for key in CELL_WILDCARDS):
        algorithm, size, noise, seed = (wildcards[key] for key in CELL_WILDCARDS)
        return f"{rule} {algorithm}/{size}/noise-{noise}/seed-{seed}"
    return " ".join([rule, *map(str, wildcards.values())])


def _mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def _duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
