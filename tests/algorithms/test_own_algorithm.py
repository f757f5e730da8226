"""An algorithm in one file and one configuration line: the README's tutorial, and its errors."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from fake_results import small_study, write_figures, write_results
from tiny import TINY, merged

from vimpo.algorithms import Share, make_algorithm, make_batch
from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import Cell, ConfigError, dump_yaml, load_study
from vimpo.objectives.vimpo import value_loss
from vimpo.planning.preflight import check_before_running, check_inputs
from vimpo.report.figures import draw_figures
from vimpo.report.labels import SPARE, STYLES, styles
from vimpo.report.page import write_report
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.tables import read_tables
from vimpo.training.runs import train_cell

ROOT = Path(__file__).parents[2]
CONSTANT = """
from vimpo.algorithms import PolicyGradient

class Constant(PolicyGradient):
    def __init__(self, config, height=1.0):
        super().__init__(config)
        self.height = height

    def advantage(self, batch):
        return self.height * batch.mask

    def metrics(self, batch):
        return {"seen": float(batch.ref_logp is not None)}
"""


def tutorial():
    """The class and the study as README prints them."""
    text = (ROOT / "README.md").read_text().partition("## Your own algorithm")[2]
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    study = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    return source, yaml.safe_load(study)


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A folder in which the tutorial was followed to the letter; its study."""
    _, study = tutorial()
    (path,) = {entry["objective"] for entry in study["algorithms"].values()}
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    return study


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a file and returns the configuration of its algorithm."""
    monkeypatch.chdir(tmp_path)

    def make(source=CONSTANT, **fields):
        Path("own.py").write_text(source)
        study = load_study({"algorithms": {"own": {"objective": "own.py", **fields}}})
        return study.algorithms["own"]

    return make


def leave_one_out(rewards, groups):
    """r_i - mean of the others of the group, written out."""
    found = []
    for i, (r, g) in enumerate(zip(rewards, groups, strict=True)):
        others = [x for j, x in enumerate(rewards) if j != i and groups[j] == g]
        found.append(r - sum(others) / len(others))
    return torch.tensor(found)


def test_the_class_of_the_tutorial_is_that_of_the_file():
    """README leaves out the docstring and imports; nothing comes after the class."""
    file = (ROOT / "examples/rloo.py").read_text()
    head, start, rest = file.partition("class ")
    assert tutorial()[0] == start + rest
    assert {line.split()[0] for line in head.splitlines() if line} == {'"""RLOO:', "import", "from"}
    assert len(file.splitlines()) <= 30


def test_the_tutorial_trains_a_cell(followed, tiny_study):
    study = tiny_study(algorithms=followed["algorithms"], grid={"algorithms": ["my_rloo"]})
    (cell,) = study.cells()
    metrics = pd.read_csv(train_cell(study, cell, quiet=True) / "metrics.csv")
    assert len(metrics) == study.train.steps
    assert metrics[["loss", "grad_norm", "reward"]].notna().all(axis=None)
    assert (metrics["grad_norm"] > 0).any()


def test_the_advantage_of_the_tutorial_is_the_closed_form(followed):
    algorithm = make_algorithm(load_study(followed).algorithms["my_rloo"])
    rewards, groups = [1.0, 0.0, 0.5, 0.25, 1.0, 0.0], [7, 3, 7, 3, 3, 7]
    mask = torch.tensor([[1.0, 1, 0]] * 5 + [[1.0, 1, 1]])
    batch = make_batch(rewards, torch.tensor(groups), mask)
    advantage = algorithm.advantage(batch)
    expected = leave_one_out(rewards, groups)
    assert torch.allclose(advantage, expected[:, None] * mask, atol=1e-6)

    logp = torch.randn(6, 3).requires_grad_()
    batch = batch.with_(advantage=advantage)
    algorithm.loss(logp, batch, Share(1.0, 1.0)).backward()
    assert torch.allclose(logp.grad, -expected[:, None] * mask / 6, atol=1e-7)
    # two micro-batches add up to the same loss
    parts = [algorithm.loss(logp[s], batch.rows(s), Share(0.5, 0)) for s in (slice(3), slice(3, 6))]
    assert torch.allclose(sum(parts), algorithm.loss(logp, batch, Share(1.0, 1.0)))


