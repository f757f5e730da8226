"""Real files, read by path and never committed, and a tiny model that can read any text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = {
    "math500": "math500_test.jsonl",
    "aime24": "aime24_test.jsonl",
    "aime25": "aime25_test.jsonl",
    "olympiadbench": "olympiadbench_OE_TO_maths_en_COMP.jsonl",
    "amc23": "amc23_test.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
}
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def real_file(name: str) -> Path:
    """Path of a real file; skips the test if there is no such file."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"needs {path}: real files lie beside the repository and are not part of it")
    return path


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per byte, plus <pad> and <eos>; `special` replaces those two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = special or {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def byte_model(folder: Path, positions: int = 4096, chat: bool = False, **special: str) -> Path:
    """Save a random Qwen3 over bytes, of width 16 and one layer; returns its folder."""
    tokenizer = byte_tokenizer(**special)
    tokenizer.chat_template = CHAT if chat else None
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
            max_position_embeddings=positions,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
