"""Typed configuration: the only home of defaults.

A study is one YAML file, validated against :class:`Study`. Everything that a rule or a command
needs is resolved from it, and unknown keys are refused. This module imports neither torch nor
Snakemake, so that a configuration of ten thousand cells is checked in moments.

Symbols are those of the VIMPO paper (arXiv 2606.20008): beta scales the log-ratio, c_A is
``actor_coef``, lambda is ``lam``, G is ``group_size``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vimpo.cluster import Cluster
from vimpo.config_types import (
    LONGEST_NAME,
    ConfigError,
    Count,
    Name,
    Positive,
    Probability,
    Seed,
    Strict,
    local_path,
)
from vimpo.own_file import file_digest, read_own_file
from vimpo.planning import Planning
from vimpo.task_config import Benchmark as Benchmark
from vimpo.task_config import (
    ChainTask,
    DatasetTask,
    RealBenchmark,
    TaskConfig,
)

# --- Models --------------------------------------------------------------------------------------


NO_RESULT = {"memory_mb"}  # fields of a size that no result depends on


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685), by peft; the base weights stay as they are."""

    rank: Count = 16
    alpha: Positive = Field(32.0, description="an adapter's output is scaled by alpha / rank")
    targets: list[Name] | None = Field(
        None, min_length=1, description="layer names; default: every linear layer but the output"
    )


class ModelSpec(Strict):
    """One rung of the size ladder: a Qwen3 made from scratch, or any Hugging Face causal LM."""

    path: str | None = Field(None, description="hub name or local folder; replaces the shape below")
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 2
    kv_heads: Count = 2
    intermediate: Count | None = Field(None, description="default: 3 x hidden")
    pretrain_steps: int = Field(0, ge=0, description="supervised steps that make the base policy")
    pretrain_lr: Positive = 3e-3
    learning_rate: Positive = Field(2e-4, description="RL rate of the policy at this size")
    memory_mb: int = Field(2000, ge=400, description="memory that a job at this size asks for")
    lora: Lora | None = Field(None, description="train adapters; saved models have them merged")

    @model_validator(mode="after")
    def _shape(self) -> ModelSpec:
        if self.hidden % self.heads:
            raise ValueError(f"heads: {self.heads} must divide hidden = {self.hidden}")
        if (self.hidden // self.heads) % 2:
            raise ValueError(
                f"heads: {self.heads} gives heads of odd width {self.hidden // self.heads}; "
                "rotary embeddings need an even width"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} must divide heads = {self.heads}")
        if self.path is None and self.pretrain_steps == 0:
            raise ValueError(
                "pretrain_steps: 0 leaves a model without a path at random weights; allowed: >= 1"
            )
        return self


def _rung(
    hidden: int, layers: int, pretrain_steps: int, pretrain_lr: float, learning_rate: float
) -> ModelSpec:
    heads = hidden // 16 if hidden < 128 else hidden // 32
    return ModelSpec(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        pretrain_steps=pretrain_steps,
        pretrain_lr=pretrain_lr,
        learning_rate=learning_rate,
    )


LADDER = {
    "xs": _rung(64, 2, 800, 8e-3, 2e-4),
    "s": _rung(96, 2, 600, 8e-3, 2e-4),
    "m": _rung(128, 4, 800, 3e-3, 1e-4),
    "l": _rung(192, 6, 1000, 2e-3, 1e-4),
    "xl": _rung(256, 8, 1200, 1e-3, 5e-5),
}


class Pretrain(Strict):
    """Supervised warm start shared by every size; steps and rate belong to the size."""

    batch_size: Count = 64
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    checkpoint_every: Count = Field(200, description="steps between resumable checkpoints")
    seed: Seed = 0


# --- Training ------------------------------------------------------------------------------------


class Collapse(Strict):
    """When a run has collapsed: it stops, and that is its result (vimpo/outcomes.py)."""

    steps: Count = Field(5, description="steps in a row without a right rollout, after there were")
    kl: Positive = Field(
        10.0,
        description="and a KL to the base policy above this (nats, summed over a response), which "
        "tells a lost policy from bad luck on hard problems",
    )


class Train(Strict):
    """What all algorithms share: prompts, sampler, optimiser, schedule, batch, token budget."""

    steps: Count = 32
    prompts_per_step: Count = 16
    group_size: Count = Field(8, description="rollouts of one prompt (paper: 8)")
    epochs: Count = Field(1, description="updates on one batch of rollouts (paper: 1)")
    micro_batch: Count | None = Field(None, description="rollouts per backward pass; default: all")
    max_response: int = Field(64, ge=2, le=65536, description="response tokens, EOS included")
    temperature: Positive = Field(1.0, description="of the rollouts (paper: 1.0)")
    warmup_steps: int = Field(10, ge=0, description="linear warm-up of the rate (paper: 10)")
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False, description="AdamW (paper: 0.1)")
    grad_clip: Positive = Field(1.0, description="largest gradient norm (paper: 1.0)")
    checkpoint_every: Count = Field(10, description="steps between resumable checkpoints")
    collapse: Collapse = Collapse()


