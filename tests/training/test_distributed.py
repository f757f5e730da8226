"""Two processes do what one does: losses, gradients, clipping, rollouts, checkpoints, models.

One torchrun with two processes on CPU (gloo) trains the plain cases under DDP and under FSDP2
(distributed_worker.py), a second one all others, which is slow; the same cases are trained here, by
one process.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vimpo.cli import main
from vimpo.config import Cell, ConfigError, Runtime, load_study
from vimpo.models.distributed import Alone, Together, check_devices, join
from vimpo.training.checkpoint import load_checkpoint
from vimpo.training.launch import launch_command
from vimpo.training.runs import train_cell
from vimpo.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SHARDINGS = ("ddp", "fsdp2")
VIMPO = {"objective": "vimpo", "beta": 0.3, "actor_coef": 0.5, "lam": 0.9}
# name: algorithm, objective, train, runtime. A clip of 0.05 holds back every one of the gradients.
CASES = {
    "vimpo": ("vimpo", VIMPO, {}, {}),
    "ppo": ("ppo", {"objective": "ppo", "lam": 0.9}, {}, {}),
    "grpo": ("grpo", {"objective": "grpo"}, {}, {}),
    # 12 rollouts per process: 5 + 5 + 2.
    "vimpo_micro": ("vimpo", VIMPO, {"micro_batch": 5}, {}),
    "ppo_warmup": ("ppo", {"objective": "ppo", "critic_warmup": 1}, {"epochs": 2}, {}),
    "grpo_naive": ("grpo_naive", {"kl_coef": 0.5}, {"micro_batch": 5}, {}),
    "vimpo_refresh": ("vimpo", VIMPO | {"refresh_every": 1, "adaptive_coef": 0.5}, {}, {}),
    "vineppo": ("vineppo", {"objective": "vineppo", "k": 2}, {}, {}),
    "vimpo_lean": ("vimpo", VIMPO, {}, {"logit_chunk": 16, "gradient_checkpointing": True}),
}
PLAIN = ("vimpo", "ppo", "grpo")
WHOLE = ("vineppo",)  # samples too often for weights in parts, and is refused
STEPS = 3


def case_study(make_study, folder, name, **placement):
    algorithm, objective, train, runtime = CASES[name]
    train = {"steps": STEPS, "grad_clip": 0.05, "warmup_steps": 0, **train}
    study = make_study(
        folder, train=train, algorithms={algorithm: objective}, runtime=runtime | placement
    )
    return study, Cell(algorithm, "tiny", "rollout-0.25", 1)


def python(*arguments, **options):
    """Run Python on this repository's package; on failure, show its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def make_study(tiny_base, tmp_path_factory):
    """As tiny_study, for the whole module."""
    import shutil

    from tiny import TINY, merged

    root = tmp_path_factory.mktemp("distributed")

    def make(folder, **changes):
        study = load_study(merged(TINY, changes) | {"results": str(root / folder)})
        if not study.base_folder("tiny").exists():
            shutil.copytree(tiny_base, study.base_folder("tiny"))
        return study

    return make


@pytest.fixture(scope="module")
def two(make_study, shared):
    """Gives the folder of what two processes left of a case, in [sharding]/[case]/."""

    def run(output, names):
        cases = {}
        for sharding in SHARDINGS:
            cases[sharding] = {}
            for name in names:
                if sharding == "fsdp2" and name in WHOLE:
                    continue
                study, cell = case_study(make_study, "two", name, processes=2, sharding=sharding)
                (output / sharding / name).mkdir(parents=True)
                content = {"study": study.model_dump(mode="json"), "algorithm": cell.algorithm}
                cases[sharding][name] = content
        (output / "cases.json").write_text(json.dumps(cases))
        worker = ROOT / "tests/distributed_worker.py"
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        python(*torchrun, worker, output / "cases.json", output)

    def folder(sharding, name):
        if sharding == "fsdp2" and name in WHOLE:
            pytest.skip("refused")
        if name in PLAIN:
            return shared("two_plain", lambda output: run(output, PLAIN)) / sharding / name
        others = [case for case in CASES if case not in PLAIN]
        return shared("two_others", lambda output: run(output, others)) / sharding / name

    return folder


@pytest.fixture(scope="module")
def one(make_study):
    """Trains a case in this process: (trainer, rows, rollouts, batch), made once a case."""
    made = {}

    def train(name):
        if name not in made:
            # What saves memory on two processes is compared with the plain way on one.
            plain = {"logit_chunk": None, "gradient_checkpointing": False}
            study, cell = case_study(make_study, "one", name, **plain)
            trainer = Trainer(study.cell_config(cell), study.base_folder("tiny") / "model")
            found = trainer.collector.collect(0)
            rollouts, batch = found.rollouts, found.batch
            rows = [trainer.step(step) for step in range(STEPS)]
            made[name] = (trainer, rows, rollouts, batch)
        return made[name]

    return train


