"""A study's own hypotheses in the report: the tutorial of docs/hypotheses.md as readers run it."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fake_results import write_figures, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.config import ConfigError, load_study
from vimpo.report.findings import findings
from vimpo.report.page import template_environment, write_report
from vimpo.report.readme import END, START, rewritten
from vimpo.storage.columns import PUBLISHED_TABLES
from vimpo.storage.tables import check_tables, read_table, read_tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/hypotheses.md").read_text()
(TUTORIAL,) = re.findall(r"```yaml\n(study:.*?)```", PAGE, re.DOTALL)
QUOTED = [
    " ".join(line.removeprefix(">").strip() for line in quote.splitlines())
    for quote in re.findall(r"(?:^> \S.*\n)+", PAGE, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The finished study of the tutorial, on made-up runs."""
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)  # its algorithm is a path of the repository
    root = tmp_path_factory.mktemp("asked")
    quick = {"resamples": 200}  # of other tables
    study = load_study(yaml.safe_load(TUTORIAL) | {"results": str(root), "statistics": quick})
    write_results(study)
    aggregate(study, study.folder / "tables")
    write_figures(study.folder / "figures")
    paths = (study.folder / "tables", study.folder / "figures", study.folder / "report.html")
    write_report(study, *paths)
    patch.undo()
    return study.folder


def test_the_tutorial_gives_each_hypothesis_its_verdict(folder):
    rows = read_table(folder / "tables", "claims").set_index("part")
    rows = rows[rows.kind == "test"]
    assert list(rows.index) == ["reaches.accuracy", "faster.area"]
    assert list(rows.verdict) == ["supported", "refuted"]
    assert list(rows.statement) == re.findall(r"question: (.*)", TUTORIAL)
    assert rows.loc["reaches.accuracy"].p_holm == pytest.approx(
        max(2 * rows.p.min(), rows.p.max()), rel=1e-6
    )
    hypotheses = TUTORIAL.partition("hypotheses:\n")[2].split("  - ")[1:]
    assert [len(text.splitlines()) for text in hypotheses] == [6, 6]


def test_the_report_opens_with_the_sentences_that_the_page_shows(folder):
    assert len(QUOTED) == 2
    report = (folder / "report.md").read_text()
    first = re.findall(r"^- (\*\*.*)$", report, re.MULTILINE)
    assert first == QUOTED
    html = (folder / "report.html").read_text()
    assert "reaches  Does RLOO reach GRPO&#39;s accuracy?" in html
    assert "Of 2 claims, 1 is supported, 1 is refuted, 0 are inconclusive." in report
    assert "Which algorithms turn the same rewards into better credit" in report
    assert "Does it match critic-based PPO" not in report


def test_the_readme_would_ask_in_the_same_words(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = tmp_path / "quick"
    study.symlink_to(folder)
    page = tmp_path / "README.md"
    text = "\n".join(START.format(s) + "\n" + END.format(s) for s in ("headline", "studies"))
    made = " ".join(rewritten({page: text}, [study])[page].split())
    assert "| Does RLOO reach GRPO's accuracy? | **supported** | -1.0 points of accuracy (" in made
    assert "- *Does RLOO learn faster than VIMPO?* No." in made


@pytest.mark.parametrize("changed", [[], None])
def test_tables_that_answer_other_hypotheses_are_refused(folder, changed, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = yaml.safe_load(TUTORIAL)
    frames = read_tables(folder / "tables", PUBLISHED_TABLES)
    if changed is None:  # tables that were made before there were any
        known = frames["provenance"]
        frames["provenance"] = known[known["item"] != "study.hypotheses"]
    more = {"statistics": {"resamples": 200}} | ({} if changed is None else {"hypotheses": changed})
    with pytest.raises(ConfigError, match="tables: hypotheses: other settings than those"):
        check_tables(load_study(asked | more), frames)


def said(rows):
    template = template_environment().from_string(
        '{% import "findings.j2" as said with context %}{{ said.short(f) }} {{ said.body(f) }}'
    )
    return template.render(f=findings(rows)[0], part_count=2)


def test_units_are_said_with_each_number(folder):
    rows = read_table(folder / "tables", "claims")[:1]
    number = {"effect": 0.5, "low": 0.25, "high": 1.5, "threshold": 1.0}
    for unit, role, text in (
        ("ratio", "difference", "50 % (25 to 150 %; 5 pairs); threshold: above 100 %."),
        ("steps", "difference", "+0.5 steps (+0.2 to +1.5; 5 pairs); threshold: above 1.0 steps."),
        ("nats", "level", "0.50 nats (0.25 to 1.50; 5 pairs); threshold: above 1.00 nats."),
        ("", "level", "0.50 (0.25 to 1.50; 5 pairs); threshold: above 1.00."),
        ("share", "level", "50.0 points (25.0 to 150.0; 5 pairs); threshold: above 100.0 points."),
    ):
        body = said(rows.assign(unit=unit, role=role, **number))
        assert body.endswith(f": {text}"), body


def test_sizes_and_runs_that_got_there_are_said_after_it(folder):
    row = read_table(folder / "tables", "claims")[:1]
    fact = row.assign(kind="fact", verdict="", effect=0.02, low=0.01, high=0.03)
    sizes = [
        fact.assign(part=f"reaches.accuracy.{s}", role="by_size", statement=f"size {s}")
        for s in ("xs", "s")
    ]
    reached = fact.assign(
        part="reaches.reached.rloo", role="reached", rival="", effect=0.6, n=5, counted="runs"
    )
    body = said(pd.concat([row, *sizes, reached]))
    assert (
        " By size: size xs +2.0 points (+1.0 to +3.0; 5 pairs), size s +2.0 points (+1.0 to +3.0; "
        "5 pairs). Runs that reach it: RLOO 3 of 5." in body
    )
