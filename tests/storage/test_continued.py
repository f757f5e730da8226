"""A study continues a published one: what it takes over is as if it had been run here."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from fake_results import NO_CLAIMS, seal_again, small_study, write_results
from pandas.testing import assert_frame_equal

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.compare.compare import read_side
from vimpo.config import Cell, ConfigError, dump_yaml, load_study
from vimpo.planning.preflight import check_before_running
from vimpo.planning.text import describe
from vimpo.report.published import publish
from vimpo.storage.continued import taken_over
from vimpo.storage.files import sha256
from vimpo.storage.integrity import beside
from vimpo.storage.manifests import read_manifests, weights
from vimpo.storage.tables import read_table

GRID = {
    "algorithms": ["vimpo", "ppo", "grpo", "vimpo_value_only"],
    "sizes": ["xs", "s"],
    "noise": [0.25],
    "seeds": [1, 2],
}
LAST = Cell("ppo", "s", "0.25", 2)
WEIGHTS = {"xs": "a" * 64, "s": "b" * 64}


def set_weights(study, size, content):
    """Returns their checksum."""
    path = study.base_folder(size) / "model/model.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    seal_again(study.base_folder(size))
    return sha256(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of one sitting, aggregated."""
    study = small_study(tmp_path_factory.mktemp("whole"), grid=GRID, claims=NO_CLAIMS)
    write_results(study)
    for size, content in WEIGHTS.items():
        set_weights(study, size, content)
    aggregate(study, study.folder / "tables")
    return study


@pytest.fixture(scope="module")
def published(whole, tmp_path_factory):
    return publish(whole, tmp_path_factory.mktemp("published"))


def elsewhere(whole, folder, continues=None, cells=(), sizes=(), **changes):
    """The study on another machine, with some of its runs, base policies and costs there."""
    study = load_study(
        whole.model_dump(mode="json")
        | {"results": str(folder), "continues": str(continues) if continues else None}
        | changes
    )
    for cell in cells:
        shutil.copytree(whole.run_folder(cell), study.run_folder(cell))
    for size in sizes:
        shutil.copytree(whole.base_folder(size), study.base_folder(size))
        study.cost_file(size).parent.mkdir(parents=True, exist_ok=True)
        for path in (study.cost_file(size), beside(study.cost_file(size))):
            shutil.copy(whole.cost_file(size).with_name(path.name), path)
    return study


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_equal_files(folder, expected):
    found, wanted = files(folder), files(expected)
    assert found.keys() == wanted.keys()
    assert [str(name) for name in found if found[name] != wanted[name]] == []


def test_tables_of_what_was_taken_over_are_those_of_the_runs(whole, published, tmp_path):
    """To the last byte, provenance and rows of single runs too; and so is what is published."""
    study = elsewhere(whole, tmp_path, published)
    assert taken_over(study).cells == set(whole.cells())
    assert taken_over(study).sizes == {"xs", "s"}
    aggregate(study, study.folder / "tables")
    assert_equal_files(study.folder / "tables", whole.folder / "tables")
    assert_equal_files(publish(study, tmp_path / "published"), published)


def test_a_study_of_two_sittings_is_that_of_one(whole, tmp_path):
    """The first publishes half; the second adds the rest, and publishes both to the same place."""
    first, second = ([c for c in whole.cells() if c.seed == seed] for seed in (1, 2))
    study = elsewhere(whole, tmp_path / "one", cells=first, sizes=WEIGHTS)
    aggregate(study, study.folder / "partial/tables")
    place = publish(study, tmp_path / "published")
    assert len(read_manifests(place)) == 8 + 2

    study = elsewhere(whole, tmp_path / "two", place, cells=second, sizes=WEIGHTS)
    assert taken_over(study).cells == set(first)
    assert not taken_over(study).sizes  # its base policies are here
    aggregate(study, study.folder / "tables")
    assert_equal_files(study.folder / "tables", whole.folder / "tables")
    # with the study's own file, which may not name what was continued
    plain = study.model_copy(update={"continues": None})
    assert publish(plain, tmp_path / "published") == place
    assert publish(study, tmp_path / "published") == place
    assert_equal_files(place, publish(whole, tmp_path / "expected"))
    assert load_study(place / "config.yaml").continues is None

    third = elsewhere(whole, tmp_path / "three", place)
    assert taken_over(third).cells == set(whole.cells())


