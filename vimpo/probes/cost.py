"""Cost probe: what a training step takes, measured side by side.

Every measurement runs in a fresh process, so its peak memory is its own; algorithms take turns
(A B C A B C), so a noisy machine affects all alike. Peaks are given in full and above the floor,
which is what the process held after its imports and before it loaded a model.

If training uses several processes, so does a measurement: torchrun starts as many as training has
on one node, with the same sharding. Memory is then that of the process with the highest peak,
seconds are those of the first process, and parameters and moments are summed over all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vimpo.config import Cell, CellConfig, ConfigError, Study, load_study
from vimpo.models import memory
from vimpo.storage.files import write_rows
from vimpo.storage.integrity import beside, check_model, sealing
from vimpo.storage.surprisal import betas_at, needs_surprisal, resolved
from vimpo.training.launch import is_first_process, launch_command, launch_environment
from vimpo.training.telemetry import peak_bytes

MEASURED, MODEL = KINDS = ("measured", "model")
COLUMNS = ["kind", "algorithm", "size", "round", "metric", "unit", "value"]
MODULE = "vimpo.probes.cost"
WARM_UP = 1  # first steps, not counted: they fill allocators and caches
STEPS = 5  # counted steps of each process


def on_one_node(study: Study) -> Study:
    """The study with only the processes that training has on one of its nodes."""
    runtime = study.runtime
    alone = {"processes": runtime.processes // runtime.nodes, "nodes": 1}
    return study.model_copy(update={"runtime": runtime.model_copy(update=alone)})


def measure_cost(study: Study, algorithm: str, size: str, steps: int) -> dict:
    """Train `steps` steps from the base policy of `size` and report what they took.

    Meant for a fresh process, or each of several, because peak memory is per process. Returns
    algorithm, size, steps, seconds (phase -> median per step, `total` included), bytes (`peak`,
    `floor`, `above_floor`, `optimizer`) and parameters (`policy`, `resident`, `trainable`).

    Raises ConfigError if the base policy is missing, ValueError for no steps.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps} measures nothing; allowed: >= 1")
    # Imported here because the waiting parent process needs no torch.
    import torch

    from vimpo.models.distributed import join
    from vimpo.models.networks import parameter_count, set_up_torch
    from vimpo.models.optimizer import optimizer_bytes
    from vimpo.training.trainer import Trainer

    config, base = _checked(study, algorithm, size)
    config = resolved(study, config)
    world = join(config.runtime)
    set_up_torch(config.runtime)
    floor = resident_bytes(world.device)
    trainer = Trainer(config, base, world)
    seconds = [_timed_step(trainer, step) for step in range(WARM_UP + steps)][WARM_UP:]
    held = torch.tensor([[peak_bytes(world.device), floor]], dtype=torch.float64)
    peak, floor = map(int, max(world.gather(held).tolist()))
    moments = optimizer_bytes(trainer.optimizers.values())
    world.leave()
    return {
        "algorithm": algorithm,
        "size": size,
        "steps": steps,
        "seconds": {
            phase: statistics.median(row[phase] for row in seconds) for phase in seconds[0]
        },
        "bytes": {
            "peak": peak,
            "floor": floor,
            "above_floor": peak - floor,
            "optimizer": moments,
        },
        "parameters": {
            "policy": parameter_count(trainer.policy),
            "resident": sum(parameter_count(m) for m in trainer.networks()),
            "trainable": sum(parameter_count(m, True) for m in trainer.modules.values()),
        },
    }


def _checked(study: Study, algorithm: str, size: str) -> tuple[CellConfig, Path]:
    """The cell to measure, with clean rewards, and the base policy that it starts from."""
    # What is looked at while a policy trains is no part of a step.
    train = study.train.model_copy(update={"validation": None, "snapshots": []})
    steps_alone = study.model_copy(update={"train": train})
    config = steps_alone.cell_config(Cell(algorithm, size, "0", study.probes.seed))
    base = study.base_folder(size) / "model"
    if not base.is_dir():
        raise ConfigError(f"base: '{base}' is missing; allowed: a pretrained size")
    return config, base


def _timed_step(trainer, step: int) -> dict[str, float]:
    """Seconds of one step by phase, and their total."""
    before = dict(trainer.clock.seconds)
    trainer.step(step)
    spent = {p: trainer.clock.seconds.get(p, 0.0) - before.get(p, 0.0) for p in trainer.phases}
    return spent | {"total": sum(spent.values())}


