"""The analytic memory model against real networks, caches and graphs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from vimpo.algorithms import Batch
from vimpo.config import (
    ALGORITHMS,
    LADDER,
    GRPOConfig,
    ModelSpec,
    PPOConfig,
    VimpoConfig,
    load_study,
)
from vimpo.models import memory
from vimpo.models.memory import FLOAT32, MIXED, PUBLISHED, Workload
from vimpo.models.networks import Critic, build_policy, chain_tokenizer, parameter_count
from vimpo.models.passes import positions
from vimpo.sampling.rollouts import Rollouts
from vimpo.training.replay import Replay
from vimpo.training.trainer import Trainer

GROUPED = ModelSpec(hidden=48, layers=3, heads=4, kv_heads=2, intermediate=100, pretrain_steps=1)


@pytest.mark.parametrize("name", [*LADDER, "grouped"])
def test_parameter_count_is_exact(name):
    spec = GROUPED if name == "grouped" else LADDER[name]
    policy = build_policy(spec, chain_tokenizer(), seed=0)
    shape = memory.shape_of(name, spec)
    assert memory.parameter_count(shape) == parameter_count(policy)
    assert memory.parameter_count(shape, critic=True) == parameter_count(Critic.from_policy(policy))


# Totals of the published safetensors, as their model pages give them.
TOTALS = {
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "70B (Llama 3 shape)": 70_553_706_496,
}


def test_published_shapes_have_the_published_totals():
    assert {s.name: memory.parameter_count(s) for s in PUBLISHED} == TOTALS


@pytest.mark.parametrize("spec", [LADDER["xs"], GROUPED], ids=["xs", "grouped"])
def test_activations_are_what_autograd_keeps(spec):
    """Counted by a hook on saved tensors; the rest is statistics of norms and masks."""
    policy = build_policy(spec, chain_tokenizer(), seed=0)
    ids = torch.randint(2, 18, (16, 40))
    mask = torch.ones_like(ids)
    mask[:8, :3] = 0
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # and alive, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        policy.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        )
    measured = sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own)
    predicted = 4 * ids.numel() * memory.activation_elements(memory.shape_of("x", spec), False)
    assert predicted == pytest.approx(measured, rel=0.1)


def test_checkpointing_keeps_one_state_a_layer():
    shape = PUBLISHED[2]
    kept = memory.activation_elements(shape, True)
    assert kept == 39 * shape.hidden + memory.layer_elements(shape)
    assert kept < memory.activation_elements(shape, False) / 10


def test_kv_cache_is_exact():
    policy = build_policy(GROUPED, chain_tokenizer(), seed=0)
    cache = DynamicCache(config=policy.config)
    policy(input_ids=torch.randint(2, 18, (6, 25)), past_key_values=cache, use_cache=True)
    work = Workload(decoded=6, micro_batch=1, prompt=10, response=15)
    held = sum(x.numel() * x.element_size() for y in cache.layers for x in (y.keys, y.values))
    assert memory.kv_cache_bytes(memory.shape_of("x", GROUPED), work, FLOAT32) == held


def test_networks_are_those_that_training_holds(tiny_study):
    study = tiny_study(grid={"algorithms": list(ALGORITHMS)})
    shape = memory.shape_of("tiny", study.sizes["tiny"])
    for cell in study.cells():
        config = study.cell_config(cell)
        trainer = Trainer(config, study.base_folder("tiny") / "model")
        trainer.step(0)
        networks = memory.networks(shape, config.objective)
        assert sum(n for n, _ in networks.values()) == sum(
            parameter_count(m) for m in trainer.networks()
        )
        parts = memory.memory_parts(shape, config.objective, memory.study_workload(study), FLOAT32)
        slots = [s for o in trainer.optimizers.values() for s in o.state_dict()["state"].values()]
        moments = sum(t.numel() * 4 for s in slots for t in s.values() if t.ndim)
        assert sum(p.bytes for p in parts if p.part == "optimizer") == moments
        gradients = sum(
            p.grad.numel() * 4 for m in trainer.modules.values() for p in m.parameters()
        )
        assert sum(p.bytes for p in parts if p.part == "gradients") == gradients


def test_a_penalty_needs_a_reference():
    found = {name: objective.needs_reference for name, objective in ALGORITHMS.items()}
    assert [name for name, needed in found.items() if needed] == [
        "vimpo",
        "vimpo_value_only",
        "grpo_kl",
        "tbrm",
    ]
    assert GRPOConfig(kl_coef=0.1).needs_reference


def test_peak_is_what_stays_and_the_largest_phase():
    parts = [
        memory.Part("policy", "weights", 100),
        memory.Part("policy", "activations", 30, "update"),
        memory.Part("policy", "logits", 25, "update"),
        memory.Part("critic", "activations", 40, "critic"),
        memory.Part("policy", "kv_cache", 50, "rollout"),
    ]
    assert memory.peak_bytes(parts) == 155
    assert memory.peak_bytes(parts[:1]) == 100


def test_replayed_batches_are_counted_as_they_are_held():
    """Seven batches besides the step's own: as many bytes as the tensors of training."""
    prompt, response, rows = 5, 7, 3
    work = Workload(decoded=rows, micro_batch=rows, prompt=prompt, response=response)
    objective = ALGORITHMS["ppo_pretrained"]
    (held,) = (
        part.bytes
        for part in memory.memory_parts(PUBLISHED[0], objective, work, FLOAT32)
        if part.part == "replay"
    )
    ids, ones = torch.zeros(rows, prompt, dtype=torch.long), torch.zeros(rows, response)
    rollouts = Rollouts(ids, ids, ones.long(), ones, ones, torch.zeros(rows, dtype=torch.bool))
    batch = Batch(ones, ones[:, 0], ones[:, 0], ones[:, 0], values=ones)
    replay = Replay(8)
    for _ in range(8):
        replay.add(rollouts, batch)
    wide = [x for x in replay.tensors().values() if x.ndim == 2]
    assert len(wide) == 7 * 6
    assert held == sum(x.numel() * x.element_size() for x in wide)
    assert not [
        part
        for part in memory.memory_parts(PUBLISHED[0], PPOConfig(), work, FLOAT32)
        if part.part == "replay"
    ]


