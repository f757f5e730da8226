"""A policy as lm-eval's model that reads prompts and ends responses as training does.

lm-eval passes on texts alone, and a text does not say whether its response was cut off. Where that
matters, a mark at the end of the text does (cut_off.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lm_eval.models.huggingface import HFLM

from vimpo.evaluation.cut_off import marked
from vimpo.models.ends import before_end
from vimpo.sampling.rollouts import left_pad
from vimpo.tasks.prompts import encode


class PolicyLM(HFLM):
    """lm-eval's own would add what the tokenizer adds to a text, at its end too.

    tells_cut_off: whether responses without an end carry the mark. lm-eval cuts a text at its first
    stop text, and the mark with what follows.
    """

    tells_cut_off = False

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs,
    ) -> list[int]:
        (ids,) = encode(self.tokenizer, [string])
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids, mask [N, P]; `check_length` sees to it that nothing is cut."""
        ids, mask = left_pad(encode(self.tokenizer, strings), self.tokenizer.pad_token_id)
        cut = slice(-left_truncate_len if left_truncate_len else None, None)
        return ids[:, cut], mask[:, cut]

    def tok_decode(self, tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        """The text of a response, without its end; or of the one token that lm-eval asks for."""
        if not isinstance(tokens, Iterable):
            return super().tok_decode(tokens, skip_special_tokens)
        kept = before_end(tokens, self.model.generation_config.eos_token_id)
        text = super().tok_decode(kept, skip_special_tokens)
        return marked(text) if self.tells_cut_off and len(kept) == len(tokens) else text

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        return super().generate_until(requests, disable_tqdm=True)
