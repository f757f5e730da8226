"""One more token for every row of a batch: through a model's own cache, or a shorter way.

A step of a small model is short, and most of it is what surrounds the arithmetic: masks, cache
objects, a copy of the cache. :class:`PlainDecoder` computes the ladder's models without these, from
the same weights; all other models take :class:`CacheDecoder`.
"""

from __future__ import annotations

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
        self._frequencies = cast(Tensor, model.model.rotary_emb.inv_freq)
        count, length = ids.shape
        shape = count * group_size, self._kv_heads, length + room, self._width
        # Keys and values of every layer; rows that are dropped leave their memory unused.
        self._caches = [[self._head.new_empty(shape) for _ in range(2)] for _ in self._layers]
        self._filled = 0
        # [N, 1, 1, L + room]: may a token be read? All may, if no prompt is padded.
        self._readable = None
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        if not mask.all():
            later = mask.new_ones(count, room)
            self._readable = torch.cat([mask, later], 1).bool()[:, None, None]
            seen = seen & self._readable[..., :length]
            # A row of padding reads itself: a softmax over nothing would be NaN.
            seen = seen | torch.eye(length, dtype=torch.bool, device=ids.device)
        at = positions(mask)
        self._next = at[:, -1:] + 1
        self.logits = self._read(ids, at, seen)[:, -1].repeat_interleave(group_size, 0)
        self.keep(torch.arange(count, device=ids.device).repeat_interleave(group_size))

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        readable = self._readable
        if readable is not None:
            readable = readable[..., : self._filled + 1]
        logits = self._read(tokens[:, None], self._next, readable)[:, -1]
        self._next = self._next + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        for cache in self._caches:
            for i, tensor in enumerate(cache):
                filled = tensor[:, :, : self._filled].index_select(0, rows)
                cache[i] = tensor[: len(rows)]
                cache[i][:, :, : self._filled] = filled
        self._next = self._next[rows]
        if self._readable is not None:
            self._readable = self._readable[rows]

    def _read(self, ids: Tensor, at: Tensor, seen: Tensor | None) -> Tensor:
        """ids, their positions at [N, t]; seen: which tokens each of them reads -> [N, 1, V]."""
        angles = at[..., None, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        start, self._filled = self._filled, self._filled + ids.shape[1]
        x = self._embedding[ids]
        for layer, caches in zip(self._layers, self._caches, strict=True):
            h = linear(self._scaled(x, layer.before_attention), layer.qkv)
            q, k, v = h.unflatten(-1, (-1, self._width)).split(
                [self._heads, self._kv_heads, self._kv_heads], dim=2
            )
            q = _rotated(self._scaled(q, layer.queries), cos, sin).transpose(1, 2)
            k = _rotated(self._scaled(k, layer.keys), cos, sin)
            keys, values = (cache[: len(x), :, : self._filled] for cache in caches)
            keys[:, :, start:], values[:, :, start:] = k.transpose(1, 2), v.transpose(1, 2)
            read = scaled_dot_product_attention(
                q,
                keys,
                values,
                attn_mask=seen,
                enable_gqa=self._heads != self._kv_heads,
            )
            x = x + linear(read.transpose(1, 2).flatten(2), layer.out)
            gate, up = linear(self._scaled(x, layer.before_mlp), layer.gate_up).chunk(2, -1)
            x = x + linear(silu(gate) * up, layer.down)
        return linear(self._scaled(x[:, -1:], self._norm), self._head)

    def _scaled(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], weight, self._eps)


class _Layer:
    """Weights of a layer, those that read the same input put together."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = torch.cat([p.weight for p in projections])
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.out, self.down = attention.o_proj.weight, mlp.down_proj.weight
        self.queries, self.keys = attention.q_norm.weight, attention.k_norm.weight
        self.before_attention = layer.input_layernorm.weight
        self.before_mlp = layer.post_attention_layernorm.weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864). x [N, t, heads, D]; cos, sin [N, t, 1, D/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