def result(two, sharding, name):
    folder = two(sharding, name)
    tensors = load_file(folder / "tensors.safetensors")
    return json.loads((folder / "result.json").read_text()), tensors


both = pytest.mark.parametrize("sharding", SHARDINGS)
every = pytest.mark.parametrize(
    "name",
    [name if name in PLAIN else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)


# --- The same training ---------------------------------------------------------------------------


@both
@every
def test_two_processes_have_the_losses_and_metrics_of_one(two, one, sharding, name):
    found, _ = result(two, sharding, name)
    _, rows, _, _ = one(name)
    assert found["tokens"][0] != found["tokens"][1]  # global means are not means of means
    assert sum(found["tokens"]) > 100
    for ours, theirs in zip(found["rows"], rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5, nan_ok=True)
        warming_up = name == "ppo_warmup" and theirs["step"] == 0
        assert warming_up or theirs["grad_norm"] > 0.055  # so it was clipped


@both
@every
def test_two_processes_end_with_the_weights_of_one(two, one, sharding, name):
    _, tensors = result(two, sharding, name)
    trainer, *_ = one(name)
    expected = dict(trainer.policy.named_parameters())
    if trainer.critic is not None:
        expected |= {f"critic.{k}": v for k, v in trainer.critic.named_parameters()}
    for key, parameter in expected.items():
        assert tensors[key].shape == parameter.shape
        # Adam divides by the gradient's size, so rounding of tiny gradients grows: rate 2e-3.
        assert float((tensors[key] - parameter.detach()).abs().max()) < 2e-5, key


@both
def test_rollouts_have_the_luck_that_they_have_on_one_process(two, one, sharding):
    _, tensors = result(two, sharding, "vimpo")
    _, _, rollouts, batch = one("vimpo")
    # Every process puts rows of like length side by side, so their order differs.
    for name, expected in (("mask", batch.mask), ("ids", rollouts.response_ids)):
        assert sorted(tensors[name].tolist()) == sorted(expected.tolist()), name


@both
def test_saved_models_load_by_transformers_and_have_the_trained_weights(two, sharding):
    for name in ("vimpo", "ppo"):
        _, tensors = result(two, sharding, name)
        folder = two(sharding, name) / "model"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert type(model).__name__ == "Qwen3ForCausalLM"
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, tensors[key]), key
    critic = load_file(two(sharding, "ppo") / "model/critic/critic.safetensors")
    for key, tensor in critic.items():
        assert torch.equal(tensor, tensors[f"critic.{key}"]), key


# --- Checkpoints ---------------------------------------------------------------------------------


@both
@every
def test_a_checkpoint_of_two_processes_goes_on_under_two(two, sharding, name):
    found, _ = result(two, sharding, name)
    assert found["resumed"] == pytest.approx(found["rows"][2], abs=1e-7, nan_ok=True)


@both
@pytest.mark.parametrize("name", PLAIN)
def test_a_checkpoint_of_two_processes_goes_on_under_one(two, one, make_study, sharding, name):
    study, cell = case_study(make_study, "one", name)
    trainer = Trainer(study.cell_config(cell), study.base_folder("tiny") / "model")
    folder = two(sharding, name) / "checkpoint"
    step, state = load_checkpoint(folder, trainer.modules, trainer.optimizers)
    assert step == len(state["rows"]) == 2
    _, rows, _, _ = one(name)
    assert trainer.step(2) == pytest.approx(rows[2], abs=1e-5, rel=1e-5, nan_ok=True)


def test_where_a_run_is_placed_is_no_part_of_its_digest(make_study):
    alone, cell = case_study(make_study, "one", "vimpo")
    spread, _ = case_study(make_study, "one", "vimpo", processes=6, nodes=2, sharding="fsdp2")
    assert alone.cell_digest(cell) == spread.cell_digest(cell)
    assert alone.base_digest("tiny") == spread.base_digest("tiny")
    lean, _ = case_study(make_study, "one", "vimpo", logit_chunk=8)
    assert alone.cell_digest(cell) != lean.cell_digest(cell)


# --- What is refused -----------------------------------------------------------------------------


@both
def test_processes_that_hold_different_weights_are_refused(two, sharding):
    message = (two(sharding, PLAIN[0]).parent / "different.txt").read_text()
    assert message.startswith("ddp: the processes hold different weights")


def test_a_process_that_was_started_alone_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"processes: 2 are configured.* alone; allowed: 1, or"):
        join(Runtime(processes=2))
    assert type(join(Runtime())) is Alone


