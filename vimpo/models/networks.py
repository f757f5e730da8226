"""The size ladder, tokenizer, policy, reference and critic.

A policy is any Hugging Face causal LM. Those of the ladder are `Qwen3ForCausalLM` built from a
configuration; a `path` loads an existing model. The rest of the code is the same for both.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from vimpo.config import ConfigError, ModelSpec, Runtime, check_model_path
from vimpo.config.model_paths import gguf_file
from vimpo.errors import DamagedError
from vimpo.models import gguf
from vimpo.models.ends import declare_ends
from vimpo.models.kinds import check_attention, check_kind
from vimpo.models.lora import merged_tensors
from vimpo.models.passes import (
    Prompts,
    last_logits,
    last_states,
    read_prompts,
    recomputing,
)
from vimpo.models.weights import check_files, check_loaded
from vimpo.tasks.chain import ALPHABET

MAX_POSITIONS = 1024  # of the ladder's models; far above any chain
# Initial weights have standard deviation 0.64 / sqrt(hidden): the usual 0.02 at a width of 1024.
# With a fixed 0.02 the narrow models need about twice the pretraining steps.
INITIAL_SCALE = 0.64
# What transformers raises for files that are not what they should be.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


ALIGNMENT = 64  # bytes: where tensors of torch start


def chain_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, plus <pad> and <eos>; nothing is added to a text."""
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


def load_tokenizer(
    path: str | Path, trust_remote_code: bool = False, field: str = "path"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    field: the configuration field of the path. Raises ConfigError if there is no tokenizer, or if
    it lacks a pad or EOS token.
    """
    tokenizer = _load(AutoTokenizer, path, field, trust_remote_code=trust_remote_code)
    # Without its files, transformers makes one of special tokens alone, which reads no text.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(
            f"{field}: '{path}' holds no tokenizer, such as tokenizer.json; allowed: a folder "
            "written by save_pretrained of model and tokenizer, or a hub name"
        )
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ConfigError(
                f"{field}: the tokenizer of '{path}' has no {name}; one must be set, as {name} in "
                "tokenizer_config.json of a local copy"
            )
    tokenizer.padding_side = "left"
    return tokenizer


def load_model_config(
    path: str | Path, trust_remote_code: bool = False, field: str = "path"
) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Raises ConfigError if there is none, or if it is no causal LM as this suite trains them.
    """
    config = _load(AutoConfig, path, field, trust_remote_code=trust_remote_code)
    check_kind(config, str(path), field)
    return config


def load_policy(path: str | Path, runtime: Runtime, *, finite: bool = True) -> PreTrainedModel:
    """Load a causal LM by its path, dropout off: what is sampled is what is trained.

    finite: refuse weights that are not; the model of a run that failed may hold some. Raises
    ConfigError if there is no model, if it is of another kind, if its weights are not safetensors
    or not complete, if it needs its own code and that is not trusted, and if the attention
    implementation is not available.
    """
    if runtime.trust_remote_code:
        warnings.warn(
            f"runtime.trust_remote_code: Python code that comes with '{path}' runs unchecked",
            stacklevel=2,
        )
    config = load_model_config(path, runtime.trust_remote_code)
    if Path(path).expanduser().is_dir():
        check_files(Path(path).expanduser())
    try:
        model, info = _load(
            AutoModelForCausalLM,
            path,
            dtype=getattr(torch, runtime.dtype),
            attn_implementation=runtime.attention,
            trust_remote_code=runtime.trust_remote_code,
            use_safetensors=True,  # the other format is a pickle, which is a program
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
        )
    except (ConfigError, ImportError):
        check_attention(config, runtime)  # may know a better reason
        raise
    model = model.to(runtime.device)
    for weight in model.parameters():
        # A weight of a mapped file may start anywhere, and products round by where it starts: a
        # policy would differ from its copy, such as the reference.
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()
    check_loaded(model, info, path, finite=finite)
    return gguf.as_plain(model) if gguf_file(str(path)) else model


def _load(kind: Any, path: str | Path, field: str = "path", **settings: Any) -> Any:
    """`kind.from_pretrained`. Raises ConfigError if the path holds nothing that it can load."""
    check_model_path(str(path), field)
    place, more = gguf.arguments(str(path), field)
    allowed = (
        "a folder written by save_pretrained, or a hub name that exists, with network or a filled "
        "cache"
    )
    errors: tuple[type[Exception], ...] = LOADING_ERRORS
    if more:  # its reader checks nothing, and fails in whatever way the bytes make it
        errors, allowed = (Exception,), "a whole GGUF file of a model that transformers reads"
    try:
        return kind.from_pretrained(place, **settings, **more)
    except errors as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{field}: '{path}' could not be loaded: {reason}; allowed: {allowed}"
        ) from None


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write a `save_pretrained` folder that transformers and lm-eval load unchanged.

    tensors: the weights by name, if they are not those of the model itself.
    """
    declare_ends(model, tokenizer)  # with none named, lm-eval would also score what follows
    model.save_pretrained(folder, safe_serialization=True, state_dict=tensors)
    tokenizer.save_pretrained(folder)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy that never changes."""
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)


