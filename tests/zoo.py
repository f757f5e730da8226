"""Tiny random models of many architectures, each saved with a tokenizer over bytes."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from real_data import byte_tokenizer

VOCABULARY = 258  # of the tokenizer over bytes
POSITIONS = 512
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
}
HEAD = {"head_dim": 8}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
QWEN_EXPERTS = LLAMA | EXPERTS | {"decoder_sparse_step": 1}
# model_type of a configuration -> (class of the model, settings of the configuration)
ZOO: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "mistral": ("MistralForCausalLM", LLAMA),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | HEAD),
    "gemma": ("GemmaForCausalLM", LLAMA | HEAD),
    "gemma2": ("Gemma2ForCausalLM", LLAMA | HEAD),
    "gemma3_text": ("Gemma3ForCausalLM", LLAMA | HEAD | {"sliding_window": 32}),
    "phi": ("PhiForCausalLM", LLAMA),
    "phi3": ("Phi3ForCausalLM", LLAMA),
    "stablelm": ("StableLmForCausalLM", LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", LLAMA),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "granite": ("GraniteForCausalLM", LLAMA),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gptj": ("GPTJForCausalLM", GPT | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", BERT),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": POSITIONS,
        },
    ),
    "bloom": ("BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconForCausalLM", {k: v for k, v in BERT.items() if k != "intermediate_size"}),
    "opt": (
        "OPTForCausalLM",
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "mixtral": ("MixtralForCausalLM", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", QWEN_EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", QWEN_EXPERTS | HEAD),
    "olmoe": ("OlmoeForCausalLM", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssForCausalLM",
        LLAMA | HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    ),
    "deepseek_v3": (  # its experts' bias is a buffer
        "DeepseekV3ForCausalLM",
        LLAMA
        | {
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "mamba": ("MambaForCausalLM", MAMBA),
    "mamba2": ("Mamba2ForCausalLM", MAMBA | {"num_heads": 4, "head_dim": 8, "n_groups": 1}),
    "falcon_mamba": ("FalconMambaForCausalLM", MAMBA),
    "rwkv": ("RwkvForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2}),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        LLAMA | {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 64},
    ),
    "jamba": (
        "JambaForCausalLM",
        LLAMA
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        LLAMA | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        LLAMA
        | HEAD
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        LLAMA
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        },
    ),
    "bamba": (
        "BambaForCausalLM",
        LLAMA
        | {
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        },
    ),
    "bert": ("BertLMHeadModel", BERT | {"is_decoder": False}),
    "bert decoder": ("BertLMHeadModel", BERT | {"is_decoder": True}),
    # Not told apart from a decoder by its configuration: only its log-probabilities show it.
    "bert-generation": ("BertGenerationDecoder", BERT | {"is_decoder": False}),
    "roberta": ("RobertaForCausalLM", BERT | {"is_decoder": False}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": POSITIONS,
        },
    ),
}


def save_zoo_model(kind: str, folder: Path, **changes: object) -> Path:
    """Save a random model of one kind of :data:`ZOO`; returns its folder."""
    name, settings = ZOO[kind]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    config = cls.config_class(**(settings | ENDS | {"vocab_size": VOCABULARY} | changes))
    model = cls(config).eval()
    with torch.no_grad():  # wide enough apart that another network's logits are seen
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 0.1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
