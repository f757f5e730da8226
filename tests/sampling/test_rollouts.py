"""Rollouts against a sampler that has no batch, no cache and no padding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from vimpo.config import ModelSpec, Runtime
from vimpo.config.models import Lora
from vimpo.models.lora import add_adapters
from vimpo.models.networks import build_policy, chain_tokenizer, load_policy
from vimpo.models.passes import last_logits
from vimpo.sampling import decoding
from vimpo.sampling import rollouts as rollout
from vimpo.sampling.rollouts import Rollouts, draw_tokens, left_pad, sample

EOS, PAD = 1, 0
ENCODE = chain_tokenizer()
PROMPTS = [ENCODE(text).input_ids for text in ("3+4=", "1+2-3+4-5+1=", "5=", "2-5+2=")]
GROUP, WIDTH = 4, 12


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return load_policy(tiny_base / "model", Runtime())


@pytest.fixture(params=["plain", "cache"])
def policy(loaded, request, monkeypatch):
    """Decoded in the short way, and through transformers' own cache as any other model."""
    assert decoding.is_plain(loaded)
    if request.param == "cache":
        monkeypatch.setattr(decoding, "is_plain", lambda model: False)
    return loaded


def draw(policy, prompts=PROMPTS, seed=0, temperature=1.0, **changes):
    settings = {"group_size": GROUP, "max_response": WIDTH, "ends": (EOS,), "pad": PAD} | changes
    return sample(
        policy,
        prompts,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )


def responses(rollouts):
    return [
        row[keep.bool()].tolist()
        for row, keep in zip(rollouts.response_ids, rollouts.mask, strict=True)
    ]