class Critic(nn.Module):
    """PPO's critic: its own copy of the base network with a scalar head that starts at zero."""

    def __init__(self, backbone: PreTrainedModel, width: int) -> None:
        """width: of the states that the backbone returns."""
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 1, dtype=backbone.dtype, device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> Critic:
        # As wide as what the output layer reads: for OPT that may not be the hidden size.
        width = policy.get_output_embeddings().weight.shape[1]
        return cls(copy.deepcopy(cast(PreTrainedModel, policy.base_model)), int(width))

    def read_prompts(self, ids: Tensor, mask: Tensor, tokens: int) -> Prompts | None:
        """What :meth:`forward` need not read again (vimpo/models/passes.py)."""
        return read_prompts(self.backbone, ids, mask, tokens, logits=False)

    def forward(
        self, ids: Tensor, attention_mask: Tensor, last: int, prompts: Prompts | None = None
    ) -> Tensor:
        """V(s) at the last positions. ids, attention_mask [B, L] -> [B, last], float32."""
        with recomputing(self.backbone):
            states = last_states(self.backbone, ids, attention_mask, last, prompts)
        return self.head(states).squeeze(-1).float()

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Write a folder for :meth:`load`. tensors: as in :func:`save_policy`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.config.save_pretrained(folder)
        save_file(tensors or merged_tensors(self), folder / "critic.safetensors")

    @classmethod
    def load(cls, folder: Path, policy: PreTrainedModel) -> Critic:
        """The saved critic of `policy`, whose network, and thus whose code, it shares.

        Raises DamagedError if the file does not hold exactly its weights.
        """
        critic, file = cls.from_policy(policy), folder / "critic.safetensors"
        try:
            critic.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise DamagedError(
                f"critic: '{file}' does not hold the weights of a {type(policy).__name__}'s "
                f"critic: {reason}; allowed: the file that training wrote"
            ) from None
        return critic


@torch.no_grad()
def check_plain_head(model: PreTrainedModel) -> None:
    """Raise ConfigError if logits are more than one matrix times the hidden states."""
    # Not token 0, which may be padding with embedding and logits 0.
    ids = torch.arange(1, 5, device=model.device)[None]
    mask = torch.ones_like(ids)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    found = linear(last_states(model, ids, mask, 4), head.weight, bias).float()
    expected = last_logits(model, ids, mask, 4)
    rounding = 1e-4 if model.dtype == torch.float32 else 5e-3
    scaled = float((found - expected).abs().max()) > rounding * float(expected.abs().max())
    if scaled or getattr(model.config, "final_logit_softcapping", None):
        raise ConfigError(
            f"runtime.logit_chunk: the output layer of {type(model).__name__} is not one matrix; "
            "allowed: null for this model"
        )


def parameter_count(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def set_up_torch(runtime: Runtime) -> None:
    """Fixed threads and deterministic kernels: the same seed gives the same bytes."""
    if not gc.isenabled():  # vimpo/__main__.py: the libraries have been loaded
        gc.freeze()
        gc.enable()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.disable_progress_bar()  # the job's own bar is the one worth reading
    torch.set_num_threads(runtime.threads)
    torch.use_deterministic_algorithms(True, warn_only=runtime.device != "cpu")
    if runtime.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.device: '{runtime.device}' needs a GPU that torch can see; allowed: cpu"
        )
