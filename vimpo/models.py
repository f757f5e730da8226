"""The size ladder, tokenizer, policy, reference and critic.

A policy is any Hugging Face causal LM. Those of the ladder are `Qwen3ForCausalLM` made from a
configuration; a `path` loads an existing model, and everything after that is the same code.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from vimpo.config import ConfigError, ModelSpec, Runtime, check_model_path
from vimpo.tasks.chain import ALPHABET

MAX_POSITIONS = 1024  # of the ladder's models; far above any chain
# Initial weights have standard deviation 0.64 / sqrt(hidden): the usual 0.02 at a width of 1024. At
# a fixed 0.02 the narrow models need about twice the pretraining steps.
INITIAL_SCALE = 0.64


def chain_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, plus <pad> and <eos>; nothing is added to a text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=MAX_POSITIONS,
    )


def build_policy(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A randomly initialised Qwen3 of the given shape, the same for the same seed."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.hidden // spec.heads,
        intermediate_size=spec.intermediate or 3 * spec.hidden,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=INITIAL_SCALE / math.sqrt(spec.hidden),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises ConfigError where there is none, and where it lacks a pad or an EOS token.
    """
    check_model_path(str(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(Path(path).expanduser()))
    except (OSError, ValueError) as error:
        raise ConfigError(_not_loaded(path, error)) from None
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ConfigError(f"path: the tokenizer of '{path}' has no {name}; one must be set")
    tokenizer.padding_side = "left"
    return tokenizer


def load_policy(path: str | Path, runtime: Runtime) -> PreTrainedModel:
    """Load a causal LM by folder or hub name, dropout off: what is sampled is what is trained.

    Raises ConfigError where there is none.
    """
    check_model_path(str(path))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(Path(path).expanduser()),
            dtype=getattr(torch, runtime.dtype),
            attn_implementation="sdpa",
        )
    except OSError as error:
        raise ConfigError(_not_loaded(path, error)) from None
    return model.to(runtime.device)


def _not_loaded(path: str | Path, error: Exception) -> str:
    return f"path: '{path}' could not be loaded: {str(error).splitlines()[0]}"


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `save_pretrained` folder that transformers and lm-eval load unchanged."""
    # An unset eos would make lm-eval score the text behind it.
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy that never changes."""
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)


class Critic(nn.Module):
    """PPO's critic: its own copy of the base network with a scalar head that starts at zero."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, dtype=backbone.dtype, device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> Critic:
        return cls(copy.deepcopy(policy.base_model))

    def forward(self, ids: Tensor, attention_mask: Tensor, last: int) -> Tensor:
        """V(s) at the last positions. ids, attention_mask [B, L] -> [B, last], float32."""
        states = self.backbone(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return self.head(states[:, -last:]).squeeze(-1).float()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.config.save_pretrained(folder)
        save_file(dict(self.named_parameters()), folder / "critic.safetensors")

    @classmethod
    def load(cls, folder: Path, runtime: Runtime) -> Critic:
        backbone = AutoModel.from_config(
            AutoConfig.from_pretrained(folder), dtype=getattr(torch, runtime.dtype)
        )
        critic = cls(backbone)
        critic.load_state_dict(load_file(folder / "critic.safetensors"))
        return critic.to(runtime.device)


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token in its own text, whatever the padding. [B, L] -> [B, L]."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def last_logits(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor, last: int) -> Tensor:
    """Logits at the last positions. ids, attention_mask [B, L] -> [B, last, V], float32."""
    return model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        use_cache=False,
        logits_to_keep=last,
    ).logits.float()


def parameter_count(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def set_up_torch(runtime: Runtime) -> None:
    """Fixed threads and deterministic kernels: the same seed gives the same bytes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.disable_progress_bar()  # the bar of the job itself is the one worth reading
    torch.set_num_threads(runtime.threads)
    torch.use_deterministic_algorithms(True, warn_only=runtime.device != "cpu")
    if runtime.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.device: '{runtime.device}' needs a GPU that torch can see; allowed: cpu"
        )
