"""Whole runs: the same bytes twice, the same bytes after an interruption, nothing overwritten."""

from __future__ import annotations

import csv
import hashlib
import json

import pytest
import yaml
from failing import Killed

from vimpo.config import Cell, CellConfig, ConfigError, cell_digest, load_study
from vimpo.storage.integrity import only_writer, read_sums
from vimpo.training.pretrain import Pretrainer
from vimpo.training.runs import is_complete, pretrain_base, train_cell
from vimpo.training.trainer import Trainer

NAMES = ("vimpo", "ppo", "grpo")


def cell(algorithm, **changes):
    fields = {"size": "tiny", "noise": "rollout-0.25", "seed": 1} | changes
    return Cell(algorithm, **fields)


def outcome(folder):
    """Bytes that must not depend on when or how often a run was interrupted."""
    files = [folder / "metrics.csv", folder / "config.yaml"]
    files += sorted(p for p in (folder / "model").rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def snapshot(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


# --- Determinism and interruption ----------------------------------------------------------------


@pytest.mark.parametrize("algorithm", NAMES)
def test_the_same_configuration_and_seed_give_the_same_bytes(tiny_study, algorithm):
    first, second = (
        outcome(train_cell(tiny_study(folder), cell(algorithm), quiet=True)) for folder in "ab"
    )
    assert {"metrics.csv", "model/model.safetensors"} < set(first)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    other = outcome(train_cell(tiny_study("a"), cell(algorithm, seed=2), quiet=True))
    assert other["metrics.csv"] != first["metrics.csv"]
    assert other["model/model.safetensors"] != first["model/model.safetensors"]


@pytest.mark.parametrize("algorithm", NAMES)
def test_an_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one(tiny_study, kill, algorithm):
    expected = outcome(train_cell(tiny_study("a"), cell(algorithm), quiet=True))
    study = tiny_study("b")

    def run():
        train_cell(study, cell(algorithm), quiet=True)

    assert kill(Trainer, 5, run) == [0, 1, 2, 3, 4]
    folder = study.run_folder(cell(algorithm))
    assert not is_complete(folder, study.cell_digest(cell(algorithm)))
    for table in ("metrics.csv", "timing.csv"):  # readable while the run goes on
        rows = list(csv.DictReader((folder / table).open()))
        assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    with (folder / "metrics.csv").open("a") as table:
        table.write("5,0.1")  # as a kill within a line leaves it
    assert kill(Trainer, 5, run) == [4]  # the newest checkpoint has four steps
    (newest,) = folder.glob("checkpoint-*/step-000004.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert kill(Trainer, None, run) == [2, 3, 4, 5]  # falls back to two steps
    found = outcome(folder)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name
    if algorithm == "ppo":
        assert "model/critic/critic.safetensors" in found
    assert sorted(p.name for p in folder.iterdir()) == [
        "SHA256SUMS",
        "config.yaml",
        "manifest.json",
        "metrics.csv",
        "model",
        "timing.csv",
    ]


@pytest.mark.parametrize("algorithm", ["vimpo", "dapo", "vineppo"])
def test_what_steps_remember_survives_an_interruption(tiny_study, kill, algorithm):
    """A refreshed reference, running means of gradient norms, rounds, and continuations."""
    settings = {
        "algorithms": {
            "vimpo": {"refresh_every": 3, "adaptive_coef": 0.1},
            "dapo": {"rounds": 3},
            "vineppo": {"k": 2},
        },
        "train": {"grad_clip": 0.5, "grad_clip_mode": "relative", "warmup_steps": 0},
    }
    expected = outcome(train_cell(tiny_study("a", **settings), cell(algorithm), quiet=True))
    study = tiny_study("b", **settings)

    def run():
        train_cell(study, cell(algorithm), quiet=True)

    assert kill(Trainer, 5, run) == [0, 1, 2, 3, 4]
    assert kill(Trainer, None, run) == [4, 5]
    assert outcome(study.run_folder(cell(algorithm))) == expected


def test_interrupted_pretraining_ends_with_the_bytes_of_an_undisturbed_one(
    tiny_study, tmp_path, kill
):
    sizes = {"new": {"hidden": 16, "layers": 1, "heads": 2, "pretrain_steps": 12}}
    pretrain = {"checkpoint_every": 4}
    expected = outcome(
        pretrain_base(tiny_study("a", sizes=sizes, pretrain=pretrain), "new", quiet=True)
    )
    study = tiny_study("b", sizes=sizes, pretrain=pretrain)

    def run():
        pretrain_base(study, "new", quiet=True)

    assert kill(Pretrainer, 10, run) == list(range(10))
    folder = study.base_folder("new")
    (newest,) = folder.glob("checkpoint-*/step-000008.json")
    newest.write_text("{")
    assert kill(Pretrainer, 9, run) == [4, 5, 6, 7, 8]
    assert kill(Pretrainer, None, run) == [8, 9, 10, 11]
    found = outcome(folder)
    for name in expected:
        assert found[name] == expected[name], name


def test_an_interruption_while_the_outputs_are_written_is_made_good(tiny_study, kill, monkeypatch):
    expected = outcome(train_cell(tiny_study("a"), cell("grpo"), quiet=True))
    study = tiny_study("b")

    def dying(self, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", dying)
        with pytest.raises(Killed):
            train_cell(study, cell("grpo"), quiet=True)
    digest = study.cell_digest(cell("grpo"))
    assert not is_complete(study.run_folder(cell("grpo")), digest)
    done = kill(Trainer, None, lambda: train_cell(study, cell("grpo"), quiet=True))
    assert done == [4, 5]
    assert outcome(study.run_folder(cell("grpo"))) == expected
    assert not (study.run_folder(cell("grpo")) / ".model").exists()


# --- Folders -------------------------------------------------------------------------------------


def test_a_complete_run_is_not_done_again(tiny_study, kill):
    study = tiny_study()
    folder = train_cell(study, cell("grpo"), quiet=True)
    before = snapshot(study.folder)
    assert kill(Trainer, None, lambda: train_cell(study, cell("grpo"), quiet=True)) == []
    assert kill(Pretrainer, None, lambda: pretrain_base(study, "tiny", quiet=True)) == []
    assert snapshot(study.folder) == before
    assert is_complete(folder, study.cell_digest(cell("grpo")))


def test_a_complete_folder_of_another_configuration_is_refused_and_untouched(tiny_study):
    study = tiny_study()
    folder = train_cell(study, cell("vimpo"), quiet=True)
    before = snapshot(study.folder)
    changed = tiny_study(algorithms={"vimpo": {"beta": 0.7}})
    with pytest.raises(ConfigError) as caught:
        train_cell(changed, cell("vimpo"), quiet=True)
    message = str(caught.value)
    assert message.startswith(f"results: '{folder}' was made by another configuration")
    assert study.cell_digest(cell("vimpo")) in message
    assert changed.cell_digest(cell("vimpo")) in message
    assert "allowed:" in message
    other_base = tiny_study(pretrain={"seed": 5})
    with pytest.raises(ConfigError, match="was made by another configuration"):
        pretrain_base(other_base, "tiny", quiet=True)
    assert snapshot(study.folder) == before


def test_what_another_configuration_left_half_done_is_not_gone_on_from(tiny_study, kill):
    def changed(folder):
        return tiny_study(folder, algorithms={"grpo": {"lr_scale": 2.0}})

    expected = outcome(train_cell(changed("a"), cell("grpo"), quiet=True))
    study = tiny_study("b")
    assert kill(Trainer, 5, lambda: train_cell(study, cell("grpo"), quiet=True))
    run = train_cell
    done = kill(Trainer, None, lambda: run(changed("b"), cell("grpo"), quiet=True))
    assert done == list(range(6))
    assert outcome(study.run_folder(cell("grpo"))) == expected


def test_a_run_that_another_process_works_on_is_refused_and_untouched(tiny_study):
    study = tiny_study()
    folder = study.run_folder(cell("grpo"))
    with only_writer(folder):
        before = snapshot(study.folder)
        with pytest.raises(ConfigError, match=f"another process works on '{folder}'; allowed"):
            train_cell(study, cell("grpo"), quiet=True)
        assert snapshot(study.folder) == before
    assert train_cell(study, cell("grpo"), quiet=True) == folder


def test_training_makes_the_base_policy_where_it_is_missing(tiny_study, kill):
    sizes = {"new": {"hidden": 16, "layers": 1, "heads": 2, "pretrain_steps": 2}}
    study = tiny_study(sizes=sizes, train={"steps": 1})
    steps = kill(Pretrainer, None, lambda: train_cell(study, cell("grpo", size="new"), quiet=True))
    assert steps == [0, 1]
    assert is_complete(study.base_folder("new"), study.base_digest("new"))


def test_an_unknown_cell_is_refused_before_anything_is_written(tiny_study):
    study = tiny_study()
    before = snapshot(study.folder)
    for wrong in (cell("trpo"), cell("ppo", size="huge"), cell("ppo", noise="2")):
        with pytest.raises(ConfigError, match="allowed"):
            train_cell(study, wrong, quiet=True)
    assert snapshot(study.folder) == before


# --- What a run leaves ---------------------------------------------------------------------------

POLICY = 18 * 16 + (4 * 16 * 16 + 2 * 8 + 3 * 16 * 48 + 2 * 16) + 16
CRITIC = POLICY + 16 + 1


@pytest.mark.parametrize(
    ("algorithm", "trainable", "resident"),
    [
        ("vimpo", POLICY, 2 * POLICY),
        ("ppo", POLICY + CRITIC, POLICY + CRITIC),
        ("grpo", POLICY, POLICY),
    ],
)
def test_manifest_tells_digest_parameters_cost_and_checksums(
    tiny_study, algorithm, trainable, resident
):
    study = tiny_study()
    folder = train_cell(study, cell(algorithm), quiet=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["digest"] == study.cell_digest(cell(algorithm))
    assert manifest["status"] == "complete"
    assert manifest["parameters"] == POLICY
    assert manifest["trainable_parameters"] == trainable
    assert manifest["resident_parameters"] == resident
    assert manifest["optimizer_bytes"] == 2 * 4 * trainable
    assert 100 < manifest["peak_memory_mb"] < 8000
    assert set(manifest["phases_s"]) == {"startup", *Trainer.phases, "checkpoint", "save"}
    assert (manifest["phases_s"]["critic"] > 0) is (algorithm == "ppo")
    assert (manifest["phases_s"]["reference"] > 0) is (algorithm == "vimpo")
    assert manifest["versions"]["torch"].startswith("2.13.0")
    assert len(manifest["git_commit"].removesuffix("-dirty")) == 40
    assert manifest["hardware"]["threads"] == 1
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"]
    assert read_sums(folder / "SHA256SUMS") == {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_a_run_leaves_its_resolved_configuration_and_a_row_a_step(tiny_study):
    study = tiny_study()
    folder = train_cell(study, cell("vimpo"), quiet=True)
    written = CellConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert written == study.cell_config(cell("vimpo"))
    assert cell_digest(written) == study.cell_digest(cell("vimpo"))
    rows, timing = (
        list(csv.DictReader((folder / name).read_text().splitlines()))
        for name in ("metrics.csv", "timing.csv")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in timing] == list("012345")
    assert {"accuracy", "reward", "loss", "entropy", "value_loss", "reference_kl"} < set(rows[0])
    assert not any(column.endswith("_s") for column in rows[0])  # timings are kept apart
    assert set(timing[0]) == {"step", *(f"{p}_s" for p in Trainer.phases), "total_s"}
    for row in timing:
        parts = sum(float(row[f"{p}_s"]) for p in Trainer.phases)
        assert float(row["total_s"]) == pytest.approx(parts, abs=1e-5)


def test_the_base_learns_the_task(tiny_base):
    rows = list(csv.DictReader((tiny_base / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 120
    assert float(rows[0]["loss"]) > 2.5  # about log 18: it knows nothing
    assert float(rows[-1]["loss"]) < 0.6
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[0] == pytest.approx(0.02 / 5)  # five warm-up steps, then a cosine to 5 %
    assert max(rates) == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.05 * 0.02, rel=0.02)


@pytest.mark.slow
def test_a_job_in_its_own_process_gives_the_bytes_of_this_one(tiny_study, tmp_path):
    import subprocess
    import sys

    expected = outcome(train_cell(tiny_study("a"), cell("grpo"), quiet=True))
    study = tiny_study("b")
    script = (
        "import json, sys\n"
        "from vimpo.config import Cell, load_study\n"
        "from vimpo.training.runs import train_cell\n"
        "train_cell(load_study(json.loads(sys.argv[1])), Cell(*json.loads(sys.argv[2])))"
    )
    name = ["grpo", "tiny", "rollout-0.25", 1]
    arguments = [json.dumps(study.model_dump(mode="json")), json.dumps(name)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True
    )
    assert "grpo/tiny/noise-rollout-0.25/seed-1" in done.stderr  # the progress bar
    assert "accuracy" in done.stderr
    assert outcome(study.run_folder(cell("grpo"))) == expected
    assert load_study(study.model_dump(mode="json")) == study