class PolicyUpdate(Strict):
    """Settings of the clipped surrogate that every algorithm has."""

    lr_scale: Positive = Field(1.0, description="multiplies the size's learning rate")
    clip_low: float = Field(0.2, gt=0, lt=1, description="ratio is clipped below 1 - clip_low")
    clip_high: Positive = Field(0.28, description="ratio is clipped above 1 + clip_high")
    dual_clip: float = Field(10.0, gt=1, description="bound of the loss where advantage < 0")


KL_ESTIMATORS = ("exact", "k2", "k3", "topk")


class VimpoConfig(PolicyUpdate):
    """VIMPO (arXiv 2606.20008): terminal-anchor value loss, and an actor that reads its td."""

    objective: Literal["vimpo"] = "vimpo"
    beta: Positive = Field(
        0.02,
        description="scale of the log-ratio (paper: 5e-4 at thousands of tokens; it must grow as "
        "responses shorten, because the summed log-ratio has to reach (R - mean) / beta)",
    )
    actor_coef: float = Field(
        0.005, ge=0, allow_inf_nan=False, description="c_A (paper: 5e-3); 0 is value-only"
    )
    lam: Probability = Field(1.0, description="lambda of GAE over td (paper: 1)")
    kl_estimator: str = Field("exact", description="exact, k2, k3 or topk")
    kl_top_k: Count = Field(8, description="tokens kept by the topk estimator")

    @field_validator("kl_estimator")
    @classmethod
    def _no_k1(cls, value: str) -> str:
        if value == "k1":
            raise ValueError(
                "k1 is refused, because it is the log-ratio itself and rho - kappa would vanish; "
                f"allowed: {', '.join(KL_ESTIMATORS)}"
            )
        if value not in KL_ESTIMATORS:
            raise ValueError(f"{value!r} is unknown; allowed: {', '.join(KL_ESTIMATORS)}")
        return value


class PPOConfig(PolicyUpdate):
    """PPO (arXiv 1707.06347) with its own critic network, optimiser and rate."""

    objective: Literal["ppo"] = "ppo"
    lam: Probability = Field(1.0, description="lambda of GAE")
    value_clip: Positive = Field(0.2, description="clip range of the value loss")
    critic_lr_scale: Positive = Field(3.0, description="critic rate over the size's rate")
    critic_warmup: int = Field(0, ge=0, description="first steps that train the critic alone")


class GRPOConfig(PolicyUpdate):
    """GRPO (arXiv 2402.03300) with token-mean loss and asymmetric clip, the stronger baseline."""

    objective: Literal["grpo"] = "grpo"
    normalize_std: bool = Field(True, description="divide by the group's standard deviation")
    reduction: Literal["token-mean", "seq-mean"] = "token-mean"
    kl_coef: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a k3 penalty to the reference"
    )