def test_a_changed_file_changes_the_digests_of_its_cells_alone(own, tmp_path):
    own()
    data = {"algorithms": {"own": {"objective": "own.py"}}}
    before = load_study(data)
    Path("own.py").write_text(CONSTANT.replace("1.0", "2.0"))
    after = load_study(data)
    for name in ("own", "vimpo", "grpo"):
        cell = Cell(name, "xs", "0", 1)
        assert (before.cell_digest(cell) != after.cell_digest(cell)) == (name == "own")


def test_a_resolved_study_keeps_its_digest_and_refuses_another_file(own):
    own()
    data = {"algorithms": {"own": {"objective": "own.py"}}, "grid": {"algorithms": ["own"]}}
    resolved = yaml.safe_load(dump_yaml(load_study(data)))
    Path("own.py").write_text(CONSTANT + "# changed\n")
    later = load_study(resolved)
    assert later.algorithms["own"].sha256 == resolved["algorithms"]["own"]["sha256"]
    for refused in (
        lambda: check_before_running(later),
        lambda: make_algorithm(later.algorithms["own"]),
    ):
        with pytest.raises(ConfigError, match=r"'own\.py' has changed since this study"):
            refused()
    Path("own.py").unlink()  # figures of published tables need no file
    assert load_study(resolved) == later


def test_what_runs_is_the_content_and_not_an_older_cache(own):
    for height in ("1.0", "3.0"):  # of equal length, within one tick of the file's clock
        config = own(CONSTANT.replace("1.0", height))
        batch = make_batch([1.0, 0.0], torch.tensor([0, 0]), torch.ones(2, 2))
        assert float(make_algorithm(config).advantage(batch)[0, 0]) == float(height)
    assert not Path("__pycache__").exists()


def test_settings_are_keyword_arguments_and_a_reference_is_given(own, tiny_study):
    config = own(reference=True, settings={"height": 2.5})
    assert make_algorithm(config).height == 2.5
    entry = {"objective": "own.py", "reference": True}
    study = tiny_study(algorithms={"own": entry}, grid={"algorithms": ["own"]})
    folder = train_cell(study, study.cells()[0], quiet=True)
    assert (pd.read_csv(folder / "metrics.csv")["seen"] == 1).all()
    assert config.needs_reference
    assert not config.model_copy(update={"reference": False}).needs_reference


GRADED = """
from vimpo.algorithms import PolicyGradient

class Graded(PolicyGradient):
    needs_steps = needs_draws = True

    def advantage(self, batch):
        assert batch.steps.shape == batch.draws.shape == batch.mask.shape
        assert self.setup.max_response == 10
        return (batch.grades - 0.5) * batch.mask
"""


def test_a_file_may_ask_for_grades_of_steps(own, tiny_study, monkeypatch):
    own(GRADED)
    entry = {"own": {"objective": "own.py"}}
    study = tiny_study(algorithms=entry, grid={"algorithms": ["own"]})
    row = pd.read_csv(train_cell(study, study.cells()[0], quiet=True) / "metrics.csv").iloc[0]
    assert row["grad_norm"] > 0
    data = {"kind": "dataset", "datasets": [{"path": "some/data"}]}
    grid = {"algorithms": ["own"], "sizes": ["real"]}
    sizes = {"real": {"path": "some/model"}}
    real = load_study({"algorithms": entry, "task": data, "grid": grid, "sizes": sizes})
    with pytest.raises(ConfigError, match=r"algorithms\.own: reads grades of steps"):
        check_inputs(real)


def documented():
    """The example of docs/own-algorithm.md: its class and its study."""
    text = (ROOT / "docs/own-algorithm.md").read_text().partition("## Values of states")[2]
    source, study = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("python", "yaml")
    )
    return source, yaml.safe_load(study)


