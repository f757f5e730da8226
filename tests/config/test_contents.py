"""Local data and models that are replaced under their path, between two sittings or in one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import yaml

from vimpo.config import ConfigError, Study, contents, dump_yaml, load_study
from vimpo.config.contents import content_digest
from vimpo.planning.preflight import check_before_running

ROW = '{"problem": "1+1?", "answer": "2"}\n'


@pytest.fixture
def config(tmp_path):
    """A study whose training data, benchmark and model are local."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(ROW)
    return {
        "results": str(tmp_path / "results"),
        "task": {
            "kind": "dataset",
            "datasets": [{"path": str(tmp_path / "train.jsonl")}, {"path": "some/hub-name"}],
            "benchmarks": {"test": {"task": "aime25", "path": str(tmp_path / "test.jsonl")}},
        },
        "sizes": {"q": {"path": str(tmp_path / "model")}},
        "grid": {"algorithms": ["grpo"], "sizes": ["q"], "noise": [0], "seeds": [1, 2]},
    }


def digests(study):
    cell = study.cells()[0]
    return {
        "base": study.base_digest("q"),
        "cell": study.cell_digest(cell),
        "probes": study.probe_digest(cell),
        "cost": study.cost_digest("q"),
        "evaluation": study.evaluation_digest(),
    }


@pytest.mark.parametrize(
    ("name", "field", "changed"),
    [
        ("train.jsonl", "task.datasets[0]", {"base", "cell", "probes", "cost", "evaluation"}),
        ("test.jsonl", "task.benchmarks.test", {"cost", "evaluation"}),
        ("model/model.safetensors", "sizes.q", {"base", "cell", "probes", "cost"}),
        ("model/tokenizer.json", "sizes.q", {"base", "cell", "probes", "cost"}),
    ],
)
def test_other_content_is_another_study(config, tmp_path, name, field, changed):
    study = load_study(config)
    study.folder.mkdir(parents=True)
    (study.folder / "config.yaml").write_text(dump_yaml(study))
    check_before_running(study)
    (tmp_path / name).write_text(ROW.replace("2", "3"))
    later = load_study(config)
    old, new = digests(study), digests(later)
    assert {part for part in old if old[part] != new[part]} == changed
    # The job of a study that was resolved before.
    with pytest.raises(ConfigError) as caught:
        check_before_running(study)
    assert str(caught.value).startswith(f"{field}.path: '")
    assert "has changed since this study was resolved" in str(caught.value)
    # The second sitting.
    with pytest.raises(ConfigError) as caught:
        check_before_running(later)
    assert f"made by another configuration ({field}.sha256: " in str(caught.value)


def test_the_same_content_elsewhere_or_later_is_the_same(config, tmp_path):
    study = load_study(config)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("what transformers does not read")
    os.utime(tmp_path / "train.jsonl", (1, 1))
    assert content_digest(str(tmp_path / "copy")) == study.sizes["q"].sha256
    assert digests(load_study(config)) == digests(study)
    # A resolved study needs none of its data, as a published one on another machine.
    resolved = yaml.safe_load(dump_yaml(study))
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "train.jsonl").unlink()
    assert digests(load_study(resolved)) == digests(study)
    assert resolved["task"]["datasets"][1].get("sha256", "none") == "none"


def test_studies_without_local_content_are_written_as_before():
    assert "sha256" not in json.dumps(Study().model_dump(mode="json"))


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "CACHED_FROM", 1)
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: read.append(a) or digest(*a))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first = content_digest(str(path))
    assert first == content_digest(str(path)) == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 1
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` of an equally old file
    assert content_digest(str(path)) == hashlib.sha256(b"two").hexdigest()
    assert len(read) == 2
