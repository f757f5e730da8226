"""Rows of single runs as Parquet: all of them, exact, small, and never damaged unnoticed."""

import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_results import NO_CLAIMS, small_study, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.reading import read_measured_cost
from vimpo.config import Cell, ConfigError
from vimpo.errors import DamagedError
from vimpo.report.published import publish
from vimpo.storage.columns import ARCHIVED, COLUMNS

CELL = Cell("ppo", "s", "0.25", 2)
LABELS = {"algorithm": "ppo", "size": "s", "noise": "0.25", "seed": 2}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("archive"), claims=NO_CLAIMS)
    write_results(study)
    aggregate(study, study.folder / "tables")
    return study


@pytest.fixture(scope="module")
def published(study, tmp_path_factory):
    return publish(study, tmp_path_factory.mktemp("published"))


def read(folder, name):
    return pd.read_parquet(folder / f"cells/{name}.parquet")


def pick(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def test_every_number_of_a_run_is_there_to_the_last_bit(study, published):
    folder = study.run_folder(CELL)
    metrics = pd.read_csv(folder / "metrics.csv").set_index("step")
    curves = pick(read(published, "curves"), **LABELS)
    wide = curves.pivot(index="step", columns="metric", values="value")
    pd.testing.assert_frame_equal(
        wide[metrics.columns], metrics.astype(float), check_exact=True, check_names=False
    )
    scores = json.loads((folder / "eval.json").read_text())["results"]
    accuracy = pick(read(published, "accuracy"), **LABELS)
    assert list(accuracy["value"]) == [row["value"] for row in scores]
    assert list(accuracy["samples"]) == [row["samples"] for row in scores]
    probes = pick(read(published, "probes"), **LABELS)
    written = pq.read_table(folder / "probes.parquet").to_pandas()
    assert set(probes["position"]) > {"all"}
    pd.testing.assert_frame_equal(
        probes[list(written.columns)].reset_index(drop=True), written, check_exact=True
    )
    costs = pick(read(published, "measured_cost"), size="s").to_dict("records")
    assert costs == read_measured_cost(study, "s")


def test_bases_and_every_run_have_their_rows(study, published):
    assert {p.name for p in (published / "cells").iterdir()} == {f"{n}.parquet" for n in ARCHIVED}
    for name in ARCHIVED:
        frame = read(published, name)
        assert list(frame) == COLUMNS[name]
        if name != "measured_cost":
            runs = frame[frame["algorithm"] != "base"]
            assert len(runs[["algorithm", "size", "noise", "seed"]].drop_duplicates()) == 24
    base = pick(read(published, "accuracy"), algorithm="base")
    assert set(base["size"]) == {"xs", "s"}
    assert base["seed"].isna().all()


def test_three_hundred_cells_fit_into_a_repository(study, published):
    size = sum(path.stat().st_size for path in (published / "cells").iterdir())
    assert size / len(study.cells()) * 300 < 2e6


def test_changed_manifests_are_not_published(study, tmp_path):
    copy = small_study(tmp_path, claims=NO_CLAIMS)
    shutil.copytree(study.folder / "tables", copy.folder / "tables")
    path = copy.folder / "tables/cells/manifests.jsonl"
    path.write_text(path.read_text().replace("2.13.0", "2.13.1", 1))
    with pytest.raises(DamagedError, match=r"manifests: '.*manifests\.jsonl' is damaged"):
        publish(copy, tmp_path / "published")
    path.unlink()
    with pytest.raises(ConfigError, match=r"manifests: '.*manifests\.jsonl' is missing"):
        publish(copy, tmp_path / "published")
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "all lost"])
def test_what_is_not_what_was_written_is_not_published(study, tmp_path, damage):
    copy = small_study(tmp_path, claims=NO_CLAIMS)
    shutil.copytree(study.folder / "tables", copy.folder / "tables")
    path = copy.folder / "tables/cells/probes.parquet"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content[:5000] + b"x" + content[5001:])
    elif damage == "lost":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
        path = path.with_name("accuracy.parquet")
    with pytest.raises(DamagedError) as caught:
        publish(copy, tmp_path / "published")
    assert f"cells: '{path}' is " in str(caught.value)
    assert "allowed: " in str(caught.value)
    assert not (tmp_path / "published").exists()
