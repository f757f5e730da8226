"""Every architecture is trained, sampled, saved and probed rightly, or refused before it runs.

The fast tests take one of each kind: dense, experts with and without their own layers for adapters,
experts whose bias is a buffer, recurrent with and without attention, an output layer of another
width. The slow ones take them all.
"""

from __future__ import annotations

import pytest
import torch
from zoo import ZOO, save_zoo_model

from vimpo.config import Cell, ConfigError, Lora, ModelSpec, Runtime
from vimpo.models.fitness import check_trainable
from vimpo.models.lora import add_adapters, merged_tensors
from vimpo.models.networks import Critic, load_model_config, load_policy, load_tokenizer
from vimpo.models.saved import check_saved
from vimpo.probes.precision import cast
from vimpo.probes.subject import Subject
from vimpo.sampling.gap import check_sampling
from vimpo.training.runs import pretrain_base, train_cell

EAGER = Runtime(attention="eager")
# What a kind is refused for, by its configuration or skeleton. All others are trained.
REFUSED = {
    "bert": r"is an encoder, is_decoder: false \(model type bert\); allowed: a causal",
    "roberta": r"is an encoder, is_decoder: false \(model type roberta\); allowed: a causal",
    "t5": r"is an encoder-decoder \(model type t5\); allowed: a causal language model",
    "bart": r"is an encoder-decoder \(model type bart\); allowed: a causal language model",
    "rwkv": r"RwkvForCausalLM \(model type rwkv\) does not keep all of its state in a cache",
    "recurrent_gemma": r"\(model type recurrent_gemma\) does not keep all of its state in a cache",
}
SEEN_IN_SAMPLING = "bert-generation"
NO_ADAPTERS = {"mamba", "mamba2", "falcon_mamba"}  # peft refuses their output layers
NARROW_LOGITS = {"mamba", "mamba2", "falcon_mamba"}  # by their own code
TRAINED = [kind for kind in ZOO if kind not in {*REFUSED, SEEN_IN_SAMPLING}]
FAST = {"mixtral", "qwen3_next", "deepseek_v3", "mamba", "opt"}
KINDS = [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in TRAINED]


def checked(folder, runtime=EAGER, **spec):
    """What `check` does with a model."""
    tokenizer, config = load_tokenizer(folder), load_model_config(folder)
    check_trainable(ModelSpec(path=str(folder), **spec), config, tokenizer, runtime, "path")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Folder of a kind's model, made once."""
    root = tmp_path_factory.mktemp("zoo")

    def folder(kind):
        path = root / kind.replace(" ", "-")
        return path if path.exists() else save_zoo_model(kind, path)

    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_sampled_saved_and_read_rightly(kind, zoo, tiny_study):
    folder = zoo(kind)
    checked(folder)
    study = tiny_study(
        sizes={"zoo": {"path": str(folder), "learning_rate": 0.01}},
        train={"steps": 1, "warmup_steps": 0, "prompts_per_step": 2},
        runtime={"attention": "eager"},
    )
    base = pretrain_base(study, "zoo", quiet=True)  # compares sampled and scored tokens
    cell = Cell("ppo", "zoo", "rollout-0.25", 1)
    trained = train_cell(study, cell, quiet=True)  # reads what it saved again
    before, after = (load_policy(f / "model", EAGER) for f in (base, trained))
    assert any(
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )
    Subject.load(study, cell)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_into_every_layer_that_has_them(kind, zoo, tmp_path):
    folder = zoo(kind)
    if kind in NO_ADAPTERS:
        with pytest.raises(ConfigError, match=r"lora\.targets: None do not fit: .*incompatible"):
            checked(folder, lora=Lora(rank=2))
        return
    checked(folder, lora=Lora(rank=2))
    policy = load_policy(folder, EAGER).eval()
    names = policy.state_dict().keys()
    add_adapters(policy, Lora(rank=2), seed=0)
    policy(torch.arange(2, 60)[None]).logits.square().sum().backward()
    for name, parameter in policy.named_parameters():
        # Zero at first. Jamba reads some weights past their layers, whose adapters learn nothing.
        if ".lora_B" in name and parameter.grad is not None:
            parameter.data -= 0.05 * parameter.grad.sign()
    tensors = merged_tensors(policy)
    assert tensors.keys() <= names
    policy.save_pretrained(tmp_path, state_dict=tensors)
    load_tokenizer(folder).save_pretrained(tmp_path)
    check_saved(policy, tmp_path, EAGER, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_in_float64(kind, zoo):
    policy = load_policy(zoo(kind), EAGER).eval()
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        narrow, wide = (cast(policy, d)(ids).logits for d in (torch.float32, torch.float64))
    assert wide.dtype == (torch.float32 if kind in NARROW_LOGITS else torch.float64)
    assert 0 < float((narrow - wide).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_by_its_type(kind, zoo):
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        checked(zoo(kind))


def test_an_encoder_that_says_nothing_of_it_is_refused_by_the_base_job(zoo, tiny_study):
    folder = zoo(SEEN_IN_SAMPLING)
    checked(folder)
    study = tiny_study(sizes={"zoo": {"path": str(folder)}})
    message = r"\(model type bert-generation\) gives .* nats apart; allowed: at most 0\.001"
    with pytest.raises(ConfigError, match=message):
        pretrain_base(study, "zoo", quiet=True)


@pytest.mark.parametrize("kind", ["gptj", "gpt_oss", "bloom", "gemma2"])
def test_another_attention_is_advised_where_the_configured_one_is_not_there(kind, zoo):
    checked(zoo(kind))
    message = r"runtime\.attention: 'sdpa' cannot be used: \w+ does not .*; allowed: eager$"
    with pytest.raises(ConfigError, match=message):
        checked(zoo(kind), Runtime())
    with pytest.raises(ConfigError, match=message):
        load_policy(zoo(kind), Runtime())


def test_a_critic_is_as_wide_as_what_the_output_layer_reads(zoo):
    policy = load_policy(zoo("opt"), EAGER)
    assert policy.config.hidden_size == 16
    assert Critic.from_policy(policy).head.weight.shape == (1, 8)


# --- Sampled and scored --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "jamba"])
def test_bfloat16_is_compared_in_float32_and_left_as_it_was(kind, zoo):
    tokenizer = load_tokenizer(zoo(kind))
    policy = load_policy(zoo(kind), Runtime(dtype="bfloat16", attention="eager")).eval()
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    check_sampling(policy, tokenizer, kind)
    after = policy.state_dict()
    assert all(t.dtype == after[n].dtype and torch.equal(t, after[n]) for n, t in before.items())


def test_a_model_that_answers_with_nan_is_refused(zoo):
    tokenizer, policy = load_tokenizer(zoo("qwen3")), load_policy(zoo("qwen3"), EAGER).eval()
    with torch.no_grad():
        policy.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match="nan nats apart"):
        check_sampling(policy, tokenizer, "qwen3")
