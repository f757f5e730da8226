"""Checkpoints: exact restoration, and what happens to damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vimpo.storage.files import (
    GrowingTable,
    checksums,
    move_folder,
    remove_leftovers,
    sha256,
    write_atomic,
    write_rows,
)
from vimpo.training.checkpoint import load_checkpoint, save_checkpoint


class Network:
    """Two modules with optimisers, moved by a fixed rule."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.modules = {"policy": nn.Linear(3, 2), "critic": nn.Linear(2, 1)}
        self.optimizers = {
            name: torch.optim.AdamW(m.parameters(), lr=0.1) for name, m in self.modules.items()
        }

    def step(self, number):
        x = torch.linspace(-1, 1 + number, 6).reshape(2, 3)
        loss = self.modules["critic"](self.modules["policy"](x)).square().sum()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    def save(self, folder, step, state=None):
        save_checkpoint(folder, step, self.modules, self.optimizers, state or {})

    def load(self, folder):
        return load_checkpoint(folder, self.modules, self.optimizers)

    def parameters(self):
        return torch.cat(
            [p.detach().flatten() for m in self.modules.values() for p in m.parameters()]
        )


def trained(steps):
    network = Network()
    for number in range(steps):
        network.step(number)
    return network


def test_what_is_restored_goes_on_exactly(tmp_path):
    network = trained(3)
    state = {"metrics": [{"loss": 0.1 + 0.2, "step": 1, "nan": float("nan")}]}
    network.save(tmp_path, 3, state)
    other = Network(seed=9)
    steps, found = other.load(tmp_path)
    assert steps == 3
    assert repr(found) == repr(state)
    assert torch.equal(other.parameters(), network.parameters())
    for number in (3, 4):
        network.step(number)
        other.step(number)
    assert torch.equal(other.parameters(), network.parameters())
    # Moments and step counts were restored too: a fresh optimiser goes elsewhere.
    fresh = Network(seed=9)
    load_checkpoint(tmp_path, fresh.modules, {})
    fresh.step(3)
    fresh.step(4)
    assert float((fresh.parameters() - network.parameters()).abs().max()) > 1e-3


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    network = Network()
    before = network.parameters()
    assert network.load(tmp_path / "nothing") is None
    assert torch.equal(network.parameters(), before)


def test_the_newest_is_loaded_and_the_last_two_are_kept(tmp_path):
    network = Network()
    for number in (2, 4, 10, 100):
        network.step(number)
        network.save(tmp_path, number)
    assert Network(1).load(tmp_path)[0] == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000010.json",
        "step-000010.safetensors",
        "step-000010.sha256",
        "step-000100.json",
        "step-000100.safetensors",
        "step-000100.sha256",
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("step-000004.safetensors", cut),
        ("step-000004.safetensors", flip),
        ("step-000004.safetensors", lambda path: path.unlink()),
        ("step-000004.json", cut),
        ("step-000004.json", lambda path: path.write_text("")),
        ("step-000004.json", lambda path: path.write_text("{}")),
        ("step-000004.json", lambda path: path.unlink()),
        ("step-000004.sha256", cut),
        ("step-000004.sha256", flip),
        ("step-000004.sha256", lambda path: path.unlink()),
        ("step-000004.json", lambda path: path.write_text(path.read_text().replace("0.5", "0.7"))),
    ],
    ids=[
        "cut",
        "bit flipped",
        "gone",
        "json cut",
        "json empty",
        "json hollow",
        "json gone",
        "sums cut",
        "sums flipped",
        "sums gone",
        "a metric",
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, name, damage):
    network = trained(2)
    network.save(tmp_path, 2)
    second = network.parameters()
    network.step(3)
    network.save(tmp_path, 4, {"metrics": [{"loss": 0.5}]})
    damage(tmp_path / name)
    other = Network(seed=9)
    assert other.load(tmp_path)[0] == 2
    assert torch.equal(other.parameters(), second)


def test_nothing_is_loaded_where_all_are_damaged(tmp_path):
    trained(2).save(tmp_path, 2)
    cut(tmp_path / "step-000002.safetensors")
    network = Network(seed=9)
    before = network.parameters()
    assert network.load(tmp_path) is None
    assert torch.equal(network.parameters(), before)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    network = trained(2)
    network.save(tmp_path, 2)
    saved = network.parameters()

    def full_disk(*args):
        raise OSError("no space left on device")

    network.step(2)
    with monkeypatch.context() as patch:
        patch.setattr("vimpo.storage.files.os.fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            network.save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000002.json",
        "step-000002.safetensors",
        "step-000002.sha256",
    ]
    other = Network(seed=9)
    assert other.load(tmp_path)[0] == 2
    assert torch.equal(other.parameters(), saved)


