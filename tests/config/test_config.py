"""The configuration: read, written, resolved; digests cover exactly what they should."""

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
    dump_yaml,
    load_study,
    study_schema,
)

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


BY_SIZE = {"grpo": {"lr_scale": {"xs": 1.0, "s": 0.5}}}


def test_a_rate_by_size_is_that_number_in_its_cells():
    study = load_study({"algorithms": BY_SIZE, "grid": {"algorithms": ["grpo"]}})
    plain = load_study({"grid": {"algorithms": ["grpo"]}})
    half = load_study({"algorithms": {"grpo": {"lr_scale": 0.5}}})
    small, larger = Cell("grpo", "xs", "0", 1), Cell("grpo", "s", "0", 1)
    assert study.cell_config(larger).objective.lr_scale == 0.5
    assert study.cell_digest(small) == plain.cell_digest(small)
    assert study.cell_digest(larger) == half.cell_digest(larger) != plain.cell_digest(larger)


def test_a_rate_by_size_leaves_out_no_size_of_the_grid():
    with pytest.raises(ConfigError, match=r"grpo\.lr_scale: leaves out size 'm' of the grid"):
        load_study({"algorithms": BY_SIZE, "grid": {"algorithms": ["grpo"], "sizes": ["m"]}})
    with pytest.raises(ConfigError, match=r"lr_scale.*s: -1.* is not allowed"):
        load_study({"algorithms": {"grpo": {"lr_scale": {"s": -1}}}})


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
    "value": "soft",
    "huber_delta": 0.5,
    "cap_v0": 0.5,
    "adaptive_coef": 0.5,
    "adaptive_decay": 0.5,
    "refresh_every": 3,
}


def test_every_hyperparameter_of_vimpo_has_another_value_here():
    assert set(OTHER) | {"objective"} == set(VimpoConfig.model_fields)


@pytest.mark.parametrize("field", OTHER)
def test_a_hyperparameter_of_vimpo_changes_the_digests_of_its_cells_alone(field):
    beside = {"actor_coef": 0.0} if field == "value" else {}  # soft values have no actor
    changed = load_study({"algorithms": {"vimpo": beside | {field: OTHER[field]}}})
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
    assert seconds < 60  # usually one
    assert not {"torch", "transformers", "numpy", "snakemake"} & set(modules)
    cell = Cell("vimpo", "xs", "0", 0)
    assert first_digest == load_study().cell_digest(cell)  # stable across processes


def test_configurations_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        Study().train.steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Study().cells()[0].seed = 3


def test_validation_is_quick():
    start = time.perf_counter()
    for _ in range(20):
        load_study()
    assert time.perf_counter() - start < 60  # usually a tenth of a second
