"""The plan of a study as text: tables, assumptions and warnings."""

from __future__ import annotations

from collections.abc import Iterable

from vimpo.config import Study
from vimpo.models.memory import parameter_count
from vimpo.planning.capacity import capacity_lines
from vimpo.planning.inputs import benchmark_responses
from vimpo.planning.plan import ROUNDS, Job, Planner
from vimpo.text import BYTES, aligned, short

LOCAL = ("resolve", "aggregate", "draw", "report")  # rules that run where Snakemake does


def describe(study: Study) -> str:
    """Everything that `python -m vimpo plan` prints. Raises ConfigError for an unknown device."""
    planner = Planner(study)
    jobs = planner.jobs()
    parts = [
        _heading(planner),
        _memory(planner),
        _hours(planner, jobs),
        _disk(planner),
        "\n".join(capacity_lines(study, planner.surprisal)),
        _assumptions(planner),
        _warnings(planner),
    ]
    return "\n\n".join(parts)


def hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def duration(low: float, high: float) -> str:
    """A range of hours in the unit of its upper end: 0.4 min, 34 to 38 h."""
    unit, scale = ("h", 1) if high >= 1 else ("min", 60)
    ends = [hours(low * scale), hours(high * scale)]
    return f"{' to '.join(dict.fromkeys(ends))} {unit}"


def plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _unit(planner: Planner) -> str:
    return "core" if planner.study.runtime.device == "cpu" else "GPU"


def _heading(planner: Planner) -> str:
    study = planner.study
    cells = study.cells()
    kinds: dict[str, set[str] | set[int]] = {
        "algorithm": {c.algorithm for c in cells},
        "size": {c.size for c in cells},
        "noise level": {c.noise for c in cells},
        "seed": {c.seed for c in cells},
    }
    over = ", ".join(plural(len(values), name) for name, values in kinds.items())
    runtime = study.runtime
    each = "one process per training job"
    if runtime.processes > 1:
        each = f"{runtime.processes} processes per training job ({runtime.sharding}, "
        each += f"{plural(runtime.nodes, 'node')})"
    cells_over = f"{plural(len(cells), 'cell')} over {over}"
    heading = f"Study {study.study}: {cells_over}; {each}, on {planner.device.name}"
    if study.continues is None:
        return heading
    taken, left = (
        plural(len(cells) - len(planner.cells), "cell"),
        plural(len(planner.cells), "cell"),
    )
    return (
        f"{heading}\nReused from {study.continues}: {taken}; this plan counts the remaining {left}"
    )


def _memory(planner: Planner) -> str:
    """One row per size: parameters, and the peak of a training process for each algorithm."""
    study = planner.study
    algorithms = list(dict.fromkeys(c.algorithm for c in study.cells()))
    rows = [["size", "parameters", *algorithms]]
    for size, shape in planner.shapes.items():
        if shape is None:
            rows.append([size, "unknown", *["-"] * len(algorithms)])
            continue
        row = [size, short(parameter_count(shape))]
        for name in algorithms:
            there = name in study.algorithms_at(size)
            needed = planner.memory_gib(shape, study.algorithms[name]) if there else 0.0
            row.append(_gib(needed, planner.device.memory_gib) if there else "-")
        rows.append(row)
    limit = planner.device.memory_gib
    of = f" of {limit:.0f}; ! does not fit" if limit else ", on top of the libraries' own"
    table = "\n".join(aligned(rows, left=1))
    return f"Memory of a training process, GiB{of} (vimpo/models/memory.py)\n{table}"


def _gib(needed: float, limit: float | None) -> str:
    return f"{needed:.1f}{' !' if limit and needed > limit else ''}"