class OwnConfig(PolicyUpdate):
    """An algorithm of your own: a Python file, which is run and can do anything that you can."""

    objective: str = Field(pattern=r"\.py$", description="the file, as in examples/rloo.py")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of the file; filled in, so that a changed file trains its cells again",
    )
    reference: bool = Field(False, description="give its loss ref_logp, of a frozen base policy")
    settings: dict[Name, bool | int | float | str] = Field(
        {}, description="keyword arguments of its class"
    )

    @field_validator("sha256")
    @classmethod
    def _of_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A digest that is given stands, so that a resolved study needs no file to be read."""
        return value or (file_digest(info.data["objective"]) if "objective" in info.data else None)


OWN = "FILE.py"


def _objective(value: Any) -> Any:
    """Which configuration an entry of `algorithms` is."""
    found = value.get("objective") if isinstance(value, dict) else getattr(value, "objective", None)
    return OWN if isinstance(found, str) and found.endswith(".py") else found


AlgorithmConfig = Annotated[
    Annotated[VimpoConfig, Tag("vimpo")]
    | Annotated[PPOConfig, Tag("ppo")]
    | Annotated[GRPOConfig, Tag("grpo")]
    | Annotated[OwnConfig, Tag(OWN)],
    Discriminator(_objective),
]

ALGORITHMS: dict[str, VimpoConfig | PPOConfig | GRPOConfig] = {
    "vimpo": VimpoConfig(),
    "vimpo_value_only": VimpoConfig(actor_coef=0.0),
    "ppo": PPOConfig(),
    "grpo": GRPOConfig(),
    "grpo_naive": GRPOConfig(reduction="seq-mean", clip_high=0.2),
}


# --- Reward noise --------------------------------------------------------------------------------


def _plain(rate: float) -> str:
    """The shortest decimal that reads back as this rate, without exponent or sign: `0.00001`."""
    text = f"{Decimal(repr(abs(rate))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Noise(Strict):
    """Flips of training rewards. `group` (the official code): all labels of a prompt together."""

    mode: Literal["group", "rollout", "asymmetric"] = "group"
    rate: Probability = Field(0.0, description="flip probability (group and rollout modes)")
    false_positive: Probability = Field(0.0, description="wrong -> right (asymmetric mode)")
    false_negative: Probability = Field(0.0, description="right -> wrong (asymmetric mode)")

    @model_validator(mode="after")
    def _one_kind_of_rate(self) -> Noise:
        if self.mode == "asymmetric" and self.rate:
            raise ValueError(
                f"rate: {self.rate} has no meaning in asymmetric mode; "
                "allowed: false_positive and false_negative"
            )
        if self.mode != "asymmetric" and (self.false_positive or self.false_negative):
            raise ValueError(
                f"false_positive, false_negative: only in asymmetric mode, not in {self.mode}"
            )
        return self

    @property
    def label(self) -> str:
        """Name used in paths and tables: `0.25`, `rollout-0.25`, `asymmetric-0.1-0.3`."""
        if self.mode == "asymmetric":
            return f"asymmetric-{_plain(self.false_positive)}-{_plain(self.false_negative)}"
        return _plain(self.rate) if self.mode == "group" else f"rollout-{_plain(self.rate)}"

    @property
    def level(self) -> float:
        """Mean flip rate, the x axis of noise figures."""
        if self.mode == "asymmetric":
            return (self.false_positive + self.false_negative) / 2
        return self.rate

    @classmethod
    def parse(cls, label: str) -> Noise:
        """Inverse of :attr:`label`. Raises ConfigError on anything else."""
        mode, _, rates = label.partition("-")
        try:
            if mode == "asymmetric":
                positive, negative = rates.split("-")
                return cls(
                    mode=mode, false_positive=float(positive), false_negative=float(negative)
                )
            if mode == "rollout":
                return cls(mode=mode, rate=float(rates))
            return cls(rate=float(label))
        except ValidationError as error:
            raise ConfigError(_explain(error, cls, prefix="noise")) from None
        except ValueError:
            raise ConfigError(
                f"noise: '{label}' is not a noise level; allowed: a number in [0, 1], "
                "rollout-<number> or asymmetric-<false positive>-<false negative>"
            ) from None


# --- Evaluation, statistics, machine -------------------------------------------------------------


class Evaluation(Strict):
    """lm-eval: avg@k by sampling at the paper's setting, and greedy."""

    samples: Count = Field(2, description="k of avg@k")
    temperature: Positive = Field(1.0, description="paper: 1.0")
    top_p: float = Field(0.7, gt=0, le=1, description="paper: 0.7")
    greedy: bool = True
    batch_size: Count = Field(
        200,
        description="fixed, because lm-eval's scores depend on it; with train.micro_batch set, "
        "probes sample no more at once either",
    )
    seed: Seed = 1234


