"""Runs a learner to its end inside a folder: resume, checkpoints, outputs, manifest.

Pretraining and every algorithm share this code. A run's folder holds config.yaml, metrics.csv,
timing.csv, manifest.json and model/; SHA256SUMS is written last, so a folder that has it is
complete. The tables grow by a row a step. A run killed before its end resumes from its last
checkpoint, without the rows beyond it, and ends with the same metrics and weights; on SIGTERM and
Ctrl-C it saves a checkpoint first.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from tqdm import tqdm

from vimpo.config import (
    Cell,
    CellConfig,
    ConfigError,
    CriticPretraining,
    ModelSpec,
    Noise,
    PPOConfig,
    Pretrain,
    Runtime,
    Strict,
    Study,
    TaskConfig,
    dump_yaml,
)
from vimpo.config.watching import snapshot_folder
from vimpo.errors import StoppedError
from vimpo.models.distributed import Alone, check_devices, join
from vimpo.models.gguf import origin
from vimpo.models.networks import parameter_count, set_up_torch
from vimpo.models.optimizer import AdamW, optimizer_bytes
from vimpo.storage import files
from vimpo.storage.integrity import SUMS, check, check_model, make_again, only_writer, sealing
from vimpo.storage.registration import Registration, registered_note
from vimpo.storage.shipped import take_shipped
from vimpo.storage.surprisal import capacity_note, needs_surprisal, resolved
from vimpo.tasks import Task
from vimpo.training import telemetry
from vimpo.training.checkpoint import load_checkpoint, save_checkpoint
from vimpo.training.outcomes import Outcome
from vimpo.training.snapshots import drop_snapshots, save_snapshot
from vimpo.training.stopping import StopRequest

OUTPUTS = ("config.yaml", "metrics.csv", "timing.csv", "model", "manifest.json")
VALIDATION = "validation.csv"  # if the study asks for it


class Learner(Protocol):
    """Anything with networks, optimisers and a step."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, AdamW]
    clock: telemetry.Stopwatch
    phases: tuple[str, ...]
    policy: Any  # a PreTrainedModel

    def step(self, step: int) -> dict[str, float]:
        """Do step number `step`; returns its row of metrics.csv."""

    def save(self, folder: Path) -> None:
        """Write the model."""

    def provenance(self) -> dict:
        """What the manifest records about the training data; empty for generated problems."""

    def networks(self) -> list[nn.Module]:
        """All networks held in memory."""

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides networks and optimisers."""

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Take back what :meth:`kept` returned."""

    def outcome(self, rows: list[dict[str, float]]) -> Outcome | None:
        """How the run ended or failed in the last of its rows; None if it goes on."""

    def validate(self, updates: int) -> list[dict]:
        """Rows of validation.csv after so many updates; none where none is due."""


@dataclass(frozen=True)
class Job:
    """A run: where, what, how long, and in which processes."""

    folder: Path
    config: BaseConfig | CellConfig
    digest: str
    steps: int
    checkpoint_every: int
    title: str
    shown: str
    quiet: bool
    world: Alone = field(default_factory=Alone)
    notes: Callable[[], dict] = dict  # what else the manifest says, once the run has ended
    snapshots: tuple[int, ...] = ()

    @property
    def checkpoints(self) -> Path:
        # Named by the digest, so a run never resumes from another configuration's checkpoint.
        return self.folder / f"checkpoint-{self.digest}"


@dataclass
class Progress:
    """Rows of the steps done so far, and what the processes that did them used.

    A killed process counts up to its last checkpoint. phases_s: seconds outside the steps;
    validation: rows of validation.csv.
    """

    metrics: list[dict] = field(default_factory=list)
    timing: list[dict] = field(default_factory=list)
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0
    phases_s: dict[str, float] = field(default_factory=dict)
    validation: list[dict] = field(default_factory=list)

    def with_this_process(self, learner: Learner, startup: float, world: Alone) -> Progress:
        """The progress so far, with this process's share; every process of `world` must call it."""
        here = {"startup": startup} | learner.clock.seconds
        beside = {name: s for name, s in here.items() if name not in learner.phases}
        peak = world.largest(telemetry.peak_bytes(world.device) / 2**20)
        return Progress(
            self.metrics,
            self.timing,
            self.wall_s + telemetry.seconds_since_process_start(),
            max(self.peak_memory_mb, peak),
            {p: self.phases_s.get(p, 0.0) + beside.get(p, 0.0) for p in self.phases_s | beside},
            self.validation,
        )


