"""Registered studies: committed before they run, confirmatory while they say the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fake_results import small_study, write_figures, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import Cell, ConfigError, load_study
from vimpo.config.training import Runtime
from vimpo.report.page import write_report
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.registration import (
    Why,
    keep,
    register,
    registered_note,
    registered_sections,
    registration_of,
    standing,
)
from vimpo.storage.tables import read_table

GRID = {"sizes": ["xs"], "noise": [0], "seeds": [1, 2]}
STUDY = {"study": "fake", "registered": True, "statistics": {"resamples": 200}, "grid": GRID}


def git(folder, *arguments):
    """Without the user's configuration, which might sign commits or start hooks."""
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *named, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder, file="study.yaml"):
    git(folder, "add", file)
    git(folder, "commit", "-q", "-m", "register", "--no-verify")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path):
    """A throw-away git checkout with a study that is committed, then other commits."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | {"results": str(tmp_path / "r")}))
    first = commit(folder)
    (folder / "other.txt").write_text("later")
    commit(folder, "other.txt")
    return folder, first


def read(file):
    return load_study(file)


def test_the_commit_is_the_last_that_changed_the_file(checkout):
    folder, first = checkout
    file = folder / "study.yaml"
    found = register(read(file), [file])
    assert (found.commit, found.file) == (first, "study.yaml")
    assert {"grid", "claims", "statistics", "evaluation"} <= set(found.sections)
    assert registered_note(found)["registered"]["digest"] == found.digest
    file.write_text(file.read_text() + "# a word more\n")
    second = commit(folder)
    assert register(read(file), [file]).commit == second != first
    assert register(read(file), [file]).digest == found.digest


def test_a_study_that_is_not_registered_needs_no_git(tmp_path):
    assert register(load_study(), []) is None
    assert registration_of(load_study(), None) is None
    assert registered_note(None) == {}


def test_a_file_in_a_folder_below_and_through_a_link_is_found(checkout, tmp_path):
    folder, _ = checkout
    below = folder / "deep er" / "*.yaml"
    below.parent.mkdir()
    below.write_text((folder / "study.yaml").read_text())
    expected = commit(folder, ".")
    (tmp_path / "link.yaml").symlink_to(below)
    found = register(read(below), [tmp_path / "link.yaml"])
    assert (found.commit, found.file) == (expected, "deep er/*.yaml")


def edit(file, old="200", new="300"):
    file.write_text(file.read_text().replace(old, new))


def never_committed(folder):
    shutil.copy(folder / "study.yaml", folder / "new.yaml")
    return folder / "new.yaml"


def staged(folder):
    git(folder, "add", never_committed(folder))
    return folder / "new.yaml"


def changed(folder):
    edit(folder / "study.yaml")
    return folder / "study.yaml"


def changed_and_staged(folder):
    changed(folder)
    git(folder, "add", "study.yaml")
    return folder / "study.yaml"


def changed_and_hidden_from_status(folder):
    git(folder, "update-index", "--assume-unchanged", "study.yaml")
    return changed(folder)


def only_a_comment(folder):
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text() + "# later\n")
    return folder / "study.yaml"


def elsewhere(folder):
    (folder.parent / "plain").mkdir()
    return Path(shutil.copy(folder / "study.yaml", folder.parent / "plain"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (never_committed, "new.yaml' is not committed; allowed: a file committed before the first"),
        (staged, "new.yaml' is not committed"),
        (changed, "study.yaml' has changed since it was committed; allowed: the committed file"),
        (changed_and_staged, "study.yaml' has changed"),
        (changed_and_hidden_from_status, "study.yaml' has changed"),
        (only_a_comment, "study.yaml' has changed"),
        (elsewhere, "study.yaml' is not in a git checkout; allowed: a committed file"),
    ],
)
@pytest.mark.parametrize("command", ["check", "train", "pretrain"])
def test_what_is_not_committed_is_one_error_before_anything_runs(
    checkout, capsys, make, message, command
):
    file = make(checkout[0])
    size = ["--size", "xs"] * (command != "check")
    cell = ["--algorithm", "vimpo"] * (command == "train")
    assert main([command, *size, *cell, f"--config={file}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: registered: '")
    assert message in line
    assert "study without `registered`" in line
    assert not Path(read(file).results).exists()


def test_without_git_it_is_refused(checkout, monkeypatch):
    file = checkout[0] / "study.yaml"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigError, match=r"^registered: git cannot be run .*'.*study.yaml' is com"
    ):
        register(read(file), [file])


def test_a_hook_of_another_repository_does_not_confuse_it(checkout, tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", "another")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another/.git"))
    file = checkout[0] / "study.yaml"
    assert register(read(file), [file]).commit == checkout[1]


def test_several_files_and_options_that_change_a_study_are_refused(checkout):
    file = checkout[0] / "study.yaml"
    study = read(file)
    with pytest.raises(
        ConfigError, match=r"^registered: this study comes from '.*', '.*'; allowed"
    ):
        register(study, [file, file])
    with pytest.raises(ConfigError, match=r"^registered: this study comes from no file; allowed"):
        register(study, [])
    other = study.model_copy(update={"train": study.train.model_copy(update={"steps": 7})})
    message = (
        r"^registered: '.*study.yaml' is not all of this study \(study\.train\.steps: 32 there, 7"
    )
    with pytest.raises(ConfigError, match=message):
        register(other, [file])


def test_a_registered_study_may_lie_elsewhere_and_continue_a_published_part(checkout, tmp_path):
    file = checkout[0] / "study.yaml"
    places = {"results": str(tmp_path / "there"), "continues": str(tmp_path)}
    moved = read(file).model_copy(update=places)
    assert register(moved, [file]) == register(read(file), [file])
    with pytest.raises(ConfigError, match=r"study\.runtime\.threads: 1 there, 2"):
        register(moved.model_copy(update={"runtime": Runtime(threads=2)}), [file])


def test_jobs_read_what_was_found_beside_their_copy_of_the_study(checkout, tmp_path):
    file, copy = checkout[0] / "study.yaml", tmp_path / "copy.yaml"
    study = read(file)
    shutil.copy(file, copy)
    with pytest.raises(ConfigError, match="not in a git checkout"):
        registration_of(study, copy)
    found = register(study, [file])
    keep(found, copy)
    assert registration_of(study, copy) == found
    edit(copy)
    with pytest.raises(ConfigError, match="not in a git checkout"):
        registration_of(read(copy), copy)
    keep(None, tmp_path / "none.yaml")
    assert len(list(tmp_path.glob("*.registered.json"))) == 1


# --- Standing ------------------------------------------------------------------------------------


def provenance(*records):
    rows = []
    for registration, count in records:
        note = registered_note(registration)["registered"]
        items = {"commit": note["commit"], "digest": note["digest"]}
        items |= {f"section.{k}": v for k, v in note["sections"].items()}
        rows += [{"item": f"registered.{k}", "value": v, "count": count} for k, v in items.items()]
    return pd.DataFrame(rows, columns=["item", "value", "count"]).drop_duplicates(["item", "value"])


LATER = {
    "a threshold": ({"claims": {"value_accuracy": 0.5}}, "claims"),
    "a seed": ({"grid": GRID | {"seeds": [1, 2, 3]}}, "grid"),
    "a seed less": ({"grid": GRID | {"seeds": [1]}}, "grid"),
    "a confidence": ({"statistics": {"confidence": 0.9, "resamples": 200}}, "statistics"),
    "a hypothesis": (
        {
            "hypotheses": [
                {
                    "id": "h1",
                    "question": "Is it?",
                    "measure": "accuracy",
                    "contrast": {"algorithm": "vimpo", "minus": "grpo"},
                    "side": "above",
                    "threshold": 0,
                }
            ]
        },
        "hypotheses",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_what_is_changed_afterwards_is_exploratory(checkout, case):
    changes, section = LATER[case]
    file = checkout[0] / "study.yaml"
    found = register(read(file), [file])
    tables = provenance((found, 24))
    assert standing(read(file), tables, 24).confirmatory
    assert standing(read(file), tables, 24).commit == checkout[1]
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    later = standing(read(file), tables, 24)
    assert (later.why, later.changed, later.commit) == (Why.CHANGED, (section,), checkout[1])


def test_runs_of_no_or_of_another_registration_are_exploratory(checkout):
    folder, _ = checkout
    file = folder / "study.yaml"
    study = read(file)
    first = register(study, [file])
    assert standing(study, provenance((first, 23)), 24).why == Why.BEFORE
    assert standing(study, provenance(), 24).why == Why.BEFORE
    assert standing(study, provenance(), 0).why == Why.BEFORE
    only_a_comment(folder)
    commit(folder)
    both = provenance((first, 12), (register(study, [file]), 12))
    assert standing(study, both, 24).why == Why.SEVERAL
    plain = study.model_copy(update={"registered": False})
    assert standing(plain, provenance((first, 24)), 24).why == Why.NOT_REGISTERED


def test_places_and_machines_are_not_registered():
    study = load_study()
    moved = {"results": "elsewhere", "runtime": {"threads": 2}, "cluster": {"partition": "a"}}
    same = load_study(moved | {"registered": True})
    first, second = (registered_sections(s.model_dump(mode="json")) for s in (study, same))
    assert first == second


# --- Reports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of a registered study, its tables and figures, and its file."""
    folder = tmp_path_factory.mktemp("registered")
    git(folder, "init", "-q")
    study = small_study(folder / "results", registered=True, grid=GRID)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"results": study.results}))
    commit(folder)
    registration = register(study, [file])
    write_results(study)
    for cell in study.cells():
        note_in_manifest(study, cell, registration)
    aggregate(study, study.folder / "tables")
    write_figures(study.folder / "figures")
    return study, file, registration


