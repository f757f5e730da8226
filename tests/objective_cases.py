"""Small tensors that tests of the objectives share."""

from __future__ import annotations

import torch

F64 = torch.float64

# Two responses, of two tokens and of one, and the values at their tokens.
VALUES = [[0.5, 0.25], [0.2, 9.0]]
MASK = [[1, 1], [1, 0]]
LOGP, REF = [[-1.0, -2.0], [-1.0, -9.0]], [[-1.5, -2.5], [-1.0, -7.0]]
KL = [[0.1, 0.2], [0.3, 5.0]]


def t(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def assert_equal(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= tolerance


def made_batch():
    """Three responses of lengths 4, 2 and 1; off-policy, far from every kink of the clip."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    mask = t([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    return {
        "logits": normal(3, 4, 5),
        "logp": -normal(3, 4).abs(),
        "old_logp": -normal(3, 4).abs(),
        "ref_logp": -normal(3, 4).abs(),
        "token_kl": normal(3, 4).abs(),
        "rewards": t([1.0, 0.0, 1.0]),
        "baseline": t([0.5, 0.5, 0.75]),
        "values": normal(3, 4),
        "adv": normal(3, 4),
        "mask": mask,
    }