class BaseConfig(Strict):
    """Everything that determines a base policy; written next to its metrics."""

    size: str
    model: ModelSpec
    task: TaskConfig
    pretrain: Pretrain
    runtime: Runtime


class CriticConfig(BaseConfig):
    """Everything that determines a pretrained critic."""

    critic_pretrain: CriticPretraining
    noise: Noise
    max_response: int
    temperature: float
    micro_batch: int | None
    truncated: str = "wrong"


def is_complete(folder: Path, digest: str) -> bool:
    """Did a run with this digest end here?

    Raises ConfigError if the folder holds a run of another configuration, DamagedError if its
    manifest is not what was written.
    """
    path, sums = folder / "manifest.json", folder / SUMS
    if not (path.is_file() and sums.is_file()):
        return False
    check("results", path, make_again(folder), sums)
    found = json.loads(path.read_text(encoding="utf-8"))["digest"]
    if found != digest:
        raise ConfigError(
            f"results: '{folder}' was made by another configuration (digest {found} there, "
            f"{digest} here; compare config.yaml); allowed: the same configuration, another "
            "`study` name, or a folder that you removed"
        )
    return True


def pretrain_base(
    study: Study, size: str, *, quiet: bool = False, task: Task | None = None
) -> Path:
    """Make the base policy of a size unless it is there; returns its folder.

    task: the size's dataset, if it was already read (planning/preflight.py). Raises StoppedError,
    after a checkpoint, if a signal asked to stop.
    """
    from vimpo.training.pretrain import Pretrainer

    folder, digest, spec = study.base_folder(size), study.base_digest(size), study.sizes[size]
    if is_complete(folder, digest) or take_shipped(study, size, folder):
        return folder
    set_up_torch(study.runtime)
    parts = {"task": study.task, "pretrain": study.pretrain, "runtime": study.runtime}
    config = BaseConfig(size=size, model=spec, **parts)
    job = Job(
        folder,
        config,
        digest,
        steps=spec.pretrain_steps,
        checkpoint_every=study.pretrain.checkpoint_every,
        title=f"base/{size}",
        shown="loss",
        quiet=quiet,
        notes=lambda: origin(spec.path),
    )
    with StopRequest() as stop:
        _run(lambda: Pretrainer(spec, study.task, study.pretrain, study.runtime, task), job, stop)
    return folder


