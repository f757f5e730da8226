"""The configuration: bad input gives one clear error, digests cover exactly what they should."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import pytest
import yaml

from vimpo.config import (
    ALGORITHMS,
    LADDER,
    Cell,
    ConfigError,
    Noise,
    Study,
    VimpoConfig,
    cell_digest,
    check_results_folder,
    dump_yaml,
    load_study,
    study_schema,
)

# (what is written, what the message must name: field, value, allowed range)
BAD = {
    "algorithm": ({"grid": {"algorithms": ["trpo"]}}, "algorithms", "'trpo'", "vimpo_value_only"),
    "size": ({"grid": {"sizes": ["huge"]}}, "sizes", "'huge'", "xs, s, m, l, xl"),
    "benchmark key": (
        {"task": {"benchmarks": {"easy": {"operators": 2, "shots": 4}}}},
        "task.benchmarks.easy.shots",
        "unknown key",
        "allowed",
    ),
    "benchmark too large": (
        {"task": {"largest": 2, "benchmarks": {"easy": {"operators": 2, "problems": 4}}}},
        "task.benchmarks.easy.problems",
        "4",
        "1 to 3",
    ),
    "noise above 1": ({"grid": {"noise": [0.1, 1.5]}}, "noise.1.rate", "1.5", "[0, 1]"),
    "noise below 0": ({"grid": {"noise": [-0.25]}}, "noise.0.rate", "-0.25", "[0, 1]"),
    "noise not a number": ({"grid": {"noise": [float("nan")]}}, "noise.0.rate", "nan", "[0, 1]"),
    "noise of text": ({"grid": {"noise": ["some"]}}, "noise.0.rate", "'some'", "[0, 1]"),
    "noise of two kinds": (
        {"grid": {"noise": [{"mode": "asymmetric", "rate": 0.2}]}},
        "noise.0.rate",
        "0.2",
        "allowed: false_positive and false_negative",
    ),
    "group of 1 with vimpo": (
        {"train": {"group_size": 1}, "grid": {"algorithms": ["ppo", "vimpo"]}},
        "train.group_size",
        "1 gives vimpo",
        ">= 2",
    ),
    "group of 1 with grpo": (
        {"train": {"group_size": 1}, "grid": {"algorithms": ["grpo_naive"]}},
        "train.group_size",
        "1 gives grpo_naive",
        ">= 2",
    ),
    "beta of 0": ({"algorithms": {"vimpo": {"beta": 0}}}, "vimpo.beta", ": 0 ", "greater than 0"),
    "beta below 0": ({"algorithms": {"vimpo": {"beta": -1}}}, "vimpo.beta", "-1", "than 0"),
    "endless beta": ({"algorithms": {"vimpo": {"beta": float("inf")}}}, "beta", "inf", "finite"),
    "endless actor coefficient": (
        {"algorithms": {"vimpo": {"actor_coef": float("inf")}}},
        "vimpo.actor_coef",
        "inf",
        "finite",
    ),
    "k1": (
        {"algorithms": {"vimpo": {"kl_estimator": "k1"}}},
        "vimpo.kl_estimator",
        "k1 is refused, because it is the log-ratio itself",
        "exact, k2, k3, topk",
    ),
    "KL estimator": (
        {"algorithms": {"vimpo": {"kl_estimator": "k4"}}},
        "vimpo.kl_estimator",
        "'k4'",
        "exact, k2, k3, topk",
    ),
    "no seeds": ({"grid": {"seeds": []}}, "grid.0.seeds", "[]", "at least 1"),
    "seed below 0": ({"grid": {"seeds": [1, -2]}}, "grid.0.seeds.1", "-2", "[0, "),
    "key of a study": ({"grids": []}, "grids", "unknown key", "allowed"),
    "key of a section": ({"train": {"step": 3}}, "train.step", "unknown key", "allowed"),
    "key of an algorithm": (
        {"algorithms": {"vimpo": {"gamma": 1}}},
        "algorithms.vimpo.gamma",
        "unknown key",
        "allowed",
    ),
    "another objective's key": (
        {"algorithms": {"ppo": {"beta": 0.1}}},
        "algorithms.ppo.beta",
        "unknown key",
        "allowed",
    ),
    "objective": ({"algorithms": {"new": {"objective": "trpo"}}}, "new", "'trpo'", "'grpo'"),
    "text for a number": ({"train": {"steps": "many"}}, "train.steps", "'many'", "[1, inf)"),
    "micro-batch": ({"train": {"micro_batch": 999}}, "train.micro_batch", "999", "1 to that"),
    "heads": (
        {"sizes": {"xs": {"heads": 5, "hidden": 64}}},
        "sizes.xs.heads",
        "5",
        "divide hidden = 64",
    ),
    "odd heads": (
        {"sizes": {"xs": {"hidden": 66, "heads": 2, "kv_heads": 2}}},
        "sizes.xs.heads",
        "33",
        "even",
    ),
    "untrained size": ({"sizes": {"new": {}}}, "sizes.new.pretrain_steps", "0", ">= 1"),
    "device": ({"runtime": {"device": "tpu"}}, "runtime.device", "'tpu'", "cuda"),
    "study name": ({"study": "../up"}, "study", "'../up'", "pattern"),
    "more prompts than problems": (
        {
            "task": {"largest": 2, "train_operators": [1], "benchmarks": {"a": {"operators": 8}}},
            "train": {"prompts_per_step": 5},
        },
        "train.prompts_per_step",
        "5",
        "1 to 4",
    ),
    "more demonstrations than problems": (
        {
            "task": {
                "largest": 9,
                "symbols": "+",
                "pretrain_operators": [1],
                "benchmarks": {"a": {"operators": 8}},
            },
            "pretrain": {"batch_size": 41},
        },
        "pretrain.batch_size",
        "41",
        "1 to 40",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_error_of_field_value_and_range(case):
    data, field, value, allowed = BAD[case]
    with pytest.raises(ConfigError) as caught:
        load_study(data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert field in message
    assert value in message
    assert allowed in message


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_study({"train": {"steps": 0, "group_size": -1}, "colour": 1})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "train.steps",
        "train.group_size",
        "colour",
    ]


def test_ppo_alone_may_have_groups_of_one():
    study = load_study({"train": {"group_size": 1}, "grid": {"algorithms": ["ppo"]}})
    assert study.train.group_size == 1
    with pytest.raises(ConfigError, match=r"train\.group_size: 1 gives grpo .* allowed: >= 2"):
        study.cell_config(Cell("grpo", "xs", "0", 1))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("trpo", "xs", "0", 1), "algorithm: 'trpo' is unknown; allowed: vimpo"),
        (Cell("ppo", "huge", "0", 1), "size: 'huge' is unknown; allowed: xs"),
        (Cell("ppo", "xs", "1.5", 1), r"noise.rate: 1.5 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "-0.5", 1), r"noise.rate: -0.5 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "rollout--1", 1), r"noise.rate: -1.0 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "loud", 1), r"noise: 'loud' .* allowed: a number in \[0, 1\]"),
        (Cell("ppo", "xs", "asymmetric-0.1", 1), r"noise: 'asymmetric-0.1' .* allowed"),
        (Cell("ppo", "xs", "0", -1), "seed: -1 is not allowed; allowed: an integer in"),
    ],
)
def test_bad_cells_are_refused(cell, message):
    with pytest.raises(ConfigError, match=message):
        Study().cell_config(cell)


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml' is not a file; allowed"):
        load_study(tmp_path / "no.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("grid: [1, 2")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_study(broken)
    broken.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="is not a mapping"):
        load_study(broken)


# --- Reading and writing -------------------------------------------------------------------------


def test_yaml_round_trip_keeps_every_field(tmp_path):
    study = load_study(
        {
            "study": "trip",
            "algorithms": {"vimpo": {"beta": 0.3}, "ppo_warm": {"objective": "ppo", "lam": 0.95}},
            "sizes": {"xxs": {"hidden": 32, "pretrain_steps": 5}, "hub": {"path": "owner/name"}},
            "grid": [
                {"algorithms": ["vimpo", "ppo_warm"], "sizes": ["xxs"], "noise": [0, 0.1]},
                {"noise": [{"mode": "asymmetric", "false_positive": 0.2}], "seeds": [5]},
            ],
        }
    )
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(study))
    again = load_study(path)
    assert again == study
    assert dump_yaml(again) == dump_yaml(study)
    config = study.cell_config(study.cells()[0])
    assert type(config).model_validate(yaml.safe_load(dump_yaml(config))) == config


def test_an_empty_file_is_the_default_study(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_study(path) == load_study() == Study()


def test_known_names_keep_the_defaults_that_a_file_does_not_mention():
    study = load_study(
        {
            "algorithms": {"vimpo": {"beta": 0.5}, "vimpo_value_only": {"objective": "ppo"}},
            "sizes": {"s": {"layers": 1}},
        }
    )
    assert study.algorithms["vimpo"] == VimpoConfig(beta=0.5)
    assert study.algorithms["vimpo_value_only"] == ALGORITHMS["ppo"]
    assert study.algorithms["grpo_naive"].reduction == "seq-mean"
    assert study.sizes["s"] == LADDER["s"].model_copy(update={"layers": 1})


def test_schema_refuses_unknown_keys_everywhere():
    schema = study_schema()
    objects = [schema, *schema["$defs"].values()]
    named = [o for o in objects if o.get("type") == "object"]
    assert len(named) >= 12
    assert all(o["additionalProperties"] is False for o in named)


NOISES = {
    "0": Noise(),
    "1": Noise(rate=1.0),
    "0.25": Noise(rate=0.25),
    "0.00001": Noise(rate=1e-5),
    "0.1234567": Noise(rate=0.1234567),
    "rollout-0.1": Noise(mode="rollout", rate=0.1),
    "rollout-0.00001": Noise(mode="rollout", rate=1e-5),
    "asymmetric-0.1-0.3": Noise(mode="asymmetric", false_positive=0.1, false_negative=0.3),
    "asymmetric-0-0.00001": Noise(mode="asymmetric", false_negative=1e-5),
}


@pytest.mark.parametrize("label", NOISES)
def test_noise_labels_read_back(label):
    assert NOISES[label].label == label
    assert Noise.parse(label) == NOISES[label]


def test_noise_level_is_the_mean_rate():
    assert NOISES["rollout-0.1"].level == 0.1
    assert NOISES["asymmetric-0.1-0.3"].level == pytest.approx(0.2)


# --- Cells and digests ---------------------------------------------------------------------------


def test_cells_of_overlapping_blocks_are_distinct_and_in_grid_order():
    block = {"algorithms": ["vimpo", "ppo"], "sizes": ["xs"], "noise": [0, 0.1], "seeds": [1, 2]}
    study = load_study({"grid": [block, block | {"algorithms": ["grpo", "ppo"], "seeds": [2, 3]}]})
    names = [cell.name for cell in study.cells()]
    assert len(names) == len(set(names)) == 8 + 4 + 2
    assert names[:3] == [
        "vimpo/xs/noise-0/seed-1",
        "vimpo/xs/noise-0/seed-2",
        "vimpo/xs/noise-0.1/seed-1",
    ]
    assert len({study.cell_digest(cell) for cell in study.cells()}) == 14


def digests(study):
    cells = load_study({"grid": {"algorithms": list(ALGORITHMS)}}).cells()
    return {cell.name: study.cell_digest(cell) for cell in cells}


OTHER = {
    "lr_scale": 2.0,
    "clip_low": 0.1,
    "clip_high": 0.3,
    "dual_clip": 5.0,
    "beta": 0.5,
    "actor_coef": 0.5,
    "lam": 0.5,
    "kl_estimator": "k3",
    "kl_top_k": 3,
}


def test_every_hyperparameter_of_vimpo_has_another_value_here():
    assert set(OTHER) | {"objective"} == set(VimpoConfig.model_fields)


@pytest.mark.parametrize("field", OTHER)
def test_a_hyperparameter_of_vimpo_changes_the_digests_of_its_cells_alone(field):
    changed = load_study({"algorithms": {"vimpo": {field: OTHER[field]}}})
    before, after = digests(Study()), digests(changed)
    assert {name.partition("/")[0] for name in before} >= {"vimpo", "ppo", "grpo"}
    for name, digest in before.items():
        assert (after[name] == digest) is not name.startswith("vimpo/")
    assert changed.base_digest("xs") == Study().base_digest("xs")
    assert changed.evaluation_digest() == Study().evaluation_digest()


BENCHMARKS = {"task": {"benchmarks": {"only": {"operators": 3}}}}


@pytest.mark.parametrize(
    ("change", "cells", "base", "evaluation"),
    [
        pytest.param(BENCHMARKS, False, False, True, id="benchmarks"),
        pytest.param({"evaluation": {"samples": 7}}, False, False, True, id="evaluation"),
        pytest.param({"statistics": {"resamples": 777}}, False, False, False, id="statistics"),
        pytest.param({"study": "other"}, False, False, False, id="name"),
        pytest.param(
            {"grid": {"seeds": [1, 2, 9], "noise": [0, 0.25, 0.4]}}, False, False, False, id="grid"
        ),
        pytest.param({"train": {"steps": 7}}, True, False, False, id="steps"),
        pytest.param({"task": {"step_error": 0.1}}, True, True, True, id="task"),
        pytest.param({"pretrain": {"batch_size": 63}}, True, True, False, id="pretrain"),
        pytest.param({"runtime": {"threads": 2}}, True, True, True, id="runtime"),
        pytest.param(
            {"sizes": {"xs": {"learning_rate": 1}, "s": {"learning_rate": 1}}},
            *(True, False, False),
            id="rate",
        ),
        pytest.param(
            {"sizes": {"xs": {"layers": 1}, "s": {"layers": 1}}}, True, True, False, id="shape"
        ),
    ],
)
def test_a_change_reaches_the_digests_of_what_depends_on_it(change, cells, base, evaluation):
    study = load_study(change)
    before, after = digests(Study()), digests(study)
    assert all((after[name] != before[name]) is cells for name in before)
    assert (study.base_digest("xs") != Study().base_digest("xs")) is base
    assert (study.evaluation_digest() != Study().evaluation_digest()) is evaluation


def test_digest_of_a_cell_is_that_of_its_written_configuration():
    study = load_study()
    config = study.cell_config(study.cells()[0])
    read = type(config).model_validate(yaml.safe_load(dump_yaml(config)))
    assert cell_digest(read) == study.cell_digest(study.cells()[0])


def test_ten_thousand_cells_are_checked_in_seconds_without_torch():
    script = """
import json, sys, time
from vimpo.config import load_study
start = time.perf_counter()
study = load_study({"grid": {
    "algorithms": ["vimpo", "vimpo_value_only", "ppo", "grpo", "grpo_naive"],
    "sizes": ["xs", "s", "m", "l"],
    "noise": [0, 0.1, 0.2, 0.3, 0.4],
    "seeds": list(range(100)),
}})
cells = study.cells()
for cell in cells:
    study.cell_config(cell)
print(json.dumps([
    len(set(cells)), time.perf_counter() - start, study.cell_digest(cells[0]), list(sys.modules)
]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, seconds, first_digest, modules = json.loads(out.stdout)
    assert count == 10_000
    assert seconds < 10
    assert not {"torch", "transformers", "numpy", "snakemake"} & set(modules)
    cell = Cell("vimpo", "xs", "0", 0)
    assert first_digest == load_study().cell_digest(cell)  # stable across processes


def test_configurations_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        Study().train.steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Study().cells()[0].seed = 3


# --- Results folders -----------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    """A results folder as a study leaves it, and a maker of studies that point at it."""

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


def test_validation_is_quick():
    start = time.perf_counter()
    for _ in range(20):
        load_study()
    assert time.perf_counter() - start < 5
