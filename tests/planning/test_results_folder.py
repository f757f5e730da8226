"""A results folder belongs to one configuration; what may join it, and what may not."""

from __future__ import annotations

import os

import pytest

from vimpo.config import LADDER, ConfigError, Study, dump_yaml, load_study
from vimpo.planning.preflight import check_before_running, check_results_folder


@pytest.fixture
def recorded(tmp_path):
    """A results folder as a study leaves it, and a factory of studies that point at it."""

    def make(**changes):
        return load_study({"results": str(tmp_path)} | changes)

    study = make()
    study.folder.mkdir()
    (study.folder / "config.yaml").write_text(dump_yaml(study))
    return make


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"train": {"steps": 7}}, f"train.steps: {Study().train.steps} there, 7 here"),
        ({"task": {"largest": 19}}, f"task.largest: {Study().task.largest} there, 19 here"),
        ({"pretrain": {"seed": 3}}, "pretrain.seed: 0 there, 3 here"),
        ({"runtime": {"threads": 2}}, "runtime.threads: 1 there, 2 here"),
        (
            {"sizes": {"xs": {"hidden": 32}}},
            f"sizes.xs.hidden: {LADDER['xs'].hidden} there, 32 here",
        ),
    ],
)
def test_a_results_folder_of_another_configuration_is_refused_and_untouched(
    recorded, change, difference
):
    study = recorded(**change)
    before = contents(study.folder)
    assert before
    with pytest.raises(ConfigError) as caught:
        check_results_folder(study)
    message = str(caught.value)
    assert message.startswith(f"results: '{study.folder}' was made by another configuration")
    assert difference in message
    assert "allowed:" in message
    assert contents(study.folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"grid": {"seeds": [3, 4, 5]}},
        {"algorithms": {"new": {"objective": "grpo"}}},
        {"evaluation": {"samples": 9}},
        {"sizes": {"xl": {"layers": 1}}},
        {"study": "another", "train": {"steps": 7}},
    ],
    ids=lambda change: "-".join(change) or "nothing",
)
def test_what_may_join_a_results_folder(recorded, change):
    check_results_folder(recorded(**change))


@pytest.mark.parametrize("below", ["", "mine", "mine/deeper"])
def test_results_that_cannot_be_written_are_one_error(tmp_path, monkeypatch, below):
    def refused(results, message):
        study = load_study({"results": str(results / below) if below else str(results)})
        with pytest.raises(ConfigError, match=rf"^results: '.*' {message}; allowed: a folder that"):
            check_before_running(study)

    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not a folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    refused(tmp_path / "dangling", "is a link to nothing")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    refused(tmp_path, "is a folder that you may not write to")