class Probes(Strict):
    """The scaling caveat, measured on saved checkpoints; the same problems for every run."""

    problems: int = Field(32, ge=2, description="prompts, each with one fresh rollout")
    positions: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5, 0.75, 0.9], min_length=1, description="prefixes, as shares of the response"
    )
    continuations: int = Field(16, ge=4, description="Monte Carlo continuations of a prefix")
    baseline_continuations: int = Field(64, ge=4, description="continuations of the bare prompt")
    credit_rollouts: int = Field(128, ge=2, description="fresh rollouts graded step by step")
    seed: Seed = 777


class Statistics(Strict):
    """How intervals are made."""

    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(5000, ge=100, description="bootstrap resamples")
    seed: Seed = 0


class Claims(Strict):
    """Thresholds of the verdicts, to be fixed before a study runs (claims C1 to C6)."""

    accuracy_margin: float = Field(
        0.02, ge=0, le=1, description="C1, C2: VIMPO may be worse by this much and still match"
    )
    time_ratio: Positive = Field(1.0, description="C3: seconds a step, VIMPO over PPO, below this")
    noise_margin: float = Field(
        0.0, ge=0, description="C4: accuracy lost per unit of noise, less than the others' by this"
    )
    value_accuracy: float = Field(
        0.25, le=1, description="C5: explained variance of the implied change of value, above this"
    )
    value_slope: float = Field(
        -0.1, description="C5: its change per tenfold of parameters, above this"
    )
    critic_margin: float = Field(
        0.1, ge=0, description="C5: behind PPO's critic by less than this explained variance"
    )
    credit_margin: float = Field(
        0.05, ge=0, le=0.5, description="C6: AUC of finding the first wrong step, above 0.5 by this"
    )
    power: float = Field(0.8, gt=0, lt=1, description="of the estimate of seeds needed")


class Runtime(Strict):
    """Machine settings of one job."""

    threads: Count = Field(1, description="CPU threads; byte-equal metrics need a fixed number")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations; the optimiser's copy is always float32"
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    gradient_checkpointing: bool = Field(
        False, description="keep the inputs of layers only, and compute them again backwards"
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
    processes: Count = Field(1, description="of one training run, on all its nodes together")
    nodes: Count = Field(1, description="machines that share the processes evenly")
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="whole copies, or weights and optimiser split over the processes"
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
                "allowed: cuda (each process takes its own) or cpu"
            )
        if self.sampler == "vllm" and self.device != "cuda":
            raise ValueError("sampler: 'vllm' needs a GPU; allowed: torch, or device: cuda")
        return self


# How the work is spread, not what comes out: no part of a digest, so that a run which was begun on
# two processes can be ended on one.
PLACEMENT = {"processes", "nodes", "sharding"}


# Below, vLLM 0.30 samples at 0.01 without an error; above, it refuses every request.
VLLM_TEMPERATURES = (0.01, 2.0)


class GridBlock(Strict):
    """A product of cells; a study is the union of its blocks."""

    algorithms: list[Name] = Field(["vimpo", "ppo", "grpo"], min_length=1)
    sizes: list[Name] = Field(["xs", "s"], min_length=1)
    noise: list[Noise] = Field(
        [Noise(rate=0.0), Noise(rate=0.25)],
        min_length=1,
        description="numbers are flip rates in `noise_mode`; mappings say their own mode",
    )
    noise_mode: Literal["group", "rollout"] = "group"
    seeds: list[Seed] = Field([1, 2], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_rates(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("noise"), list):
            return data
        mode = data.get("noise_mode", "group")
        noise = [
            n if isinstance(n, dict | Noise) else {"mode": mode, "rate": n} for n in data["noise"]
        ]
        return data | {"noise": noise}


@dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    algorithm: str
    size: str
    noise: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.algorithm}/{self.size}/noise-{self.noise}/seed-{self.seed}"


class CellConfig(Strict):
    """Everything that decides the result of one training run; written beside its metrics."""

    algorithm: Name
    size: Name
    noise: Noise
    seed: Seed
    objective: AlgorithmConfig
    model: ModelSpec
    task: TaskConfig
    pretrain: Pretrain
    train: Train
    runtime: Runtime

    @model_validator(mode="after")
    def _can_be_spread(self) -> CellConfig:
        check_runtime(self.runtime, self.train, self.model, self.objective)
        return self


