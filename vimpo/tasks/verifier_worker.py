"""A worker of :class:`vimpo.tasks.pool.GuardedPool`: judges one answer after another.

Started as `python -m vimpo.tasks.verifier_worker DESCRIPTOR SECONDS MEMORY_MB [JUDGES]`, in a fresh
interpreter that shares nothing with its parent. Requests and verdicts are JSON, so nothing in an
answer is ever unpickled or evaluated. When its time is up the kernel ends the process (SIGPROF),
even if it is stuck in C code; beyond its memory limit an allocation fails.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path


def main(descriptor: int, seconds: float, memory_mb: int, module: str = __name__) -> None:
    """Answer requests `[judge, arguments...]` with true or false until the parent hangs up.

    module: has JUDGES, functions by name; default: the verifier's own.
    """
    connection = Connection(descriptor)
    judges = own_judges() if module == __name__ else importlib.import_module(module).JUDGES
    _limit_memory(memory_mb)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    connection.send_bytes(b"ready")
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        # CPU time of this process: the verdict does not depend on how busy the machine is.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            name, *arguments = json.loads(request)
            verdict = bool(judges[name](*arguments))
        except Exception:
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps(verdict).encode())


def own_judges() -> dict[str, Callable[..., bool]]:
    """What the verifier asks for.

    Only here: to import `equality` takes away sympy's own reading of texts, which others may need.
    """
    from vimpo.tasks import equality
    from vimpo.tasks.answers import LONGEST_ANSWER
    from vimpo.tasks.extraction import extracted

    def is_found(gold: str, rule: dict[str, str], response: str, evaluated_only: bool) -> bool:
        answer = extracted(rule, response)
        if answer is None or len(answer) > LONGEST_ANSWER:
            return False
        worked_out = not evaluated_only or equality.is_evaluated(answer)
        return worked_out and equality.is_equivalent(gold, answer)

    return {
        "is_equivalent": equality.is_equivalent,
        "is_found": is_found,
        "is_evaluated": equality.is_evaluated,
        "is_readable": equality.is_readable,
        "stock_score": stock_score,
    }


def stock_score(file: str, metric: str, doc: dict, response: str) -> bool:
    """How lm-eval's own `process_results` in `file` scores one response.

    It runs here because its time limits need the main thread (SIGALRM) and it parses model output.
    """
    return bool(_stock_module(file).process_results(doc, [response])[metric])


@functools.cache
def _stock_module(file: str):
    """The module, loaded without lm-eval's package, which takes seconds to import."""
    specification = importlib.util.spec_from_file_location(f"stock_{Path(file).parent.name}", file)
    if specification is None or specification.loader is None:
        raise ImportError(file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _limit_memory(megabytes: int) -> None:
    """Limit address space to what is in use now plus `megabytes` MiB, if the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
