"""One more token for every row of a batch: through a model's own cache, or a shorter way.

A step of a small model is short, and most of it is what surrounds the arithmetic: masks, cache
objects, a copy of the cache. :class:`PlainDecoder` computes the ladder's models without these, from
the same weights; all other models take :class:`CacheDecoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache, PreTrainedModel, Qwen3ForCausalLM

from vimpo.models.kinds import ATTENDS, cache_argument
from vimpo.models.passes import positions


class Decoder(Protocol):
    """A batch of N rows that grows by a token per step."""

    logits: Tensor
    """[N, V] of the next token, after the prompt."""

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        """Append tokens [N]; live [N]: the other rows are finished. -> logits [N, V]"""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""


def make_decoder(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, group_size: int, room: int
) -> Decoder:
    """Read prompts, left-padded, ids and mask [P, L]; N = P * group_size, rows of one adjacent.

    room: tokens that will be appended at most.
    """
    if is_plain(model):
        return PlainDecoder(cast(Qwen3ForCausalLM, model), ids, mask, group_size, room)
    return CacheDecoder(model, ids, mask, group_size)


class CacheDecoder:
    """Any causal LM, by transformers' own cache."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, group_size: int) -> None:
        self._model, self._name = model, cache_argument(model)
        self._cache = DynamicCache(config=model.config)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            logits_to_keep=1,
            **{self._name: self._cache},
        ).logits[:, -1]
        self._attention = mask
        self.logits = logits.repeat_interleave(group_size, 0)
        self.keep(torch.arange(len(ids), device=ids.device).repeat_interleave(group_size))

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        new = self._attention.new_ones(len(tokens), 1)
        self._attention = torch.cat([self._attention, new], dim=1)
        return self._model(
            input_ids=tokens[:, None],
            # States of a purely recurrent model hold no padding, and take no mask of what is past.
            attention_mask=self._attention if self._name == ATTENDS else None,
            # Finished rows that were not dropped must not run past the model's last position.
            position_ids=(self._attention.sum(1, keepdim=True) - 1) * live[:, None],
            use_cache=True,
            **{self._name: self._cache},
        ).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        # The one way that caches of every kind have, states of recurrent layers too.
        self._cache.reorder_cache(cast(LongTensor, rows))
        self._attention = self._attention[rows]


def is_plain(model: PreTrainedModel) -> bool:
    """Is it a Qwen3 in float32 without adapters, windows, biases and scaled rotations?

    Its attention must be one of those that :class:`PlainDecoder` computes to rounding.
    """
    if type(model) is not Qwen3ForCausalLM:
        return False
    c: Any = model.config
    return (
        model.dtype == torch.float32
        and c.hidden_act == "silu"
        and not c.attention_bias
        and set(c.layer_types) == {"full_attention"}
        and c.rope_parameters["rope_type"] == "default"
        and c._attn_implementation in ("sdpa", "eager")
        and all(map(_is_untouched, model.modules()))
        # FSDP2 replaces weights by sharded ones.
        and all(type(p.data) is Tensor for p in model.parameters())
    )


def _is_untouched(module: nn.Module) -> bool:
    """Is it called as its class says: no hooks, no other `forward`, no adapter in its place?"""
    hooked = module._forward_hooks or module._forward_pre_hooks
    adapted = "lora" in type(module).__module__
    return not (hooked or adapted or "forward" in vars(module))