def check_runtime(
    runtime: Runtime, train: Train, model: ModelSpec, objective: AlgorithmConfig
) -> None:
    """Raise ValueError where runtime does not go with what is trained."""
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
    if model.lora and runtime.sampler == "vllm":
        raise ValueError("runtime.sampler: 'vllm' does not take lora; allowed: torch, or no lora")
    low, high = VLLM_TEMPERATURES
    if runtime.sampler == "vllm" and not low <= train.temperature <= high:
        raise ValueError(
            f"train.temperature: {train.temperature:g} is none that vLLM samples at; allowed: "
            f"{low:g} to {high:g}, or runtime.sampler: torch"
        )
    if runtime.logit_chunk and getattr(objective, "kl_estimator", "") == "topk":
        raise ValueError(
            "runtime.logit_chunk: the topk estimator reads all logits; allowed: null, or "
            "kl_estimator exact, k2 or k3"
        )


class Study(Strict):
    """A whole study: what is trained, on what, and how it is judged."""

    study: Name = Field("quick", description="name of the folder below `results`")
    results: str = Field(
        "results",
        pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_./-]*$",
        max_length=1000,
        description="results folder",
    )
    task: TaskConfig = ChainTask()
    sizes: dict[Name, ModelSpec] = Field({}, description="added to, or replacing, the ladder")
    pretrain: Pretrain = Pretrain()
    train: Train = Train()
    algorithms: dict[Name, AlgorithmConfig] = Field(
        {}, description="added to, or replacing, the built-in algorithms"
    )
    grid: list[GridBlock] = Field([GridBlock()], min_length=1)
    evaluation: Evaluation = Evaluation()
    probes: Probes = Probes()
    statistics: Statistics = Statistics()
    claims: Claims = Claims()
    runtime: Runtime = Runtime()
    cluster: Cluster = Cluster()
    plan: Planning = Planning()

    @model_validator(mode="before")
    @classmethod
    def _merge_named_defaults(cls, data: Any) -> Any:
        """A known size or algorithm keeps the defaults that the file does not mention."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for field, known in (("sizes", LADDER), ("algorithms", ALGORITHMS)):
            given = data.get(field) or {}
            if not isinstance(given, dict):
                continue
            merged: dict[str, Any] = {k: v.model_dump() for k, v in known.items()}
            for name, value in given.items():
                if isinstance(value, BaseModel):
                    value = value.model_dump()
                if not isinstance(value, dict):
                    merged[name] = value
                elif name in merged and value.get("objective") in (
                    None,
                    merged[name].get("objective"),
                ):
                    merged[name] = merged[name] | value
                else:
                    merged[name] = value
            data[field] = merged
        if isinstance(data.get("grid"), dict):
            data["grid"] = [data["grid"]]
        return data

    @model_validator(mode="after")
    def _grid_is_known(self) -> Study:
        for i, block in enumerate(self.grid):
            for field, known in (("algorithms", self.algorithms), ("sizes", self.sizes)):
                for name in getattr(block, field):
                    if name not in known:
                        raise ValueError(
                            f"grid[{i}].{field}: '{name}' is unknown; allowed: {', '.join(known)}"
                        )
            for name in block.algorithms:
                objective = self.algorithms[name].objective
                if self.train.group_size < 2 and objective != "ppo":
                    raise ValueError(
                        f"train.group_size: {self.train.group_size} gives {name} no group to "
                        f"compare with; allowed: >= 2 with {name} in grid[{i}].algorithms"
                    )
        self._task_suits_the_sizes()
        for name in self.cluster.sizes:
            if name not in self.sizes:
                raise ValueError(
                    f"cluster.sizes: '{name}' is unknown; allowed: {', '.join(self.sizes)}"
                )
        for block in self.grid:
            for size in block.sizes:
                for name in block.algorithms:
                    models = self.sizes[size], self.algorithms[name]
                    check_runtime(self.runtime, self.train, *models)
        if self.train.micro_batch and self.train.micro_batch > self.rollouts_per_step:
            raise ValueError(
                f"train.micro_batch: {self.train.micro_batch} is more than the "
                f"{self.rollouts_per_step} rollouts of a step; allowed: 1 to that"
            )
        return self

    def _task_suits_the_sizes(self) -> None:
        """Real texts need a model's own tokenizer, pretraining needs demonstrations."""
        pretrained = [size for size in self.used_sizes() if self.sizes[size].pretrain_steps]
        real = [n for n, b in self.task.benchmarks.items() if isinstance(b, RealBenchmark)]
        scratch = [size for size in self.used_sizes() if self.sizes[size].path is None]
        if scratch and (real or isinstance(self.task, DatasetTask)):
            raise ValueError(
                f"sizes.{scratch[0]}.path: a model made from scratch reads only chains, and the "
                f"task has {real[0] if real else 'a dataset'}; allowed: a hub name or local folder"
            )
        if isinstance(self.task, DatasetTask):
            if pretrained and any(source.solution is None for source in self.task.datasets):
                raise ValueError(
                    f"sizes.{pretrained[0]}.pretrain_steps: needs worked solutions; allowed: 0, or "
                    "a column name in task.datasets[].solution"
                )
            return
        self._check_supply("train.prompts_per_step", self.train.prompts_per_step, "train_operators")
        if pretrained:
            self._check_supply(
                "pretrain.batch_size", self.pretrain.batch_size, "pretrain_operators"
            )

    def _check_supply(self, field: str, count: int, lengths: str) -> None:
        """A step's problems are distinct: four in five of the space, of which half may be drawn."""
        operators = getattr(self.task, lengths)
        space = sum(self.task.problem_space(n) for n in set(operators))
        if count > space // 2:
            raise ValueError(
                f"{field}: {count} is more than task.{lengths} = {operators} can supply without "
                f"repeats; allowed: 1 to {space // 2} (more operands or operators give more)"
            )

    @field_validator("results")
    @classmethod
    def _folders_have_names(cls, value: str) -> str:
        if longest := next((p for p in value.split("/") if len(p) > LONGEST_NAME), ""):
            raise ValueError(
                f"'{longest[:20]}...' has {len(longest)} characters; allowed: {LONGEST_NAME} for a "
                "folder"
            )
        return value

    @property
    def rollouts_per_step(self) -> int:
        return self.train.prompts_per_step * self.train.group_size

    @property
    def folder(self) -> Path:
        return Path(self.results) / self.study

    def cells(self) -> list[Cell]:
        """All cells in grid order, each once."""
        return list(
            dict.fromkeys(
                Cell(algorithm, size, noise.label, seed)
                for block in self.grid
                for size in block.sizes
                for algorithm in block.algorithms
                for noise in block.noise
                for seed in block.seeds
            )
        )

    def used_sizes(self) -> list[str]:
        return list(dict.fromkeys(size for block in self.grid for size in block.sizes))

    def cell_config(self, cell: Cell) -> CellConfig:
        """Resolve one cell. Raises ConfigError where algorithm, size or noise is not known."""
        require(cell.algorithm, self.algorithms, "algorithm")
        require(cell.size, self.sizes, "size")
        objective = self.algorithms[cell.algorithm]
        if self.train.group_size < 2 and objective.objective != "ppo":
            raise ConfigError(
                f"train.group_size: {self.train.group_size} gives {cell.algorithm} no group to "
                "compare with; allowed: >= 2"
            )
        try:
            return CellConfig(
                algorithm=cell.algorithm,
                size=cell.size,
                noise=Noise.parse(cell.noise),
                seed=cell.seed,
                objective=objective,
                model=self.sizes[cell.size],
                task=self.task,
                pretrain=self.pretrain,
                train=self.train,
                runtime=self.runtime,
            )
        except ValidationError as error:
            raise ConfigError(_explain(error, CellConfig)) from None

    def base_folder(self, size: str) -> Path:
        return self.folder / "base" / size

    def cost_file(self, size: str) -> Path:
        """The side-by-side measurement of what a step costs at a size."""
        return self.folder / "cost" / f"{size}.csv"

    def samples_of(self, benchmark: str) -> int:
        """k of avg@k: a real benchmark has its own, chains share one."""
        spec = self.task.benchmarks[benchmark]
        return spec.k if isinstance(spec, RealBenchmark) else self.evaluation.samples

    def algorithms_at(self, size: str) -> list[str]:
        """The grid's algorithms at a size, in grid order."""
        return list(dict.fromkeys(c.algorithm for c in self.cells() if c.size == size))

    def own_algorithms(self) -> dict[str, OwnConfig]:
        """The grid's algorithms that are files of the user's."""
        used = {name: self.algorithms[name] for block in self.grid for name in block.algorithms}
        return {name: found for name, found in used.items() if isinstance(found, OwnConfig)}

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / "runs" / cell.name

    # Digests decide what is run again: each covers exactly what its result depends on.

    def base_digest(self, size: str) -> str:
        spec = self.sizes[size].model_dump(exclude={"learning_rate", "lora"} | NO_RESULT)
        return digest([spec, _training_task(self.task), self.pretrain, _result(self.runtime)])

    def cell_digest(self, cell: Cell) -> str:
        return cell_digest(self.cell_config(cell))

    def evaluation_digest(self) -> str:
        return digest([self.evaluation, self.task, _result(self.runtime)])

    def probe_digest(self, cell: Cell) -> str:
        """Includes the betas at which values are read out of every policy."""
        return digest([self.probes, self.cell_digest(cell), self.readout_beta(cell.algorithm)])

    def cost_digest(self, size: str) -> str:
        objectives = [self.algorithms[name] for name in self.algorithms_at(size)]
        size_fields = self.sizes[size].model_dump(exclude=NO_RESULT)
        train = self.train.model_dump(mode="json", exclude={"collapse"})  # no step is judged there
        shared = [size_fields, self.task, train, self.runtime, self.probes]
        return digest([objectives, *shared])

    def readout_beta(self, algorithm: str) -> float:
        """beta of the implied value: VIMPO's own, and that of `vimpo` for the others."""
        for name in (algorithm, "vimpo"):
            if self.algorithms[name].objective == "vimpo":
                return self.algorithms[name].beta
        return VimpoConfig().beta


