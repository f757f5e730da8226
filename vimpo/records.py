"""What a job leaves behind: atomic files, tables of rows, and the manifest with its provenance."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "vimpo-bench")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, sync, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def write_rows(path: Path, rows: list[Mapping[str, object]], columns: list[str]) -> None:
    """CSV with the first row's columns (`columns` where there is none).

    Floats are written by repr, so that equal numbers give equal bytes.
    """
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(rows[0]) if rows else columns, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """sha256 of each named file, and of each file below each named folder."""
    files = []
    for part in parts:
        path = folder / part
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {str(p.relative_to(folder)): sha256(p) for p in files}


def git_commit() -> str:
    """Commit of the source, with `-dirty` where tracked files differ; `unknown` outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
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
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb(device: str) -> float:
    """Peak of the device's memory where there is one, else of this process's resident set."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions() -> dict[str, str]:
    found = {name: version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version()} | found


def seconds_since_process_start() -> float:
    import psutil

    return time.time() - psutil.Process().create_time()


class Stopwatch:
    """Seconds by phase, exclusive: time in an inner phase is not counted in the outer one."""

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