def test_value_pretraining_trains_the_critic_and_samples_the_policy():
    work = Workload(decoded=32, micro_batch=32, prompt=5, response=7)
    shape, objective = PUBLISHED[0], ALGORITHMS["ppo_pretrained"]
    parts = memory.pretraining_parts(shape, objective, work, MIXED)
    held = {(part.network, part.part): part.bytes for part in parts}
    critic, policy = memory.parameter_count(shape, critic=True), memory.parameter_count(shape)
    assert held["policy", "weights"] == 2 * policy
    assert held["critic", "weights"] == held["critic", "best"] == 2 * critic
    assert held["critic", "gradients"] + held["critic", "optimizer"] == 14 * critic
    assert ("policy", "optimizer") not in held
    one = replace(work, decoded=4 * 64)
    assert held["policy", "kv_cache"] == memory.kv_cache_bytes(shape, one, MIXED)


def test_bytes_of_mixed_precision_are_sixteen_a_parameter():
    shape, work = PUBLISHED[0], Workload(1, 1, 1, 1)
    parts = memory.memory_parts(shape, PPOConfig(), work, MIXED)
    trained = memory.parameter_count(shape) + memory.parameter_count(shape, critic=True)
    assert sum(p.bytes for p in parts if p.phase == "stays") == 16 * trained


def test_exact_kl_costs_logits_that_the_others_do_not_have():
    work = Workload(decoded=2, micro_batch=3, prompt=5, response=7)
    shape = PUBLISHED[0]

    def logits(objective) -> int:
        return next(
            p.bytes
            for p in memory.memory_parts(shape, objective, work, MIXED)
            if p.part == "logits"
        )

    one = 3 * 7 * shape.vocabulary * 4
    assert logits(PPOConfig()) == logits(GRPOConfig()) == 4 * one
    assert logits(VimpoConfig()) == 8 * one
    assert logits(VimpoConfig(kl_estimator="k3")) == 4 * one


def test_rows_name_every_part_and_the_ratio_to_ppo():
    study = load_study()
    rows = memory.projection(study)
    assert {r["kind"] for r in rows} == {"projection"}
    assert {r["size"] for r in rows} == set(TOTALS)
    peaks = {(r["size"], r["algorithm"]): r for r in rows if r["part"] == "peak"}
    assert len(peaks) == 3 * len(TOTALS)
    for (size, algorithm), row in peaks.items():
        assert row["ratio_to_ppo"] == row["bytes"] / peaks[size, "ppo"]["bytes"]
        assert row["network"] == "all"
        assert row["parameters"] == TOTALS[size]
        assert algorithm != "grpo" or row["ratio_to_ppo"] < 1
    assert {r["network"] for r in rows if r["algorithm"] == "vimpo"} == {
        "policy",
        "reference",
        "all",
    }
    alone = memory.memory_rows(
        PUBLISHED[:1], {"grpo": GRPOConfig()}, Workload(1, 1, 1, 1), MIXED, "x"
    )
    assert alone[-1]["ratio_to_ppo"] != alone[-1]["ratio_to_ppo"]  # nothing to compare with


def test_workload_of_a_study_covers_its_responses():
    study = load_study({"train": {"prompts_per_step": 4, "group_size": 2, "micro_batch": 2}})
    work = memory.study_workload(study)
    assert (work.decoded, work.micro_batch) == (8, 2)
    assert work.prompt == len("1+2+3+4+5=")
    assert work.response <= study.train.max_response
    assert memory.study_workload(load_study({"train": {"max_response": 9}})).response == 9


def test_a_model_elsewhere_has_no_shape_here():
    with pytest.raises(ValueError, match=r"config\.json"):
        memory.shape_of("x", ModelSpec(path="Qwen/Qwen3-0.6B-Base"))


def test_the_model_needs_no_torch():
    code = "import sys, vimpo.models.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
