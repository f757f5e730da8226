"""The scaling rule of beta, which keeps the log-ratio per token."""

from __future__ import annotations

import pytest
import torch

from vimpo.config import load_study
from vimpo.objectives.vimpo import value_loss
from vimpo.planning.beta import PAPER_BETA, PAPER_TOKENS, scaled_beta, unusual_betas
from vimpo.storage.surprisal import Nats, Surprisal

BETA, TOKENS = 0.02, 6


def batch(repeat: int = 1) -> dict[str, torch.Tensor]:
    """Two groups of two; every token is there `repeat` times."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, TOKENS)
    logp, ref_logp = (-torch.rand(shape, generator=generator, dtype=torch.float64) for _ in "ab")
    token_kl = torch.rand(shape, generator=generator, dtype=torch.float64)
    columns = {"logp": logp, "ref_logp": ref_logp, "token_kl": token_kl}
    columns = {k: v.repeat_interleave(repeat, 1) for k, v in columns.items()}
    return columns | {"mask": torch.ones(4, TOKENS * repeat, dtype=torch.float64)}


def loss(
    columns: dict, beta: float, reward_scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value loss and its gradient, summed over copies of a token."""
    rewards = reward_scale * torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    baseline = reward_scale * torch.tensor([0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
    logp = columns["logp"].clone().requires_grad_()
    value = value_loss(**(columns | {"logp": logp}), rewards=rewards, baseline=baseline, beta=beta)
    (gradient,) = torch.autograd.grad(value, logp)
    return value, gradient.unflatten(1, (TOKENS, -1)).sum(2)


@pytest.mark.parametrize("repeat", [2, 5])
def test_responses_whose_tokens_are_repeated_keep_loss_and_gradient(repeat):
    before = loss(batch(), BETA)
    after = loss(batch(repeat), scaled_beta(BETA, TOKENS, TOKENS * repeat))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_reward_in_other_units_scales_the_loss_and_nothing_else(scale):
    """An optimiser that normalises its gradient, as AdamW does, then takes the same steps."""
    value, gradient = loss(batch(), BETA)
    scaled, its_gradient = loss(batch(), scaled_beta(BETA, 1, 1, scale), scale)
    torch.testing.assert_close(scaled, scale**2 * value)
    torch.testing.assert_close(its_gradient, scale**2 * gradient)


def test_the_default_is_the_papers_at_some_thirty_tokens():
    low, high = (scaled_beta(PAPER_BETA, tokens, 30) for tokens in PAPER_TOKENS)
    assert low < load_study().algorithms["vimpo"].beta < high


def test_a_beta_of_another_length_is_worth_a_word():
    """The paper's own for thirty tokens, ours for three thousand; of the grid's algorithms only."""
    betas = {"vimpo": {"beta": 5e-4}, "vimpo_value_only": {"beta": 1e-9}}
    (warning,) = unusual_betas(load_study({"algorithms": betas}), 30)
    assert warning.startswith("algorithms.vimpo.beta: 0.0005 for responses of 30 tokens; the paper")
    assert list(unusual_betas(load_study(), 30)) == []
    assert len(list(unusual_betas(load_study(), 30_000))) == 1


def nats(mean: float) -> Surprisal:
    return Surprisal(Nats(256, 30, mean, 0.1), None)


@pytest.mark.parametrize(
    ("surprisal", "capacity"),
    [(1.0, "0.02"), (1.9, "0.038"), (2.1, None), (240, None), (260, "5.2")],
)
def test_where_nats_are_known_they_count_and_tokens_do_not(surprisal, capacity):
    """The paper's capacity of .4 to .5, a factor of ten to either side."""
    study = load_study({"grid": {"sizes": ["xs"]}})
    for tokens in (30, 30_000):
        found = list(unusual_betas(study, tokens, {"xs": nats(surprisal)}))
        assert len(found) == (capacity is not None)
        if capacity:
            base = f"gives base responses of {surprisal:.3g} nats at size xs"
            start = f"algorithms.vimpo.beta: 0.02 {base} a capacity of {capacity}; "
            assert found[0].startswith(start)
            assert "paper: probably 0.4 to 0.5" in found[0]


def test_each_size_is_judged_by_its_own_nats():
    study = load_study({"grid": {"sizes": ["xs", "s"]}})
    (warning,) = unusual_betas(study, 30, {"xs": nats(20), "s": nats(0.5)})
    assert "at size s a capacity of 0.01" in warning


def test_a_capacity_needs_no_measurement_to_be_unusual():
    small, usual = ({"algorithms": {"vimpo": {"beta": {"capacity": c}}}} for c in (0.01, 0.1))
    (warning,) = unusual_betas(load_study(small), 30)
    assert warning.startswith("algorithms.vimpo.beta: capacity 0.01; the implied value cannot rise")
    assert list(unusual_betas(load_study(usual), 30_000)) == []


@pytest.mark.parametrize("bad", [(0, 1, 1), (0.1, 0, 1), (0.1, 1, -1)])
def test_what_is_not_positive_is_refused(bad):
    with pytest.raises(ValueError, match="allowed: numbers above 0"):
        scaled_beta(*bad)
