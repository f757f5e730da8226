"""The credit probe: planted advantages, spans under several tokenizers; and consistency."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy_policies import BETA, EOS, toy_subject
from transformers import PreTrainedTokenizerFast

from vimpo.models.networks import chain_tokenizer
from vimpo.objectives.common import whiten
from vimpo.probes.consistency import consistency_probe, consistency_rows
from vimpo.probes.credit import (
    Graded,
    common_credit,
    credit_rows,
    signals_of,
    within_rollout,
)
from vimpo.probes.subject import Reading
from vimpo.tasks.chain import Problem, Step, grade_steps
from vimpo.tasks.steps import step_tokens, token_spans


def found(rows: list[dict], **labels: str) -> dict:
    (match,) = [r for r in rows if all(r[k] == v for k, v in labels.items())]
    return match


# --- where a step is -----------------------------------------------------------------------------

TEXT = "12+5=17;17-9=8#8"


def byte_level() -> PreTrainedTokenizerFast:
    """Pairs of characters are merged: tokens straddle steps."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=266,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "17;17", "12+5="], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """A piece alone loses the space in front of it, so pieces do not join to the text."""
    pieces = ["▁12", "+5=", "▁17", ";", "17-", "▁9", "=8", "#8"]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["<eos>", *pieces])}))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_spans_of_one_character_a_token():
    tokenizer = chain_tokenizer()
    ids = [*tokenizer(TEXT).input_ids, tokenizer.eos_token_id]
    assert token_spans(tokenizer, ids) == [(i, i + 1) for i in range(16)] + [(16, 16)]


def test_spans_of_merged_bytes_tile_the_text():
    tokenizer = byte_level()
    ids = tokenizer(TEXT).input_ids
    assert len(ids) < len(TEXT)
    spans = token_spans(tokenizer, [*ids, tokenizer.eos_token_id])
    assert [TEXT[a:b] for a, b in spans] == [*map(tokenizer.decode, ids), ""]


def test_a_character_of_several_tokens_belongs_to_its_first():
    tokenizer = byte_level()
    ids = tokenizer("1é2").input_ids  # the accent's two bytes were never merged
    assert token_spans(tokenizer, ids) == [(0, 1), (1, 2), (2, 2), (2, 3)]


def test_offsets_never_run_backwards():
    """Byte fallback writes a placeholder for every byte of an unfinished character."""
    vocabulary = ["<eos>", "1", "2", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(vocabulary)}))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    assert [len(tokenizer.decode([1, 3, 4, 5][: i + 1])) for i in range(4)] == [1, 2, 3, 2]
    spans = token_spans(tokenizer, [1, 3, 4, 5, 2])
    assert spans == [(0, 1), (1, 2), (2, 2), (2, 2), (2, 3)]


def test_spans_of_pieces_that_depend_on_their_neighbours():
    tokenizer = sentence_piece()
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 0]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "12+5= 17;17- 9=8#8"
    pieces = [text[a:b] for a, b in token_spans(tokenizer, ids)]
    assert pieces == ["12", "+5=", " 17", ";", "17-", " 9", "=8", "#8", ""]


def test_steps_take_the_tokens_that_they_share_characters_with():
    steps = grade_steps(Problem("12+5-9=", "8"), TEXT)
    ones = [(i, i + 1) for i in range(16)] + [(16, 16)]
    assert step_tokens(steps, ones) == [list(range(7)), list(range(8, 14)), [15]]
    pairs = [(2 * i, 2 * i + 2) for i in range(8)] + [(16, 16)]
    assert step_tokens(steps, pairs) == [[0, 1, 2, 3], [4, 5, 6], [7]]
    straddling = [(0, 5), (5, 9), (9, 16), (16, 16)]
    assert step_tokens(steps, straddling) == [[0, 1], [1, 2], [2]]


def test_a_step_without_characters_was_decided_by_what_stands_there():
    spans = [(i, i + 1) for i in range(3)] + [(3, 3)]
    empty = [Step(0, 1, True), Step(2, 2, False), Step(3, 3, False)]
    assert step_tokens(empty, spans) == [[0], [2], [3]]
    assert step_tokens([Step(3, 3, False)], spans[:3]) == [[]]  # cut off: no EOS


# --- what a signal says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "wrong", "auc", "top1"),
    [
        ([0.1, 0.3, 0.2], 0, 1.0, 1.0),
        ([0.1, 0.3, 0.2], 1, 0.0, 0.0),
        ([0.1, 0.3, 0.2], 2, 0.5, 0.0),
        ([0.2, 0.2, 0.5], 0, 0.75, 0.5),
        ([0.2, 0.2, 0.2, 0.2], 3, 0.5, 0.25),
        ([0.1 + 0.2, 0.3], 0, 0.5, 0.5),  # equal but for rounding
        ([0.0, 0.0], 1, 0.5, 0.5),
        ([-2.0, -1.0], 0, 1.0, 1.0),
    ],
)
def test_within_one_rollout(means, wrong, auc, top1):
    assert within_rollout(np.array(means), wrong) == (auc, top1)


@pytest.fixture(scope="module")
def graded() -> tuple[list[Graded], torch.Tensor]:
    """20 rollouts with three steps of three, two and four tokens, one of them wrong; mask [20, 12].

    Tokens 3 and 6 are separators and token 11 is padding for every other rollout.
    """
    steps = [[0, 1, 2], [4, 5], [7, 8, 9, 10]]
    mask = torch.ones(20, 12)
    mask[::2, 11] = 0
    return [Graded(i, i // 2, steps, i % 3) for i in range(20)], mask


def planted(graded: list[Graded], mask: torch.Tensor, height: float) -> torch.Tensor:
    signal = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    for g in graded:
        signal[g.row, g.steps[g.wrong]] += height
    return signal * mask


def test_planted_advantages_are_found_and_constant_ones_are_chance(graded):
    rollouts, mask = graded
    constant = torch.linspace(-1, 1, 20)[:, None] * mask
    signals = {
        "low": planted(rollouts, mask, -1.0),
        "high": planted(rollouts, mask, 1.0),
        "constant": constant,
    }
    rows = credit_rows(signals, mask, rollouts)
    expected = {"low": (1.0, 1.0), "high": (0.0, 0.0), "constant": (0.5, 1 / 3)}
    for name, (auc, top1) in expected.items():
        assert found(rows, predictor=name, metric="auc")["value"] == auc
        assert found(rows, predictor=name, metric="top1")["value"] == pytest.approx(top1)
        assert found(rows, predictor=name, metric="top1_chance")["value"] == pytest.approx(1 / 3)
        assert found(rows, predictor=name, metric="auc")["n"] == 20
    assert found(rows, predictor="constant", metric="auc")["stderr"] == 0


def test_noise_is_chance_within_its_error(graded):
    rollouts, mask = graded
    aucs, errors = [], []
    for seed in range(200):
        noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
        row = found(credit_rows({"x": noise}, mask, rollouts), metric="auc")
        aucs.append(row["value"])
        errors.append(row["stderr"])
    assert np.mean(aucs) == pytest.approx(0.5, abs=4 * np.std(aucs) / math.sqrt(200))
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.1)


def test_the_profile_is_aligned_on_the_first_wrong_token(graded):
    rollouts, mask = graded
    signal = torch.zeros(mask.shape)
    for g in rollouts:
        signal[g.row, g.steps[g.wrong][0]] = -1.0
    rows = credit_rows({"x": signal}, mask, rollouts)
    profile = {r["position"]: r for r in rows if r["target"] == "profile"}
    assert list(profile) == [str(i) for i in range(-10, 11)]
    dip = float(whiten(signal, mask).min())
    assert profile["0"]["value"] == pytest.approx(dip)
    assert profile["1"]["value"] == pytest.approx(float(whiten(signal, mask).max()))
    # Token 11 is there in every other rollout; the first wrong token is 0, 4 or 7.
    starts = [g.steps[g.wrong][0] for g in rollouts]
    assert profile["4"]["n"] == sum(
        1 for g, s in zip(rollouts, starts, strict=True) if s + 4 < 11 + g.row % 2
    )
    assert profile["-7"]["n"] == starts.count(7)
    assert profile["-10"]["reason"] == "no rollout with a first wrong step reaches this token"


def test_no_wrong_step_and_no_finite_signal_give_reasons(graded):
    rollouts, mask = graded
    rows = credit_rows({"x": planted(rollouts, mask, 1.0)}, mask, [])
    assert {r["reason"] for r in rows if r["target"] == "step"} == {
        "no rollout has a first wrong step and another step"
    }
    lonely = [Graded(0, 0, [[0, 1]], 0)]
    rows = credit_rows({"x": planted(lonely, mask, 1.0)}, mask, lonely)
    assert found(rows, metric="auc")["n"] == 0
    bad = planted(rollouts, mask, 1.0)
    bad[3, 2] = math.inf
    rows = credit_rows({"x": bad}, mask, rollouts)
    assert {r["reason"] for r in rows} == {"the signal is not finite"}


def test_signals_are_those_of_the_objectives():
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    td = torch.tensor([[0.1, -0.2, 0.4], [0.3, 0.1, 0.0]])
    values = torch.tensor([[0.5, 0.6, 0.2], [0.4, 0.9, 0.0]])
    rewards = torch.tensor([1.0, 0.0])
    signals = signals_of(Reading(mask, td, td, td, values), rewards, lam=0.5)
    assert torch.equal(signals["implied_td"], td)
    assert signals["implied_gae"][0].tolist() == pytest.approx([0.1, 0.0, 0.4])
    assert signals["critic_td"][0].tolist() == pytest.approx([0.1, -0.4, 0.8])
    assert signals["critic_td"][1].tolist() == pytest.approx([0.5, -0.9, 0.0])
    assert signals["critic_gae"][1].tolist() == pytest.approx([0.05, -0.9, 0.0])
    assert signals["group"].tolist() == [[0.5, 0.5, 0.5], [-0.5, -0.5, 0.0]]
    assert signals["position"].tolist() == [[1, 2, 3], [1, 2, 0]]
    without = signals_of(Reading(mask, td, td, td, None), rewards, lam=1.0)
    assert set(without) == {"implied_td", "implied_gae", "group", "position"}


# --- consistency ---------------------------------------------------------------------------------


def terminal(rows: list[dict], metric: str) -> dict:
    return found(rows, target="terminal", metric=metric)


def test_terminal_residual_of_known_sums():
    target = np.array([[0.5, -0.5], [0.25, -0.25], [0.0, 0.0]])
    exact = [np.array([x / 2, x / 2]) for x in target.ravel()]
    rows = consistency_rows(exact, target, seed=0)
    assert terminal(rows, "residual_ratio")["value"] == 0
    assert terminal(rows, "pearson")["value"] == pytest.approx(1)
    assert terminal(rows, "target_rms")["value"] == pytest.approx(
        math.sqrt((2 * 0.25 + 2 * 0.0625) / 6)
    )
    rows = consistency_rows([np.zeros(2)] * 6, target, seed=0)
    assert terminal(rows, "residual_ratio")["value"] == 1  # a policy that is still the base
    assert terminal(rows, "pearson")["reason"] == "rewards or summed td do not vary"
    rows = consistency_rows(exact, np.zeros((3, 2)), seed=0)
    assert "target is zero" in terminal(rows, "residual_ratio")["reason"]
    rows = consistency_rows([np.array([np.inf, 0.0])] * 6, target, seed=0)
    assert {r["reason"] for r in rows if r["metric"] != "target_rms"} == {
        "6 of 12 td are not finite"
    }


def test_td_has_mean_zero_under_the_policy_itself():
    """Of any policy: the exact KL is the mean of the log-ratio. And at the fixed point the residual
    is that of estimating V(s_0) by a group mean: its square is 1/(G - 1) of the target's."""
    subject, _ = toy_subject(problems=400)
    rows = consistency_probe(subject)
    mean = found(rows, target="td", metric="mean")
    assert abs(mean["value"]) < 4 * mean["stderr"]
    assert found(rows, target="td", metric="rms")["value"] > 20 * mean["stderr"]
    ratio = terminal(rows, "residual_ratio")
    assert ratio["value"] == pytest.approx(1 / math.sqrt(subject.train.group_size - 1), rel=0.1)
    assert abs(ratio["value"] - 1 / math.sqrt(7)) < 4 * ratio["stderr"]


