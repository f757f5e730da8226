"""What comes from elsewhere stays data: names, paths, models, problems."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import snakes
import torch
import yaml

from vimpo.config import ConfigError, Runtime, Study, load_study
from vimpo.models.networks import chain_tokenizer, load_policy, save_policy
from vimpo.tasks.sources import read_rows

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vimpo").rglob("*.py"))
TINY = ROOT / "workflow/config/tiny.yaml"

HOSTILE = [
    "a b",
    "a;touch owned",
    "$(touch owned)",
    "`touch owned`",
    "a' touch owned '",
    'a" touch owned "',
    "a\ntouch owned",
    "a\n",
    "a|touch owned",
    "a>owned",
    "a&touch owned&",
    "../up",
    "..",
    "-rf",
    "--config",
    "{wildcards.seed}",
    "a{owned}",
    "*",
    "~",
    "\0",
    "",
]


@cache
def tiny_text():
    return json.dumps(yaml.safe_load(TINY.read_text()))


def tiny(**changes):
    return json.loads(tiny_text()) | changes


def studies(name):
    """A study with a hostile name at each place whose text reaches a path or a command."""
    size = tiny()["sizes"]["nano"]
    grid = tiny()["grid"]
    benchmark = {"operators": 2, "problems": 20}
    return {
        "study": tiny(study=name),
        "results": tiny(
            results=f"/tmp/x/{name}" if name not in ("..", "../up", "") else "-" + name
        ),
        "sizes": tiny(sizes={name: size}, grid=grid | {"sizes": [name]}),
        "grid.sizes": tiny(grid=grid | {"sizes": [name]}),
        "algorithms": tiny(
            algorithms={name: {"objective": "grpo"}}, grid=grid | {"algorithms": [name]}
        ),
        "noise_mode": tiny(grid=grid | {"noise_mode": name}),
        "noise": tiny(grid=grid | {"noise": [{"mode": name, "rate": 0.1}]}),
        "seeds": tiny(grid=grid | {"seeds": [name]}),
        "benchmarks": tiny(task={"benchmarks": {name: benchmark}}),
        "cluster.partition": tiny(cluster={"partition": name}),
        "runtime.device": tiny(runtime={"device": name}),
        "cluster.sizes": tiny(cluster={"sizes": {name: {"partition": "p"}}}),
        "plan.device": tiny(plan={"device": name}),
    }


@pytest.mark.parametrize("place", studies("x"))
def test_a_name_that_a_shell_or_a_path_could_misread_is_refused(place):
    for name in HOSTILE:
        if place == "results" and name in ("~", "-rf", "--config"):
            continue  # harmless behind a folder
        with pytest.raises(ConfigError):
            load_study(studies(name)[place])


def snakemake(folder, config, *arguments):
    """The workflow at work in another folder, where a side effect would show."""
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    words = ["--configfile", "study.yaml", "--cores", "1", "--nolock", *arguments]
    return snakes.snakemake(*words, cwd=folder)


def test_the_workflow_refuses_a_hostile_name_before_anything_runs(tmp_path):
    name = "$(touch owned);touch owned"
    done = snakemake(tmp_path, studies(name)["sizes"], "all")
    assert done.returncode != 0
    assert "error: sizes." in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "results").exists()


def test_texts_that_may_hold_anything_reach_no_shell(tmp_path):
    """Hub names are free texts: they are looked up and written as they are, never run."""
    hostile = "'; touch owned; $(touch owned) `touch owned` \" \n touch owned {output} #"
    config = tiny(sizes={"nano": {"path": f"owner/{hostile}"}})
    dry = snakemake(tmp_path, config, "--dry-run", "--printshellcmds", "all")
    assert dry.returncode == 0, dry.stderr
    assert "touch" not in dry.stdout + dry.stderr
    done = snakemake(tmp_path, config, "results/tiny/config.yaml")
    assert done.returncode != 0
    assert "error: sizes.nano.path: " in done.stdout + done.stderr  # there is no such model
    (merged,) = (tmp_path / ".snakemake/studies").glob("*.yaml")
    assert load_study(merged).sizes["nano"].path == f"owner/{hostile}"
    assert not (tmp_path / "owned").exists()


# --- Foreign files -------------------------------------------------------------------------------


def test_nothing_in_the_source_unpickles_or_evaluates():
    banned = (
        r"\btorch\.load\(|\bimport pickle\b|\bjoblib\b|\byaml\.(load|full_load|unsafe_load)\("
        r"|\beval\(|\bexec\(|\bos\.system\(|shell=True|weights_only=False|allow_pickle"
    )
    # An algorithm's file that the configuration names is run, and what reasoning-gym would evaluate
    # of an answer is, once it is known to be harmless (tests/tasks/test_gym.py).
    allowed = {"vimpo/algorithms/own.py": 1, "vimpo/tasks/gym/judges.py": 1}
    for path in SOURCES:
        found = re.findall(banned, re.sub(r"\.eval\(\)", "", path.read_text()))
        count = allowed.get(path.relative_to(ROOT).as_posix(), 0)
        assert len(found) == count, (path, found)


@pytest.fixture
def pickled(tmp_path):
    """A model folder whose weights are a pickle that would leave a file behind."""
    from vimpo.config import ModelSpec
    from vimpo.models.networks import build_policy

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    tokenizer = chain_tokenizer()
    policy = build_policy(ModelSpec(hidden=16, layers=1, pretrain_steps=1), tokenizer, 0)
    save_policy(policy, tokenizer, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    return policy, Trap(), tmp_path


@pytest.mark.parametrize("trap", [False, True])
def test_weights_that_are_no_safetensors_are_refused(pickled, trap):
    policy, bomb, folder = pickled
    content = {"weight": bomb} if trap else policy.state_dict()
    torch.save(content, folder / "model/pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"holds no model\.safetensors; allowed: .* as safetensors"
    ):
        load_policy(folder / "model", Runtime())
    assert not (folder / "owned").exists()


OPENED: list[str] | None = None


def _listen(event, arguments):
    if event == "open" and OPENED is not None:
        OPENED.append(str(arguments[0]))


def test_no_path_inside_a_data_file_is_opened(tmp_path):
    global OPENED
    bait = tmp_path / "secret.jsonl"
    bait.write_text('{"problem": "no", "answer": "1"}\n')
    texts = [str(bait), f"file://{bait}", f"\\input{{{bait}}}", f"!include {bait}"]
    data = tmp_path / "data.jsonl"
    rows = [{"problem": text, "answer": text, "path": text, "data_files": text} for text in texts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_rows(str(data), "task.datasets[0].path")  # imports what reading needs
    sys.addaudithook(_listen)  # cannot be taken back: it listens only while there is a list
    OPENED = []
    try:
        assert read_rows(str(data), "task.datasets[0].path") == rows
        opened = OPENED
    finally:
        OPENED = None
    assert opened == [str(data)]


def test_remote_code_is_off_unless_a_study_says_so():
    assert Study().runtime.trust_remote_code is False
    for path in (ROOT / "workflow/config").glob("*.yaml"):
        assert load_study(path).runtime.trust_remote_code is False
