"""Chunked scores against plain ones: values, gradients, shapes, and no [N, V] is held."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from vimpo.objectives.chunked import Head, chunked_scores
from vimpo.objectives.common import exact_kl

NAMES = ("logp", "entropy", "ref_logp", "kl")


def draw(count=13, hidden=8, vocabulary=50, dtype=torch.float32, bias=False, seed=0):
    """A policy, a reference that is near it, and sampled tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state, weight = normal(count, hidden), normal(vocabulary, hidden)
    shift = normal(vocabulary) if bias else None
    near = (state + 0.1 * normal(count, hidden), weight + 0.1 * normal(*weight.shape), shift)
    policy, reference = (
        Head(*(t if t is None else t.to(dtype, copy=True) for t in tensors))
        for tensors in ((state, weight, shift), near)
    )
    policy = Head(*(t if t is None else t.requires_grad_() for t in policy))
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return policy, reference, targets


def plain_scores(policy, targets, reference, temperature):
    """The same from all logits at once, by autograd, in at least float32."""
    z, z_ref = (
        linear(*head).to(torch.promote_types(head.hidden.dtype, torch.float32)) / temperature
        for head in (policy, reference)
    )
    log_p = z.log_softmax(-1)
    index = targets[:, None]
    return (
        log_p.gather(1, index).squeeze(1),
        torch.distributions.Categorical(logits=z).entropy(),
        z_ref.log_softmax(-1).gather(1, index).squeeze(1),
        exact_kl(z, z_ref),
    )


def gradients(scores, policy, weights):
    """Of sum_k weights_k . score_k over logp, entropy and kl."""
    loss = sum((w * s).sum() for w, s in zip(weights, scores, strict=True) if w is not None)
    return torch.autograd.grad(loss, [t for t in policy if t is not None])


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
def test_values_and_gradients_are_those_of_the_plain_way(
    chunk, temperature, bias, dtype, tolerance
):
    policy, reference, targets = draw(dtype=dtype, bias=bias)
    found = chunked_scores(policy, targets, reference, temperature=temperature, chunk=chunk)
    expected = plain_scores(policy, targets, reference, temperature)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.dtype == dtype
        assert float((a - b).detach().abs().max()) < tolerance, name
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(13, generator=generator, dtype=dtype) for _ in range(3)]
    for used in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)):
        weights = [w if on else None for w, on in zip(draws, used, strict=True)]
        ours = gradients((found[0], found[1], found[3]), policy, weights)
        theirs = gradients((expected[0], expected[1], expected[3]), policy, weights)
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max()) < tolerance * float(b.abs().max()), used
        found = chunked_scores(policy, targets, reference, temperature=temperature, chunk=chunk)
        expected = plain_scores(policy, targets, reference, temperature)


def test_values_are_those_computed_by_hand():
    # Two tokens of a vocabulary of three: p = (.5, .3, .2) and (.2, .2, .6), q uniform.
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    policy = Head(p.log(), torch.eye(3, dtype=torch.float64))
    reference = Head(torch.zeros(2, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    found = chunked_scores(policy, torch.tensor([1, 2]), reference, chunk=1)
    assert found.logp.exp().tolist() == pytest.approx([0.3, 0.6], abs=1e-15)
    assert found.ref_logp.exp().tolist() == pytest.approx([1 / 3, 1 / 3], abs=1e-15)
    assert found.entropy.tolist() == pytest.approx([1.0296530140645737, 0.9502705392332347])
    assert found.kl.tolist() == pytest.approx([0.06895927460353586, 0.1483417494348750])


def test_gradients_are_those_of_finite_differences():
    policy, reference, targets = draw(
        count=4, hidden=3, vocabulary=6, dtype=torch.float64, bias=True
    )

    def scores(hidden, weight, bias):
        found = chunked_scores(Head(hidden, weight, bias), targets, reference, chunk=3)
        return found.logp, found.entropy, found.kl

    assert torch.autograd.gradcheck(scores, tuple(policy))


def test_bfloat16_differs_from_the_plain_way_by_its_rounding_alone():
    # Logits have the same rounding in both, so values agree to float32; gradients are rounded to
    # bfloat16 (8 bits: 2^-8) at other places.
    policy, reference, targets = draw(count=32, hidden=64, vocabulary=300, dtype=torch.bfloat16)
    found = chunked_scores(policy, targets, reference, chunk=7)
    expected = plain_scores(policy, targets, reference, 1.0)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).detach().abs().max()) < 1e-5, name
    weights = (torch.ones(32), None, None)
    ours = gradients((found[0], found[1], found[3]), policy, weights)
    theirs = gradients((expected[0], expected[1], expected[3]), policy, weights)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a - b).float().abs().max()) < 2**-6 * float(b.float().abs().max())