def test_a_file_may_ask_for_values_of_states(tiny_study, tmp_path, monkeypatch):
    source, study = documented()
    monkeypatch.chdir(tmp_path)
    ((name, entry),) = study["algorithms"].items()
    Path(entry["objective"]).write_text(source)
    study = tiny_study(**study, grid={"algorithms": [name]})
    row = pd.read_csv(train_cell(study, study.cells()[0], quiet=True) / "metrics.csv").iloc[0]
    assert row["grad_norm"] > 0
    assert row["sampled_tokens"] > row["response_length"] * study.rollouts_per_step
    # what each segment changed, and a tenth of that before the last
    algorithm = make_algorithm(study.algorithms[name])
    mask = torch.ones(1, 4)
    batch = make_batch([1.0], torch.tensor([0]), mask).with_(
        state_values=torch.tensor([[0.5, 0.5, 0.25, 0.25]]),
        segments=torch.tensor([[0, 0, 1, 1]]),
    )
    assert algorithm.advantage(batch)[0].tolist() == pytest.approx([-0.025, -0.025, 0.75, 0.75])


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("x = 1\n", {}, "defines 0 subclasses of PolicyGradient; allowed: one"),
        (CONSTANT + CONSTANT.replace("Constant", "B"), {}, "defines 2 subclasses"),
        ("class A(:\n", {}, "cannot be run: invalid syntax"),
        ("import no_such_module\n", {}, "cannot be run: No module named 'no_such_module'"),
        (CONSTANT + "    needs_critic = True\n", {}, "needs a critic; allowed: `objective: ppo`"),
        (
            CONSTANT + "    needs_continuations = True\n",
            {},
            "needs continuations, and `continuations` is null; allowed: for example",
        ),
        (CONSTANT, {"settings": {"depth": 1}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_file_without_an_algorithm_is_one_error_before_anything_runs(
    own, tmp_path, capsys, source, fields, message
):
    own(source, **fields)
    study = merged(TINY, {"grid": {"algorithms": ["own"]}, "results": str(tmp_path)})
    study["algorithms"] = {"own": {"objective": "own.py", **fields}}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    for command in (["check"], ["train", "--algorithm=own", "--size=tiny", "--noise=rollout-0.25"]):
        assert main([*command, "--config", "study.yaml"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"objective": "none.py"}, "'none.py' is not a file; allowed: a Python file"),
        ({"objective": "none.py", "beta": 1}, "beta: unknown key"),
        ({"objective": "own.txt"}, "'FILE.py'"),
    ],
)
def test_a_wrong_entry_is_named(own, entry, message):
    with pytest.raises(ConfigError) as caught:
        load_study({"algorithms": {"own": entry}})
    assert message in str(caught.value)
    assert str(caught.value).startswith("algorithms.own")


@pytest.mark.slow
def test_report_and_figures_show_it_under_a_name_and_colour_of_its_own(followed, tmp_path):
    grid = {"algorithms": ["vimpo", "grpo", "my_rloo"], "sizes": ["xs"], "noise": [0, 0.25]}
    study = small_study(tmp_path, algorithms=followed["algorithms"], grid=grid)
    write_results(study)
    aggregate(study, study.folder / "tables")
    frames = read_tables(study.folder / "tables", PUBLISHED_TABLES)
    write_figures(study.folder / "figures")
    looks = styles(frames["summary"]["algorithm"])
    draw_figures(frames, ["accuracy_vs_noise"], looks, study.folder / "figures")
    write_report(
        study, study.folder / "tables", study.folder / "figures", study.folder / "report.html"
    )
    report = (study.folder / "report.md").read_text()
    assert re.search(r"^\| *my_rloo", report, re.MULTILINE)
    figure = (study.folder / "figures/accuracy_vs_noise.svg").read_text().lower()
    assert SPARE[0][0].lower() in figure


def test_every_unknown_algorithm_looks_different():
    names = [*STYLES, *(f"own{i}" for i in range(12))]
    looks = styles(names)
    assert len({(s.colour, s.marker) for s in looks.values()}) == len(names)
    assert looks["own3"].label == "own3"


def test_the_terminal_anchor_is_vimpos_value_loss_without_its_kl():
    study = {"objective": str(ROOT / "examples/terminal_anchor.py"), "reference": True}
    own = load_study({"algorithms": {"own": study | {"settings": {"beta": 0.3}}}}).algorithms["own"]
    algorithm, torch_seed = make_algorithm(own), torch.manual_seed(0)
    rewards, groups = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]])
    logp, ref = torch.randn(2, 4, 3, generator=torch_seed)
    batch = make_batch(rewards.tolist(), groups, mask).with_(ref_logp=ref)
    batch = batch.with_(advantage=algorithm.advantage(batch))
    expected = value_loss(logp, ref, torch.zeros(4, 3), rewards, torch.full((4,), 0.5), mask, 0.3)
    assert torch.allclose(algorithm.loss(logp, batch, Share(1.0, 1.0)), expected)
    parts = [algorithm.loss(logp[s], batch.rows(s), Share(0.5, 0)) for s in (slice(2), slice(2, 4))]
    assert torch.allclose(sum(parts), expected)