def test_another_number_of_processes_than_configured_is_refused(monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    try:
        with pytest.raises(ConfigError, match="processes: 2 are configured, 1 run"):
            Together(Runtime(processes=2))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("processes", "nodes", "gpus", "refused"), [(4, 1, 3, True), (4, 2, 2, False), (2, 1, 0, True)]
)
def test_fewer_gpus_than_processes_are_refused(monkeypatch, processes, nodes, gpus, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    runtime = Runtime(device="cuda", processes=processes, nodes=nodes)
    if not refused:
        check_devices(runtime)
        return
    with pytest.raises(ConfigError) as caught:
        check_devices(runtime)
    message = str(caught.value)
    assert message.startswith(f"runtime.processes: {processes} on {nodes} node(s) need")
    assert f"torch sees {gpus} here" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_train_says_that_gpus_are_missing_before_it_starts_anything(make_study, tmp_path, capsys):
    study, cell = case_study(make_study, "gpus", "vimpo", processes=2, device="cuda")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    arguments = ["--config", str(path), "--algorithm", "vimpo", "--size", "tiny"]
    assert main(["train", *arguments, "--noise", cell.noise]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runtime.processes: 2 on 1 node(s) need 2 GPUs on each")
    assert not study.run_folder(cell).exists()


WRONG = {
    "spread": ({"processes": 3, "nodes": 2}, "runtime.processes: 3 cannot be spread evenly"),
    "prompts": ({"processes": 4}, "train.prompts_per_step: 6 prompts cannot be split"),
    "device": ({"processes": 2, "device": "cuda:1"}, "runtime.device: 'cuda:1' is one GPU for 2"),
    "vllm": ({"sampler": "vllm"}, "runtime.sampler: 'vllm' needs a GPU"),
    "sharding": ({"sharding": "zero"}, "runtime.sharding: 'zero' is not allowed"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_placement_that_cannot_be_is_refused(make_study, fault):
    runtime, message = WRONG[fault]
    with pytest.raises(ConfigError) as caught:
        case_study(make_study, "one", "vimpo", **runtime)
    assert str(caught.value).startswith(message)


def test_adapters_are_not_split(make_study):
    tiny = {"tiny": {"lora": {"rank": 2}}}
    with pytest.raises(ConfigError, match="'fsdp2' does not split a model with lora; allowed: ddp"):
        make_study("one", sizes=tiny, runtime={"processes": 2, "sharding": "fsdp2"})


# --- One process pays nothing --------------------------------------------------------------------


def test_one_process_copies_nothing():
    world = Alone()
    module, rows = torch.nn.Linear(2, 2), torch.ones(3)
    assert world.gather(rows) is rows
    assert world.spread(module) is module
    assert (world.share(6), world.total(2.0, 3.0), world.largest(4)) == (slice(0, 6), [2.0, 3.0], 4)


# --- Starting the processes ----------------------------------------------------------------------


def test_one_node_starts_its_processes_by_itself():
    command = launch_command(Runtime(processes=4), ["train", "--size=xs"], {})
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[3:] == [
        "--nproc-per-node=4",
        "--standalone",
        "-m",
        "vimpo",
        "train",
        "--size=xs",
    ]


def test_several_nodes_meet_where_slurm_or_the_launcher_says():
    runtime = Runtime(processes=16, nodes=2)
    slurm = {"SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "81234"}
    command = launch_command(runtime, [], slurm)
    assert "--nproc-per-node=8" in command
    place = ["--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.7", "--master-port=21234"]
    assert command[4:8] == place
    given = {"NODE_RANK": "0", "MASTER_ADDR": "head", "MASTER_PORT": "5000"}
    place = ["--nnodes=2", "--node-rank=0", "--master-addr=head", "--master-port=5000"]
    assert launch_command(runtime, [], slurm | given)[4:8] == place
    with pytest.raises(ConfigError, match=r"runtime\.nodes: 2 need one start on each node"):
        launch_command(runtime, [], {})


def run_by_command(study, cell, path):
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    named = ["--algorithm", cell.algorithm, "--size", cell.size, "--noise", cell.noise]
    done = python("-m", "vimpo", "train", "--config", path, *named, "--quiet")
    assert done.stdout.split() == [str(study.run_folder(cell))]  # said once
    return study.run_folder(cell)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_train_command_starts_as_many_processes_as_configured(make_study, tmp_path, sharding):
    study, cell = case_study(make_study, sharding, "vimpo", processes=2, sharding=sharding)
    folder = run_by_command(study, cell, tmp_path / "study.yaml")
    alone, _ = case_study(make_study, "alone", "vimpo")
    expected = train_cell(alone, cell, quiet=True)
    found, rows = (
        list(csv.DictReader((f / "metrics.csv").read_text().splitlines()))
        for f in (folder, expected)
    )
    for ours, theirs in zip(found, rows, strict=True):
        numbers = ({k: float(v) for k, v in row.items()} for row in (ours, theirs))
        assert next(numbers) == pytest.approx(next(numbers), abs=1e-5, rel=1e-5, nan_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["processes"]) == ("complete", 2)
    alone = json.loads((expected / "manifest.json").read_text())
    for key in ("digest", "parameters", "resident_parameters", "optimizer_bytes"):
        assert manifest[key] == alone[key], key
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())