def resident_bytes(device: str) -> int:
    """Memory held now: on the device if there is one, else this process's resident set."""
    if device != "cpu":
        import torch

        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def compare_costs(
    study: Study,
    size: str,
    algorithms: Sequence[str],
    output: Path,
    *,
    steps: int = STEPS,
    rounds: int | None = None,
) -> list[dict]:
    """Measure each algorithm in turn and write `output` (CSV); returns its rows.

    rounds: default `probes.cost_rounds`. A measurement is the median of `steps` steps.

    Columns `kind, algorithm, size, round, metric, unit, value`. kind `measured`: `step_<phase>` (s,
    median over the steps of a process), `memory_peak`, `memory_floor`, `memory_above_floor`,
    `optimizer` (bytes), `parameters`, `parameters_resident`, `parameters_trainable`. kind `model`
    (round 0; vimpo/models/memory.py): `memory_<network>_<part>`, `memory_above_floor` and
    `memory_ratio_to_ppo`; not for models with a `path`.

    Raises ConfigError for an unknown algorithm, a missing base policy and too few GPUs before
    anything runs, and RuntimeError with the last lines of a measurement that failed.
    """
    study = on_one_node(study)
    for algorithm in algorithms:
        _checked(study, algorithm, size)
    check_model(study.base_folder(size))
    if needs_surprisal(*betas_at(study, size).values()):
        from vimpo.training.surprisal import measured_surprisal

        measured_surprisal(study, size)
    if study.runtime.processes > 1:
        from vimpo.models.distributed import check_devices

        check_devices(study.runtime)
    rows = []
    for turn in range(1, (rounds or study.probes.cost_rounds) + 1):
        for algorithm in algorithms:
            rows += _measured_rows(_in_fresh_process(study, algorithm, size, steps), turn)
    if not study.sizes[size].path:
        rows += _model_rows(study, size, algorithms)
    with sealing(beside(output), [output.name]):
        write_rows(output, list(rows), COLUMNS)
    return rows


def _in_fresh_process(study: Study, algorithm: str, size: str, steps: int) -> dict:
    content = {"study": study.model_dump(mode="json"), "algorithm": algorithm, "size": size}
    order = json.dumps(content | {"steps": steps})
    if study.runtime.processes == 1:
        command = [sys.executable, "-m", MODULE]
        done = subprocess.run(command, input=order, capture_output=True, encoding="utf-8")
    else:
        # stdin cannot serve several
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
            file.write(order)
            file.flush()
            command = launch_command(study.runtime, [file.name], module=MODULE)
            environment = launch_environment(study.runtime)
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        words = last_words(done.stderr)
        raise RuntimeError(f"cost of {algorithm} at {size} could not be measured:\n{words}")
    return json.loads(done.stdout.splitlines()[-1])


def last_words(stderr: str) -> str:
    """The last lines of a failed process, without what torchrun adds."""
    lines = stderr.strip().splitlines()
    own = [i for i, line in enumerate(lines) if "torch/distributed/elastic" in line]
    return "\n".join(lines[: own[0] if own and own[0] else None][-5:])


def _measured_rows(found: dict, turn: int) -> list[dict]:
    values = [(f"step_{phase}", "s", value) for phase, value in found["seconds"].items()]
    for name, value in found["bytes"].items():
        values.append((name if name == "optimizer" else f"memory_{name}", "bytes", value))
    for name, value in found["parameters"].items():
        values.append(("parameters" if name == "policy" else f"parameters_{name}", "1", value))
    key = {"kind": MEASURED, "algorithm": found["algorithm"], "size": found["size"]}
    return [key | {"round": turn, "metric": m, "unit": u, "value": v} for m, u, v in values]


def _model_rows(study: Study, size: str, algorithms: Sequence[str]) -> list[dict]:
    """The analytic model's figures, under the names of the measured ones."""
    rows = []
    plan = memory.memory_rows(
        [memory.shape_of(size, study.sizes[size])],
        {name: study.algorithms[name] for name in algorithms},
        memory.study_workload(study),
        memory.study_numbers(study),
        "model",
    )
    for part in plan:
        key = {"kind": MODEL, "algorithm": part["algorithm"], "size": size, "round": 0}
        name = f"memory_{part['network']}_{part['part']}"
        if part["network"] == "all":
            name = "memory_above_floor"
        rows.append(key | {"metric": name, "unit": "bytes", "value": part["bytes"]})
        if part["network"] == "all":
            ratio = {"metric": "memory_ratio_to_ppo", "unit": "1", "value": part["ratio_to_ppo"]}
            rows.append(key | ratio)
    return rows


def main() -> None:
    """One measurement in this process, or its part of one; order and result are JSON.

    The order comes on stdin, or for several processes from the file named by the first argument;
    the result goes to stdout, once.
    """
    text = Path(sys.argv[1]).read_text(encoding="utf-8") if sys.argv[1:] else sys.stdin.read()
    order = json.loads(text)
    found = measure_cost(load_study(order.pop("study")), **order)
    if is_first_process():
        print(json.dumps(found))


if __name__ == "__main__":
    main()