def test_a_grid_that_grows_at_one_size_makes_its_base_policy_alone(whole, tmp_path):
    small = GRID | {"seeds": [1]}
    study = elsewhere(whole, tmp_path / "one", grid=small, sizes=WEIGHTS)
    for cell in study.cells():
        shutil.copytree(whole.run_folder(cell), study.run_folder(cell))
    aggregate(study, study.folder / "tables")
    place = publish(study, tmp_path / "published")
    grown = [GRID | {"sizes": ["xs"]}, small]
    study = elsewhere(whole, tmp_path / "two", place, grid=grown)
    assert taken_over(study).cells == {c for c in whole.cells() if c.seed == 1}
    assert taken_over(study).sizes == {"s"}


def test_base_policies_of_two_sittings_are_told_apart(whole, published, tmp_path):
    """And stay so when a third sitting continues what the second published."""

    def recorded(study):
        aggregate(study, study.folder / "tables")
        rows = read_table(study.folder / "tables", "provenance")
        rows = rows[rows["item"].str.startswith("base_weights.")]
        return rows.set_index(["item", "value"])["count"].to_dict()

    study = elsewhere(whole, tmp_path / "two", published, cells=[LAST], sizes=["s"])
    old = {size: weights(read_manifests(published)[f"base/{size}"]) for size in WEIGHTS}
    new = set_weights(study, "s", "another")
    expected = {
        ("base_weights.xs", old["xs"]): 8 + 1,
        ("base_weights.s", old["s"]): 7,
        ("base_weights.s", new): 1 + 1,
    }
    assert len(expected) == 3
    assert recorded(study) == expected
    place = publish(study, tmp_path / "published")
    assert recorded(elsewhere(whole, tmp_path / "three", place)) == expected


def test_what_was_run_here_wins(whole, published, tmp_path):
    study = elsewhere(whole, tmp_path, published, cells=[LAST], sizes=["s"])
    path = study.run_folder(LAST) / "eval.json"
    report = json.loads(path.read_text())
    report["results"][0]["value"] = 0.123456
    path.write_text(json.dumps(report))
    seal_again(path.parent)
    assert set(whole.cells()) - taken_over(study).cells == {LAST}
    aggregate(study, study.folder / "tables")
    accuracy = read_table(study.folder / "tables", "accuracy")
    assert (accuracy["value"] == 0.123456).sum() == 1
    # a run that has not ended is not there yet
    (study.run_folder(LAST) / "manifest.json").unlink()
    assert LAST in taken_over(study).cells


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"algorithms": {"vimpo_value_only": {"beta": 0.5}}}, {"vimpo", "ppo", "grpo"}),
        ({"algorithms": {"ppo": {"lam": 0.9}}}, {"vimpo", "grpo", "vimpo_value_only"}),
        # the values of the others are read at its beta
        ({"algorithms": {"vimpo": {"beta": 0.5}}}, {"vimpo_value_only"}),
        ({"probes": {"continuations": 8}}, set()),
        ({"evaluation": {"samples": 4}}, set()),
        ({"train": {"steps": 7}}, set()),
        ({"statistics": {"resamples": 300}}, {"vimpo", "ppo", "grpo", "vimpo_value_only"}),
    ],
    ids=["variant", "ppo", "vimpo", "probes", "evaluation", "train", "statistics"],
)
def test_a_cell_of_another_configuration_is_run_again(whole, published, tmp_path, change, kept):
    study = elsewhere(whole, tmp_path, published, **change)
    taken = taken_over(study)
    assert taken.cells == {cell for cell in whole.cells() if cell.algorithm in kept}
    assert taken.sizes == ({"xs", "s"} if len(kept) == 4 else set())


def test_an_incomplete_cell_is_run_again(whole, tmp_path):
    lost = {"manifest.json": whole.cells()[0], "eval.json": whole.cells()[1]}
    lost["probes.parquet"] = whole.cells()[2]
    study = elsewhere(whole, tmp_path / "one", cells=whole.cells(), sizes=WEIGHTS)
    for name, cell in lost.items():
        (study.run_folder(cell) / name).unlink()
    study.cost_file("s").unlink()
    aggregate(study, study.folder / "tables")
    study = elsewhere(whole, tmp_path / "two", publish(study, tmp_path / "published"))
    assert set(whole.cells()) - taken_over(study).cells == set(lost.values())
    assert not taken_over(study).sizes


