"""Analytic model of the memory that training takes, by network and part. No torch.

    parameters   closed form in the shape: exact
    weights, gradients, optimizer   parameters x bytes: exact; AdamW keeps two moments, and mixed
                 precision also a float32 master copy (16 bytes per parameter, as in ZeRO,
                 arXiv 1910.02054, section 3.1)
    activations  what autograd keeps of a forward pass, an estimate: see activation_elements
    logits       float32 arrays [tokens, vocabulary] that the loss keeps, an estimate
    kv_cache     of the sequences decoded together: exact up to the allocator

Rollout, critic update and policy update run one after the other, so the peak is what stays plus the
largest of the three phases. The model covers one device without sharding, and excludes
fragmentation and the memory of the libraries themselves.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vimpo.config import AlgorithmConfig, ChainTask, ModelSpec, PPOConfig, Study, Train, VimpoConfig
from vimpo.tasks.chain import ALPHABET, demonstration, training_problems

SPECIAL_TOKENS = 2  # <pad> and <eos> of the ladder's tokenizer
MOMENTS = 2  # of AdamW
CONTINUED = 640  # continuations that are sampled together, unless memory is limited
# Bytes of a kept rollout per token (sampling/rollouts.py): ids and mask are 64-bit in a prompt; in
# a response ids are, and mask, log-probability and value are float32.
REPLAYED_PROMPT = 8 + 8
REPLAYED_RESPONSE = 8 + 3 * 4
PRETRAINING_ROWS = 32  # most rollouts of a forward pass in value pretraining
SAMPLED_UPDATES = 4  # updates there whose rollouts are sampled together, which takes half as long
HELD_OUT_GROUP = 8  # rollouts of a held-out problem there
SAMPLED = 64  # problems whose longest demonstration represents a response


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and a gated MLP; qk_norm as in Qwen3."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool
    qk_norm: bool = True
    source: str = "vimpo.config.LADDER"
    # Counted by the model's own code: all, and those that one token uses. None: the closed form.
    parameters: int | None = None
    active: int | None = None


def _qwen3(name: str, hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> Shape:
    source = f"huggingface.co/Qwen/{name}/config.json"
    return Shape(name, 151936, hidden, layers, heads, 8, 128, intermediate, tied, source=source)


LLAMA3 = "arXiv 2407.21783, table 3"
# Not measured by this suite: the scales of the projection.
PUBLISHED = (
    _qwen3("Qwen3-0.6B", 1024, 28, 16, 3072, True),
    _qwen3("Qwen3-1.7B", 2048, 28, 16, 6144, True),
    _qwen3("Qwen3-4B", 2560, 36, 32, 9728, True),
    _qwen3("Qwen3-8B", 4096, 36, 32, 12288, False),
    _qwen3("Qwen3-14B", 5120, 40, 40, 17408, False),
    _qwen3("Qwen3-32B", 5120, 64, 64, 25600, False),
    Shape("70B (Llama 3 shape)", 128256, 8192, 80, 64, 8, 128, 28672, False, False, LLAMA3),
)


@dataclass(frozen=True)
class Numbers:
    """Bytes of one number: weights, gradients, moments, master copy (0: none), activations."""

    weight: int
    gradient: int
    moment: int
    master: int
    activation: int


FLOAT32 = Numbers(4, 4, 4, 0, 4)
MIXED = Numbers(2, 2, 4, 4, 2)  # bfloat16 with float32 master weights
# As in optimizer.py: the gradients of a backward pass plus their sum in float32.
BFLOAT16 = replace(MIXED, gradient=2 + 4)
LOGIT_BYTES = 4  # log-softmax is float32 everywhere (vimpo.models.passes.last_logits)


@dataclass(frozen=True)
class Workload:
    """A step: sequences decoded together, sequences per backward pass, tokens of each.

    continued: continuations decoded together, for algorithms that sample any.
    rollouts: of the step, if they are not all decoded together.
    """

    decoded: int
    micro_batch: int
    prompt: int
    response: int
    checkpointing: bool = False
    continued: int = 0
    rollouts: int | None = None

    @property
    def tokens(self) -> int:
        """Positions of one forward pass: the last token predicts nothing."""
        return self.micro_batch * (self.prompt + self.response - 1)


# The paper's lengths, on one device: one sequence per backward pass, 64 decoded together.
PAPER_WORKLOAD = Workload(decoded=64, micro_batch=1, prompt=2048, response=4096, checkpointing=True)


def continued_together(train: Train, rollouts: int) -> int:
    """Continuations that are sampled at once beside this many rollouts.

    No more than the rollouts if the study limits memory by train.micro_batch.
    """
    return rollouts if train.micro_batch else max(rollouts, CONTINUED)


# --- one network ---------------------------------------------------------------------------------


def shape_of(name: str, spec: ModelSpec) -> Shape:
    """The shape of a ladder rung. Raises ValueError for a `path`, which has its own config.json."""
    if spec.path:
        raise ValueError(f"{name}: the shape of '{spec.path}' is in its own config.json")
    return Shape(
        name,
        vocabulary=len(ALPHABET) + SPECIAL_TOKENS,
        hidden=spec.hidden,
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.hidden // spec.heads,
        intermediate=spec.intermediate or 3 * spec.hidden,
        tied=True,
    )


def parameter_count(shape: Shape, critic: bool = False) -> int:
    """All parameters of a policy, or of a critic: no output matrix, a scalar head with a bias."""
    s = shape
    output = 0 if s.tied else s.vocabulary * s.hidden
    if s.parameters is not None:
        return s.parameters - output + s.hidden + 1 if critic else s.parameters
    attention = s.hidden * s.head_dim * (2 * s.heads + 2 * s.kv_heads)
    norms = 2 * s.hidden + (2 * s.head_dim if s.qk_norm else 0)
    layer = attention + 3 * s.hidden * s.intermediate + norms
    backbone = s.vocabulary * s.hidden + s.layers * layer + s.hidden
    if critic:
        return backbone + s.hidden + 1
    return backbone + output


def active_count(shape: Shape, critic: bool = False) -> int:
    """Parameters that one token uses: not those of the experts that it is not sent to."""
    idle = 0 if shape.parameters is None else shape.parameters - (shape.active or shape.parameters)
    return parameter_count(shape, critic) - idle


def layer_elements(shape: Shape) -> int:
    """Numbers that autograd keeps per token and layer: an estimate, counted from the code.

    Both norms keep input, normalised and scaled states (6 hidden). Queries keep projection,
    normalised and rotated form, attention its output and the copy that the output matrix reads
    (5 query widths); keys three and values one (4 key widths); the gated MLP keeps gate, its
    activation, up and their product (4 intermediate). No T x T matrix: attention is fused.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 6 * shape.hidden + 5 * queries + 4 * keys + 4 * shape.intermediate


