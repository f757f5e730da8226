"""Rollouts of the ladder's models, decoded in the short way and by transformers' cache.

    python tests/benchmarks/decoding.py --output decoding.json

Random weights; prompts of two lengths, so that padding is part of it. CPU seconds on one thread,
the best of `--repeats`, the two ways in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from vimpo.config.models import LADDER
from vimpo.models.networks import build_policy, chain_tokenizer
from vimpo.sampling import decoding
from vimpo.sampling.rollouts import Rollouts, sample

PROMPTS = ("12+3+4+5+6+7+8+9+1=", "2+3+4+5+6+7+8+9+1=")
TOKENS = 64
WAYS = ("plain", "cache")
PLAIN = decoding.is_plain


def rollouts(model, tokenizer, count: int) -> Rollouts:
    return sample(
        model,
        [tokenizer(PROMPTS[i % 2]).input_ids for i in range(count // 8)],
        group_size=8,
        max_response=TOKENS,
        temperature=1.0,
        ends=(-1,),  # every response runs to the limit
        pad=tokenizer.pad_token_id,
        generator=torch.Generator().manual_seed(0),
    )


def case(size: str, count: int, repeats: int) -> dict:
    tokenizer = chain_tokenizer()
    model = build_policy(LADDER[size], tokenizer, 0).eval()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    drawn = {}
    for _ in range(repeats):
        for way in WAYS:
            decoding.is_plain = PLAIN if way == "plain" else (lambda model: False)
            start = time.process_time()
            drawn[way] = rollouts(model, tokenizer, count)
            seconds[way].append(time.process_time() - start)
    best = {way: round(min(found), 4) for way, found in seconds.items()}
    return {
        "size": size,
        "rollouts": count,
        "seconds": best,
        "ratio": round(best["cache"] / best["plain"], 3),
        "same_tokens": torch.equal(drawn["plain"].response_ids, drawn["cache"].response_ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(LADDER))
    parser.add_argument("--rollouts", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case(s, n, options.repeats) for s in options.sizes for n in options.rollouts]
    options.output.write_text(json.dumps({"tokens": TOKENS, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