def one_by_one(policy, prompts, seed, temperature):
    """Tokens and log-probabilities: each row alone, whole text at each step, inverse CDF."""
    shape = (len(prompts) * GROUP, WIDTH)
    uniforms = torch.rand(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).numpy()
    tokens, logps = [], []
    for i, numbers in enumerate(uniforms):
        text, start = list(prompts[i // GROUP]), len(prompts[i // GROUP])
        logps.append([])
        for u in numbers:
            with torch.no_grad():
                logits = policy(torch.tensor([text])).logits[0, -1].double().numpy() / temperature
            logp = logits - np.logaddexp.reduce(logits)
            token = int((np.exp(logp).cumsum() <= u).sum())
            text.append(token)
            logps[-1].append(logp[token])
            if token == EOS:
                break
        tokens.append(text[start:])
    return tokens, logps


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_equal_those_of_a_sampler_without_batch_cache_or_padding(policy, temperature):
    found = draw(policy, seed=5, temperature=temperature)
    tokens, logps = one_by_one(policy, PROMPTS, 5, temperature)
    assert responses(found) == tokens
    lengths = [len(row) for row in tokens]
    assert min(lengths) < max(lengths)
    for row, expected in zip(found.logp.tolist(), logps, strict=True):
        assert max(abs(a - b) for a, b in zip(row, expected, strict=False)) < 1e-5
        assert not any(row[len(expected) :])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_while_sampling_equal_those_while_training(policy, temperature):
    rollouts = draw(policy, temperature=temperature)
    with torch.no_grad():
        logits = last_logits(policy, *rollouts.inputs(), rollouts.width) / temperature
    logp = logits.log_softmax(-1).gather(-1, rollouts.response_ids[..., None]).squeeze(-1)
    assert float((logp * rollouts.mask - rollouts.logp).abs().max()) < 1e-5
    assert float(rollouts.logp.min()) < -1


def test_training_scores_do_not_depend_on_padding(policy):
    rollouts = draw(policy)
    with torch.no_grad():
        together = last_logits(policy, *rollouts.inputs(), rollouts.width)
        for i, response in enumerate(responses(rollouts)):
            text = torch.tensor([PROMPTS[i // GROUP] + response])
            alone = policy(text[:, :-1]).logits[0, -len(response) :]
            assert float((together[i, : len(response)] - alone).abs().max()) < 1e-5


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_a_prompt_is_answered_the_same_alone_and_among_longer_ones(policy, longest):
    alone = draw(policy, PROMPTS[:1], seed=2)
    among = draw(policy, [PROMPTS[0], *PROMPTS[longest:]], seed=2)
    assert responses(among)[:GROUP] == responses(alone)
    difference = among.logp[:GROUP, : alone.width] - alone.logp[:, : among.width]
    assert float(difference.abs().max()) < 1e-5


def test_dropping_finished_rows_changes_nothing(policy, monkeypatch):
    dropped = []
    for kind in (decoding.PlainDecoder, decoding.CacheDecoder):

        def keep(self, rows, keep=kind.keep):
            dropped.append(len(rows))
            keep(self, rows)

        monkeypatch.setattr(kind, "keep", keep)
    found = []
    for share in (2.0, 0.0, 0.3):  # never, at every step, sometimes
        monkeypatch.setattr(rollout, "DROP_SHARE", share)
        # The first call repeats each prompt for its group.
        found.append((draw(policy, seed=3), dropped[1:]))
        dropped.clear()
    (kept, none), (always, many), (some, few) = found
    assert none == []
    assert len(many) > len(few) > 0
    assert min(many) < 16
    for other in (always, some):
        assert torch.equal(other.response_ids, kept.response_ids)
        assert torch.equal(other.mask, kept.mask)
        assert float((other.logp - kept.logp).abs().max()) < 1e-5


def test_the_same_seed_gives_the_same_rollouts_and_another_one_does_not(policy):
    first, again, other = draw(policy, seed=1), draw(policy, seed=1), draw(policy, seed=2)
    assert torch.equal(first.response_ids, again.response_ids)
    assert torch.equal(first.logp, again.logp)
    assert responses(first) != responses(other)


def test_responses_end_with_eos_or_at_the_limit(policy):
    rollouts = draw(policy, PROMPTS * 5, max_response=7)
    ended = 0
    for i, row in enumerate(responses(rollouts)):
        mask = rollouts.mask[i].tolist()
        assert mask == [1.0] * len(row) + [0.0] * (rollouts.width - len(row))
        assert rollouts.response_ids[i, len(row) :].tolist() == [PAD] * (rollouts.width - len(row))
        assert EOS not in row[:-1]
        assert bool(rollouts.finished[i]) is (row[-1] == EOS)
        assert row[-1] == EOS or len(row) == 7
        ended += row[-1] == EOS
    assert 0 < ended < 80
    assert rollouts.prompt_ids.shape == (80, 12)
    for i, prompt in enumerate(PROMPTS * 5):
        for row in range(i * GROUP, (i + 1) * GROUP):
            ids, keep = rollouts.prompt_ids[row], rollouts.prompt_mask[row].bool()
            assert ids[keep].tolist() == prompt
            assert ids[~keep].tolist() == [PAD] * (12 - len(prompt))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_prompt_has_its_own_limit_and_the_luck_that_it_has_without(policy, monkeypatch, share):
    """Rows at their limit are dropped at once, or stay in the batch to the end."""
    monkeypatch.setattr(rollout, "DROP_SHARE", share)
    whole, limits = draw(policy, temperature=2.0), [3, 12, 1, 7]
    part = draw(policy, temperature=2.0, limits=limits)
    cut = 0
    for i, (ours, theirs) in enumerate(zip(responses(part), responses(whole), strict=True)):
        assert ours == theirs[: limits[i // GROUP]]
        assert bool(part.finished[i]) == (ours[-1] == EOS)
        cut += len(ours) < len(theirs)
    assert cut > 4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_row_at_its_limit_takes_no_further_positions(loaded, monkeypatch, share):
    policy = loaded  # with a hook on it, it is not decoded in the short way, which has no table
    monkeypatch.setattr(rollout, "DROP_SHARE", share)
    seen = []
    hook = policy.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(int(inputs["position_ids"].max())), with_kwargs=True
    )
    # The longest prompt has room for one token; nothing ends by itself.
    draw(policy, limits=[12, 1, 12, 12], ends=(-1,))
    hook.remove()
    assert len(seen) == WIDTH
    assert max(seen) == len(PROMPTS[3]) + WIDTH - 2


SHAPES = {"as many keys as queries": (2, 2), "fewer keys": (4, 2), "one key": (4, 1)}


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1] * 2], ids=["padded", "alike"])
def test_the_short_way_is_that_of_transformers(heads, kv_heads, prompts):
    spec = ModelSpec(hidden=32, layers=2, heads=heads, kv_heads=kv_heads, pretrain_steps=1)
    model = build_policy(spec, ENCODE, seed=1).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # they start at one, where a norm that is left out shows less
            weight.data = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    ids, mask = left_pad(prompts, PAD)
    rows = torch.tensor([0, 3, 5])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        plain = decoding.PlainDecoder(model, ids, mask, 3, room=6)
        cache = decoding.CacheDecoder(model, ids, mask, 3)
        assert_near(plain.logits, cache.logits)
        for t in range(6):
            if t == 3:
                plain.keep(rows)
                cache.keep(rows)
            count = len(rows) if t >= 3 else 3 * len(prompts)
            tokens = torch.randint(2, len(ENCODE), (count,), generator=generator)
            live = torch.ones(count, dtype=torch.bool)
            assert_near(plain.step(tokens, live), cache.step(tokens, live))


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_only_plain_models_take_the_short_way(loaded):
    assert decoding.is_plain(loaded)
    changes = {"hidden_act": "gelu", "attention_bias": True, "layer_types": ["sliding_attention"]}
    for name, value in changes.items():
        model = copy.deepcopy(loaded)
        setattr(model.config, name, value)
        assert not decoding.is_plain(model), name
    assert not decoding.is_plain(copy.deepcopy(loaded).bfloat16())
    hooked, replaced = copy.deepcopy(loaded), copy.deepcopy(loaded)
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    replaced.model.layers[0].forward = lambda *_: None
    assert not decoding.is_plain(hooked)
    assert not decoding.is_plain(replaced)
    adapted = copy.deepcopy(loaded)
    add_adapters(adapted, Lora(rank=2), seed=0)
    assert not decoding.is_plain(adapted)


def test_width_is_that_of_the_longest_response(policy):
    rollouts = draw(policy, PROMPTS[:1], max_response=40)
    assert rollouts.width == max(map(len, responses(rollouts))) < 40


def handmade():
    return Rollouts(
        prompt_ids=torch.tensor([[0, 5, 6], [7, 8, 9]]),
        prompt_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
        response_ids=torch.tensor([[10, 11, 1], [12, 1, 0]]),
        mask=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        logp=torch.zeros(2, 3),
        finished=torch.tensor([True, True]),
    )


def test_inputs_leave_out_the_last_token_so_that_the_last_positions_predict_the_response():
    ids, mask = handmade().inputs()
    assert ids.tolist() == [[0, 5, 6, 10, 11], [7, 8, 9, 12, 1]]
    assert mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert handmade().width == 3


def test_texts_leave_out_eos_and_padding():
    assert handmade().texts(chain_tokenizer()) == ["89", "+"]


def test_rows_of_rollouts():
    one = handmade().rows(slice(1, 2))
    assert one.response_ids.tolist() == [[12, 1, 0]]
    assert one.finished.tolist() == [True]
    assert one.prompt_mask.tolist() == [[1, 1, 1]]


def test_left_pad_literal():
    ids, mask = left_pad([[5, 6, 7], [8]], 99)
    assert ids.tolist() == [[5, 6, 7], [99, 99, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


# --- Drawing a token -----------------------------------------------------------------------------


def test_drawn_tokens_have_the_policys_frequencies():
    probabilities = torch.tensor([0.02, 0.5, 0.08, 0.3, 0.1])
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = draw_tokens(probabilities.log().expand(50_000, 5), uniform)
    counts = np.bincount(tokens.numpy(), minlength=5)
    expected = probabilities.double().numpy()
    assert stats.chisquare(counts, 50_000 * expected / expected.sum()).pvalue > 1e-3


def test_drawn_tokens_follow_the_cumulative_distribution():
    logp = torch.tensor([0.25, 0.5, 0.25]).log().expand(7, 3)
    uniform = torch.tensor([0.0, 0.24, 0.2501, 0.5, 0.7499, 0.7501, 0.99], dtype=torch.float64)
    assert draw_tokens(logp, uniform).tolist() == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("probabilities", "first", "last"),
    [
        ([0.0, 0.5, 0.0, 0.5, 0.0], 1, 3),
        ([1.0, 0.0], 0, 0),
        ([0.0, 1.0], 1, 1),
        ([0.3, 0.7], 0, 1),
    ],
)
def test_impossible_tokens_are_not_drawn_even_at_the_ends_of_the_interval(
    probabilities, first, last
):
    below_one = 1 - 2.0**-53
    logp = torch.tensor([probabilities] * 2).log()
    found = draw_tokens(logp, torch.tensor([0.0, below_one], dtype=torch.float64))
    assert found.tolist() == [first, last]


def test_rounding_of_a_large_vocabulary_stays_inside_it():
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(64, 5000, generator=generator).log_softmax(-1)
    found = draw_tokens(logp, torch.full((64,), 1 - 2.0**-53, dtype=torch.float64))
    assert found.tolist() == [4999] * 64


def test_a_row_is_drawn_the_same_in_any_batch():
    generator = torch.Generator().manual_seed(1)
    logp = torch.randn(50, 9, generator=generator).log_softmax(-1)
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    together = draw_tokens(logp, uniform).tolist()
    alone = [int(draw_tokens(logp[i : i + 1], uniform[i : i + 1])) for i in range(50)]
    assert together == alone
    assert len(set(together)) > 3
