"""Settings of training and of the machine, and which of them go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vimpo.config.algorithms import AlgorithmConfig, PPOConfig
from vimpo.config.models import ModelSpec
from vimpo.config.types import Count, Positive, Strict
from vimpo.config.watching import Validation, check_snapshots


class Runtime(Strict):
    """Machine settings of one job."""

    threads: Count = Field(1, description="CPU threads; byte-equal metrics need a fixed number")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations; the optimiser's copy is always float32"
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    gradient_checkpointing: bool = Field(
        False, description="keep only the inputs of layers and recompute the rest"
    )
    logit_chunk: Count | None = Field(
        None,
        description="tokens whose logits are held at once in training and probes; default: all",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a model; it can do anything you can"
    )
    sampler: Literal["torch", "vllm"] = Field("torch", description="vllm: extra `vllm`, a GPU")
    vllm_memory: float = Field(
        0.3, gt=0, lt=1, description="share of GPU memory that vLLM may take for weights and cache"
    )
    processes: Count = Field(1, description="per training run, over all its nodes")
    nodes: Count = Field(1, description="machines, over which processes are spread evenly")
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="whole copies, or weights and optimiser sharded over processes"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Runtime:
        if self.processes % self.nodes:
            raise ValueError(
                f"processes: {self.processes} cannot be spread evenly over nodes = {self.nodes}; "
                "allowed: a multiple of it"
            )
        if self.processes > 1 and ":" in self.device:
            raise ValueError(
                f"device: '{self.device}' is one GPU for {self.processes} processes; "
                "allowed: cuda (one GPU per process) or cpu"
            )
        if self.sampler == "vllm" and self.device != "cuda":
            raise ValueError("sampler: 'vllm' needs a GPU; allowed: torch, or device: cuda")
        return self


# How the work is spread, not its result: not part of a digest, so a run that began on two processes
# can be finished on one.
PLACEMENT = {"processes", "nodes", "sharding"}


# Below, vLLM 0.30 samples at 0.01 without an error; above, it refuses every request.
VLLM_TEMPERATURES = (0.01, 2.0)


def check_together(
    algorithm: str, model: ModelSpec, objective: AlgorithmConfig, train: Train, runtime: Runtime
) -> None:
    """Raise ValueError if training or runtime do not suit an algorithm and its model."""
    if train.group_size < 2 and objective.needs_group:
        raise ValueError(
            f"train.group_size: {train.group_size} gives {algorithm} no group to compare with; "
            f"allowed: >= 2 with {algorithm}"
        )
    if train.prompts_per_step % runtime.processes:
        raise ValueError(
            f"train.prompts_per_step: {train.prompts_per_step} prompts cannot be split over "
            f"runtime.processes = {runtime.processes}; allowed: a multiple of it, because a group "
            "stays on one process"
        )
    if model.lora and runtime.processes > 1 and runtime.sharding == "fsdp2":
        raise ValueError(
            "runtime.sharding: 'fsdp2' does not split a model with lora; allowed: ddp (adapters "
            "are small), or no lora"
        )
    gathered = runtime.processes > 1 and runtime.sharding == "fsdp2"
    if objective.continued and gathered and runtime.sampler == "torch":
        raise ValueError(
            f"runtime.sharding: 'fsdp2' gathers weights for each call of the sampler, of which "
            f"{algorithm} makes as many as there are states; allowed: ddp, or sampler: vllm"
        )
    if getattr(objective, "rounds", 1) > 1 and runtime.processes > 1:
        raise ValueError(
            f"runtime.processes: {runtime.processes} processes keep different numbers of groups "
            f"when {algorithm} samples in rounds; allowed: 1, or rounds: 1"
        )
    if model.lora and runtime.sampler == "vllm":
        raise ValueError("runtime.sampler: 'vllm' does not take lora; allowed: torch, or no lora")
    if isinstance(objective, PPOConfig):
        _check_critic(algorithm, model, objective, runtime)
    low, high = VLLM_TEMPERATURES
    if runtime.sampler == "vllm" and not low <= train.temperature <= high:
        raise ValueError(
            f"train.temperature: {train.temperature:g} is outside vLLM's range; allowed: "
            f"{low:g} to {high:g}, or runtime.sampler: torch"
        )
    if train.validation:
        _check_validation(train.validation, runtime)
    if getattr(objective, "refresh_every", None) and model.lora:
        raise ValueError(
            f"algorithms.{algorithm}.refresh_every: with lora the reference is the model without "
            "its adapters, which cannot follow the policy; allowed: null, or no lora"
        )
    if getattr(objective, "value", "raw") == "soft" and train.epochs > 1:
        raise ValueError(
            f"train.epochs: {train.epochs} updates change the KL that soft values of {algorithm} "
            "take from the policy that sampled; allowed: 1, or value: raw"
        )
    if runtime.logit_chunk and objective.needs_squares:
        raise ValueError(
            f"runtime.logit_chunk: adaptive_coef of {algorithm} reads all logits; allowed: null, "
            "or a fixed actor_coef"
        )
    if runtime.logit_chunk and getattr(objective, "kl_estimator", "") == "topk":
        raise ValueError(
            "runtime.logit_chunk: the topk estimator reads all logits; allowed: null, or "
            "kl_estimator exact, k2 or k3"
        )


def _check_validation(validation: Validation, runtime: Runtime) -> None:
    """Raise ValueError if it does not suit the processes or their sampler."""
    if validation.problems % runtime.processes:
        raise ValueError(
            f"train.validation.problems: {validation.problems} cannot be split over "
            f"runtime.processes = {runtime.processes}; allowed: a multiple of it"
        )
    low, high = VLLM_TEMPERATURES
    for name, decoder in validation.decoders.items() if runtime.sampler == "vllm" else ():
        temperature = decoder.temperature
        if temperature and not low <= temperature <= high:
            raise ValueError(
                f"train.validation.decoders.{name}.temperature: {temperature:g} is outside vLLM's "
                f"range; allowed: 0, {low:g} to {high:g}, or runtime.sampler: torch"
            )


def _check_critic(algorithm: str, model: ModelSpec, objective: PPOConfig, runtime: Runtime) -> None:
    if objective.critic_replay > 1 and runtime.processes > 1:
        raise ValueError(
            f"algorithms.{algorithm}.critic_replay: {objective.critic_replay} batches are not "
            f"shared by runtime.processes = {runtime.processes}; allowed: 1 with several processes"
        )
    if objective.critic_pretrain and model.lora:
        raise ValueError(
            f"algorithms.{algorithm}.critic_pretrain: a critic that is trained whole does not fit "
            "one of adapters; allowed: null with lora, or no lora"
        )


class Collapse(Strict):
    """When a run has collapsed: it stops, and that is its result (vimpo/training/outcomes.py)."""

    steps: Count = Field(5, description="steps in a row without a correct rollout, after some")
    kl: Positive = Field(
        10.0,
        description="and a KL to the base policy above this (nats, summed over a response), which "
        "tells a lost policy from an unlucky one on hard problems",
    )


class Train(Strict):
    """What all algorithms share: prompts, sampler, optimiser, schedule, batch, token budget."""

    steps: Count = 32
    prompts_per_step: Count = 16
    group_size: Count = Field(8, description="rollouts per prompt (paper: 8)")
    epochs: Count = Field(1, description="updates per batch of rollouts (paper: 1)")
    micro_batch: Count | None = Field(None, description="rollouts per backward pass; default: all")
    max_response: int = Field(64, ge=2, le=65536, description="response tokens, EOS included")
    temperature: Positive = Field(1.0, description="of the rollouts (paper: 1.0)")
    warmup_steps: int = Field(10, ge=0, description="linear warm-up of the rate (paper: 10)")
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False, description="AdamW (paper: 0.1)")
    grad_clip: Positive = Field(1.0, description="largest gradient norm (paper: 1.0)")
    # The next two are left out where they are not set, so that older digests stay valid.
    grad_clip_mode: Literal["absolute", "relative"] = Field(
        "absolute",
        exclude_if=lambda value: value == "absolute",
        description="relative: grad_clip times the running mean of the gradient norm, so that the "
        "scale of a loss makes no difference",
    )
    skip_without_signal: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="no update of the policy where the rewards of every group are equal, for "
        "algorithms that compare within groups (the official code makes one)",
    )
    statistics: Literal["batch", "micro_batch"] = Field(
        "batch",
        exclude_if=lambda value: value == "batch",
        description="over what VIMPO's advantage is whitened and token means are taken (the "
        "official code: micro_batch)",
    )
    truncated: Literal["wrong", "graded"] = Field(
        "wrong",
        exclude_if=lambda value: value == "wrong",
        description="responses that reach the limit: wrong whatever they hold, or graded as the "
        "others (the official code: graded)",
    )
    checkpoint_every: Count = Field(10, description="steps between resumable checkpoints")
    collapse: Collapse = Collapse()
    # These two are left out as well where they are not set.
    validation: Validation | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="held-out accuracy and KL to the base policy along training; `{}`: every 20 "
        "steps; default: none",
    )
    snapshots: list[Count] = Field(
        [],
        exclude_if=lambda value: not value,
        description="steps at which the policy is saved, to be evaluated and probed like its end",
    )

    @model_validator(mode="after")
    def _snapshots_are_reached(self) -> Train:
        check_snapshots(self.snapshots, self.steps)
        return self