def activation_elements(shape: Shape, checkpointing: bool) -> int:
    """Numbers that autograd keeps per token.

    With checkpointing: the input of each layer, and one whole layer while it is recomputed
    (arXiv 1604.06174). The embedding and the last norm add 3 hidden.
    """
    if checkpointing:
        return (shape.layers + 3) * shape.hidden + layer_elements(shape)
    return shape.layers * layer_elements(shape) + 3 * shape.hidden


def logit_copies(objective: AlgorithmConfig) -> int:
    """float32 arrays [response tokens, vocabulary] alive at the peak of a policy update.

    Counted from vimpo/training/trainer.py. 4 without a KL over the vocabulary: the loss keeps a
    log-softmax, and its backward pass makes three gradients of that size. 8 with the exact KL:
    logits and log-softmax of the policy, logits of the reference, and inside the KL two
    log-softmaxes, probabilities, difference and product. The top-k KL stops at log-softmax: 5.
    """
    if not isinstance(objective, VimpoConfig):
        return 4
    return {"exact": 8, "topk": 5}.get(objective.kl_estimator, 4)


def kv_cache_bytes(shape: Shape, work: Workload, numbers: Numbers) -> int:
    """Keys and values of every layer for all sequences decoded together."""
    width = shape.kv_heads * shape.head_dim
    tokens = work.decoded * (work.prompt + work.response)
    return 2 * shape.layers * width * tokens * numbers.activation


# --- one algorithm -------------------------------------------------------------------------------


def networks(shape: Shape, objective: AlgorithmConfig) -> dict[str, tuple[int, bool]]:
    """Networks of an algorithm: name -> (parameters, is it trained?)."""
    found = {"policy": (parameter_count(shape), True)}
    if objective.needs_reference:
        found["reference"] = (parameter_count(shape), False)
    if isinstance(objective, PPOConfig):
        found["critic"] = (parameter_count(shape, critic=True), True)
    return found


@dataclass(frozen=True)
class Part:
    """Bytes of one part of one network; `stays` for the whole step, or lasts for its `phase`."""

    network: str
    part: str
    bytes: int
    phase: str = "stays"


def memory_parts(
    shape: Shape, objective: AlgorithmConfig, work: Workload, numbers: Numbers
) -> list[Part]:
    """Everything that one training step holds at some time."""
    parts = _replayed(objective, work)
    for name, (count, trained) in networks(shape, objective).items():
        parts.append(Part(name, "weights", count * numbers.weight))
        if trained:
            optimizer = count * (MOMENTS * numbers.moment + numbers.master)
            parts.append(Part(name, "gradients", count * numbers.gradient))
            parts.append(Part(name, "optimizer", optimizer))
            kept = activation_elements(shape, work.checkpointing) * work.tokens
            phase = "critic" if name == "critic" else "update"
            parts.append(Part(name, "activations", kept * numbers.activation, phase))
    logits = logit_copies(objective) * work.micro_batch * work.response * shape.vocabulary
    parts.append(Part("policy", "logits", logits * LOGIT_BYTES, "update"))
    if objective.continued:
        work = replace(work, decoded=max(work.decoded, work.continued))
    parts.append(Part("policy", "kv_cache", kv_cache_bytes(shape, work, numbers), "rollout"))
    return parts