def cell_digest(config: CellConfig) -> str:
    """Digest of what a training run depends on: of the task, not its held-out benchmarks.

    Limits of a collapse decide the results of runs that fail, so other limits are another run. At
    their defaults they are left out: runs made before there were any stay valid.
    """
    fields = config.model_dump(exclude={"task": True, "runtime": True, "model": NO_RESULT})
    if config.train.collapse == Collapse():
        del fields["train"]["collapse"]
    return digest([fields | {"runtime": _result(config.runtime)}, _training_task(config.task)])


def _result(runtime: Runtime) -> dict:
    """What of the runtime decides a result."""
    return runtime.model_dump(exclude=PLACEMENT)


def _training_task(task: TaskConfig) -> dict:
    """Without what training does not read; workers change how fast it judges, and nothing else."""
    plain = task.model_dump(exclude={"benchmarks"})
    plain.get("verifier", {}).pop("workers", None)
    return plain


def digest(value: Any) -> str:
    """Short stable hash of models and plain data."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else item

    text = json.dumps(value, default=plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require(name: str, known: Any, field: str) -> None:
    """Raise ConfigError unless `name` is one of `known`."""
    if name not in known:
        raise ConfigError(f"{field}: '{name}' is unknown; allowed: {', '.join(known)}")


# --- Loading -------------------------------------------------------------------------------------


def load_study(source: str | Path | dict | None = None) -> Study:
    """Read and validate a study from a YAML file, a mapping, or (None) the defaults.

    Raises ConfigError with one line per fault: field, value, allowed range.
    """
    if source is None:
        data: Any = {}
    elif isinstance(source, dict):
        data = source
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"config: '{path}' is not a file; allowed: a YAML file of a study")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        # ValueError: not UTF-8, or a date that there is not; RecursionError: thousands of brackets.
        except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"config: '{path}' is not valid YAML: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config: {data!r} is not a mapping of fields")
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, Study)) from None
    except RecursionError:
        raise ConfigError("config: a value holds itself; allowed: finite nesting") from None


def _explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line per fault: `field: value is not allowed; why; allowed: range`."""
    lines = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        if place[:1] == ["task"]:  # tags of unions, which are not what the user wrote
            place = ["task", *place[2:]] if place[1:2] in (["chain"], ["dataset"]) else place
            if place[1:2] == ["benchmarks"] and place[3:4] in (["chain"], ["real"]):
                del place[3]
        message = fault["msg"].removeprefix("Value error, ")
        allowed = _allowed(model, place)
        if place[:1] == ["algorithms"] and len(place) > 3:
            del place[2]  # the tag of the union, which is not something that the user wrote
        # A key may hold a line break; a fault is one line.
        place = [part if part.isprintable() else repr(part) for part in place]
        where = ".".join([prefix] * bool(prefix) + place)
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; allowed: the fields of the schema")
        elif fault["type"] == "value_error":
            field_itself = message.partition(":")[0].replace(".", "").isidentifier()
            lines.append(
                message if not where else f"{where}{'.' if field_itself else ': '}{message}"
            )
        else:
            shown = repr(fault["input"])
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            why = f"{message[0].lower()}{message[1:]}"
            lines.append(f"{where}: {shown} is not allowed; {allowed or why}")
    return "\n".join(dict.fromkeys(lines))


