"""Registered studies: what one will test is committed in git before its first run.

A study with `registered: true` starts only if its file is committed and unchanged. Every run's
manifest then holds the commit and digests of what was registered, by section of the study. A report
calls the study confirmatory if all its runs hold the same commit and the study still says what was
registered; anything else is exploratory.

git shows that a file has not changed since a commit, and not when the commit was made: push it
before the first run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimpo.config import ConfigError, Study, digest, load_study, setting_differences
from vimpo.config.load import read_file
from vimpo.config.study import PLACES
from vimpo.storage.files import write_json

if TYPE_CHECKING:
    import pandas as pd

# What a verdict depends on: questions, thresholds, seeds, and how runs are made and judged. Not
# where and how fast they run.
SECTIONS = (
    *("task", "sizes", "pretrain", "train", "algorithms", "grid", "evaluation", "probes"),
    *("statistics", "claims", "hypotheses"),
)
ITEM = "registered."  # provenance: the record of a run's manifest
# Set while git runs a hook, these would name another repository than that of the file.
ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
OTHERWISE = "or a study without `registered`"


@dataclass(frozen=True)
class Registration:
    """commit: the last that changed the file; sections: their digests, as registered."""

    commit: str
    file: str
    sections: dict[str, str]

    @property
    def digest(self) -> str:
        return digest(self.sections)


def registered_sections(study: dict) -> dict[str, str]:
    """Digest of each registered section of a resolved study."""
    return {name: digest(study[name]) for name in SECTIONS if name in study}


# --- Before a run --------------------------------------------------------------------------------


def register(study: Study, files: Sequence[Path]) -> Registration | None:
    """The registration of a study that was read from `files`; None if it asks for none.

    Raises ConfigError unless one file, committed and unchanged, says all of the study.
    """
    if not study.registered:
        return None
    if len(files) != 1:
        named = ", ".join(f"'{file}'" for file in files) or "no file"
        raise ConfigError(
            f"registered: this study comes from {named}; allowed: one committed file that says all "
            f"of it, {OTHERWISE}"
        )
    file = Path(files[0])
    written = load_study(file)
    there, here = (s.model_dump(mode="json", exclude=PLACES) for s in (written, study))
    if there != here:
        others = "; ".join(setting_differences(there, here, "study")[:3])
        raise ConfigError(
            f"registered: '{file}' is not all of this study ({others}); allowed: one committed "
            f"file, with no options but {' and '.join(sorted(PLACES))}, {OTHERWISE}"
        )
    commit, path = _committed(file)
    return Registration(commit, path, registered_sections(study.model_dump(mode="json")))


def _committed(file: Path) -> tuple[str, str]:
    """The commit that last changed a file, and its path there. Raises ConfigError."""
    file = file.resolve()
    top = _git(file, "rev-parse", "--show-toplevel")
    if not top:
        raise ConfigError(
            f"registered: '{file}' is not in a git checkout; allowed: a committed file, {OTHERWISE}"
        )
    there = _git(file, "rev-parse", "--verify", "--quiet", f"HEAD:./{file.name}")
    commit = _git(file, "log", "-1", "--format=%H", "HEAD", "--", file.name)
    if not there or not commit:
        raise ConfigError(
            f"registered: '{file}' is not committed; allowed: a file committed before the first "
            f"run (`git commit`), {OTHERWISE}"
        )
    if _git(file, "hash-object", "--", file.name) != there:
        raise ConfigError(
            f"registered: '{file}' has changed since it was committed; allowed: the committed file "
            f"(`git diff` shows the change), another commit before the first run, {OTHERWISE}"
        )
    return commit, file.relative_to(Path(top).resolve()).as_posix()


def _git(file: Path, *arguments: str) -> str:
    """What git prints in the folder of a file; empty if it fails.

    Raises ConfigError if there is no git.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    try:
        done = subprocess.run(
            ["git", "--literal-pathspecs", *arguments],
            cwd=file.parent,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(
            f"registered: git cannot be run ({error.strerror}), so nothing shows that '{file}' is "
            f"committed; allowed: a machine with git, {OTHERWISE}"
        ) from None
    return done.stdout.strip() if done.returncode == 0 else ""


# --- For the jobs of a workflow, which read a merged copy of the study -------------------------


def _beside(config: Path) -> Path:
    return config.with_suffix(".registered.json")


def keep(registration: Registration | None, config: Path) -> None:
    """Leave the registration beside a copy of the study, for the jobs that read the copy."""
    if registration:
        write_json(_beside(config), vars(registration))


def registration_of(study: Study, config: Path | None) -> Registration | None:
    """The registration of a study read from `config`: kept beside it, or of the file itself.

    Raises ConfigError, as :func:`register`.
    """
    if study.registered and config is not None and _beside(config).is_file():
        found = Registration(**json.loads(_beside(config).read_text(encoding="utf-8")))
        if found.sections == registered_sections(study.model_dump(mode="json")):
            return found
    return register(study, [config] if config else [])


def registered_note(registration: Registration | None) -> dict:
    """What the manifest of a run says of it; empty without one."""
    if registration is None:
        return {}
    return {"registered": vars(registration) | {"digest": registration.digest}}


# --- After the runs ------------------------------------------------------------------------------


def registered_items(manifest: dict) -> dict[str, str]:
    """The record of one run as items of provenance."""
    record = manifest.get("registered", {})
    sections = {f"section.{name}": value for name, value in record.get("sections", {}).items()}
    named = {name: record[name] for name in ("commit", "file", "digest") if name in record}
    return {f"{ITEM}{name}": value for name, value in (named | sections).items()}


class Why(StrEnum):
    """Why a study is exploratory."""

    NONE = ""
    NOT_REGISTERED = "not_registered"
    BEFORE = "before"  # some runs are older than the registration, or taken over
    SEVERAL = "several"  # runs of several registrations
    CHANGED = "changed"  # the study says something else by now


@dataclass(frozen=True)
class Standing:
    """Confirmatory, if there is no reason against it. changed: sections; recorded: runs."""

    why: Why
    commit: str = ""
    changed: tuple[str, ...] = ()
    recorded: int = 0
    runs: int = 0

    @property
    def confirmatory(self) -> bool:
        return self.why == Why.NONE


def standing(
    study: Study, provenance: pd.DataFrame, runs: int, config: Path | None = None
) -> Standing:
    """Is a study with these runs confirmatory?

    runs: complete ones; config: the file that `study` was read from, whose exact text counts too: a
    later version of the suite resolves a study to more fields.
    """
    if not study.registered:
        return Standing(Why.NOT_REGISTERED)
    items = provenance[provenance["item"].str.startswith(ITEM)]
    commits = items[items["item"] == f"{ITEM}commit"]
    recorded = int(commits["count"].sum())
    commit = str(commits["value"].iloc[0]) if len(commits) else ""
    if recorded < runs or not recorded:
        return Standing(Why.BEFORE, commit, recorded=recorded, runs=runs)
    if len(commits) > 1 or items["item"].duplicated().any():
        return Standing(Why.SEVERAL, commit)
    start = f"{ITEM}section."
    registered = {
        row.item.removeprefix(start): row.value
        for row in items.itertuples()
        if row.item.startswith(start)
    }
    texts: list[Any] = [study.model_dump(mode="json")]
    texts += [read_file(Path(config)) or {}] if config else []
    known = [registered_sections(text) for text in texts]
    if registered in known:
        return Standing(Why.NONE, commit)
    changed = (name for name in SECTIONS if known[0].get(name) != registered.get(name))
    return Standing(Why.CHANGED, commit, tuple(changed))
