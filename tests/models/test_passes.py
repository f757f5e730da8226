"""Forward passes: the last positions of padded rows, and prompts that rows share."""

from __future__ import annotations

import pytest
import torch
from padded import IDS, MASK
from zoo import ZOO, save_zoo_model

from vimpo.config import ModelSpec, Runtime
from vimpo.models.networks import build_policy, chain_tokenizer, frozen_copy, load_policy
from vimpo.models.passes import (
    enable_checkpointing,
    last_logits,
    last_states,
    positions,
    read_prompts,
)
from vimpo.training.trainer import Trainer

TINY = ModelSpec(hidden=16, layers=2, pretrain_steps=1)
# Which keep only keys and values of all tokens; what else is read prompt and response together.
SHARE = ("qwen3", "opt", "mixtral", "gpt2", "bloom")
KEEP_OTHERS = ("mamba", "qwen3_next", "gemma3_text")
EAGER = Runtime(attention="eager")


@pytest.fixture
def policy():
    return build_policy(TINY, chain_tokenizer(), seed=0)


def test_last_logits_are_those_of_a_text_without_padding(policy):
    with torch.no_grad():
        found = last_logits(policy, IDS, MASK, 3)
        alone = policy(IDS[:1, 2:]).logits[:, -3:]
    assert found.shape == (2, 3, 18)
    assert float((found[:1] - alone).abs().max()) < 1e-6


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


# --- Prompts that rows share ----------------------------------------------------------------------


def grouped_rows(prompt=7, response=5, groups=3, size=4):
    """ids, mask [B, P + T] of shuffled groups, with padding on both sides."""
    draws = torch.Generator().manual_seed(0)
    count = groups * size
    prompts = torch.randint(2, 18, (groups, prompt), generator=draws).repeat_interleave(size, 0)
    ids = torch.cat([prompts, torch.randint(2, 18, (count, response), generator=draws)], 1)
    mask = torch.ones_like(ids)
    mask[:size, :3] = 0
    for i in range(count):
        mask[i, prompt + 1 + i % response :] = 0
    order = torch.randperm(count, generator=draws)
    return (ids * mask)[order], mask[order]


def read(model, ids, mask, prompt, shared, output):
    """Output of the responses' positions by rows in two parts, and all gradients of its squares."""
    prompts = None
    if shared:
        prompts = read_prompts(
            model, ids[:, :prompt], mask[:, :prompt], int(mask.sum()), output is last_logits
        )
        assert prompts is not None
        assert len(prompts.mask) == 3
    model.zero_grad()
    last, parts = ids.shape[1] - prompt, []
    for rows in (slice(0, 5), slice(5, None)):
        own = prompts and prompts.rows(rows)
        parts.append(output(model, ids[rows, :-1], mask[rows, :-1], last, own))
    found = torch.cat(parts)
    # What follows the last token of a row is padding.
    found = found * mask[:, prompt - 1 : -1, None]
    found.square().mean().backward()
    return found.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("output", [last_logits, last_states])
@pytest.mark.parametrize("kind", SHARE)
def test_a_prompt_that_is_read_once_gives_the_same_outputs_and_gradients(kind, output, tmp_path):
    model = load_policy(save_zoo_model(kind, tmp_path), EAGER).eval()
    ids, mask = grouped_rows()
    (plain, slopes), (once, found) = (
        read(model, ids, mask, 7, shared, output) for shared in (False, True)
    )
    assert torch.allclose(once, plain, atol=1e-5)
    assert found.keys() == slopes.keys()
    scale = max(float(g.abs().max()) for g in slopes.values())
    for name, slope in slopes.items():
        bound = 1e-3 * float(slope.abs().max()) + 1e-6 * scale
        assert float((found[name] - slope).abs().max()) < bound, name


def test_a_policy_and_its_frozen_copy_say_the_same_bytes(policy):
    ids, mask = grouped_rows()
    found = []
    for model in (policy, frozen_copy(policy)):
        prompts = read_prompts(model, ids[:, :7], mask[:, :7], int(mask.sum()))
        found.append(last_logits(model, ids[:, :-1], mask[:, :-1], 5, prompts).detach())
    assert torch.equal(*found)


def test_every_prompt_is_read_once(policy):
    ids, mask = grouped_rows()
    seen = []
    policy.model.embed_tokens.register_forward_hook(lambda _, x, __: seen.append(x[0].numel()))
    read(policy, ids, mask, 7, True, last_logits)
    assert seen == [3 * 7, 5 * 4, 7 * 4]


def test_a_single_token_is_predicted_by_the_prompt_alone(policy):
    ids, mask = grouped_rows(response=1)
    prompts = read_prompts(policy, ids[:, :7], mask[:, :7], int(mask.sum()))
    with torch.no_grad():
        expected = last_logits(policy, ids[:, :-1], mask[:, :-1], 1)
        found = last_logits(policy, ids[:, :-1], mask[:, :-1], 1, prompts)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KEEP_OTHERS)
def test_what_keeps_more_than_keys_and_values_reads_prompts_with_responses(kind, tmp_path):
    assert kind in ZOO
    model = load_policy(save_zoo_model(kind, tmp_path), EAGER).eval()
    ids, mask = grouped_rows()
    assert read_prompts(model, ids[:, :7], mask[:, :7], int(mask.sum())) is None


def test_where_little_is_saved_nothing_is_shared(policy):
    ids, mask = grouped_rows()
    asked, shown = ids[:, :7], mask[:, :7]
    saved = 3 * (4 + 7 + 7)  # three of four rows, whose first group has shorter prompts
    assert read_prompts(policy, asked, shown, 10 * saved - 10) is not None
    assert read_prompts(policy, asked, shown, 10 * saved + 10) is None
    different = asked.unique(dim=0)
    assert read_prompts(policy, different, (different > 0).long(), 1) is None
    enable_checkpointing(policy)
    assert read_prompts(policy, asked, shown, 1) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "grpo"},
        {"runtime": {"logit_chunk": 16}},
        {"micro_batch": 7},
        {"size": {"lora": {"rank": 2}}},
        {"algorithm": "ppo", "epochs": 2},
    ],
    ids=["grpo", "chunks", "micro-batches", "adapters", "critic"],
)
def test_training_is_the_same_however_prompts_are_read(make_trainer, monkeypatch, settings):
    once, plain = (make_trainer(**settings) for _ in range(2))
    monkeypatch.setattr(plain, "_prompts", lambda *_: None)
    kept = []
    prompts = Trainer._prompts
    monkeypatch.setattr(once, "_prompts", lambda *a: kept.append(prompts(once, *a)) or kept[-1])
    for step in range(3):
        expected = plain.step(step)
        assert once.step(step) == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
    assert any(kept)
