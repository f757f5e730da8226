"""Shared fixtures: the tiny study, and its base policy, made once per test run."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of each worker and of all processes that tests start
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for workflows in other folders

import fcntl
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from tiny import TINY, merged

from vimpo import forkserver
from vimpo.config import Cell, Study, load_study

if TYPE_CHECKING:
    from vimpo.training.trainer import Trainer


def pytest_configure(config: pytest.Config) -> None:
    """One fork server for the jobs that all workers start."""
    os.fsync = lambda descriptor: None  # no test's files need to survive a power cut
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        forkserver.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for the workflow comes first, and the other workers go on meanwhile."""
    items.sort(key=lambda item: "tiny_workflow" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives a read-only folder, filled once per test run by the worker that first asks for it."""
    root = tmp_path_factory.getbasetemp()
    root = (root if worker_id == "master" else root.parent) / "shared"
    root.mkdir(exist_ok=True)

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        path, filled = root / name, root / f"{name}.filled"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                fill(path)
                filled.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_base(shared) -> Path:
    """Folder of a base policy that answers about one problem in seven; read only."""

    def study(results: Path) -> Study:
        return load_study(TINY | {"results": str(results)})

    def pretrain(folder: Path) -> None:
        from vimpo.training.runs import pretrain_base

        pretrain_base(study(folder), "tiny", quiet=True)

    return study(shared("tiny_base", pretrain)).base_folder("tiny")


@pytest.fixture
def tiny_study(tiny_base, tmp_path) -> Callable[..., Study]:
    """Makes the tiny study with changed sections, in a fresh folder that holds its base."""

    def make(folder: str = "results", **changes) -> Study:
        study = load_study(merged(TINY, changes) | {"results": str(tmp_path / folder)})
        if not study.base_folder("tiny").exists():
            shutil.copytree(tiny_base, study.base_folder("tiny"))
        return study

    return make


@pytest.fixture
def unprinted(monkeypatch) -> None:
    """Figures are built and laid out as ever, but their files stay empty: half of the time."""
    from matplotlib.backends import backend_svg

    monkeypatch.setattr("vimpo.report.figures.png_of", lambda canvas: b"")
    monkeypatch.setattr(backend_svg.FigureCanvasSVG, "print_svg", lambda *a, **k: None)


@pytest.fixture
def make_trainer(tiny_study) -> Callable[..., Trainer]:
    """Makes a trainer of the tiny study; what is not named is a setting of `train`."""
    from vimpo.training.trainer import Trainer

    def make(
        algorithm="vimpo", *, noise="rollout-0.25", objective=None, size=None, runtime=None, **train
    ):
        changes = {"algorithms": {algorithm: objective}} if objective else {}
        changes |= {"sizes": {"tiny": size}} if size else {}
        study = tiny_study(train=train, runtime=runtime or {}, **changes)
        config = study.cell_config(Cell(algorithm, "tiny", noise, 1))
        return Trainer(config, study.base_folder("tiny") / "model")

    return make
