"""The cost probe: what one process measures, and the table of several."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
import torch

from vimpo.config import ConfigError
from vimpo.models import distributed, memory
from vimpo.models.distributed import Alone
from vimpo.probes import cost
from vimpo.probes.cost import (
    COLUMNS,
    compare_costs,
    last_words,
    measure_cost,
    on_one_node,
    peak_bytes,
    resident_bytes,
)
from vimpo.storage.integrity import beside, fault_of


def test_networks_moments_and_phases_are_counted(tiny_study):
    study = tiny_study()
    found = {name: measure_cost(study, name, "tiny", 2) for name in ("vimpo", "ppo", "grpo")}
    shape = memory.shape_of("tiny", study.sizes["tiny"])
    policy, critic = memory.parameter_count(shape), memory.parameter_count(shape, critic=True)
    resident = {"vimpo": 2 * policy, "ppo": policy + critic, "grpo": policy}
    trained = {"vimpo": policy, "ppo": policy + critic, "grpo": policy}
    for name, result in found.items():
        assert result["parameters"] == {
            "policy": policy,
            "resident": resident[name],
            "trainable": trained[name],
        }
        assert result["bytes"]["optimizer"] == 8 * trained[name]
        seconds = dict(result["seconds"])
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()), rel=0.5)
        assert (seconds["critic"] > 0) == (name == "ppo")
        assert (seconds["reference"] > 0) == (name == "vimpo")
        assert result["bytes"]["above_floor"] == result["bytes"]["peak"] - result["bytes"]["floor"]


def test_peak_sees_what_was_freed_again():
    before, held = peak_bytes("cpu"), resident_bytes("cpu")
    size = max(0, before - held) + 2**28
    torch.ones(size // 4).sum()
    assert peak_bytes("cpu") >= held + size - 2**24
    assert resident_bytes("cpu") < peak_bytes("cpu") - 2**26


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands the peak down")
def test_peak_is_not_inherited_from_the_parent():
    ballast = torch.ones(2**28 // 4)  # this process is large, the child small
    code = "from vimpo.probes.cost import peak_bytes; print(peak_bytes('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < ballast.numel() * 4 < resident_bytes("cpu")


def test_wrong_orders_are_refused(tiny_study):
    study = tiny_study()
    with pytest.raises(ValueError, match="steps"):
        measure_cost(study, "grpo", "tiny", 0)
    with pytest.raises(ConfigError, match="algorithm"):
        measure_cost(study, "trpo", "tiny", 1)
    with pytest.raises(ConfigError, match="base"):
        measure_cost(study, "grpo", "xs", 1)


def test_algorithms_take_turns_and_the_model_stands_beside(tiny_study, tmp_path, monkeypatch):
    study, turns = tiny_study(), []

    def measure(study, algorithm, size, steps):
        turns.append(algorithm)
        return {
            "algorithm": algorithm,
            "size": size,
            "steps": steps,
            "seconds": {"rollout": 0.1 * len(turns), "total": 0.2 * len(turns)},
            "bytes": {"peak": 30, "floor": 10, "above_floor": 20, "optimizer": 8},
            "parameters": {"policy": 1, "resident": 2, "trainable": 1},
        }

    monkeypatch.setattr(cost, "_in_fresh_process", measure)
    output = tmp_path / "cost.csv"
    rows = compare_costs(study, "tiny", ["vimpo", "ppo"], output, rounds=2)
    assert turns == ["vimpo", "ppo", "vimpo", "ppo"]
    table = list(csv.DictReader(output.open()))
    assert fault_of(output, beside(output)) is None
    assert list(table[0]) == COLUMNS
    assert len(table) == len(rows)
    totals = [(r["algorithm"], r["round"], r["value"]) for r in rows if r["metric"] == "step_total"]
    assert totals == [
        ("vimpo", 1, 0.2),
        ("ppo", 1, 0.4),
        ("vimpo", 2, pytest.approx(0.6)),
        ("ppo", 2, 0.8),
    ]
    measured = {r["metric"] for r in rows if r["kind"] == "measured"}
    assert {"memory_peak", "memory_above_floor", "optimizer", "parameters_resident"} <= measured
    model = {(r["algorithm"], r["metric"]): r["value"] for r in rows if r["kind"] == "model"}
    assert model["ppo", "memory_ratio_to_ppo"] == 1
    assert model["vimpo", "memory_reference_weights"] == model["ppo", "memory_policy_weights"]


@pytest.mark.slow
def test_a_fresh_process_measures_and_a_failed_one_speaks(tiny_study, tmp_path):
    study = tiny_study()
    rows = compare_costs(study, "tiny", ["grpo"], tmp_path / "cost.csv", steps=1, rounds=1)
    values = {r["metric"]: r["value"] for r in rows if r["kind"] == "measured"}
    assert 0 < values["step_total"] < 60
    assert 2**26 < values["memory_floor"] < values["memory_peak"]
    with pytest.raises(RuntimeError, match=r"(?s)cost of grpo at tiny.*steps: 0 measures nothing"):
        compare_costs(study, "tiny", ["grpo"], tmp_path / "none.csv", steps=0, rounds=1)
    with pytest.raises(ConfigError, match="base"):
        compare_costs(study, "xs", ["grpo"], tmp_path / "none.csv", steps=1, rounds=1)
    assert not (tmp_path / "none.csv").exists()


# --- Several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_of_one_node_measure_together(tiny_study, tmp_path):
    """Two of the four that train on two nodes; sums are over shards, and the peak is the worst."""
    runtime = {"processes": 4, "nodes": 2, "sharding": "fsdp2"}
    study = tiny_study(runtime=runtime, train={"prompts_per_step": 8})
    rows = compare_costs(study, "tiny", ["ppo"], tmp_path / "cost.csv", steps=1, rounds=1)
    values = {r["metric"]: r["value"] for r in rows if r["kind"] == "measured"}
    alone = measure_cost(on_one_process(study), "ppo", "tiny", 1)
    for name in ("resident", "trainable"):
        assert values[f"parameters_{name}"] == alone["parameters"][name]
    assert values["optimizer"] == alone["bytes"]["optimizer"]
    assert 0 < values["step_total"] < 60
    assert 2**26 < values["memory_floor"] < values["memory_peak"]
    assert values["memory_above_floor"] == values["memory_peak"] - values["memory_floor"]
    with pytest.raises(RuntimeError, match=r"(?s)cost of ppo at tiny.*steps: 0 measures nothing"):
        compare_costs(study, "tiny", ["ppo"], tmp_path / "none.csv", steps=0, rounds=1)


def on_one_process(study):
    return study.model_copy(
        update={"runtime": study.runtime.model_copy(update={"processes": 1, "nodes": 1})}
    )


def test_the_worst_process_and_the_parts_of_a_node_are_reported(tiny_study, monkeypatch):
    """A second process is played: it held more, and above a higher floor."""
    study = tiny_study()

    class Two(Alone):
        left = False

        def gather(self, rows):
            if rows.shape != (1, 2):
                return rows
            return torch.cat([rows, torch.tensor([[2.0**50, 2.0**40]], dtype=rows.dtype)])

        def leave(self):
            self.left = True

    world = Two()
    monkeypatch.setattr(distributed, "join", lambda runtime: world)
    found = measure_cost(study, "grpo", "tiny", 1)["bytes"]
    assert (found["peak"], found["floor"]) == (2**50, 2**40)
    assert found["above_floor"] == 2**50 - 2**40
    assert world.left
    runtime = study.runtime.model_copy(update={"processes": 16, "nodes": 2})
    runtime = on_one_node(study.model_copy(update={"runtime": runtime})).runtime
    assert (runtime.processes, runtime.nodes) == (8, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpus_are_said_before_anything_is_measured(tiny_study, tmp_path):
    study = tiny_study(
        runtime={"processes": 4, "nodes": 2, "device": "cuda"}, train={"prompts_per_step": 8}
    )
    with pytest.raises(ConfigError, match=r"processes: 2 on 1 node\(s\) need 2 GPUs on each"):
        compare_costs(study, "tiny", ["ppo"], tmp_path / "none.csv")


def test_words_of_torchrun_are_left_out():
    own = "E1123 10:00:00.0 12 /x/torch/distributed/elastic/multiprocessing/api.py:1] failed\nlast"
    assert last_words(f"a\nValueError: b\n{own}\n") == "a\nValueError: b"
    assert last_words(own).endswith("last")
    assert last_words("\n".join("abcdefg")) == "c\nd\ne\nf\ng"
