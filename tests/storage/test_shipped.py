"""Base policies that come with the suite."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from vimpo.config import ConfigError, load_study
from vimpo.planning.preflight import check_before_running
from vimpo.storage.integrity import SUMS, read_sums
from vimpo.storage.shipped import SHIPPED, ship, take_shipped
from vimpo.training import pretrain
from vimpo.training.runs import is_complete, pretrain_base

ROOT = Path(__file__).parents[2]
QUICK = load_study(ROOT / "workflow/config/quick.yaml")


def shipping(study):
    return study.model_copy(
        update={"pretrain": study.pretrain.model_copy(update={"shipped": True})}
    )


def test_what_is_shipped_is_taken_file_by_file(tiny_study, tmp_path):
    made = tiny_study("made")
    ship(made, "tiny", tmp_path / "bases")
    study = shipping(made).model_copy(update={"results": str(tmp_path / "taking")})
    folder = study.base_folder("tiny")
    assert take_shipped(study, "tiny", folder, tmp_path / "bases")
    assert is_complete(folder, study.base_digest("tiny"))
    original = made.base_folder("tiny")
    for name in [*read_sums(original / SUMS), SUMS]:
        assert (folder / name).read_bytes() == (original / name).read_bytes()


def test_nothing_is_taken_unless_a_study_asks(tiny_study, tmp_path):
    made = tiny_study("made")
    ship(made, "tiny", tmp_path / "bases")
    study = made.model_copy(update={"results": str(tmp_path / "making")})
    assert not take_shipped(study, "tiny", study.base_folder("tiny"), tmp_path / "bases")
    assert not study.base_folder("tiny").exists()


def test_where_a_base_policy_comes_from_is_part_of_no_digest(tiny_study):
    study = tiny_study()
    (cell, *_) = study.cells()
    assert shipping(study).base_digest("tiny") == study.base_digest("tiny")
    assert shipping(study).cell_digest(cell) == study.cell_digest(cell)


def test_another_seed_is_another_base_policy(tiny_study):
    study = tiny_study()
    other = tiny_study(sizes={"tiny": {"pretrain_seed": 1}})
    assert other.base_digest("tiny") != study.base_digest("tiny")


def test_a_base_policy_that_does_not_come_with_the_suite_is_named(tiny_study):
    with pytest.raises(ConfigError, match=r"pretrain.shipped: true, but no .* like sizes.tiny"):
        check_before_running(shipping(tiny_study()))


def test_an_unfinished_base_policy_is_not_shipped(tiny_study, tmp_path):
    study = tiny_study()
    (study.base_folder("tiny") / SUMS).unlink()
    with pytest.raises(ConfigError, match="holds no finished base policy; allowed: after"):
        ship(study, "tiny", tmp_path / "bases")


def test_the_quick_study_starts_from_shipped_ones_and_trains_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "Pretrainer", None)
    study = QUICK.model_copy(update={"results": str(tmp_path)})
    base = pretrain_base(study, "xs", quiet=True)
    assert read_sums(base / SUMS)["model/model.safetensors"]
    critics = {folder for cell in study.cells() if (folder := study.critic_folder(cell))}
    assert critics
    for folder in critics:
        assert take_shipped(study, "xs", folder)
        assert read_sums(folder / SUMS)["model/critic.safetensors"]


@pytest.mark.slow  # five minutes
def test_the_rule_makes_one_as_good_as_the_shipped_one(tmp_path):
    """The mean loss over the last 100 steps; other processors add up in other orders."""
    study = QUICK.model_copy(
        update={
            "results": str(tmp_path),
            "pretrain": QUICK.pretrain.model_copy(update={"shipped": False}),
        }
    )
    made = pd.read_csv(pretrain_base(study, "xs", quiet=True) / "metrics.csv")
    shipped = pd.read_csv(SHIPPED / study.base_digest("xs") / "metrics.csv")
    assert made["loss"].tail(100).mean() == pytest.approx(
        shipped["loss"].tail(100).mean(), rel=0.05
    )
