"""How a batch is cut for its forward passes."""

from __future__ import annotations

import itertools
import random

import pytest

from vimpo.config import ModelSpec
from vimpo.models.networks import build_policy, chain_tokenizer
from vimpo.training.pieces import pieces, price_of_pass


def cost(lengths, parts, price):
    return sum((part.stop - part.start) * lengths[part.stop - 1] + price for part in parts)


@pytest.mark.parametrize("count", [1, 3, 4, 9, 17])
@pytest.mark.parametrize("price", [0.0, 2.5, 12.0, 1e6])
def test_no_other_cut_is_cheaper(count, price):
    lengths = sorted(random.Random(count).choices(range(1, 30), k=count))
    found = pieces(lengths, price, block=2)
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]
    assert found[-1].stop == count
    inner = range(2, count, 2)
    cuts = itertools.chain.from_iterable(
        itertools.combinations(inner, n) for n in range(len(inner) + 1)
    )
    every = ([slice(a, b) for a, b in itertools.pairwise([0, *cut, count])] for cut in cuts)
    assert cost(lengths, found, price) == min(cost(lengths, parts, price) for parts in every)


def test_rows_of_one_length_are_one_part_and_free_passes_part_all_others():
    assert pieces([7] * 100, 1.0) == [slice(0, 100)]
    assert pieces(list(range(1, 65)), 0.0) == [slice(i, i + 16) for i in range(0, 64, 16)]


def test_a_pass_of_a_small_model_costs_hundreds_of_tokens_and_of_a_large_one_few():
    small, large = (
        build_policy(ModelSpec(hidden=h, layers=4, pretrain_steps=1), chain_tokenizer(), seed=0)
        for h in (32, 512)
    )
    assert price_of_pass(small) > 100
    assert price_of_pass(large) < 10
