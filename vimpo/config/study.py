"""A whole study: its sections, how they must fit together, its cells, folders and digests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vimpo.config.algorithms import (
    ALGORITHMS,
    AlgorithmConfig,
    Beta,
    CorrectedGRPOConfig,
    OwnConfig,
    PPOConfig,
    VimpoConfig,
)
from vimpo.config.asked import Benchmark
from vimpo.config.decoders import GREEDY, SAMPLED, Decoder
from vimpo.config.grid import (
    Cell,
    CellConfig,
    GridBlock,
    cell_digest,
    result_fields,
    training_fields,
)
from vimpo.config.hypotheses import Hypothesis, check_hypotheses, check_probed
from vimpo.config.jobs import Cluster
from vimpo.config.judging import Claims, Evaluation, Probes, Statistics
from vimpo.config.models import LADDER, NO_RECIPE, NO_RESULT, ModelSpec, Pretrain
from vimpo.config.noise import Noise
from vimpo.config.planning import Planning
from vimpo.config.task import (
    ChainTask,
    DatasetTask,
    GymTask,
    TaskConfig,
    TextTask,
    check_splitting,
    check_step_grades,
)
from vimpo.config.training import Runtime, Train, check_together
from vimpo.config.types import LONGEST_NAME, Name, Strict, digest, explain, require
from vimpo.config.watching import snapshot_folder
from vimpo.errors import ConfigError

# What tables call the base policies, the mean over sizes and the mean over benchmarks.
RESERVED = {"algorithms": "base", "sizes": "all", "task.benchmarks": "mean"}
# Fields that decide no result: where results lie, and what is taken over instead of run.
PLACES = {"results", "continues"}


class Study(Strict):
    """A whole study: what is trained, on which task, and how it is judged."""

    study: Name = Field("quick", description="name of the folder in `results`")
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
    hypotheses: list[Hypothesis] = Field(
        [],
        # Left out where there are none, so that studies without them resolve as before.
        exclude_if=lambda value: not value,
        description="questions of this study's own, tested beside the claims C1 to C6",
    )
    runtime: Runtime = Runtime()
    cluster: Cluster = Cluster()
    plan: Planning = Planning()
    sweeps: list[Annotated[str, Field(pattern=r"\.csv$")]] = Field(
        [], description="tables of `sweep` for the report: how settings were chosen, and maps"
    )
    registered: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="start only if the study's file is committed in git and unchanged",
    )
    continues: str | None = Field(
        None,
        min_length=1,
        description="folder of a published study whose finished cells are reused",
    )

    @model_validator(mode="before")
    @classmethod
    def _merge_named_defaults(cls, data: Any) -> Any:
        """A known size or algorithm keeps the defaults of fields that the file leaves out."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for field, known in (("sizes", LADDER), ("algorithms", ALGORITHMS)):
            given = data.get(field) or {}
            if not isinstance(given, dict):
                continue
            merged: dict[str, Any] = {k: v.model_dump() for k, v in known.items()}
            for name, value in given.items():
                value = value.model_dump() if isinstance(value, BaseModel) else value
                default = merged.get(name)
                if default and isinstance(value, dict):
                    kind = default.get("objective")
                    value = default | value if value.get("objective") in (None, kind) else value
                merged[name] = value
            data[field] = merged
        if isinstance(data.get("grid"), dict):
            data["grid"] = [data["grid"]]
        return data

    @model_validator(mode="after")
    def _grid_is_known(self) -> Study:
        named = (self.algorithms, self.sizes, self.task.benchmarks)
        for (field, name), names in zip(RESERVED.items(), named, strict=True):
            if name in names:
                raise ValueError(
                    f"{field}: '{name}' has a meaning of its own in tables; allowed: another name"
                )
        for i, block in enumerate(self.grid):
            for field, known in (("algorithms", self.algorithms), ("sizes", self.sizes)):
                for name in getattr(block, field):
                    if name not in known:
                        raise ValueError(
                            f"grid[{i}].{field}: '{name}' is unknown; allowed: {', '.join(known)}"
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
                    scale = self.algorithms[name].lr_scale
                    if isinstance(scale, dict) and size not in scale:
                        raise ValueError(
                            f"algorithms.{name}.lr_scale: leaves out size '{size}' of the grid; "
                            "allowed: a number, or one for every size of its cells"
                        )
                    check_together(name, *models, self.train, self.runtime)
        if self.hypotheses:
            check_hypotheses(
                self.hypotheses,
                self.cells(),
                self.task.benchmarks,
                self.decoders(),
                self.train,
            )
            check_probed(self.hypotheses, self.probes)
        self._algorithms_can_run()
        self._samples_suffice()
        if self.probes.pairs and self.task.kind != "chain":
            raise ConfigError(
                f"probes.pairs: {self.probes.pairs} needs a task that knows the right digit, which "
                f"task.kind = '{self.task.kind}' does not; allowed: 0, or kind: chain"
            )
        if self.train.micro_batch and self.train.micro_batch > self.rollouts_per_step:
            raise ValueError(
                f"train.micro_batch: {self.train.micro_batch} is more than the "
                f"{self.rollouts_per_step} rollouts of a step; allowed: 1 to that"
            )
        return self

    def _algorithms_can_run(self) -> None:
        """Steps need a task that has them; a correction needs rewards that say something.

        Raises ConfigError.
        """
        for block in self.grid:
            for name in block.algorithms:
                objective = self.algorithms[name]
                if objective.needs_steps:
                    check_step_grades(f"algorithms.{name}", self.task)
                if states := objective.continued:
                    check_splitting(f"algorithms.{name}", states.interval, self.task)
                if isinstance(objective, CorrectedGRPOConfig):
                    for noise in block.noise:
                        objective.rates(noise)

    def _samples_suffice(self) -> None:
        """pass@k needs k responses to a problem of every benchmark, or means would be of few."""
        for i, k in enumerate(self.evaluation.pass_at):
            for name, benchmark in self.task.benchmarks.items():
                if k <= (most := self.samples_of(name)):
                    continue
                real = not isinstance(benchmark, Benchmark) and benchmark.k
                field = f"task.benchmarks.{name}.samples" if real else "evaluation.samples"
                raise ValueError(
                    f"evaluation.pass_at[{i}]: {k} is more than the {most} samples of {name}; "
                    f"allowed: 1 to {most}, or {field}: {k}"
                )

    def _task_suits_the_sizes(self) -> None:
        """Real text needs a model with its own tokenizer; pretraining needs demonstrations."""
        pretrained = [size for size in self.used_sizes() if self.sizes[size].pretrain_steps]
        real = [n for n, b in self.task.benchmarks.items() if not isinstance(b, Benchmark)]
        scratch = [size for size in self.used_sizes() if self.sizes[size].path is None]
        if scratch and (real or isinstance(self.task, TextTask)):
            raise ValueError(
                f"sizes.{scratch[0]}.path: a model made from scratch reads only chains, and the "
                f"task has {real[0] if real else 'texts'}; allowed: a hub name or local folder"
            )
        if isinstance(self.task, DatasetTask):
            if pretrained and any(source.solution is None for source in self.task.datasets):
                raise ValueError(
                    f"sizes.{pretrained[0]}.pretrain_steps: needs worked solutions; allowed: 0, or "
                    "a column name in task.datasets[].solution"
                )
            return
        if isinstance(self.task, GymTask):
            if pretrained:
                raise ValueError(
                    f"sizes.{pretrained[0]}.pretrain_steps: needs worked solutions, which "
                    "task.kind = 'reasoning_gym' does not have; allowed: 0"
                )
            return
        self._check_supply(
            self.task, "train.prompts_per_step", self.train.prompts_per_step, "train_operators"
        )
        self._check_validation(self.task)
        if pretrained:
            self._check_supply(
                self.task, "pretrain.batch_size", self.pretrain.batch_size, "pretrain_operators"
            )

    def _check_validation(self, task: ChainTask) -> None:
        """As for benchmarks: of the fifth that is held out, half may be used."""
        space = sum(task.problem_space(n) for n in set(task.train_operators))
        validation = self.train.validation
        if validation and validation.problems > space // 10:
            raise ValueError(
                f"train.validation.problems: {validation.problems} is more than this task holds "
                f"out at task.train_operators = {task.train_operators}; allowed: 1 to "
                f"{space // 10} (more operands or operators give more)"
            )

    @staticmethod
    def _check_supply(task: ChainTask, field: str, count: int, lengths: str) -> None:
        """A step's problems are distinct: four in five of the space, of which half may be drawn."""
        operators = getattr(task, lengths)
        space = sum(task.problem_space(n) for n in set(operators))
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
        """All cells in grid order, without repeats."""
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
        """Resolve one cell. Raises ConfigError for an unknown algorithm, size or noise level."""
        require(cell.algorithm, self.algorithms, "algorithm")
        require(cell.size, self.sizes, "size")
        objective = self.algorithms[cell.algorithm]
        if isinstance(objective.lr_scale, dict):
            require(cell.size, objective.lr_scale, f"algorithms.{cell.algorithm}.lr_scale")
            objective = objective.model_copy(update={"lr_scale": objective.scale_at(cell.size)})
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
            raise ConfigError(explain(error, CellConfig)) from None

    def base_folder(self, size: str) -> Path:
        return self.folder / "base" / size

    def critic_folder(self, cell: Cell) -> Path | None:
        """The pretrained critic that a cell starts with; seeds share it. None: it has none."""
        value = self.critic_digest(cell)
        return self.base_folder(cell.size) / f"critic-{value}" if value else None

    def cost_file(self, size: str) -> Path:
        """The side-by-side measurement of the cost of a step at a size."""
        return self.folder / "cost" / f"{size}.csv"

    def samples_of(self, benchmark: str, decoder: str = SAMPLED) -> int:
        """k of avg@k: real benchmarks set their own, chains share one; greedy answers once."""
        if self.decoding(decoder).is_greedy:
            return 1
        spec = self.task.benchmarks[benchmark]
        own = None if isinstance(spec, Benchmark) else spec.k
        return own or self.evaluation.samples

    def decoders(self) -> list[str]:
        """How benchmarks are answered: metrics of the table of accuracy."""
        usual = [SAMPLED, GREEDY] if self.evaluation.greedy else [SAMPLED]
        return [*usual, *self.evaluation.decoders]

    def decoding(self, decoder: str) -> Decoder:
        """What a name of :meth:`decoders` stands for, with its temperature filled in."""
        evaluation = self.evaluation
        if decoder == SAMPLED:
            return Decoder(temperature=evaluation.temperature, top_p=evaluation.top_p)
        if decoder == GREEDY:
            return Decoder(temperature=0.0)
        found = evaluation.decoders[decoder]
        return found.model_copy(update={"temperature": found.at(self.train.temperature)})

    def score_names(self) -> list[str]:
        """Metrics of the table of accuracy: avg@k of every decoder, and its pass@k."""
        return [
            name
            for decoder in self.decoders()
            for name in (decoder, *(f"{decoder}_pass@{k}" for k in self.passes_of(decoder)))
        ]

    def passes_of(self, decoder: str) -> list[int]:
        """k of pass@k under a decoder; a single answer has none."""
        return [] if self.decoding(decoder).is_greedy else self.evaluation.pass_at

    def algorithms_at(self, size: str) -> list[str]:
        """The grid's algorithms at a size, in grid order."""
        return list(dict.fromkeys(c.algorithm for c in self.cells() if c.size == size))

    def own_algorithms(self) -> dict[str, OwnConfig]:
        """The grid's user-supplied algorithms."""
        used = {name: self.algorithms[name] for block in self.grid for name in block.algorithms}
        return {name: found for name, found in used.items() if isinstance(found, OwnConfig)}

    def run_folder(self, cell: Cell, step: int | None = None) -> Path:
        """Of a run, or of its snapshot at a step."""
        folder = self.folder / "runs" / cell.name
        return folder if step is None else snapshot_folder(folder, step)

    # Digests determine what is rerun: each covers exactly what its result depends on.

    def base_digest(self, size: str) -> str:
        spec = self.sizes[size].model_dump(exclude={"learning_rate", "lora"} | NO_RESULT)
        task, runtime = training_fields(self.task), result_fields(self.runtime)
        return digest([spec, task, self.pretrain.model_dump(exclude=NO_RECIPE), runtime])

    def critic_digest(self, cell: Cell) -> str | None:
        """Of a cell's pretrained critic, which reads the cell's noisy rewards; None without one."""
        objective, noise = self.algorithms[cell.algorithm], Noise.parse(cell.noise)
        if not isinstance(objective, PPOConfig) or not objective.critic_pretrain:
            return None
        names = {"max_response", "temperature", "micro_batch", "truncated"}
        sampled = self.train.model_dump(include=names)
        return digest([self.base_digest(cell.size), objective.critic_pretrain, noise, sampled])

    def cell_digest(self, cell: Cell) -> str:
        return cell_digest(self.cell_config(cell))

    def evaluation_digest(self) -> str:
        parts: list[Any] = [self.evaluation, self.task, result_fields(self.runtime)]
        asks = any(d.temperature is None for d in self.evaluation.decoders.values())
        parts += [self.train.temperature] * asks + ["truncated: wrong"] * self.refuses_truncated
        return digest(parts)

    @property
    def refuses_truncated(self) -> bool:
        """Is a response that reaches its limit wrong in evaluation, whatever it holds?"""
        as_training = self.evaluation.truncated == "as_training"
        return as_training and self.train.truncated == "wrong"

    def probe_digest(self, cell: Cell) -> str:
        """Includes the beta at which values are read out of the policy."""
        probes = self.probes.model_dump(mode="json", exclude={"cost_rounds"})
        return digest([probes, self.cell_digest(cell), self.readout_beta(cell.algorithm)])

    def cost_digest(self, size: str) -> str:
        objectives = [self.algorithms[name] for name in self.algorithms_at(size)]
        size_fields = self.sizes[size].model_dump(exclude=NO_RESULT)
        # No step is judged there, and nothing is looked at.
        train = self.train.model_dump(mode="json", exclude={"collapse", "validation", "snapshots"})
        # The default is left out, so that digests older than this field stay valid.
        usual = self.probes.cost_rounds == Probes().cost_rounds
        unread = {"common", "pairs", "baselines"} | ({"cost_rounds"} if usual else set())
        probes = self.probes.model_dump(mode="json", exclude=unread)
        shared = [size_fields, self.task, train, self.runtime, probes]
        return digest([objectives, *shared])

    def readout_beta(self, algorithm: str) -> Beta:
        """beta of the implied value: VIMPO's own, and `vimpo`'s for the other algorithms.

        If it is a capacity, vimpo/storage/surprisal.py has its number.
        """
        for name in (algorithm, "vimpo"):
            objective = self.algorithms[name]
            if isinstance(objective, VimpoConfig):
                return objective.beta
        return VimpoConfig().beta