def note_in_manifest(study, cell, registration):
    run = study.run_folder(cell)
    manifest = json.loads((run / "manifest.json").read_text()) | registered_note(registration)
    (run / "manifest.json").write_text(json.dumps(manifest))
    seal(run / SUMS, [path.name for path in run.iterdir() if path.name != SUMS])


def reported(study, file, folder):
    figures = study.folder / "figures"
    write_report(study, study.folder / "tables", figures, folder / "report.html", config=file)
    return (folder / "report.md").read_text()


def test_a_report_says_confirmatory_with_its_commit_once_near_the_top(finished, tmp_path):
    study, file, registration = finished
    items = read_table(study.folder / "tables", "provenance").set_index("item")
    assert items.loc["registered.commit", "value"] == registration.commit
    assert items.loc["registered.commit", "count"] == len(study.cells())
    text = reported(study, file, tmp_path)
    line = f"Confirmatory, registered in {registration.commit}."
    assert line in text.splitlines()[:10]
    assert "xploratory" not in text


def test_a_threshold_that_is_changed_afterwards_makes_a_report_exploratory(finished, tmp_path):
    study, _, registration = finished
    claims = study.claims.model_copy(update={"value_accuracy": 0.01})
    changed = study.model_copy(update={"claims": claims, "results": str(tmp_path)})
    shutil.copytree(study.folder, changed.folder)
    aggregate(changed, changed.folder / "tables")
    text = reported(changed, None, tmp_path)
    line = (
        f"Exploratory: since it was registered in commit {registration.commit}, claims has changed."
    )
    assert line in text.splitlines()[:10]
    assert "onfirmatory" not in text


def test_a_study_without_registration_is_called_exploratory_once(finished, tmp_path):
    study, _, _ = finished
    plain = study.model_copy(update={"registered": False})
    text = reported(plain, None, tmp_path)
    line = "Exploratory: what it tests was not registered before its runs."
    assert text.count("xploratory") == 1
    assert line in text.splitlines()[:10]


def test_a_trained_run_holds_commit_and_digest(tiny_study, tmp_path):
    git(tmp_path, "init", "-q")
    study = tiny_study(registered=True, train={"steps": 1})
    file = tmp_path / "study.json"
    file.write_text(study.model_dump_json())
    made = commit(tmp_path, "study.json")
    cell = Cell("grpo", "tiny", "rollout-0.25", 1)
    arguments = [f"--{name}={value}" for name, value in vars(cell).items()]
    assert main(["train", *arguments, "--quiet", f"--config={file}"]) == 0
    manifest = json.loads((study.run_folder(cell) / "manifest.json").read_text())
    record = manifest["registered"]
    assert (record["commit"], record["file"]) == (made, "study.json")
    assert record["digest"] == register(study, [file]).digest
    assert "registered" not in json.loads((study.base_folder("tiny") / "manifest.json").read_text())
