"""Is what is sampled what is scored? The same tokens, with a cache and in one forward pass.

Training takes the log-probabilities of a rollout for those of the policy that drew it. They are not
for a network that attends to later tokens, reads padding, or ignores its cache.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import ConfigError
from vimpo.models.networks import last_logits
from vimpo.sampling.rollouts import sample

PROMPTS = (5, 9, 12)  # tokens of each: padding is part of the comparison
GROUP, TOKENS = 2, 12
# Nats. Over all architectures of tests/zoo.py float32 differs by at most 3e-6 on a token. bfloat16
# differs by up to 0.3 on one, so there the mean counts: at most 0.03, and 0.2 for a wrong cache.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@torch.no_grad()
def sampling_gap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Difference between sampled and scored log-probabilities on random prompts, in nats.

    The largest of all tokens; in bfloat16 their mean.
    """
    draws = torch.Generator().manual_seed(0)
    prompts = [torch.randint(len(tokenizer), (n,), generator=draws).tolist() for n in PROMPTS]
    rollouts = sample(
        model,
        prompts,
        group_size=GROUP,
        max_response=TOKENS,
        temperature=1.0,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        generator=draws,
    )
    logits = last_logits(model, *rollouts.inputs(), rollouts.width)
    scored = logits.log_softmax(-1).gather(-1, rollouts.response_ids[..., None]).squeeze(-1)
    gaps = (scored - rollouts.logp).abs()[rollouts.mask.bool()]
    return float(gaps.max() if model.dtype == torch.float32 else gaps.mean())


def check_sampling(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str, field: str = "path"
) -> None:
    """Raise ConfigError if sampling from the model is not what scoring takes it to be."""
    gap, bound = sampling_gap(model, tokenizer), BOUNDS[model.dtype]
    if not gap <= bound:  # nor if it is NaN
        raise ConfigError(
            f"{field}: '{path}' (model type {model.config.model_type}) gives the tokens that it "
            f"samples other log-probabilities when they are scored: {gap:.2g} nats apart; allowed: "
            f"at most {bound:g}, as of a causal language model that keeps its whole state in the "
            "cache"
        )
