"""Policies small enough to solve exactly: the next token depends on place and last token.

The reward is 1 if EOS comes right after an `a`, even the prompt's. Values follow by backward
induction, and pi(x|s) = pi_ref(x|s) exp(Q(s, x)/beta)/Z(s) is VIMPO's fixed point, at which the
implied value is the value (vimpo/objectives/vimpo.py).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import Qwen3Config

from vimpo.config import ChainTask, Probes, Train
from vimpo.probes.subject import Subject
from vimpo.tasks.chain import ChainProblems, Problem

LETTERS = "abcd"
EOS, LIMIT, BETA = 0, 6, 0.3


class Tokens:
    """EOS is 0, letters follow; has what the probes use of a transformers tokenizer."""

    eos_token_id = pad_token_id = EOS

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict:
        if isinstance(text, list):
            return {"input_ids": [self(t)["input_ids"] for t in text]}
        return {"input_ids": [LETTERS.find(x) + 1 for x in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(LETTERS[i - 1] for i in ids if i != EOS)


class Markov(torch.nn.Module):
    """A causal LM of tables: logits [place, last token, next token]."""

    device = "cpu"
    config = Qwen3Config(num_hidden_layers=1)

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.table = torch.tensor(logits, dtype=torch.float32)

    def forward(self, input_ids, position_ids, logits_to_keep=0, **_) -> SimpleNamespace:
        places = position_ids.clamp(max=LIMIT - 1)  # what follows the limit does not count
        return SimpleNamespace(logits=self.table[places, input_ids][:, -logits_to_keep:])


class Lookup:
    """A critic that knows V [place, last token]."""

    def __init__(self, values: np.ndarray) -> None:
        self.table = torch.tensor(values, dtype=torch.float32)

    def __call__(self, ids, attention_mask, last: int) -> torch.Tensor:
        places = (attention_mask.cumsum(1) - 1).clamp(min=0)
        return self.table[places, ids][:, -last:]


class ToySubject(Subject):
    """Every problem is a prompt of one letter, and is solved if the complete text ends in `a`."""

    def problems(self, count, purpose, operators=None) -> list[Problem]:
        return [Problem(LETTERS[i % len(LETTERS)], "a") for i in range(count)]

    def rewards(self, problems, responses, finished) -> list[float]:
        return [
            float(bool(done) and (problem.prompt + self.text(response)).endswith("a"))
            for problem, response, done in zip(problems, responses, finished, strict=True)
        ]


def solve(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fixed point of reference logits [LIMIT, 5, 5]: its logits, and V [LIMIT + 1, 5]."""
    values = np.zeros((LIMIT + 1, 5))  # at the limit without EOS: no reward
    logits = np.zeros_like(reference)
    for t in reversed(range(LIMIT)):
        q = np.repeat(values[t + 1][None], 5, 0)
        q[:, EOS] = 0.0
        q[1, EOS] = 1.0  # EOS right after an `a`
        logits[t] = reference[t] + q / BETA
        policy = np.exp(logits[t]) / np.exp(logits[t]).sum(-1, keepdims=True)
        values[t] = (policy * q).sum(-1)
    return logits, values


def toy_subject(seed: int = 0, **probes: object) -> tuple[ToySubject, np.ndarray]:
    """A subject at the fixed point with a perfect critic; V [LIMIT + 1, 5] by place and token."""
    reference = np.random.default_rng(seed).normal(0, 1.5, (LIMIT, 5, 5))
    reference[:, :, EOS] -= 1.5  # so that responses have several tokens
    logits, values = solve(reference)
    subject = ToySubject(
        policy=Markov(logits),
        reference=Markov(reference),
        critic=Lookup(values),
        tokenizer=Tokens(),
        task=ChainProblems(ChainTask()),
        train=Train(max_response=LIMIT),
        probes=Probes(**{"problems": 120, "continuations": 32, **probes}),
        beta=BETA,
        lam=1.0,
    )
    return subject, values
