"""What a study will take, before anything is submitted: memory, device-hours and disk. No torch.

    FLOPs      per parameter and token 2 forwards (the input embedding is a look-up), 4 backwards;
               attention: 4 x layers x query width x context per token (arXiv 2001.08361, table 1)
    training   FLOPs over what a device sustains
    decoding   a step of all sequences takes as long as its FLOPs or as reading the weights and the
               KV cache, whichever is longer, plus an overhead per layer; the longest response runs
               to the limit
    memory     models/memory.py; FSDP divides weights, gradients and optimizer by the processes

Every assumption is a field of `plan` (vimpo/config/planning.py) or devices.csv; all are printed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from vimpo.config import AlgorithmConfig, Cell, ChainTask, PPOConfig, Study, VimpoConfig
from vimpo.config.jobs import Stage
from vimpo.models import memory
from vimpo.models.memory import Shape, Workload
from vimpo.planning.beta import unusual_betas
from vimpo.planning.capacity import measured
from vimpo.planning.inputs import (
    benchmark_responses,
    load_device,
    prompt_lengths,
    shape_of,
)
from vimpo.planning.jobs import cell_request, job_request
from vimpo.probes import sampled_together
from vimpo.probes.cost import STEPS, WARM_UP
from vimpo.storage.continued import taken_over
from vimpo.storage.shipped import shipped_source
from vimpo.storage.surprisal import Surprisal

GIB = 2**30
HOUR = 3600
ROUNDS = 2  # of dynamic sampling on average, if about half of the groups have a signal
CHECKPOINTS = 3  # two kept and one being written (vimpo/training/checkpoint.py)


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and responses: the mean for time, the longest for memory."""

    prompt: int
    response: int
    longest_prompt: int
    longest_response: int


@dataclass(frozen=True)
class Job:
    """All jobs of one rule and size (and algorithm). hours: wall time of each."""

    rule: Stage
    size: str
    algorithm: str
    count: int
    devices: int
    hours: float

    @property
    def device_hours(self) -> float:
        return self.count * self.devices * self.hours


# --- arithmetic ----------------------------------------------------------------------------------


def forward_flops(shape: Shape, context: float, critic: bool = False) -> float:
    """FLOPs per token of a forward pass; context: mean number of tokens before it."""
    weights = memory.active_count(shape, critic)
    if critic or not shape.tied:
        weights -= shape.vocabulary * shape.hidden
    return 2 * weights + 4 * shape.layers * shape.heads * shape.head_dim * context


def policy_passes(
    objective: AlgorithmConfig, split: bool, epochs: int, checkpointing: bool
) -> float:
    """Work on policy and reference per step, in forward passes (training/trainer.py).

    A backward pass counts as two, and checkpointing repeats one. split: several micro-batches, for
    which an advantage computed from the policy itself needs a first pass.
    """
    reference = int(objective.needs_reference)
    look = (1 + reference) if split and isinstance(objective, VimpoConfig) else 0
    return epochs * (3 + checkpointing + reference + look)


def critic_passes(split: bool, epochs: int, checkpointing: bool, updates: int = 1) -> float:
    """The same for PPO's critic, which needs no first pass with a single micro-batch.

    updates: of the critic per update of the policy.
    """
    return updates * epochs * (3 + checkpointing) + int(split)