def _replayed(objective: AlgorithmConfig, work: Workload) -> list[Part]:
    """Batches that a critic learns from again, beside the step's own (training/replay.py)."""
    if not isinstance(objective, PPOConfig) or objective.critic_replay == 1:
        return []
    row = work.prompt * REPLAYED_PROMPT + work.response * REPLAYED_RESPONSE
    rows = (objective.critic_replay - 1) * (work.rollouts or work.decoded)
    return [Part("critic", "replay", rows * row)]


def pretraining_parts(
    shape: Shape, objective: PPOConfig, work: Workload, numbers: Numbers
) -> list[Part]:
    """Everything that value pretraining holds (training/critic.py): the policy is only sampled."""
    assert objective.critic_pretrain is not None
    rollouts = objective.critic_pretrain.rollouts
    rows = min(work.micro_batch, PRETRAINING_ROWS, rollouts)
    sampled = replace(work, decoded=SAMPLED_UPDATES * rollouts, micro_batch=rows)
    parts = [
        part
        for part in memory_parts(shape, objective, sampled, numbers)
        if part.network == "critic" and part.part != "replay"
    ]
    count = parameter_count(shape, critic=True)
    held = -(-objective.critic_pretrain.held_out // rollouts) * rollouts * HELD_OUT_GROUP
    row = work.prompt * REPLAYED_PROMPT + work.response * REPLAYED_RESPONSE
    return [
        *parts,
        Part("critic", "best", count * numbers.weight),
        Part("critic", "held_out", held * row),
        Part("policy", "weights", parameter_count(shape) * numbers.weight),
        Part("policy", "kv_cache", kv_cache_bytes(shape, sampled, numbers), "rollout"),
    ]


def peak_bytes(parts: Iterable[Part]) -> int:
    """What stays plus the largest phase."""
    phases: dict[str, int] = {"stays": 0}
    for part in parts:
        phases[part.phase] = phases.get(part.phase, 0) + part.bytes
    stays = phases.pop("stays")
    return stays + max(phases.values(), default=0)


# --- tables --------------------------------------------------------------------------------------


def study_workload(study: Study) -> Workload:
    """The workload of a study on the ladder; the longest demonstration represents a response."""
    task, train = study.task, study.train
    assert isinstance(task, ChainTask)  # the ladder is made from scratch, for chains
    rng = random.Random(0)
    longest = max(task.train_operators)
    count = min(SAMPLED, task.problem_space(longest) // 2)
    problems = training_problems(task, 0, 0, count, [longest])
    response = max(len(demonstration(p, 0.0, rng)) for p in problems) + 1  # and EOS
    return Workload(
        decoded=study.rollouts_per_step,
        micro_batch=train.micro_batch or study.rollouts_per_step,
        prompt=max(len(p.prompt) for p in problems),
        response=min(response, train.max_response),
        continued=continued_together(train, study.rollouts_per_step),
    )


def study_numbers(study: Study) -> Numbers:
    return BFLOAT16 if study.runtime.dtype == "bfloat16" else FLOAT32


def memory_rows(
    shapes: Iterable[Shape],
    algorithms: dict[str, AlgorithmConfig],
    work: Workload,
    numbers: Numbers,
    kind: str,
) -> list[dict]:
    """Tidy rows: kind, algorithm, size, parameters, network, part, bytes, ratio_to_ppo, source.

    One row per part of each network, and `all, peak` with its ratio to the peak of the first PPO
    among `algorithms` (NaN without one). kind: `model` for sizes that the study trains,
    `projection` for sizes that were not run.
    """
    rows = []
    for shape in shapes:
        plans = {name: memory_parts(shape, o, work, numbers) for name, o in algorithms.items()}
        ppo = next((n for n, o in algorithms.items() if isinstance(o, PPOConfig)), None)
        anchor = peak_bytes(plans[ppo]) if ppo else float("nan")
        for name, parts in plans.items():
            peak = Part("all", "peak", peak_bytes(parts))
            rows += [
                {
                    "kind": kind,
                    "algorithm": name,
                    "size": shape.name,
                    "parameters": parameter_count(shape),
                    "network": part.network,
                    "part": part.part,
                    "bytes": part.bytes,
                    "ratio_to_ppo": part.bytes / anchor if part is peak else float("nan"),
                    "source": shape.source,
                }
                for part in [*parts, peak]
            ]
    return rows


def projection(study: Study, algorithms: Iterable[str] = ("vimpo", "ppo", "grpo")) -> list[dict]:
    """Rows (`memory_rows`) for published shapes at the paper's lengths: a projection, not a result.

    Mixed precision, gradient checkpointing and one device without sharding; for ZeRO-3 or FSDP,
    divide what stays by the number of devices.
    """
    chosen = {name: study.algorithms[name] for name in algorithms}
    return memory_rows(PUBLISHED, chosen, PAPER_WORKLOAD, MIXED, "projection")
