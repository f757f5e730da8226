"""Snakemake as most tests start it: forked from a process that has imported it.

Its imports take longer than planning a small study. What it does is the same as that of
`python -m snakemake`, which the tests of whole runs and of signals start.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[1]
LONGEST = 600  # seconds
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["snakemake.cli", "vimpo.planning.preflight", "vimpo.planning.progress", "vimpo.planning.slurm"]
)


def snakemake(
    *words: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run it on the workflow of this checkout; `environment` is added to this process's own."""
    arguments = ["--snakefile", str(ROOT / "Snakefile"), *map(str, words)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        work = (arguments, str(cwd), dict(variables), [str(path) for path in said])
        process = CONTEXT.Process(target=_run, args=work)
        process.start()
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments} took more than {LONGEST} s")
        return CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in said))


def _run(arguments: list[str], cwd: str, variables: dict[str, str], said: list[str]) -> None:
    """In the new process."""
    for descriptor, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    from snakemake.cli import main

    main(arguments)
