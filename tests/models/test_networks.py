"""Tokenizer, checkpoints, critic, and models that are given by a path."""

from __future__ import annotations

import json

import pytest
import torch
from padded import IDS, MASK
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vimpo.config import Cell, ConfigError, ModelSpec, Runtime
from vimpo.models.networks import (
    Critic,
    build_policy,
    chain_tokenizer,
    check_model_path,
    frozen_copy,
    load_policy,
    load_tokenizer,
    parameter_count,
    save_policy,
    set_up_torch,
)
from vimpo.training.runs import pretrain_base, train_cell

TINY = ModelSpec(hidden=16, layers=1, pretrain_steps=1)


@pytest.fixture
def policy():
    return build_policy(TINY, chain_tokenizer(), seed=0)


# --- Tokenizer -----------------------------------------------------------------------------------


def test_tokens_are_characters_and_nothing_is_added(tmp_path):
    tokenizer = chain_tokenizer()
    text = "7+5*12=-3;9-0#8"
    ids = tokenizer(text).input_ids
    assert ids == [2 + "0123456789+-*=;#".index(c) for c in text]
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 18)
    assert tokenizer.decode([*ids, 1, 0, 0], skip_special_tokens=True) == text


def test_tokenizer_is_saved_as_a_fast_one_that_auto_tokenizer_loads(tmp_path):
    chain_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert (tmp_path / "tokenizer.json").is_file()
    for text in ("7+5=12;12-3=9#9", "=", "2*3=6#6"):
        assert loaded(text).input_ids == chain_tokenizer()(text).input_ids
        assert loaded.decode(loaded(text).input_ids) == text
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")
    padded = loaded(["7+5=", "="], padding=True)
    assert padded.input_ids[1][:3] == [0, 0, 0]  # on the left
    assert loaded.model_max_length == 1024


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_eos_is_refused(tmp_path, missing):
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    del special[missing]
    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2}
    raw = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(tmp_path)
    build_policy(TINY, chain_tokenizer(), 0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"path: the tokenizer of .* has no {missing}"):
        load_tokenizer(tmp_path)


