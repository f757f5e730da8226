"""Sorted rows in parts for separate forward passes: less padding, but every pass has a price.

A part of n rows, the longest of w tokens, costs n w tokens; a further pass costs what starting all
its operations takes, which for small models is as long as computing hundreds of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from vimpo.models.networks import parameter_count
from vimpo.models.passes import decoder_layers

# Rows that are never parted: a part is a multiple of it.
BLOCK = 16
# Starting the operations of a layer, forward and backward, takes about as long as this much
# arithmetic: a millisecond of a processor core, half of one of a GPU (an estimate).
LAYER_FLOPS = {"cpu": 6e7, "cuda": 5e10}


def price_of_pass(model: PreTrainedModel) -> float:
    """What a forward and backward pass costs before it computes anything, in tokens."""
    layers = len(decoder_layers(model))
    return layers * LAYER_FLOPS[model.device.type] / (6 * parameter_count(model))


def pieces(lengths: Sequence[int], price: float, block: int = BLOCK) -> list[slice]:
    """Cut rows, whose lengths ascend, so that parts cost the fewest tokens, passes included.

    lengths: of B rows, in tokens; price: of a pass. Returns adjacent slices of [0, B), all but the
    last a multiple of `block` rows.
    """
    ends = [*range(block, len(lengths), block), len(lengths)]
    # cheapest[i]: the least cost of all rows before ends[i - 1], and where its last part starts
    cheapest: list[tuple[float, int]] = [(0.0, 0)]
    for i, end in enumerate(ends):
        starts = [0, *ends[:i]]
        width = lengths[end - 1]
        costs = [
            cost + (end - start) * width + price
            for start, (cost, _) in zip(starts, cheapest, strict=True)
        ]
        best = min(range(len(costs)), key=costs.__getitem__)
        cheapest.append((costs[best], best))
    found, at = [], len(ends)
    while at:
        start = cheapest[at][1]
        found.append(slice(ends[start - 1] if start else 0, ends[at - 1]))
        at = start
    return found[::-1]