class PlainDecoder:
    """A Qwen3 (arXiv 2505.09388) on a cache that is allocated once: one layer is

    x += W_o attention(rope(norm(W_q h)), rope(norm(W_k h)), W_v h),   h = norm(x)
    x += W_down (silu(W_gate h) * W_up h),                             h = norm(x)
    """

    def __init__(
        self, model: Qwen3ForCausalLM, ids: Tensor, mask: Tensor, group_size: int, room: int
    ) -> None:
        c: Any = model.config
        self._eps, self._width = c.rms_norm_eps, c.head_dim
        self._heads, self._kv_heads = c.num_attention_heads, c.num_key_value_heads
        self._embedding = model.model.embed_tokens.weight
        self._norm, self._head = model.model.norm.weight, model.lm_head.weight
        self._layers = [_Layer(layer) for layer in model.model.layers]
        count, length = ids.shape
        places = torch.arange(length + room, device=ids.device)
        angles = places[:, None] * cast(Tensor, model.model.rotary_emb.inv_freq)
        self._turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # [L + room, 1, D/2]
        shape = count * group_size, self._kv_heads, length + room, self._width
        # Keys and values of every layer; rows that are dropped leave their memory unused.
        self._caches = [[self._head.new_empty(shape) for _ in range(2)] for _ in self._layers]
        self._filled = length
        self._hidden = None  # [N, KV, 1, L]: is a token of the prompt padding? None if none is.
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        if not mask.all():
            readable = mask.bool()[:, None, None]
            self._hidden = ~readable.expand(-1, self._kv_heads, -1, -1)
            seen = seen & readable
            # A row of padding reads itself: a softmax over nothing would be NaN.
            seen = seen | torch.eye(length, dtype=torch.bool, device=ids.device)
        at = positions(mask)
        self._next = at[:, -1:] + 1
        logits = self._read(ids, at, partial(self._attend_in_prompt, seen))
        self.logits = logits.repeat_interleave(group_size, 0)
        self.keep(torch.arange(count, device=ids.device).repeat_interleave(group_size))

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        self._filled += 1
        logits = self._read(tokens[:, None], self._next, self._attend_to_all)
        self._next = self._next + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        for cache in self._caches:
            for i, tensor in enumerate(cache):
                filled = tensor[:, :, : self._filled].index_select(0, rows)
                cache[i] = tensor[: len(rows)]
                cache[i][:, :, : self._filled] = filled
        self._next = self._next[rows]
        if self._hidden is not None:
            self._hidden = self._hidden[rows]

    def _read(self, ids: Tensor, at: Tensor, attend: Attend) -> Tensor:
        """ids, their positions at [N, t] -> logits [N, V] of what follows the last of them."""
        turns = self._turns[at]
        x = self._embedding[ids].flatten(0, 1)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            h = torch.mm(self._scaled(x), layer.qkv).view(*ids.shape, -1, self._width)
            both, v = h.tensor_split([self._heads + self._kv_heads], dim=2)
            q, k = _rotated(self._scaled(both) * layer.scale, turns).split(
                [self._heads, self._kv_heads], dim=2
            )
            read = attend(q, k, v, cache).reshape(len(x), -1)
            x = torch.addmm(x, read, layer.out)
            gate, up = torch.mm(self._scaled(x), layer.gate_up).chunk(2, -1)
            x = torch.addmm(x, silu(gate) * up, layer.down)
        last = x.view(*ids.shape, -1)[:, -1]
        return linear(self._scaled(last) * self._norm, self._head)

    def _attend_in_prompt(
        self, seen: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: list[Tensor]
    ) -> Tensor:
        """q, k, v [N, t, heads, D] of prompts, of which each token reads those in `seen`."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        for tensor, new in zip(cache, (k, v), strict=True):
            tensor[: len(q), :, : self._filled] = new
        read = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=1.0, enable_gqa=self._heads != self._kv_heads
        )
        return read.transpose(1, 2)

    def _attend_to_all(self, q: Tensor, k: Tensor, v: Tensor, cache: list[Tensor]) -> Tensor:
        """q, k, v [N, 1, heads, D] of the next token, which reads all before it.

        Products of many small matrices are faster here than fused attention.
        """
        keys, values = (x.flatten(0, 1)[:, : self._filled] for x in cache)
        keys[:, -1], values[:, -1] = k.flatten(0, 2), v.flatten(0, 2)
        scores = torch.bmm(q.reshape(len(keys), -1, self._width), keys.mT)
        if self._hidden is not None:
            hidden = self._hidden.flatten(0, 1)
            scores[..., : hidden.shape[-1]].masked_fill_(hidden, -torch.inf)
        return torch.bmm(scores.softmax(-1), values)

    def _scaled(self, x: Tensor) -> Tensor:
        """RMSNorm without its weight."""
        return rms_norm(x, x.shape[-1:], None, self._eps)


Attend = Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor]


class _Layer:
    """Weights of a layer: those that read the same input put together, transposed.

    The weight of a norm is part of the matrix that reads it, and 1 / sqrt(D) of the queries' scale
    [heads + kv_heads, D]. The dimensions of queries and keys are in the order of :func:`_rotated`.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp, width = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        places = torch.arange(width, device=attention.q_proj.weight.device)
        pairs = places.view(2, -1).mT.flatten()  # 0, D/2, 1, D/2 + 1, ...
        q, k, v = (
            p.weight.unflatten(0, (-1, width))
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        qkv = torch.cat([q[:, pairs], k[:, pairs], v]).flatten(0, 1)
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.qkv = (qkv * layer.input_layernorm.weight).mT.contiguous()
        self.gate_up = (gate_up * layer.post_attention_layernorm.weight).mT.contiguous()
        self.out, self.down = attention.o_proj.weight.mT, mlp.down_proj.weight.mT
        scales = attention.q_norm.weight * width**-0.5, attention.k_norm.weight
        self.scale = torch.cat(
            [s[pairs].expand(len(x), -1) for s, x in zip(scales, (q, k), strict=True)]
        )


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864). x [N, t, heads, D], in pairs; turns [N, t, 1, D/2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
