"""Is what is sampled what is scored? The same tokens, with a cache and in one forward pass.

Training takes the log-probabilities of a rollout for those of the policy that drew it. They are not
for a network that attends to later tokens, reads padding, or ignores its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import ConfigError
from vimpo.models.ends import ends_of
from vimpo.models.passes import last_logits
from vimpo.sampling.rollouts import sample

PROMPTS = (5, 9, 12)  # tokens of each: padding is part of the comparison
GROUP, TOKENS = 2, 12
# Nats, on any token. Right models, from tiny ones of 35 architectures to 512 x 16, differ by 5e-4
# at most; an encoder, a cache that is not used and a state inside the network by 0.2 and more.
BOUND = 1e-3
# In bfloat16 the two overlap (right: up to 0.4 in the mean and 5 on one token; wrong: from 0.04),
# so the comparison is in float32. Flash attention knows only narrow numbers: the mean counts there.
NARROW_BOUND = 0.5


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """The model's weights widened, and afterwards exactly what they were."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype == torch.bfloat16]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.data = tensor.data.bfloat16()


@torch.no_grad()
def sampling_gaps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """|sampled - scored| log-probability of every sampled token, on random prompts, in nats. [N]"""
    draws = torch.Generator().manual_seed(0)
    prompts = [torch.randint(len(tokenizer), (n,), generator=draws).tolist() for n in PROMPTS]
    rollouts = sample(
        model,
        prompts,
        group_size=GROUP,
        max_response=TOKENS,
        temperature=1.0,
        ends=ends_of(model, tokenizer),
        pad=tokenizer.pad_token_id,
        generator=draws,
    )
    logits = last_logits(model, *rollouts.inputs(), rollouts.width)
    scored = logits.log_softmax(-1).gather(-1, rollouts.response_ids[..., None]).squeeze(-1)
    return (scored - rollouts.logp).abs()[rollouts.mask.bool()]


def check_sampling(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str, field: str = "path"
) -> None:
    """Raise ConfigError if what is sampled from the model is not what training scores."""
    narrow = model.config._attn_implementation == "flash_attention_2"
    with nullcontext() if narrow else in_float32(model):
        gaps = sampling_gaps(model, tokenizer)
    gap, bound = (gaps.mean(), NARROW_BOUND) if narrow else (gaps.max(), BOUND)
    if not gap <= bound:  # nor if it is NaN
        raise ConfigError(
            f"{field}: '{path}' (model type {model.config.model_type}) gives the tokens that it "
            f"samples other log-probabilities when they are scored, {float(gap):.2g} nats apart; "
            f"allowed: at most {bound:g}, as of a causal language model that keeps its whole state "
            "in its cache"
        )