# --- The files below them ------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def broken(*args):
        raise OSError("broken")

    monkeypatch.setattr("vimpo.storage.files.os.replace", broken)
    with pytest.raises(OSError, match="broken"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_rename_and_new_folders_survive_a_power_cut(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def recorded(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    write_atomic(tmp_path / "new" / "deep" / "file", "x")
    deep = tmp_path / "new" / "deep"
    assert synced == [deep.parent, tmp_path, deep / f".file.{os.getpid()}", deep]
    synced.clear()
    (tmp_path / ".model" / "critic").mkdir(parents=True)
    (tmp_path / ".model" / "critic" / "weights").write_text("x")
    move_folder(tmp_path / ".model", tmp_path / "model")
    aside = tmp_path / ".model"
    assert synced == [aside / "critic", aside / "critic" / "weights", aside, tmp_path]
    assert (tmp_path / "model" / "critic" / "weights").read_text() == "x"


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    for name in (".a.csv.123", ".b.json.77", "a.csv", ".model", ".a.csv", "a.123", ".a.csv.x1"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path, "b.json")
    assert not (tmp_path / ".b.json.77").exists()
    assert (tmp_path / ".a.csv.123").exists()
    remove_leftovers(tmp_path)
    left = [".a.csv", ".a.csv.x1", ".model", "a.123", "a.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    remove_leftovers(tmp_path / "nowhere")


def test_rows_are_written_so_that_equal_numbers_give_equal_bytes(tmp_path):
    write_rows(
        tmp_path / "rows.csv", [{"step": 0, "loss": 0.1 + 0.2}, {"step": 1, "loss": 1.0}], []
    )
    assert (tmp_path / "rows.csv").read_bytes() == (b"step,loss\n0,0.30000000000000004\n1,1.0\n")
    write_rows(tmp_path / "none.csv", [], ["step"])
    assert (tmp_path / "none.csv").read_bytes() == b"step\n"


def test_a_growing_table_is_readable_at_every_row_and_ends_as_one_written_at_once(tmp_path):
    path, rows = tmp_path / "rows.csv", []
    path.write_text("of another run")
    table = GrowingTable(path, rows)
    assert not path.exists()
    table.update()
    assert not path.exists()
    rows += [{"step": 0, "loss": 0.1 + 0.2}]
    table.update()
    reader = path.open()  # as `tail -f` does
    assert reader.read() == "step,loss\n0,0.30000000000000004\n"
    rows += [{"step": 1}, {"step": 2, "loss": 1.0}]
    table.update()
    table.finish(["step"])
    assert reader.read() == "1,\n2,1.0\n"
    assert path.stat().st_ino == os.fstat(reader.fileno()).st_ino
    whole = path.read_bytes()
    again = GrowingTable(path, rows[:1])  # resumed after the first row
    assert path.read_text() == "step,loss\n0,0.30000000000000004\n"
    again.rows.extend(rows[1:])
    again.update()
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-3])  # a power cut
    again.finish(["step"])
    assert path.read_bytes() == whole
    GrowingTable(path, []).finish(["step"])
    assert path.read_bytes() == b"step\n"


@pytest.mark.slow  # 10 s: a process that imports torch, and 128 MiB
def test_a_checkpoint_is_written_without_a_copy_in_memory(tmp_path):
    """Serialised to bytes first, it took two to three times the size of its tensors."""
    script = """
import sys
from pathlib import Path
import torch
from torch import nn
from vimpo.training.checkpoint import save_checkpoint
from vimpo.training.telemetry import peak_bytes
modules = {"policy": nn.Linear(8192, 4096, bias=False)}  # 128 MiB
before = peak_bytes("cpu")
save_checkpoint(Path(sys.argv[1]), 1, modules, {}, {})
print(peak_bytes("cpu") - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (tmp_path / "step-000001.safetensors").stat().st_size > 128 * 2**20
    assert grown < 48 * 2**20, f"{grown / 2**20:.0f} MiB"


def test_checksums_name_every_file_below_a_folder(tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "a").write_text("abc")
    (tmp_path / "b").write_text("")
    (tmp_path / "unnamed").write_text("x")
    assert checksums(tmp_path, ["model", "b"]) == {
        "model/deep/a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert sha256(tmp_path / "b").startswith("e3b0c442")
    assert json.dumps(checksums(tmp_path, [])) == "{}"
