"""Top-p and greedy against transformers' own, and against counting."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TopPLogitsWarper

from vimpo.sampling.distribution import decoded_logp, nucleus, plain_logp
from vimpo.sampling.rollouts import draw_tokens


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.7, 0.95])
def test_the_nucleus_is_that_of_transformers(top_p):
    logp = (3 * torch.randn(200, 18, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    theirs = TopPLogitsWarper(top_p)(None, logp.clone()).log_softmax(-1)
    assert torch.allclose(nucleus(logp, torch.full((200,), top_p)), theirs)


def test_the_nucleus_by_hand():
    logp = torch.tensor([[0.2, 0.5, 0.1, 0.2]]).log()
    for top_p, kept in (
        (0.4, {1}),
        (0.5, {1}),
        (0.6, {0, 1}),
        (0.75, {0, 1, 3}),
        (0.95, {0, 1, 2, 3}),
    ):
        found = nucleus(logp, torch.tensor([top_p]))[0]
        assert {i for i in range(4) if math.isfinite(found[i])} == kept
        assert float(found.exp().sum()) == pytest.approx(1)


def test_each_row_has_its_own_decoder():
    logits = torch.randn(3, 18, generator=torch.Generator().manual_seed(5))
    found = decoded_logp(logits, torch.tensor([1.3, 0.8, 0.0]), torch.tensor([1.0, 0.6, 1.0]))
    assert torch.allclose(found[0], plain_logp(logits[:1], 1.3)[0])
    assert torch.allclose(found[1], nucleus(plain_logp(logits, 0.8)[1:2], torch.tensor([0.6]))[0])
    assert found[2].exp().tolist() == [float(i == logits[2].argmax()) for i in range(18)]
    with pytest.raises(ValueError, match=r"shapes \(3, 18\), \(2,\), \(3,\)"):
        decoded_logp(logits, torch.ones(2), torch.ones(3))


def test_temperature_zero_draws_the_likeliest_token():
    logits = torch.randn(50, 18, generator=torch.Generator().manual_seed(2))
    for uniform in (0.0, 0.5, 1 - 1e-12):
        drawn = draw_tokens(
            decoded_logp(logits, torch.zeros(50), torch.ones(50)),
            torch.full((50,), uniform, dtype=torch.float64),
        )
        assert drawn.equal(logits.argmax(-1))


def test_drawn_tokens_are_in_the_nucleus():
    logits = torch.randn(1, 18, generator=torch.Generator().manual_seed(3)).expand(4000, -1)
    logp = decoded_logp(logits, torch.full((4000,), 1.3), torch.full((4000,), 0.6))
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(4))
    counts = torch.bincount(draw_tokens(logp, draws), minlength=18) / 4000
    assert torch.allclose(counts, logp[0].exp(), atol=0.03)
    assert not counts[logp[0].isinf()].any()