class Letters:
    """Every letter is a step, and `b` is a wrong one."""

    kept_prompt = None

    def grade_steps(self, problem, text) -> list[Step]:
        return [Step(i, i + 1, letter != "b") for i, letter in enumerate(text)]


def test_common_credit_is_scored_on_the_same_wrong_steps_for_every_policy():
    """The base's responses drawn again, and td from the tables of the policies by hand."""
    solved, _ = toy_subject(credit_rollouts=60)
    solved = type(solved)(**vars(solved) | {"task": Letters(), "critic": None})
    other = type(solved)(**vars(solved) | {"policy": solved.reference})
    (rollouts,) = other.sample(
        [other.encode(p) for p in other.problems(60, 0)], "common credit", base=True
    )
    policy, base = (
        m.table.double().log_softmax(-1).numpy() for m in (solved.policy, solved.reference)
    )
    kl = (np.exp(policy) * (policy - base)).sum(-1)
    scores = []
    for prompt, ids in zip(rollouts.prompt_ids.tolist(), rollouts.token_lists(), strict=True):
        last = [*prompt, *ids[:-1]]
        td = [
            BETA * (policy[t, last[t], x] - base[t, last[t], x] - kl[t, last[t]])
            for t, x in enumerate(ids)
            if x != EOS
        ]
        if 2 in ids and len(td) > 1:
            wrong = ids.index(2)
            others = td[:wrong] + td[wrong + 1 :]
            scores.append(np.mean([x > td[wrong] for x in others]))
    assert len(scores) > 20
    row = found(common_credit(solved), predictor="implied_td", metric="auc")
    assert (row["probe"], row["n"]) == ("common", len(scores))
    assert row["value"] == pytest.approx(np.mean(scores), abs=1e-6)
    same = found(common_credit(other), predictor="implied_td", metric="auc")
    assert (same["value"], same["n"]) == (0.5, len(scores))  # the base says nothing of itself
    places = [found(common_credit(s), predictor="position", metric="auc") for s in (solved, other)]
    assert places[0] == places[1]
