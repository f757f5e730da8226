"""Files that must agree with each other."""

import ast
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from vimpo.cli import main
from vimpo.config import dump_yaml, load_study, study_schema

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "workflow/config").glob("*.yaml"))


def pins(lines):
    """name -> version of `name[extra]==version` lines."""
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?==(\S+)", line.strip()) for line in lines]
    return {m[1].lower().replace("_", "-"): m[2] for m in found if m}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_direct_dependency_is_pinned():
    dependencies = project()["dependencies"] + project()["optional-dependencies"]["test"]
    assert len(pins(dependencies)) == len(dependencies)
    assert pins(dependencies)["torch"] == "2.13.0"


def test_the_lock_file_agrees_with_the_project():
    locked = pins((ROOT / "envs/requirements.lock").read_text().splitlines())
    optional = project()["optional-dependencies"].items()
    extras = {
        k: v for k, v in optional if k not in ("vllm", "peers", "smollm", "reasoning-gym")
    }  # a GPU's, for comparison, a model, and problems
    for extra in ([], *extras.values()):
        for name, version in pins(project()["dependencies"] + extra).items():
            assert locked.get(name) == version, name


def test_the_conda_environment_installs_the_lock_file():
    environment = yaml.safe_load((ROOT / "envs/vimpo.yaml").read_text())
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert "-r requirements.lock" in pip
    (python,) = (
        d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python=")
    )
    floor = project()["requires-python"].removeprefix(">=")
    assert tuple(map(int, python[7:].split("."))) >= tuple(map(int, floor.split(".")))


def without_encoding(source):
    """Line and name of each call that reads or writes text in the encoding of the locale."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        mode = [ast.unparse(a) for a in call.args][isinstance(call.func, ast.Name) :][:1]
        given = {keyword.arg for keyword in call.keywords}
        as_text = name in ("read_text", "write_text", "NamedTemporaryFile")
        as_text |= name == "open" and owner != "os" and "b" not in str(mode)
        as_text |= name in ("run", "Popen", "check_output") and "text" in given
        if as_text and "encoding" not in given:
            yield f"line {call.lineno}: {name}"


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    files = [*(ROOT / "vimpo").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    found = {str(f.relative_to(ROOT)): list(without_encoding(f.read_text())) for f in files}
    assert len(found) > 80
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert list(
        without_encoding("path.open()\nsubprocess.run([], text=True)\nopen('f', 'rb')")
    ) == [
        "line 1: open",
        "line 2: run",
    ]


def test_the_schema_is_generated():
    written = json.loads((ROOT / "workflow/schemas/study.schema.json").read_text())
    assert written == study_schema(), "run: python -m vimpo schema > workflow/schemas/..."


def test_the_quick_study_is_meant_without_a_configuration(capsys):
    assert main(["resolve"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(
        dump_yaml(load_study(ROOT / "workflow/config/quick.yaml"))
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_named_after_their_file(path):
    assert load_study(path).study == path.stem


def test_the_citation_agrees_with_the_project():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == project()["version"]
    assert cited["license"] == project()["license"]
    assert cited["title"].startswith("VIMPO-bench")
    assert cited["authors"] == [{"name": "VIMPO-bench maintainers"}]
    (paper,) = cited["references"]
    assert paper["url"] == "https://arxiv.org/abs/2606.20008"
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_the_tables_of_the_benchmarks_are_generated():
    folder = ROOT / "tests/benchmarks"
    spec = importlib.util.spec_from_file_location("tables", folder / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert (folder / "README.md").read_text() == tables.text(), "run tests/benchmarks/tables.py"


def test_the_study_has_the_settings_that_its_sweep_chose():
    """A winner of tuning.yaml and the study's algorithm of that objective are the same."""
    names = ("tuning", "first_study")
    sweep, study = (load_study(ROOT / f"workflow/config/{n}.yaml") for n in names)
    assert study.sweeps[0] == "results/published/sweeps/tuning.csv"
    table = pd.read_csv(ROOT / study.sweeps[0])
    chosen = table[table.chosen == "yes"].set_index("objective").trial
    assert set(chosen.index) == {"vimpo", "ppo", "grpo"}
    for objective, trial in chosen.items():
        assert sweep.algorithms[trial] == study.algorithms[objective]
    seeds = [{cell.seed for cell in either.cells()} for either in (sweep, study)]
    assert not set.intersection(*seeds)
    assert sweep.sizes["s"] == study.sizes["s"]
    assert sweep.train == study.train
