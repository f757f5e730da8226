"""docs/your-model.md, from its files to its commands, with a tiny model in place of a real one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_dataset_study import PROBLEMS, lines, word_model

from vimpo.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/your-model.md").read_text()
# What a tiny model without a chat template needs, and what makes the study short.
TASK = {"chat_template": False, "max_prompt": 24, "verifier": {"workers": 1}}
TRAIN = {"steps": 2, "max_response": 12}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the page names; commands are started there."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "problems.jsonl", PROBLEMS)
    lines(tmp_path / "exam.jsonl", [{"problem": f"Is {n} 3?", "answer": "3"} for n in range(4)])
    (text,) = blocks("yaml")
    study = yaml.safe_load(text)
    study["task"] |= TASK
    study["train"] |= TRAIN
    study["sizes"]["mine"]["path"] = str(word_model(tmp_path / "model"))
    study["grid"] |= {"algorithms": ["vimpo", "grpo"], "seeds": [1]}
    study["probes"]["positions"] = [0.5]
    study["statistics"] = {"resamples": 100}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    return tmp_path


def run(command):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "vimpo"], command
    assert main(words[3:]) == 0, command


def commands():
    return [line for block in blocks("bash") for line in block.strip().splitlines()]


def test_its_commands_work_and_its_files_are_there(desk, capsys):
    check, plan, workflow, read = commands()
    assert workflow == "snakemake --cores 2 --configfile mine.yaml"
    run(check)
    said = capsys.readouterr().out
    assert re.search(r"mine: .*, 32 responses: \d+ right \(\d+%\), \d+ with an answer", said)
    run(plan)
    assert "2 cells over 2 algorithms" in capsys.readouterr().out
    run("python -m vimpo pretrain --config mine.yaml --size mine --quiet")
    run("python -m vimpo surprisal --config mine.yaml --size mine")
    run("python -m vimpo train --config mine.yaml --algorithm vimpo --size mine --quiet")
    (rows,) = re.findall(r"`(results\S*/metrics.csv)`", PAGE)
    assert (desk / rows).read_text().startswith("step,accuracy,")
    run(read)
    assert (desk / "read.csv").read_text().count("\n") > 10


@pytest.mark.slow
def test_its_workflow_ends_with_the_report(desk):
    workflow = commands()[2].replace("snakemake", f"{sys.executable} -m snakemake")
    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--nolock", "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*shlex.split(workflow), *snakefile],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (report,) = re.findall(r"`(results\S*/report.html)`", PAGE)
    assert (desk / report).is_file()