def pretrain_critic(
    study: Study, cell: Cell, *, quiet: bool = False, task: Task | None = None
) -> Path | None:
    """Make the pretrained critic of a cell, and the base policy before it, unless they are there.

    Returns its folder; None for a cell without one. task: as in :func:`pretrain_base`. Raises
    StoppedError, after a checkpoint, if a signal asked to stop.
    """
    from vimpo.training.critic import CriticPretrainer

    folder, digest, config = (
        study.critic_folder(cell),
        study.critic_digest(cell),
        study.cell_config(cell),
    )
    if folder is None or digest is None:
        return None
    if is_complete(folder, digest) or take_shipped(study, cell.size, folder):
        return folder
    base = pretrain_base(study, cell.size, quiet=quiet, task=task)
    check_model(base)
    set_up_torch(config.runtime)
    assert isinstance(config.objective, PPOConfig)
    settings = config.objective.critic_pretrain
    assert settings is not None
    shared = {name: getattr(config, name) for name in BaseConfig.model_fields}
    names = {"max_response", "temperature", "micro_batch", "truncated"}
    sampled = config.train.model_dump(include=names)
    own = CriticConfig(**shared, **sampled, critic_pretrain=settings, noise=config.noise)
    job = Job(
        folder,
        own,
        digest,
        steps=-(-settings.updates // settings.check_every),
        checkpoint_every=1,
        title=f"critic/{cell.size}",
        shown="held_out_explained",
        quiet=quiet,
    )
    with StopRequest() as stop:
        _run(lambda: CriticPretrainer(config, settings, base / "model", task), job, stop)
    return folder


def require_critic(study: Study, cell: Cell) -> Path | None:
    """Folder of a cell's pretrained critic; None without one. Raises ConfigError if missing."""
    folder, digest = study.critic_folder(cell), study.critic_digest(cell)
    if folder is None or digest is None:
        return None
    if not is_complete(folder, digest):
        raise ConfigError(
            f"critic: '{folder}' is missing, and several processes cannot make it together; "
            "allowed: a folder made by `python -m vimpo critic --algorithm "
            f"{cell.algorithm} --size {cell.size} --noise {cell.noise}`"
        )
    return folder


def critic_cost(folder: Path | None) -> dict:
    """What the manifest of a run says of its pretrained critic, which its seeds share.

    seconds: of sampling, updates and saving; the start of the process is not counted.
    """
    if folder is None:
        return {}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    phases = {name: s for name, s in manifest["phases_s"].items() if name != "startup"}
    cost = {"digest": manifest["digest"], "seconds": round(sum(phases.values()), 3)}
    return {"critic_pretraining": cost}


def train_cell(
    study: Study,
    cell: Cell,
    *,
    quiet: bool = False,
    task: Task | None = None,
    registration: Registration | None = None,
) -> Path:
    """Train one cell unless it is done, from the base policy of its size; returns its folder.

    task: as in :func:`pretrain_base`; registration: of the study, for the manifest. Raises
    ConfigError for a folder of another configuration and DamagedError for a base policy that is not
    what was written, before anything is loaded; StoppedError, after a checkpoint, if a signal asked
    to stop.
    """
    from vimpo.training.trainer import Trainer

    config, digest, folder = (
        study.cell_config(cell),
        study.cell_digest(cell),
        study.run_folder(cell),
    )
    if is_complete(folder, digest):
        # Left by a kill after SHA256SUMS.
        shutil.rmtree(folder / f"checkpoint-{digest}", ignore_errors=True)
        return folder
    world = join(config.runtime)
    with StopRequest() as stop:
        if world.size == 1:
            base = pretrain_base(study, cell.size, quiet=quiet, task=task)
            _measure_if_needed(study, cell, task)
            critic = pretrain_critic(study, cell, quiet=quiet, task=task)
        else:
            base, critic = require_base(study, cell.size), require_critic(study, cell)
        if world.main:
            check_model(base)
            if critic is not None:
                check_model(critic)
        config = resolved(study, config)
        beta = getattr(config.objective, "beta", None)  # a number by now
        job = Job(
            folder,
            config,
            digest,
            steps=config.train.steps,
            checkpoint_every=config.train.checkpoint_every,
            title=cell.name,
            shown="accuracy",
            quiet=quiet or not world.main,
            world=world,
            snapshots=tuple(config.train.snapshots),
            notes=lambda: {
                **capacity_note(study, cell.size, beta),
                **registered_note(registration),
                **critic_cost(critic),
            },
        )
        set_up_torch(config.runtime)
        value = critic / "model" if critic else None
        _run(lambda: Trainer(config, base / "model", world, task, value), job, stop)
    world.leave()
    return folder


def prepare_cell(
    study: Study, cell: Cell, *, quiet: bool = False, task: Task | None = None
) -> bool:
    """What one process does before several train a cell: is there anything to train?

    Makes base policy and critic if they are missing and this is the only machine. Raises
    ConfigError for too few GPUs, and what :func:`train_cell` would.
    """
    check_devices(study.runtime)
    if is_complete(study.run_folder(cell), study.cell_digest(cell)):
        return False
    if study.runtime.nodes == 1:
        pretrain_base(study, cell.size, quiet=quiet, task=task)
        _measure_if_needed(study, cell, task)
        pretrain_critic(study, cell, quiet=quiet, task=task)
    else:
        require_base(study, cell.size)
        require_critic(study, cell)
    return True


def _measure_if_needed(study: Study, cell: Cell, task: Task | None) -> None:
    """The surprisal of the base policy, if the cell's beta is given by its capacity."""
    if needs_surprisal(getattr(study.algorithms[cell.algorithm], "beta", None)):
        from vimpo.training.surprisal import measured_surprisal

        measured_surprisal(study, cell.size, task=task)


def require_base(study: Study, size: str) -> Path:
    """Folder of an existing base policy. Raises ConfigError if it is missing."""
    folder = study.base_folder(size)
    if not is_complete(folder, study.base_digest(size)):
        raise ConfigError(
            f"base: '{folder}' is missing, and several processes cannot make it together; "
            f"allowed: a folder made by `python -m vimpo pretrain --size {size}`"
        )
    return folder


def _run(make_learner: Callable[[], Learner], job: Job, stop: StopRequest) -> None:
    """All steps of a learner, then its outputs; resumes from the newest intact checkpoint.

    Of several processes, all do the steps and the main one writes.
    """
    with only_writer(job.folder) if job.world.main else nullcontext():
        if job.world.main:
            files.remove_leftovers(job.folder)
            files.remove_leftovers(job.checkpoints)
        startup = telemetry.seconds_since_process_start()
        learner = make_learner()
        networks = (learner.modules, learner.optimizers)
        found = load_checkpoint(job.checkpoints, *networks, learner.restore)
        progress = Progress(**found[1]) if found else Progress()
        if job.world.main:
            drop_snapshots(job.folder, len(progress.metrics))
            (job.folder / SUMS).unlink(missing_ok=True)  # of a run that lost its manifest
        tables = _tables(job, progress) if job.world.main else {}
        outcome = _do_steps(learner, job, progress, startup, stop, tables)
        _finish(learner, job, progress, startup, outcome, tables)


def _tables(job: Job, progress: Progress) -> dict[str, files.GrowingTable]:
    """The tables of a run, by name; from here on its rows are readable while it goes on."""
    rows = {"metrics.csv": progress.metrics, "timing.csv": progress.timing}
    rows[VALIDATION] = progress.validation
    return {name: files.GrowingTable(job.folder / name, of) for name, of in rows.items()}


def _do_steps(
    learner: Learner,
    job: Job,
    progress: Progress,
    startup: float,
    stop: StopRequest,
    tables: dict[str, files.GrowingTable],
) -> Outcome:
    """The remaining steps, up to the first that fails, with a checkpoint at every interval.

    tables: those of the main process, which grow with every step.

    Raises StoppedError, after a checkpoint, if any of the processes was told to stop.
    """

    def save() -> None:
        with learner.clock("checkpoint"):
            state = vars(progress.with_this_process(learner, startup, job.world))
            networks = (learner.modules, learner.optimizers)
            where = (job.checkpoints, len(progress.metrics))
            save_checkpoint(*where, *networks, state, job.world, learner.kept())

    saved = len(progress.metrics)

    def look(updates: int) -> None:
        progress.validation += learner.validate(updates)
        if VALIDATION in tables:
            tables[VALIDATION].update()

    with _bar(job, saved) as bar:
        for step in range(saved, job.steps):
            # All must stop at the same step, though a signal reaches each at its own time.
            if number := int(job.world.largest(stop.signal)):
                if step > saved:
                    save()
                job.world.leave()
                raise StoppedError(number, job.title, step, job.steps)
            look(step)
            before = dict(learner.clock.seconds)
            progress.metrics.append(learner.step(step))
            spent = {p: learner.clock.seconds.get(p, 0) - before.get(p, 0) for p in learner.phases}
            row = {f"{phase}_s": round(seconds, 6) for phase, seconds in spent.items()}
            total = {"total_s": round(sum(spent.values()), 6)}
            progress.timing.append({"step": step} | row | total)
            for table in tables.values():
                table.update()
            bar.set_postfix({job.shown: f"{progress.metrics[-1][job.shown]:.3f}"}, refresh=False)
            bar.update()
            if end := learner.outcome(progress.metrics):
                print(f"{job.title}: {end.kind}: {end.reason}", file=sys.stderr)
                return end
            if step + 1 in job.snapshots:
                _save_snapshot(learner, job, step + 1)
            if (step + 1) % job.checkpoint_every == 0 and step + 1 < job.steps:
                save()
                saved = step + 1
    look(job.steps)
    return Outcome("finished", job.steps - 1)


def _save_snapshot(learner: Learner, job: Job, step: int, updates: int | None = None) -> None:
    with learner.clock("save"):
        folder = snapshot_folder(job.folder, step)
        save_snapshot(folder, learner.save, job.digest, step, job.world, updates)


def _bar(job: Job, done: int) -> tqdm:
    return tqdm(
        total=job.steps,
        initial=done,
        desc=job.title,
        unit="step",
        disable=job.quiet,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ascii=not sys.stderr.isatty(),
    )


def _finish(
    learner: Learner,
    job: Job,
    progress: Progress,
    startup: float,
    outcome: Outcome,
    tables: dict[str, files.GrowingTable],
) -> None:
    """Outputs and manifest, then their checksums, then no more checkpoints."""
    folder, world = job.folder, job.world
    aside = folder / ".model"
    for step in job.snapshots:
        # A run that failed before one keeps the policy that it had.
        _save_snapshot(learner, job, step, min(step, len(progress.metrics)))
    with learner.clock("save"), files.room_for(folder):
        if world.main:
            shutil.rmtree(aside, ignore_errors=True)
        learner.save(aside)
    progress = progress.with_this_process(learner, startup, world)
    if world.main:
        more = [VALIDATION] * bool(progress.validation)
        with sealing(folder / SUMS, [*OUTPUTS, *more]):
            _write_outputs(aside, job, tables)
            files.write_json(folder / "manifest.json", _manifest(learner, job, progress, outcome))
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    world.wait()


def _write_outputs(model: Path, job: Job, tables: dict[str, files.GrowingTable]) -> None:
    """The tables of a run, and its model, which was saved next to them."""
    files.write_atomic(job.folder / "config.yaml", dump_yaml(job.config))
    for name, table in tables.items():
        if table.rows or name != VALIDATION:
            table.finish(["step"])
    with files.room_for(job.folder):
        files.move_folder(model, job.folder / "model")


def _manifest(learner: Learner, job: Job, progress: Progress, outcome: Outcome) -> dict:
    """Provenance and cost of a finished run, over all processes that worked on it."""
    phases = {p: sum(row[f"{p}_s"] for row in progress.timing) for p in learner.phases}
    data = learner.provenance()
    return {
        "digest": job.digest,
        "status": "complete",
        "outcome": asdict(outcome),
        "parameters": parameter_count(learner.policy),
        "trainable_parameters": sum(parameter_count(m, True) for m in learner.modules.values()),
        "resident_parameters": sum(parameter_count(m) for m in learner.networks()),
        "optimizer_bytes": optimizer_bytes(learner.optimizers.values()),
        "processes": job.world.size,
        "peak_memory_mb": round(progress.peak_memory_mb, 1),
        "wall_s": round(progress.wall_s, 3),
        "phases_s": {k: round(v, 3) for k, v in (progress.phases_s | phases).items()},
        "versions": telemetry.versions(),
        "git_commit": telemetry.git_commit(),
        "hardware": telemetry.hardware(job.config.runtime.device),
        **({"data": data} if data else {}),
        **job.notes(),
    }
