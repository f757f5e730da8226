"""What a valid study needs besides: its files on this machine, and a results folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vimpo.config.load import load_study
from vimpo.config.models import NO_RESULT
from vimpo.config.own_file import read_own_file
from vimpo.config.study import Study
from vimpo.config.training import PLACEMENT
from vimpo.config.types import ConfigError, local_path
from vimpo.tasks.sources import check_sources


def check_before_running(study: Study) -> None:
    """What a valid study needs on this machine. Raises ConfigError, writes nothing."""
    for size in study.used_sizes():
        if path := study.sizes[size].path:
            check_model_path(path, f"sizes.{size}.path")
    for objective in study.own_algorithms().values():
        read_own_file(objective.objective, objective.sha256)
    check_sources(study.task)
    for path in study.sweeps:
        if not local_path(path, "sweeps")[1]:
            raise ConfigError(f"sweeps: '{path}' is not a file; allowed: a table made by `sweep`")
    if study.continues is not None:
        check_continued(study)
    check_results_folder(study)


def check_continued(study: Study) -> Path:
    """Folder of the published study that this one continues.

    Raises ConfigError where it is not one, or has no rows of single runs.
    """
    folder, _ = local_path(study.continues, "continues")
    for name in ("config.yaml", "manifests.jsonl", "tables/provenance.csv", "cells"):
        if not (folder / name).exists():
            raise ConfigError(
                f"continues: '{folder}' has no {name}; allowed: a folder with rows of single runs, "
                "as `publish` writes it, such as results/published/study"
            )
    return folder


def check_model_path(path: str, field: str = "path") -> None:
    """Raise ConfigError where `path` is written as a local folder and is none of a model.

    A hub name (`owner/name`) cannot be checked without the network; loading it says what is wrong.
    """
    local, there = local_path(path, field)
    looks_local = there or path.startswith((".", "/", "~"))
    if looks_local and not (local / "config.json").is_file():
        raise ConfigError(
            f"{field}: '{path}' holds no config.json; allowed: a folder written by "
            "save_pretrained, or a hub name"
        )


# Changing one of these makes every cell of a folder incomparable with what it already holds.
FOUNDATION = ("task", "sizes", "pretrain", "train", "runtime")


def check_results_folder(study: Study) -> None:
    """Refuse a results folder that another study made. Raises ConfigError, writes nothing.

    New cells, algorithms and evaluation settings may join a folder; a change of what all of its
    cells share may not, because the old cells would silently be replaced.
    """
    recorded_path = study.folder / "config.yaml"
    if not recorded_path.is_file():
        return
    recorded = load_study(recorded_path)
    used = set(recorded.used_sizes()) & set(study.used_sizes())
    differences = []
    for section in FOUNDATION:
        old, new = getattr(recorded, section), getattr(study, section)
        if section == "sizes":
            old = {k: v.model_dump(exclude=NO_RESULT) for k, v in old.items() if k in used}
            new = {k: v.model_dump(exclude=NO_RESULT) for k, v in new.items() if k in used}
        else:
            left_out = PLACEMENT if section == "runtime" else None
            old, new = (s.model_dump(mode="json", exclude=left_out) for s in (old, new))
        differences += setting_differences(old, new, section)
    if differences:
        raise ConfigError(
            f"results: '{study.folder}' was made by another configuration "
            f"({'; '.join(differences)}); allowed: the recorded values, another `study` name, or a "
            "folder that you removed"
        )


def setting_differences(old: Any, new: Any, place: str) -> list[str]:
    """A line for each value that differs, by its place in nested mappings."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in setting_differences(old.get(key), new.get(key), f"{place}.{key}")
        ]
    return [] if old == new else [f"{place}: {old} there, {new} here"]