def test_the_weights_gradient_is_summed_in_float32():
    # 4,096 equal gradients: a sum in bfloat16 stops growing once a term is below its last bit.
    count = 4096
    hidden = torch.ones(count, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    found = chunked_scores(Head(hidden, weight), torch.zeros(count, dtype=torch.long), chunk=1)
    (gradient,) = torch.autograd.grad(found.logp.sum(), weight)
    assert gradient.tolist() == [[count / 2], [-count / 2]]


def test_the_kl_of_a_policy_to_itself_is_zero_and_has_no_gradient():
    policy, _, targets = draw()
    found = chunked_scores(policy, targets, policy, chunk=4)
    assert found.kl.tolist() == [0.0] * 13
    assert torch.equal(found.ref_logp, found.logp)
    assert not found.ref_logp.requires_grad
    for gradient in torch.autograd.grad(found.kl.sum(), policy[:2]):
        assert float(gradient.abs().max()) < 1e-6


def test_without_a_reference_there_is_no_kl():
    policy, _, targets = draw()
    found = chunked_scores(policy, targets, chunk=4)
    assert found.ref_logp is None
    assert found.kl is None


def test_no_gradient_reaches_the_reference_or_what_does_not_ask():
    policy, reference, targets = draw()
    reference = Head(*(t if t is None else t.requires_grad_() for t in reference))
    frozen = Head(policy.hidden, policy.weight.detach())
    found = chunked_scores(frozen, targets, reference)
    (found.kl + found.logp).sum().backward()
    assert policy.hidden.grad is not None
    assert reference.hidden.grad is None
    assert reference.weight.grad is None
    with torch.no_grad():
        assert not chunked_scores(policy, targets, reference).logp.requires_grad


def test_no_token_gives_empty_scores():
    policy, reference, targets = draw(count=0)
    found = chunked_scores(policy, targets, reference)
    assert [len(s) for s in found] == [0] * 4


def test_inputs_that_do_not_fit_are_refused_with_both_shapes():
    policy, reference, targets = draw()
    with pytest.raises(ValueError, match=r"hidden \(13, 8\) do not match targets \(12,\)"):
        chunked_scores(policy, targets[:12])
    short = Head(reference.hidden[:5], reference.weight)
    with pytest.raises(ValueError, match=r"\(13, 8\) do not match ref_rows \(5,\)"):
        chunked_scores(policy, targets, short)
    other = Head(reference.hidden, reference.weight[:49])
    with pytest.raises(ValueError, match=r"\(50, 8\) does not match ref_weight \(49, 8\)"):
        chunked_scores(policy, targets, other)
    with pytest.raises(ValueError, match="chunk: 0 is not a number of tokens"):
        chunked_scores(policy, targets, chunk=0)


def test_nothing_of_the_size_of_all_logits_is_held(monkeypatch):
    """Every tensor that an operation returns is far smaller than N x V, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    policy, reference, targets = draw(count=512, hidden=4, vocabulary=1000)
    with Watch():
        found = chunked_scores(policy, targets, reference, chunk=16)
        (found.logp + found.entropy + found.kl).sum().backward()
    assert largest == 16 * 1000
