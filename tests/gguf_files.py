"""A tiny Llama and the GGUF file of it, written without the code that reads such files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ["<unk>", "<s>", "<end>"]
MERGES = ["1 2", "Ġ +", "a b"]
NORMAL, CONTROL = 1, 3  # types of tokens
CHAT = "{% for m in messages %}<s>{{ m['content'] }}<end>{% endfor %}"


def vocabulary() -> list[str]:
    return [*SPECIAL, *bytes_to_unicode().values(), *(m.replace(" ", "") for m in MERGES)]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **shape,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp wants them: halves of each head alternate. [h * d, H]"""
    rows, width = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, width)
    return split.swapaxes(1, 2).reshape(rows, width)


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama") -> Path:
    """The model with a byte-level BPE tokenizer, in float32."""
    c, tokens = model.config, vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(SPECIAL) + [NORMAL] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    for add, token in (
        (writer.add_unk_token_id, 0),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
    ):
        add(token)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads}
    names = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
        "self_attn.o_proj": "attn_output"
    }
    weights = {name: w.detach().numpy() for name, w in model.model.named_parameters()}
    writer.add_tensor("token_embd.weight", weights["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["norm.weight"])
    for layer in range(c.num_hidden_layers):
        for theirs, ours in names.items():
            weight = weights[f"layers.{layer}.{theirs}.weight"]
            if theirs[10:11] in heads and theirs.startswith("self_attn"):
                weight = interleaved(weight, heads[theirs[10]])
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