@functools.cache
def _schema(model: type[BaseModel]) -> dict:
    return model.model_json_schema()


def _allowed(model: type[BaseModel], place: list[str]) -> str:
    """The range of the number at `place`, read from the schema; empty where it has none."""
    schema = _schema(model)
    definitions, node = schema.get("$defs", {}), schema
    for part in place:
        options = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
        options = [definitions.get(o.get("$ref", "").split("/")[-1], o) for o in options]
        steps = [o["properties"][part] for o in options if part in o.get("properties", {})]
        steps += [o["items"] for o in options if part.isdigit() and "items" in o]
        steps += [o["additionalProperties"] for o in options if o.get("additionalProperties")]
        if not steps:
            return ""
        node = steps[0]
    ends = next((o for o in [node, *node.get("anyOf", [])] if "type" in o), {})
    low, above = ends.get("minimum"), ends.get("exclusiveMinimum")
    high, below = ends.get("maximum"), ends.get("exclusiveMaximum")
    if all(end is None for end in (low, above, high, below)):
        return ""
    left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
    right = f"{high:g}]" if high is not None else f"{below:g})" if below is not None else "inf)"
    return (
        f"allowed: {'an integer' if ends['type'] == 'integer' else 'a number'} in {left}, {right}"
    )


def dump_yaml(model: BaseModel) -> str:
    """Resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def study_schema() -> dict:
    """JSON schema of the study file, generated from the types."""
    return Study.model_json_schema()


def check_before_running(study: Study) -> None:
    """What a valid study needs on this machine. Raises ConfigError, writes nothing."""
    for size in study.used_sizes():
        if path := study.sizes[size].path:
            check_model_path(path, f"sizes.{size}.path")
    for objective in study.own_algorithms().values():
        read_own_file(objective.objective, objective.sha256)
    from vimpo.tasks.sources import check_sources

    check_sources(study.task)
    check_results_folder(study)


def check_model_path(path: str, field: str = "path") -> None:
    """Raise ConfigError where `path` is written as a local folder and is none of a model.

    A hub name (`owner/name`) cannot be checked without the network; loading it says what is wrong.
    """
    local, there = local_path(path, field)
    looks_local = there or path.startswith((".", "/", "~"))
    if looks_local and not (local / "config.json").is_file():
        raise ConfigError(
            f"{field}: '{path}' holds no config.json; allowed: a folder written by "
            "save_pretrained, or a hub name"
        )


# Changing one of these makes every cell of a folder incomparable with what it already holds.
FOUNDATION = ("task", "sizes", "pretrain", "train", "runtime")


def check_results_folder(study: Study) -> None:
    """Refuse a results folder that another study made. Raises ConfigError, writes nothing.

    New cells, algorithms and evaluation settings may join a folder; a change of what all of its
    cells share may not, because the old cells would silently be replaced.
    """
    recorded_path = study.folder / "config.yaml"
    if not recorded_path.is_file():
        return
    recorded = load_study(recorded_path)
    used = set(recorded.used_sizes()) & set(study.used_sizes())
    differences = []
    for section in FOUNDATION:
        old, new = getattr(recorded, section), getattr(study, section)
        if section == "sizes":
            old = {k: v.model_dump(exclude=NO_RESULT) for k, v in old.items() if k in used}
            new = {k: v.model_dump(exclude=NO_RESULT) for k, v in new.items() if k in used}
        else:
            left_out = PLACEMENT if section == "runtime" else None
            old, new = (s.model_dump(mode="json", exclude=left_out) for s in (old, new))
        differences += setting_differences(old, new, section)
    if differences:
        raise ConfigError(
            f"results: '{study.folder}' was made by another configuration "
            f"({'; '.join(differences)}); allowed: the recorded values, another `study` name, or a "
            "folder that you removed"
        )


def setting_differences(old: Any, new: Any, place: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in setting_differences(old.get(key), new.get(key), f"{place}.{key}")
        ]
    return [] if old == new else [f"{place}: {old} there, {new} here"]