def test_what_is_known_of_a_base_policy_stays_known_without_its_cost(whole, tmp_path):
    """Its size is not taken over, so it is made again; but its numbers are in the tables."""
    first, last = whole.cells()[:-1], whole.cells()[-1:]
    study = elsewhere(whole, tmp_path / "one", cells=first, sizes=WEIGHTS)
    for size in WEIGHTS:
        study.cost_file(size).unlink()
    aggregate(study, study.folder / "tables")
    study = elsewhere(whole, tmp_path / "two", publish(study, tmp_path / "published"), cells=last)
    assert not taken_over(study).sizes
    aggregate(study, study.folder / "tables")
    for table in ("capacity", "accuracy"):
        found, expected = (read_table(x.folder / "tables", table) for x in (study, whole))
        assert_frame_equal(found, expected)


def test_no_digest_knows_what_a_study_continues(whole, published, tmp_path):
    study = elsewhere(whole, tmp_path, published)
    for cell in whole.cells():
        assert study.cell_digest(cell) == whole.cell_digest(cell)
        assert study.probe_digest(cell) == whole.probe_digest(cell)
    for size in WEIGHTS:
        assert study.base_digest(size) == whole.base_digest(size)
        assert study.cost_digest(size) == whole.cost_digest(size)
    assert study.evaluation_digest() == whole.evaluation_digest()
    # a folder made without it may be continued with it, and the other way round
    study.folder.mkdir()
    for one, other in ((whole, study), (study, whole)):
        (study.folder / "config.yaml").write_text(dump_yaml(one))
        check_before_running(other.model_copy(update={"results": str(tmp_path)}))


def test_what_cannot_be_continued_is_one_error(whole, published, tmp_path, capsys):
    cases = {
        tmp_path / "none": "has no config.yaml",
        whole.folder: "has no manifests.jsonl",
        "~no-such-user/x": "cannot be a path",
    }
    for name in ("config.yaml", "manifests.jsonl", "cells"):
        copy = tmp_path / f"without {name}"
        shutil.copytree(published, copy)
        shutil.move(copy / name, tmp_path / f"moved {name}")
        cases[copy] = f"has no {name}"
    for folder, message in cases.items():
        config = tmp_path / "study.yaml"
        config.write_text(dump_yaml(elsewhere(whole, tmp_path / "results", folder)))
        for command in ("aggregate", "plan"):
            assert main([command, "--config", str(config)]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: continues: '")
            assert str(folder) in error
            assert message in error
            assert "allowed: " in error
            assert len(error.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells/curves.parquet", "cells: '{}' is damaged"),
        ("cells/measured_cost.parquet", "cells: '{}' is damaged"),
        ("tables/missing.csv", "tables: '{}' is damaged"),
        ("tables/provenance.csv", "tables: '{}' is damaged"),
        ("manifests.jsonl", "manifests: '{}' is damaged"),
        ("SHA256SUMS", "is damaged: its checksum is not the one in SHA256SUMS"),
    ],
)
def test_damage_is_named_before_anything_runs(whole, published, tmp_path, name, message):
    copy = tmp_path / "published"
    shutil.copytree(published, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:30] + b"x\n" + content[31:])
    with pytest.raises(ConfigError) as caught:
        taken_over(elsewhere(whole, tmp_path, copy))
    assert message.format(copy / name) in str(caught.value)


def test_a_configuration_that_was_changed_by_hand_is_refused(whole, published, tmp_path):
    copy = tmp_path / "published"
    shutil.copytree(published, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["probes"]["continuations"] = 8
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="probes: other settings than those of study 'fake'"):
        taken_over(elsewhere(whole, tmp_path, copy))


def test_plan_counts_what_remains(whole, published, tmp_path):
    study = elsewhere(whole, tmp_path, published, algorithms={"ppo": {"lam": 0.9}})
    text = describe(study)
    assert f"Reused from {published}: 12 cells; this plan counts the remaining 4 cells" in text
    rows = [line.split() for line in text.splitlines()]
    jobs = {(row[0], row[1]): int(row[2]) for row in rows if len(row) > 4 and row[1] in WEIGHTS}
    assert [jobs[rule, "xs"] for rule in ("pretrain", "train", "probe")] == [1, 2, 2]
    # 4 jobs of each base policy
    assert "a scheduler gets 12 jobs" in text
    assert "counts the remaining 0 cells" in describe(elsewhere(whole, tmp_path, published))


def test_a_comparison_reads_what_was_taken_over(whole, published, tmp_path):
    study = elsewhere(whole, tmp_path, published)
    (study.folder / "runs").mkdir(parents=True)
    Path(study.folder / "config.yaml").write_text(dump_yaml(study))
    side = read_side(study.folder)
    assert side.seeds == read_side(published).seeds
    assert side.manifests == read_manifests(published)
