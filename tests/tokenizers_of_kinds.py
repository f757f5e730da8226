"""Tiny tokenizers of the kinds that models have, and a random model that reads with any of them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vimpo.models.networks import chain_tokenizer

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
NAMED = [*SPECIAL.values(), "<|end|>"]  # the last ends a turn
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOS_CHAT = "{{ bos_token }}" + CHAT
# Renders nothing of a content that is a text.
PARTS_CHAT = CHAT.replace(
    "{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
)
DROPPING_CHAT = CHAT.replace("{{ m['content'] }}", "")
SYSTEMLESS_CHAT = CHAT.replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
)


def byte_pieces(added: str = "", chat: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte; added: what it adds to a text, `^` for BOS and `$` for EOS."""
    vocabulary = [*NAMED, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return _finished(raw, added, chat)


def unigram(added: str = "^", chat: str | None = None) -> PreTrainedTokenizerFast:
    """As SentencePiece has it: a space before the text, and `</s>` as a piece like all others."""
    pieces = [(token, 0.0) for token in NAMED]
    pieces += [("▁", -2.0), *((c, -3.0) for c in "0123456789+-=<>/s|end?What is"), ("12", -2.5)]
    raw = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=NAMED.index("<unk>")))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return _finished(raw, added, chat)


def characters() -> PreTrainedTokenizerFast:
    """The suite's own."""
    return chain_tokenizer()


def _finished(raw: Tokenizer, added: str, chat: str | None) -> PreTrainedTokenizerFast:
    raw.add_special_tokens([AddedToken(token, special=True) for token in NAMED])
    if added:
        tokens = {"^": "<s>", "$": "</s>", "A": "$A"}
        text = f"{'^' if '^' in added else ''}A{'$' if '$' in added else ''}"
        raw.post_processor = TemplateProcessing(
            single=" ".join(tokens[c] for c in text),
            special_tokens=[(token, NAMED.index(token)) for token in ("<s>", "</s>")],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **SPECIAL)
    tokenizer.chat_template = chat
    return tokenizer


KINDS = {
    "BPE": lambda: byte_pieces(),
    "BPE, BOS": lambda: byte_pieces("^"),
    "BPE, BOS and EOS": lambda: byte_pieces("^$"),
    "chat with BOS": lambda: byte_pieces("^", BOS_CHAT),
    "chat without BOS, BOS": lambda: byte_pieces("^", CHAT),
    "unigram, BOS": lambda: unigram(),
    "characters": characters,
}


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, **ends: object) -> Path:
    """Save a random Qwen3 of width 16 with a tokenizer; ends: its `generation_config`."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=32,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
