"""What large models need: bfloat16, recomputation, chunked logits, the real vocabulary."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from padded import IDS, MASK
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from vimpo.config import Cell, ConfigError, ModelSpec, Runtime
from vimpo.models.networks import (
    build_policy,
    chain_tokenizer,
    check_plain_head,
    load_policy,
    load_tokenizer,
    save_policy,
)
from vimpo.models.optimizer import AdamW, MasterAdamW, make_optimizer
from vimpo.models.passes import decoder_layers, enable_checkpointing, recomputing
from vimpo.probes.subject import Subject
from vimpo.training.checkpoint import load_checkpoint, save_checkpoint
from vimpo.training.runs import pretrain_base, train_cell
from vimpo.training.trainer import Trainer

NAMES = ("vimpo", "ppo", "grpo")
VOCABULARY = 151_936  # of every Qwen3
TINY = ModelSpec(hidden=16, layers=2, pretrain_steps=1)


@pytest.fixture
def policy():
    return build_policy(TINY, chain_tokenizer(), seed=0)


def weights(module):
    return {k: p.detach().clone() for k, p in module.named_parameters()}


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


# --- Chunked logits in training ------------------------------------------------------------------

OBJECTIVES = {
    "vimpo": {"objective": "vimpo", "beta": 0.3, "actor_coef": 0.5},
    "vimpo_k3": {"objective": "vimpo", "beta": 0.3, "kl_estimator": "k3"},
    "ppo": {"objective": "ppo"},
    "grpo_kl": {"objective": "grpo", "kl_coef": 0.5},
}


@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_in_chunks_is_training_with_all_logits(make_trainer, name, micro_batch):
    settings = {"objective": OBJECTIVES[name], "micro_batch": micro_batch, "temperature": 0.8}
    plain, lean = (
        make_trainer(name, runtime={"logit_chunk": chunk}, **settings) for chunk in (None, 16)
    )
    for step in range(3):
        expected = plain.step(step)
        assert lean.step(step) == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
    assert distance(weights(lean.policy), weights(plain.policy)) < 1e-5


@pytest.mark.parametrize("chunk", [None, 16])
def test_all_logits_are_formed_unless_a_chunk_is_configured(make_trainer, monkeypatch, chunk):
    trainer = make_trainer(runtime={"logit_chunk": chunk})
    calls = []
    monkeypatch.setattr("vimpo.models.scoring.last_logits", lambda *a: calls.append(a) or 1 / 0)
    rollouts = trainer.collector.collect(0).rollouts
    if chunk is None:
        with pytest.raises(ZeroDivisionError):
            trainer._score(rollouts)
    else:
        scores = trainer._score(rollouts)
        difference = (scores.logp.detach() - rollouts.logp) * rollouts.mask
        assert float(difference.abs().max()) < 1e-5
        assert calls == []


def test_an_output_layer_that_is_more_than_a_matrix_is_refused(policy):
    check_plain_head(policy)
    scaled, bent = copy.deepcopy(policy), copy.deepcopy(policy)
    scaled.lm_head.register_forward_hook(lambda module, _, logits: logits / 1.1)
    bent.config.final_logit_softcapping = 30.0  # as of Gemma 2: no change near zero
    for model in (scaled, bent):
        with pytest.raises(ConfigError, match=r"logit_chunk: the output layer of Qwen3.* is not"):
            check_plain_head(model)


def test_chunks_and_the_topk_estimator_are_refused_together(tiny_study):
    with pytest.raises(ConfigError, match="topk estimator reads all logits; allowed: null, or"):
        tiny_study(algorithms={"vimpo": {"kl_estimator": "topk"}}, runtime={"logit_chunk": 16})


# --- Recomputation -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", NAMES)
def test_recomputed_layers_give_the_same_bytes(make_trainer, monkeypatch, algorithm):
    plain, lean = (
        make_trainer(algorithm, runtime={"gradient_checkpointing": on}) for on in (False, True)
    )
    monkeypatch.setattr(plain, "_prompts", lambda *_: None)  # recomputed layers share none
    for step in range(2):
        assert lean.step(step) == pytest.approx(plain.step(step), rel=0, abs=0, nan_ok=True)
    for name, module in lean.modules.items():
        assert distance(weights(module), weights(plain.modules[name])) == 0


def test_layers_are_recomputed_in_the_backward_pass_and_not_in_sampling(make_trainer):
    trainer = make_trainer(runtime={"gradient_checkpointing": True})
    calls = []
    (layer,) = decoder_layers(trainer.policy)
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of caching that was switched off
        rollouts = trainer.collector.collect(0).rollouts
    assert len(calls) == rollouts.width  # the cache is in use: one token a call
    assert not layer.training
    calls.clear()
    trainer._score(rollouts).logp.sum().backward()
    assert len(calls) == 2 * len(trainer._pieces(rollouts))  # forward, and again backward
    assert not any(m.training for m in trainer.policy.modules())


def test_recomputation_wakes_no_dropout(policy):
    enable_checkpointing(policy.eval())
    (first, second) = decoder_layers(policy)
    with recomputing(policy):
        assert first.training
        assert second.training
        assert not any(m.training for m in first.children())
    first.dropout = 0.3
    enable_checkpointing(policy)
    assert first.dropout == 0.0


def test_a_model_without_recomputation_is_refused(policy):
    policy.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"gradient_checkpointing: Qwen3.* has none; allowed: f"):
        enable_checkpointing(policy)


# --- bfloat16 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", NAMES)
def test_bfloat16_moves_weights_by_less_than_it_can_write(make_trainer, algorithm):
    # At this rate a step is far below the last bit of a weight near 0.1: 2^-12.
    trainer = make_trainer(
        algorithm,
        runtime={"dtype": "bfloat16"},
        size={"learning_rate": 1e-6},
        warmup_steps=0,
        weight_decay=0.0,
    )
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.bfloat16}
    optimizer = trainer.optimizers["policy"]
    assert isinstance(optimizer, MasterAdamW)
    start = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    steps = 4
    for step in range(steps):
        row = trainer.step(step)
        assert row["grad_norm"] > 0
    copies = optimizer.param_groups[0]["params"]
    assert {c.dtype for c in copies} == {torch.float32}
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(copies, start, strict=True))
    assert 1e-6 < moved <= steps * 1.05e-6  # Adam moves by about the rate per step
    for copy_, parameter in zip(copies, trainer.policy.parameters(), strict=True):
        assert torch.equal(copy_.detach().bfloat16(), parameter.detach())


def test_float32_needs_no_copies(policy):
    optimizer = make_optimizer(policy, 1e-3, 0.0)
    assert type(optimizer) is AdamW
    assert optimizer.param_groups[0]["params"] == list(policy.parameters())


def test_gradients_of_micro_batches_are_added_in_float32():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=1.0)
    for gradient in (256.0, 1.0, 1.0):  # 257 is no bfloat16
        weight.grad = torch.tensor([gradient], dtype=torch.bfloat16)
        optimizer.collect()
    assert weight.grad is None
    assert optimizer.param_groups[0]["params"][0].grad.tolist() == [258.0]
    optimizer.zero_grad()
    assert optimizer.param_groups[0]["params"][0].grad is None


def test_a_bfloat16_run_goes_on_exactly_from_its_checkpoint(make_trainer, tmp_path):
    whole, first, second = (make_trainer("ppo", runtime={"dtype": "bfloat16"}) for _ in range(3))
    rows = [whole.step(step) for step in range(4)]
    for step in range(2):
        first.step(step)
    save_checkpoint(tmp_path, 2, first.modules, first.optimizers, {})
    assert load_checkpoint(tmp_path, second.modules, second.optimizers) == (2, {})
    assert [second.step(step) for step in (2, 3)] == rows[2:]


# --- Attention, code of strangers ----------------------------------------------------------------


def test_the_attention_implementation_is_the_configured_one(policy, tmp_path):
    save_policy(policy, chain_tokenizer(), tmp_path)
    models = {n: load_policy(tmp_path, Runtime(attention=n)) for n in ("sdpa", "eager")}
    for name, model in models.items():
        assert model.config._attn_implementation == name
    with torch.no_grad():
        a, b = (m(IDS, attention_mask=MASK).logits for m in models.values())
    assert float((a - b)[MASK.bool()].abs().max()) < 1e-5


def test_an_attention_implementation_that_is_not_there_is_one_clear_error(policy, tmp_path):
    save_policy(policy, chain_tokenizer(), tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_policy(tmp_path, Runtime(attention="flash_attention_2"))
    message = str(caught.value)
    assert message.startswith("runtime.attention: 'flash_attention_2' cannot be used: ")
    assert message.endswith("allowed: sdpa")
    assert len(message.splitlines()) == 1


@pytest.fixture
def stranger(policy, tmp_path):
    """Folder of a model whose code leaves a file when it runs."""
    folder = tmp_path / "stranger"
    save_policy(policy, chain_tokenizer(), folder)
    mark = tmp_path / "ran"
    (folder / "modeling_stranger.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class StrangerConfig(Qwen3Config):\n    model_type = 'stranger'\n"
        "class StrangerForCausalLM(Qwen3ForCausalLM):\n    config_class = StrangerConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "stranger"
    config["auto_map"] = {
        "AutoConfig": "modeling_stranger.StrangerConfig",
        "AutoModelForCausalLM": "modeling_stranger.StrangerForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(stranger, monkeypatch):
    folder, mark = stranger
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_policy(folder, Runtime())
    assert not mark.exists()
    with pytest.warns(UserWarning, match="trust_remote_code: Python code that comes with"):
        model = load_policy(folder, Runtime(trust_remote_code=True))
    assert mark.exists()
    assert type(model).__name__ == "StrangerForCausalLM"


@pytest.mark.filterwarnings("ignore:runtime.trust_remote_code")
def test_a_critic_of_a_model_with_code_is_loaded_by_the_probes(stranger, tiny_study):
    folder, _ = stranger
    study = tiny_study(
        sizes={"stranger": {"path": str(folder)}},
        train={"steps": 2, "warmup_steps": 0},
        runtime={"trust_remote_code": True},
    )
    pretrain_base(study, "stranger", quiet=True)
    cell = Cell("ppo", "stranger", "0", 1)
    run = train_cell(study, cell, quiet=True)
    subject = Subject.load(study, cell)
    assert type(subject.policy).__name__ == "StrangerForCausalLM"
    saved = load_file(run / "model/critic/critic.safetensors")
    assert weights(subject.critic).keys() == saved.keys()
    assert distance(weights(subject.critic), saved) == 0
    assert distance(weights(subject.critic.backbone), weights(subject.policy.base_model)) > 0


def test_a_model_without_trust_warns_of_nothing(policy, tmp_path):
    save_policy(policy, chain_tokenizer(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_policy(tmp_path, Runtime())
        load_tokenizer(tmp_path)


# --- The real vocabulary -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Folder of a Qwen3 with the real vocabulary and hardly anything else."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen") / "model"
    save_policy(Qwen3ForCausalLM(config), chain_tokenizer(), folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_the_real_vocabulary_is_trained_by_every_algorithm(tiny_study, qwen, algorithm, dtype):
    study = tiny_study(
        sizes={"tiny": {"path": str(qwen), "pretrain_steps": 0}},
        train={"prompts_per_step": 2, "group_size": 4, "max_response": 4, "warmup_steps": 0},
        algorithms={"vimpo": {"beta": 0.3}},
        runtime={"dtype": dtype, "logit_chunk": 4, "gradient_checkpointing": True},
    )
    config = study.cell_config(Cell(algorithm, "tiny", "rollout-0.5", 1))
    trainer = Trainer(config, qwen)
    start = weights(trainer.policy)
    row = trainer.step(0)
    assert 0 < row["reward"] < 1
    assert row["grad_norm"] > 0
    assert row["entropy"] == pytest.approx(11.93, abs=0.01)  # log 151,936: it knows nothing
    assert distance(weights(trainer.policy), start) > 0