def _hours(planner: Planner, jobs: Iterable[Job]) -> str:
    """One row per rule and size, and sums."""
    unit = _unit(planner)
    rows = [["rule", "size", "jobs", f"{unit}s each", "time each", f"{unit}-hours"]]
    groups: dict[tuple[str, str], list[Job]] = {}
    order = {"pretrain": 0, "critic": 1, "cost": 2, "train": 3, "evaluate": 4, "probe": 5}
    for job in sorted(jobs, key=lambda j: order[j.rule]):
        groups.setdefault((job.rule, job.size), []).append(job)
    for (rule, size), members in groups.items():
        low, high = min(j.hours for j in members), max(j.hours for j in members)
        held = sorted({j.devices for j in members})
        rows.append(
            [
                rule,
                size,
                str(sum(j.count for j in members)),
                " or ".join(map(str, held)),
                duration(low, high),
                hours(sum(j.device_hours for j in members)),
            ]
        )
    members = [j for group in groups.values() for j in group]
    total = sum(j.device_hours for j in members)
    rows.append(["all", "", str(sum(j.count for j in members)), "", "", hours(total)])
    note = f"plus {len(LOCAL)} local jobs: {', '.join(LOCAL)}; {_submitted(planner)}"
    table = "\n".join(aligned(rows, left=1))
    return f"Jobs and {unit}-hours\n{table}\n{note}"


def _submitted(planner: Planner) -> str:
    """Jobs that a scheduler sees."""
    cells, sizes = len(planner.cells), len(planner.shapes) - len(planner.taken.sizes)
    one = planner.study.cluster.one_job_a_cell
    critics = sum(job.count for job in planner.jobs() if job.rule == "critic")
    submitted = 4 * sizes + critics  # pretrain, surprisal, cost, evaluate_base
    submitted += cells * (1 if one else 3)
    return f"a scheduler gets {plural(submitted, 'job')}, {'one' if one else 'three'} per cell"


def _disk(planner: Planner) -> str:
    kept, running = planner.disk()
    return (
        f"Disk: {short(kept, BYTES)} of models in the end, plus up to {short(running, BYTES)} of "
        "checkpoints per cell in training"
    )


def _assumptions(planner: Planner) -> str:
    study, device, lengths = planner.study, planner.device, planner.lengths
    plan = study.plan
    unit = _unit(planner)
    rollouts = study.rollouts_per_step
    engine = study.runtime.sampler == "vllm"
    together = "as many as vLLM's cache holds" if engine else "all on a device"
    lines = [
        f"{unit}: {device.flops / 1e12:,.4g} TFLOP/s in {study.runtime.dtype}, "
        f"{device.bandwidth / 1e9:,.0f} GB/s; {device.source}",
        f"utilisation {device.train_utilisation:g} in training and "
        f"{device.decode_utilisation:g} in decoding, "
        f"{device.layer_seconds * 1e3:g} ms per layer and decoding step"
        + (f" ({plan.engine_layer_seconds * 1e3:g} in vLLM)" if engine else ""),
        f"prompts of {lengths.prompt} tokens (longest {lengths.longest_prompt}), responses of "
        f"{lengths.response} (longest {lengths.longest_response})",
        f"a step: {plural(rollouts, 'rollout')}, {plural(study.train.epochs, 'update')}, "
        f"{plural(study.train.micro_batch or rollouts, 'rollout')} per backward pass, "
        f"activations {'recomputed' if study.runtime.gradient_checkpointing else 'kept'}; "
        f"{study.train.steps} steps",
        f"logits of {study.runtime.logit_chunk or 'all'} tokens held at once; sequences decoded "
        f"together: {plan.decoded_together or together}",
        *_rounds(study),
        f"evaluation: {plural(benchmark_responses(study), 'response')}, "
        f"{study.evaluation.batch_size} at a time",
        f"{plan.startup_seconds:g} s to start a process; several processes reach "
        f"{plan.parallel_efficiency:g} of linear speed-up",
        "not counted: queueing, retries, the noise of shared machines, tables and logs on disk",
    ]
    return "Assumptions (`plan` in the configuration, vimpo/planning/devices.csv)\n" + "\n".join(
        f"- {line}" for line in lines
    )


def _rounds(study: Study) -> list[str]:
    """What is assumed of algorithms that sample in rounds."""
    used = {cell.algorithm for cell in study.cells()}
    named = sorted(n for n in used if getattr(study.algorithms[n], "rounds", 1) > 1)
    return [f"{', '.join(named)}: {ROUNDS} rounds of sampling per step"] if named else []


def _warnings(planner: Planner) -> str:
    found = planner.warnings()
    return "\n".join(f"warning: {line}" for line in found) if found else "No warnings."
