"""Worker processes with limits of time and memory per judgement.

A judgement that exceeds its limits is False; it costs a new worker and nothing else.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Pipe, wait
from pathlib import Path

from vimpo.config.task import VerifierLimits

STARTUP_SECONDS = 120.0
WALL_FACTOR = 4.0  # a stuck worker is ended after this many times its CPU limit


class _Worker:
    """One process, and our end of the pipe to it."""

    def __init__(self, limits: VerifierLimits, judges: str | None) -> None:
        self.connection, theirs = Pipe()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        descriptor = theirs.fileno()
        budget = [str(limits.seconds), str(limits.memory_mb), *([judges] if judges else [])]
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
    """Runs judgements in worker processes; one that exceeds its limits is False.

    judges: a module whose JUDGES, functions by name, the workers know; None: the verifier's own.
    Raises RuntimeError if workers cannot be started at all.
    """

    def __init__(self, limits: VerifierLimits, judges: str | None = None) -> None:
        self.limits, self.judges = limits, judges
        self.restarts = 0
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        atexit.register(self.close)

    def run(self, jobs: Sequence[Sequence]) -> list[bool]:
        """One verdict per job; a job is a judge of verifier_worker and its arguments, as JSON."""
        verdicts = [False] * len(jobs)
        pending = deque(range(len(jobs)))
        while pending or any(worker.job is not None for worker in self._workers):
            missing = min(self.limits.workers, len(jobs)) - len(self._workers)
            self._workers += [_Worker(self.limits, self.judges) for _ in range(missing)]
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
        """Workers that have answered or run out of time; waits until there is one."""
        waited = {w.connection: w for w in self._workers if w.job is not None or not w.ready}
        if not waited:
            return []
        patience = min(w.deadline for w in waited.values()) - time.monotonic()
        news = wait(list(waited), timeout=max(0.0, patience))
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
        elif worker.job is not None:
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