# --- Checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_name_every_declared_end_and_the_tokenizers_padding(policy, tmp_path):
    policy.config.eos_token_id, policy.config.pad_token_id = 5, None
    policy.generation_config.eos_token_id, policy.generation_config.pad_token_id = [9, 7], 3
    save_policy(policy, chain_tokenizer(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for config in (loaded.config, loaded.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == ([1, 5, 7, 9], 0)


def test_checkpoints_load_unchanged_by_transformers(policy, tmp_path):
    save_policy(policy, chain_tokenizer(), tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / name).read_text())
        assert (written["eos_token_id"], written["pad_token_id"]) == (1, 0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    with torch.no_grad():
        found, expected = (m(IDS, attention_mask=MASK).logits for m in (loaded, policy))
        assert torch.equal(found, expected)
        ours = load_policy(tmp_path, Runtime())
        assert torch.equal(ours(IDS, attention_mask=MASK).logits, expected)
    assert float(expected.std()) > 1e-3


def test_policies_are_built_the_same_for_the_same_seed(policy):
    again, other = (build_policy(TINY, chain_tokenizer(), seed) for seed in (0, 1))
    same = [torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(policy.lm_head.weight, other.lm_head.weight)


def test_parameter_count_of_the_ladders_shape(policy):
    h, v, d = 16, 18, 8
    layer = 4 * h * h + 2 * d + 3 * h * 3 * h + 2 * h  # attention, its norms, MLP, norms
    assert parameter_count(policy) == v * h + layer + h
    assert parameter_count(frozen_copy(policy)) == v * h + layer + h
    assert parameter_count(frozen_copy(policy), trainable=True) == 0


def test_reference_does_not_follow_the_policy(policy):
    reference = frozen_copy(policy)
    before = reference.lm_head.weight.clone()
    with torch.no_grad():
        policy.lm_head.weight.add_(1.0)
    assert torch.equal(reference.lm_head.weight, before)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nothing", "~/no-such-model-here"])
def test_a_missing_model_path_is_refused(path, tmp_path):
    for check in (check_model_path, load_tokenizer, lambda p: load_policy(p, Runtime())):
        with pytest.raises(ConfigError) as caught:
            check(path)
        assert str(caught.value).startswith(f"path: '{path}' holds no config.json; allowed: ")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        check_model_path(str(tmp_path))


@pytest.mark.parametrize("load", [load_tokenizer, lambda path: load_policy(path, Runtime())])
def test_a_hub_name_that_cannot_be_loaded_is_one_clear_error(load):
    with pytest.raises(ConfigError) as caught:
        load("no-owner/no-model")
    assert str(caught.value).startswith("path: 'no-owner/no-model' could not be loaded: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"runtime\.device: 'cuda' needs a GPU .* allowed: cpu"):
        set_up_torch(Runtime(device="cuda"))


# --- Critic --------------------------------------------------------------------------------------


def test_critic_starts_at_zero_and_apart_from_the_policy(policy):
    critic = Critic.from_policy(policy)
    assert critic(IDS, MASK, 4).tolist() == [[0.0] * 4] * 2
    assert parameter_count(critic, trainable=True) == parameter_count(policy) + 16 + 1
    ours, theirs = critic.backbone.embed_tokens.weight, policy.model.embed_tokens.weight
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()


def test_critic_values_are_a_linear_read_of_the_last_hidden_states(policy):
    critic = Critic.from_policy(policy)
    with torch.no_grad():
        critic.head.weight[0, 3], critic.head.bias[0] = 2.0, 0.5
        states = policy.model(IDS[1:]).last_hidden_state
        found = critic(IDS, MASK, 4)
    assert float((found[1] - (2 * states[0, 2:, 3] + 0.5)).abs().max()) < 1e-6


def test_critic_is_saved_and_loaded_exactly(policy, tmp_path):
    critic = Critic.from_policy(policy)
    with torch.no_grad():
        for i, parameter in enumerate(critic.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        critic.save(tmp_path / "critic")
        loaded = Critic.load(tmp_path / "critic", policy)
        expected = critic(IDS, MASK, 4)
        assert torch.equal(loaded(IDS, MASK, 4), expected)
    assert float(expected.std()) > 0.1


# --- Models by path ------------------------------------------------------------------------------

SHAPES = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=64)
        # dropout is 0.1 by default: it must be off in sampling and in training
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    ),
}


@pytest.fixture(params=SHAPES)
def foreign(request, tmp_path):
    """Folder of a tiny random model of another family with its own tokenizer (eos is token 3)."""
    vocabulary = {c: i for i, c in enumerate([*"=;#", "<end>", *"0123456789+-*", "<fill>"])}
    tokenizer = chain_tokenizer()
    raw = Tokenizer(tokenizer_models.WordLevel(vocabulary))
    raw.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    raw.decoder = tokenizer.backend_tokenizer.decoder
    own = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<fill>")
    torch.manual_seed(0)
    model = SHAPES[request.param]()
    model.config.eos_token_id, model.config.pad_token_id = 3, 17
    model.generation_config.eos_token_id = 3
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    folder = tmp_path / "foreign"
    save_policy(model, own, folder)
    return folder


def test_a_model_by_path_takes_the_same_way_through_training(foreign, tiny_study):
    study = tiny_study(sizes={"foreign": {"path": str(foreign)}}, train={"steps": 2})
    base = pretrain_base(study, "foreign", quiet=True)
    given, own = (load_policy(f, Runtime()) for f in (foreign, base / "model"))
    assert type(given) is type(own)
    for a, b in zip(given.parameters(), own.parameters(), strict=True):
        assert torch.equal(a, b)
    assert load_tokenizer(base / "model").eos_token_id == 3
    assert json.loads((base / "manifest.json").read_text())["parameters"] == parameter_count(given)
    assert (base / "metrics.csv").read_text() == "step\n"
    for algorithm in ("vimpo", "ppo", "grpo"):
        folder = train_cell(study, Cell(algorithm, "foreign", "rollout-0.25", 1), quiet=True)
        trained = load_policy(folder / "model", Runtime())
        assert type(trained) is type(given)
        moved = [
            float((a - b).detach().abs().max())
            for a, b in zip(trained.parameters(), given.parameters(), strict=True)
        ]
        assert max(moved) > 1e-6
        if algorithm == "ppo":
            ids, mask = torch.tensor([[4, 14, 5]]), torch.ones(1, 3, dtype=torch.long)
            critic = Critic.load(folder / "model" / "critic", trained)
            assert critic(ids, mask, 2).abs().max() > 0


def test_a_model_by_path_can_be_pretrained_further(foreign, tiny_study):
    spec = {"path": str(foreign), "pretrain_steps": 5, "pretrain_lr": 0.01}
    study = tiny_study(sizes={"foreign": spec})
    base = pretrain_base(study, "foreign", quiet=True)
    losses = [float(row.split(",")[1]) for row in (base / "metrics.csv").read_text().split()[1:]]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_models_by_path_are_sampled_and_trained_without_dropout(foreign, tiny_study):
    from vimpo.training.trainer import Trainer

    study = tiny_study(sizes={"foreign": {"path": str(foreign)}})
    base = pretrain_base(study, "foreign", quiet=True)
    trainer = Trainer(study.cell_config(Cell("ppo", "foreign", "0", 1)), base / "model")
    torch.nn.init.normal_(trainer.critic.head.weight)
    with torch.no_grad():
        rollouts = trainer.collector.collect(0).rollouts
        scored = trainer._score(rollouts).logp * rollouts.mask
        assert float((scored - rollouts.logp).abs().max()) < 1e-5
        values = trainer._values(rollouts)
        assert torch.equal(trainer._values(rollouts), values)
        assert float(values.std()) > 1e-3


def test_a_size_of_a_missing_path_is_refused_before_anything_is_written(tiny_study):
    study = tiny_study(sizes={"gone": {"path": "./gone"}})
    with pytest.raises(ConfigError, match=r"path: './gone' holds no config\.json"):
        pretrain_base(study, "gone", quiet=True)
    assert not study.base_folder("gone").exists()