class Planner:
    """Estimates for one study, less what it reuses; each method gives the cost of one job.

    cells: those that remain to be run; left: shapes of the remaining sizes, as far as known.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.taken = study, taken_over(study)
        self.device = load_device(study)
        self.shapes = {size: shape_of(size, study.sizes[size]) for size in study.used_sizes()}
        self.left = {k: s for k, s in self.shapes.items() if s and k not in self.taken.sizes}
        self.cells = [cell for cell in study.cells() if cell not in self.taken.cells]
        self.numbers = memory.study_numbers(study)
        self.checkpointing = study.runtime.gradient_checkpointing

    @cached_property
    def surprisal(self) -> dict[str, Surprisal]:
        """Of the base policies, where it has been measured."""
        return measured(self.study)

    @cached_property
    def lengths(self) -> Lengths:
        return self._lengths(self.study)

    @cached_property
    def pretrain_lengths(self) -> Lengths:
        """Of demonstrations, whose chains may be longer than those of training."""
        task = self.study.task
        if not isinstance(task, ChainTask):
            return self.lengths
        longer = task.model_copy(update={"train_operators": task.pretrain_operators})
        return self._lengths(self.study.model_copy(update={"task": longer}))

    def _lengths(self, study: Study) -> Lengths:
        """Chains count as their longest; prompts of hub data, and responses, as their limits."""
        plan, task, longest = study.plan, study.task, 0
        if isinstance(task, ChainTask):
            work = memory.study_workload(study)
            prompt, response = work.prompt, work.response
        else:
            prompt, response = task.max_prompt, study.train.max_response
            if measured := prompt_lengths(study):
                prompt, longest = measured
        if plan.response_tokens is not None:
            response = study.train.max_response
        return Lengths(
            prompt=plan.prompt_tokens or prompt,
            response=min(plan.response_tokens or response, response),
            longest_prompt=plan.longest_prompt or max(prompt, longest, plan.prompt_tokens or 0),
            longest_response=response,
        )

    # --- seconds ----------------------------------------------------------------------------------

    @property
    def _cores(self) -> int:
        """Devices per process: the threads of a CPU, or one GPU."""
        return self.study.runtime.threads if self.study.runtime.device == "cpu" else 1

    def compute_s(self, flops: float, processes: int = 1) -> float:
        """Seconds of training arithmetic."""
        kept = self.study.plan.parallel_efficiency if processes > 1 else 1.0
        rate = self.device.flops * self.device.train_utilisation * self._cores
        return flops / (rate * processes * kept)

    def decode_s(self, shape: Shape, count: int, together: int, engine: bool = False) -> float:
        """Seconds for one device to sample `count` responses, at most `together` at once."""
        limit = min(count, together, self.study.plan.decoded_together or count)
        steps = self.lengths.response * self._decode_step_s(shape, limit, engine)
        tail = self.lengths.longest_response - self.lengths.response
        return count / limit * (steps + tail * self._decode_step_s(shape, 1, engine))

    def _decode_step_s(self, shape: Shape, together: int, engine: bool) -> float:
        """One token of each of `together` sequences."""
        device, context = self.device, self.lengths.prompt + self.lengths.response / 2
        cache = together * context * self._cache_bytes(shape)
        read = memory.parameter_count(shape) * self.numbers.weight + cache
        rate = device.decode_utilisation * self._cores
        arithmetic = together * forward_flops(shape, context) / (device.flops * rate)
        layer = self.study.plan.engine_layer_seconds if engine else device.layer_seconds
        return max(arithmetic, read / (device.bandwidth * rate)) + shape.layers * layer

    def _cache_bytes(self, shape: Shape) -> int:
        """Keys and values of one token."""
        one = Workload(decoded=1, micro_batch=1, prompt=1, response=0)
        return memory.kv_cache_bytes(shape, one, self.numbers)

    def rollout_s(self, shape: Shape, processes: int = 1) -> float:
        """Seconds to sample a step's rollouts."""
        share = math.ceil(self.study.rollouts_per_step / processes)
        return self._sample_s(shape, share, share)

    def _sample_s(self, shape: Shape, count: int, together: int) -> float:
        """With the study's sampler; vLLM decodes as many at once as its cache holds."""
        if not self._engine:
            return self.decode_s(shape, count, together)
        room = self._engine_bytes - memory.parameter_count(shape) * self.numbers.weight
        each = (self.lengths.prompt + self.lengths.response) * self._cache_bytes(shape)
        return self.decode_s(shape, count, max(1, int(room / each)), engine=True)

    @property
    def _engine(self) -> bool:
        return self.study.runtime.sampler == "vllm"

    @property
    def _engine_bytes(self) -> float:
        """What vLLM takes on each device for weights and cache."""
        return self.study.runtime.vllm_memory * (self.device.memory_gib or 0) * GIB

    def step_s(self, shape: Shape, objective: AlgorithmConfig, processes: int = 1) -> float:
        """One training step: rollouts, reference, critic, update."""
        train, lengths = self.study.train, self.lengths
        rollouts = self.study.rollouts_per_step
        split = (train.micro_batch or rollouts) < rollouts
        context = (lengths.prompt + lengths.response) / 2
        work = policy_passes(objective, split, train.epochs, self.checkpointing)
        work *= forward_flops(shape, context)
        if isinstance(objective, PPOConfig):
            critic = forward_flops(shape, context, critic=True)
            updates = objective.critic_updates
            work += critic * critic_passes(split, train.epochs, self.checkpointing, updates)
        tokens = self._prompts_read(processes) * lengths.prompt + rollouts * lengths.response
        rounds = min(ROUNDS, getattr(objective, "rounds", 1))
        sampling = rounds * self.rollout_s(shape, processes)
        sampling += self.continue_s(shape, objective, processes)
        return sampling + self.compute_s(work * tokens, processes)

    def _prompts_read(self, processes: int) -> int:
        """Prompts in a forward pass over a step's rollouts: once per micro-batch, where shared."""
        train, rollouts = self.study.train, self.study.rollouts_per_step
        if self.checkpointing or processes > 1:
            return rollouts
        together = min(train.micro_batch or rollouts, rollouts)
        return math.ceil(rollouts / together) * min(together, train.prompts_per_step)

    def continue_s(self, shape: Shape, objective: AlgorithmConfig, processes: int = 1) -> float:
        """Seconds to continue the states of a step's rollouts, half a response on average.

        A chain has as many states as operators, and one each for answer and end.
        """
        states, task = objective.continued, self.study.task
        if states is None:
            return 0.0
        each = math.ceil(self.lengths.response / (states.interval or self.lengths.response))
        if states.interval is None and isinstance(task, ChainTask):
            each = max(task.train_operators) + 2
        share = math.ceil(self.study.rollouts_per_step / processes)
        together = memory.continued_together(self.study.train, share)
        return self._sample_s(shape, share * each * states.k, together) / 2

    def pretrain_s(self, size: str, shape: Shape) -> float:
        spec, lengths = self.study.sizes[size], self.pretrain_lengths
        length = lengths.prompt + lengths.response
        tokens = spec.pretrain_steps * self.study.pretrain.batch_size * length
        return self._started(self.compute_s(3 * tokens * forward_flops(shape, length / 2)))

    def critic_s(self, shape: Shape, objective: PPOConfig) -> float:
        """Value pretraining up to its limit: fresh rollouts for every update, and measurements."""
        settings, lengths = objective.critic_pretrain, self.lengths
        assert settings is not None
        length = lengths.prompt + lengths.response
        held = settings.held_out * memory.HELD_OUT_GROUP
        measurements = math.ceil(settings.updates / settings.check_every)
        passes = settings.updates * settings.rollouts * (3 + self.checkpointing)
        passes += measurements * held
        one = forward_flops(shape, length / 2, critic=True) * length
        sampled = settings.updates * settings.rollouts + held
        together = memory.SAMPLED_UPDATES * settings.rollouts
        sampling = self._sample_s(shape, sampled, together)
        return self._started(sampling + self.compute_s(passes * one))

    def train_s(self, shape: Shape, objective: AlgorithmConfig) -> float:
        one = self.step_s(shape, objective, self.study.runtime.processes)
        return self._started(self.study.train.steps * one + self.validation_s(shape))

    def validation_s(self, shape: Shape) -> float:
        """Answering held-out problems along a run; the pass for the KL to the base is left out."""
        train, validation = self.study.train, self.study.train.validation
        if validation is None:
            return 0.0
        looks = sum(validation.due(updates, train.steps) for updates in range(train.steps + 1))
        responses = validation.problems * sum(map(validation.samples_of, validation.decoders))
        share = math.ceil(responses / self.study.runtime.processes)
        return looks * self._sample_s(shape, share, min(share, self.study.rollouts_per_step))

    def evaluate_s(self, shape: Shape) -> float:
        together = self.study.evaluation.batch_size
        return self._started(self.decode_s(shape, benchmark_responses(self.study), together))

    def probe_s(self, shape: Shape, objective: AlgorithmConfig) -> float:
        """Continuations of prefixes and prompts, rollouts, the passes over them, and a critic."""
        probes, lengths = self.study.probes, self.lengths
        length = lengths.prompt + lengths.response
        prefixes = probes.problems * len(probes.positions) * probes.continuations
        starts = probes.problems * (1 + probes.baseline_continuations)
        rollouts, fitted = probes.credit_rollouts, 0.0  # fitted: tokens
        if probes.baselines:
            rollouts += probes.baselines.rollouts
            fitted = probes.baselines.updates * probes.baselines.batch_size * length
        if probes.common:
            rollouts += probes.problems + probes.credit_rollouts
            prefixes *= 2
        prefixes += 2 * probes.pairs * probes.continuations
        sampled = prefixes + starts + rollouts
        networks = 2 + isinstance(objective, PPOConfig)
        read = (probes.problems + rollouts) * length * networks
        reading = self.compute_s((read + 3 * fitted) * forward_flops(shape, length / 2))
        return self._started(self._sample_s(shape, sampled, sampled_together(self.study)) + reading)

    def cost_s(self, size: str, shape: Shape) -> float:
        objectives = [self.study.algorithms[a] for a in self.study.algorithms_at(size)]
        processes = job_request(self.study, "cost", size).processes
        turn = sum((WARM_UP + STEPS) * self.step_s(shape, o, processes) for o in objectives)
        rounds = self.study.probes.cost_rounds
        return self._started(rounds * turn, processes=1 + rounds * len(objectives))

    def _started(self, seconds: float, processes: int = 1) -> float:
        return seconds + processes * self.study.plan.startup_seconds

    # --- jobs -------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Every job that computes, except for models of unknown shape."""
        found = []
        for size, shape in self.left.items():
            taken = shipped_source(self.study, size, self.study.base_folder(size))
            seconds = self._started(0.0) if taken else self.pretrain_s(size, shape)
            found.append(self._job("pretrain", size, "", 1, seconds))
            found.append(self._job("evaluate", size, "base", 1, self.evaluate_s(shape)))
            found.append(self._job("cost", size, "", 1, self.cost_s(size, shape)))
            for cell in self.critics(size):
                objective = self.study.algorithms[cell.algorithm]
                assert isinstance(objective, PPOConfig)
                folder = self.study.critic_folder(cell)
                taken = folder and shipped_source(self.study, size, folder)
                seconds = self._started(0.0) if taken else self.critic_s(shape, objective)
                found.append(self._job("critic", size, "", 1, seconds))
            counts = Counter(cell.algorithm for cell in self.cells if cell.size == size)
            for algorithm, count in counts.items():
                objective = self.study.algorithms[algorithm]
                times: dict[Stage, float] = {
                    "train": self.train_s(shape, objective),
                    "evaluate": self.evaluate_s(shape),
                    "probe": self.probe_s(shape, objective),
                }
                looked_at = count * (1 + len(self.study.train.snapshots))
                for stage, seconds in times.items():
                    jobs = count if stage == "train" else looked_at
                    found.append(self._job(stage, size, algorithm, jobs, seconds))
        return found

    def critics(self, size: str) -> list[Cell]:
        """A cell of each pretrained critic that is to be made."""
        cells = [cell for cell in self.cells if cell.size == size]
        digests = {self.study.critic_digest(cell): cell for cell in cells}
        return [cell for value, cell in digests.items() if value]

    def _job(self, stage: Stage, size: str, algorithm: str, count: int, seconds: float) -> Job:
        """devices: all that the job holds; the whole cell's if its stages share a job."""
        shared = self.study.cluster.one_job_a_cell and algorithm not in ("", "base")
        request = cell_request(self.study, size) if shared else job_request(self.study, stage, size)
        return Job(stage, size, algorithm, count, request.gpus or request.threads, seconds / HOUR)

    # --- memory and disk --------------------------------------------------------------------------

    def memory_gib(
        self, shape: Shape, objective: AlgorithmConfig, processes: int | None = None
    ) -> float:
        """Peak of one process of training or of value pretraining, by models/memory.py.

        processes: default: the study's.
        """
        processes = processes or self.study.runtime.processes
        work = self._workload(processes)
        parts = memory.memory_parts(shape, objective, work, self.numbers)
        peak = memory.peak_bytes(self._adapted(p, work, processes) for p in parts)
        if isinstance(objective, PPOConfig) and objective.critic_pretrain:
            parts = memory.pretraining_parts(shape, objective, work, self.numbers)
            peak = max(peak, memory.peak_bytes(self._adapted(p, work, 1) for p in parts))
        return peak / GIB

    def _workload(self, processes: int) -> Workload:
        """A process's part of a step."""
        train = self.study.train
        rollouts = math.ceil(self.study.rollouts_per_step / processes)
        continued = memory.continued_together(train, rollouts)
        return Workload(
            decoded=min(rollouts, self.study.plan.decoded_together or rollouts),
            continued=min(continued, self.study.plan.decoded_together or continued),
            micro_batch=min(train.micro_batch or rollouts, rollouts),
            prompt=self.lengths.longest_prompt,
            response=self.lengths.longest_response,
            checkpointing=self.checkpointing,
            rollouts=rollouts,
        )

    def _adapted(self, part: memory.Part, work: Workload, processes: int) -> memory.Part:
        """A part under `runtime`: split over processes, logits in chunks, the sampler's share."""
        runtime = self.study.runtime
        if part.phase == "stays" and runtime.sharding == "fsdp2":
            return replace(part, bytes=part.bytes // processes)
        if part.part == "logits" and runtime.logit_chunk:
            tokens = work.micro_batch * work.response
            kept = min(1.0, runtime.logit_chunk / tokens)
            return replace(part, bytes=round(part.bytes * kept))
        if part.part == "kv_cache" and runtime.sampler == "vllm":
            return replace(part, bytes=round(self._engine_bytes), phase="stays")
        return part

    def kept_bytes(self, shape: Shape, objective: AlgorithmConfig | None = None) -> int:
        """A finished run's model, with PPO's critic; without an objective, a base policy's."""
        count = memory.parameter_count(shape)
        if isinstance(objective, PPOConfig):
            count += memory.parameter_count(shape, critic=True)
        return count * self.numbers.weight

    def checkpoint_bytes(self, shape: Shape, objective: AlgorithmConfig) -> int:
        """What a run holds on disk while it trains."""
        trained = sum(n for n, is_ in memory.networks(shape, objective).values() if is_)
        n = self.numbers
        state = trained * (n.weight + memory.MOMENTS * n.moment + n.master)
        if getattr(objective, "refresh_every", None):  # the reference is part of the state
            state += memory.parameter_count(shape) * n.weight
        parts = memory.memory_parts(shape, objective, self._workload(1), n)
        return CHECKPOINTS * (state + sum(p.bytes for p in parts if p.part == "replay"))

    def disk(self) -> tuple[int, int]:
        """Bytes that a finished study keeps, and that its largest cell holds while training."""
        kept, running = 0, 0
        for size, shape in self.left.items():
            names = [cell.algorithm for cell in self.cells if cell.size == size]
            objectives = [self.study.algorithms[name] for name in names]
            models = 1 + len(self.study.train.snapshots)  # of a run
            runs = sum(self.kept_bytes(shape, objective) for objective in objectives)
            kept += self.kept_bytes(shape) + models * runs
            critic = memory.parameter_count(shape, critic=True) * self.numbers.weight
            kept += critic * len(self.critics(size))
            running = max([running, *(self.checkpoint_bytes(shape, o) for o in objectives)])
        return kept, running

    # --- warnings ---------------------------------------------------------------------------------

    def warnings(self) -> list[str]:
        """What will fail or probably will, naming what to change."""
        return [
            *self._unknown_shapes(),
            *self._misfits(),
            *self._cost_misfits(),
            *self._engine_too_small(),
            *self._too_short(),
            *unusual_betas(self.study, self.lengths.response, self.surprisal),
        ]

    def _unknown_shapes(self) -> Iterable[str]:
        for size, shape in self.shapes.items():
            if shape is None:
                yield (
                    f"sizes.{size}.path: the shape of '{self.study.sizes[size].path}' is unknown, "
                    "so the plan leaves it out; a local folder with a config.json would be read"
                )

    def _misfits(self) -> Iterable[str]:
        for size, shape in self.shapes.items():
            if shape is None:
                continue
            asked, limit = self.study.sizes[size].memory_mb / 2**10, self.device.memory_gib
            needs = {
                name: self.memory_gib(shape, self.study.algorithms[name])
                for name in self.study.algorithms_at(size)
            }
            over = {k: v for k, v in needs.items() if v > (limit or asked)}
            if not over:
                continue
            cells = f"{size}: cells of {', '.join(over)}"
            worst = max(over.values())
            if limit is None:
                yield f"{cells} need {worst:.1f} GiB, sizes.{size}.memory_mb gives {asked:.1f}"
            else:
                yield (
                    f"{cells} cannot fit: up to {worst:.0f} GiB of {limit:.0f} on "
                    f"{self.device.name}; use a smaller train.micro_batch or "
                    "plan.decoded_together, more sharded processes, or a larger device"
                )

    def _cost_misfits(self) -> Iterable[str]:
        """The cost rule measures on one node, though training may use several."""
        if self.device.memory_gib is None or self.study.runtime.nodes == 1:
            return
        for size, shape in self.shapes.items():
            objectives = [self.study.algorithms[a] for a in self.study.algorithms_at(size)]
            here = job_request(self.study, "cost", size).processes
            worst = max(self.memory_gib(shape, o, here) for o in objectives) if shape else 0
            if worst > self.device.memory_gib:
                yield (
                    f"{size}: cost is measured on one node, whose {here} processes cannot hold it: "
                    f"{worst:.0f} GiB of {self.device.memory_gib:.0f} on {self.device.name}"
                )

    def _engine_too_small(self) -> Iterable[str]:
        for size, shape in self.shapes.items():
            weights = memory.parameter_count(shape) * self.numbers.weight if shape else 0
            if self._engine and weights > self._engine_bytes:
                field = f"runtime.vllm_memory: {self.study.runtime.vllm_memory:g}"
                need = f"{weights / GIB:.0f} GiB of weights"
                yield f"{size}: {field} of {self.device.name} does not hold {need}"

    def _too_short(self) -> Iterable[str]:
        """Jobs that will be cut off, by the slowest algorithm of each size."""
        longest: dict[tuple[Stage, str], float] = {}
        for job in self.jobs():
            key = (job.rule, job.size)
            longest[key] = max(longest.get(key, 0.0), job.hours * 60)
        for (stage, size), minutes in longest.items():
            given = job_request(self.study, stage, size).minutes
            if minutes > given:
                yield (
                    f"{size}: {stage} takes up to {minutes:,.0f} minutes, cluster.minutes allows "
                    f"{given:,}; allow more, or retries, each of which resumes from a checkpoint"
                )
