"""What a run records about its machine and time: versions, commit, hardware, memory, seconds."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "vimpo-bench")


def git_commit() -> str:
    """Commit of the source, with `-dirty` if tracked files differ; `unknown` outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device: str) -> dict[str, object]:
    import psutil
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "threads": torch.get_num_threads(),
    }


def peak_bytes(device: str) -> int:
    """Peak memory of the device if there is one, else of this process's resident set.

    On Linux, getrusage's figure is inherited through fork and exec, so a small process started by a
    large one would report its parent's; VmHWM is this program's own.
    """
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = (
        re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if status.exists()
        else None
    )
    if found:
        return int(found[1]) * 2**10

    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    found = {name: version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version()} | found


def seconds_since_process_start() -> float:
    import psutil

    return time.time() - psutil.Process().create_time()


class Stopwatch:
    """Seconds by phase; time in an inner phase is not counted in the outer one."""

    def __init__(self, device: str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._stack: list[list] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._stack.append([self._now(), 0.0])
        try:
            yield
        finally:
            start, inner = self._stack.pop()
            whole = self._now() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + whole - inner
            if self._stack:
                self._stack[-1][1] += whole

    def _now(self) -> float:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()
