"""Adapters: they alone are trained, the saved model has them merged, the base is the reference."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from vimpo.config import Cell, ConfigError, Lora, ModelSpec, Runtime
from vimpo.models.lora import add_adapters, merged_tensors, without_adapters
from vimpo.models.networks import Critic, build_policy, chain_tokenizer, load_policy
from vimpo.models.optimizer import AdamW
from vimpo.training.checkpoint import load_checkpoint, save_checkpoint
from vimpo.training.runs import train_cell
from vimpo.training.trainer import Trainer

NAMES = ("vimpo", "ppo", "grpo")
IDS = torch.tensor([[0, 0, 9, 12, 7, 15], [5, 13, 5, 15, 4, 16]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.fixture
def policy():
    return build_policy(ModelSpec(hidden=16, layers=2, pretrain_steps=1), chain_tokenizer(), seed=0)


LORA = {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 0.01}


@pytest.mark.parametrize("algorithm", NAMES)
def test_adapters_alone_are_trained_and_the_saved_model_has_them_merged(
    tiny_study, algorithm, monkeypatch
):
    study = tiny_study(sizes={"tiny": LORA}, train={"steps": 4, "warmup_steps": 0})
    trainers = []
    load = Trainer._load
    monkeypatch.setattr(Trainer, "_load", lambda self, *a: (trainers.append(self), load(self, *a)))
    folder = train_cell(study, Cell(algorithm, "tiny", "rollout-0.25", 1), quiet=True)
    (trainer,) = trainers
    base = load_policy(study.base_folder("tiny") / "model", Runtime())
    trained = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(trained) is type(base)
    assert dict(trained.named_parameters()).keys() == dict(base.named_parameters()).keys()
    with torch.no_grad():
        found, before, expected = (
            m(IDS, attention_mask=MASK).logits[MASK.bool()] for m in (trained, base, trainer.policy)
        )
        with without_adapters(trainer.policy):
            reference = trainer.policy(IDS, attention_mask=MASK).logits[MASK.bool()]
    assert float((found - expected).abs().max()) < 1e-4
    assert torch.equal(reference, before)
    assert float((found - before).abs().max()) > 1e-2
    assert trainer.reference is None
    for name, parameter in trainer.policy.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name
    changed = dict(trained.named_parameters())
    moved = {k for k, p in dict(base.named_parameters()).items() if not torch.equal(p, changed[k])}
    assert moved == {k for k in changed if "proj" in k}  # not the embeddings, not the norms
    manifest = json.loads((folder / "manifest.json").read_text())
    inside = 4 * (4 * (16 + 16) + 3 * (16 + 48))  # rank x (in + out) of 7 layers
    head = 17 if algorithm == "ppo" else 0
    assert manifest["trainable_parameters"] == inside * (2 if head else 1) + head


def test_a_critic_with_adapters_is_saved_as_one_without(make_trainer, tmp_path):
    trainer = make_trainer("ppo", size=LORA, warmup_steps=0)
    for step in range(3):
        trainer.step(step)
    trainer.save(tmp_path)
    loaded = Critic.load(tmp_path / "critic", load_policy(tmp_path, Runtime()))
    with torch.no_grad():
        found, expected = (c(IDS, MASK, 4) for c in (loaded, trainer.critic))
    assert float((found - expected).abs().max()) < 1e-5
    assert float(expected.std()) > 1e-3


def test_vimpo_with_adapters_starts_at_its_reference(make_trainer):
    trainer = make_trainer("vimpo", size=LORA, warmup_steps=0)
    row = trainer.step(0)
    assert row["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert row["terminal_residual"] == pytest.approx(1, abs=1e-6)
    assert len(trainer.networks()) == 1
    rollouts = trainer.collector.collect(1).rollouts
    scores = trainer._score(rollouts)
    base = make_trainer("vimpo")
    on = rollouts.mask.bool()
    expected = base._score(rollouts).ref_logp
    assert float((scores.ref_logp - expected)[on].abs().max()) < 1e-6
    assert float((scores.logp.detach() - expected)[on].abs().max()) > 1e-3


def test_a_run_with_adapters_goes_on_exactly_and_its_checkpoint_is_small(make_trainer, tmp_path):
    whole, first, second = (make_trainer("vimpo", size=LORA) for _ in range(3))
    rows = [whole.step(step) for step in range(4)]
    for step in range(2):
        first.step(step)
    save_checkpoint(tmp_path, 2, first.modules, first.optimizers, {})
    load_checkpoint(tmp_path, second.modules, second.optimizers)
    assert [second.step(step) for step in (2, 3)] == rows[2:]
    assert all(".lora_" in k or "optimizer" in k for k in _keys(tmp_path))


def _keys(folder):
    from safetensors import safe_open

    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def test_adapters_keep_their_base_in_bfloat16_and_learn_in_float32(make_trainer):
    trainer = make_trainer("grpo", size=LORA, runtime={"dtype": "bfloat16"})
    dtypes = {(".lora_" in n, p.dtype) for n, p in trainer.policy.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert type(trainer.optimizers["policy"]) is AdamW
    assert trainer.step(0)["grad_norm"] > 0
    assert {t.dtype for t in merged_tensors(trainer.policy).values()} == {torch.bfloat16}


def test_adapters_of_named_layers_only_and_unknown_ones_are_refused(policy):
    other = copy.deepcopy(policy)
    add_adapters(policy, Lora(rank=2, targets=["q_proj"]), seed=0)
    names = {
        n.split(".lora_")[0].rsplit(".", 1)[1]
        for n in dict(policy.named_parameters())
        if ".lora_" in n
    }
    assert names == {"q_proj"}
    with pytest.raises(ConfigError, match=r"lora\.targets: \['nothing'\] do not fit: "):
        add_adapters(other, Lora(targets=["nothing"]), seed=0)


def test_a_base_policy_does_not_depend_on_adapters(tiny_study):
    plain, adapted = tiny_study(), tiny_study(sizes={"tiny": {"lora": {"rank": 4}}})
    assert plain.base_digest("tiny") == adapted.base_digest("tiny")
    cell = Cell("vimpo", "tiny", "0", 1)
    assert plain.cell_digest(cell) != adapted.cell_digest(cell)
