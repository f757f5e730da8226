"""The README's sections of results: made from published tables, and not stale."""

import re
import shutil
from pathlib import Path

import pytest

from vimpo.report import published
from vimpo.report.readme import END, SECTIONS, START, STUDIES, rewritten, wrapped, write_readme
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.tables import read_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EMPTY = "\n".join(
    ["before", *(START.format(s) + "\nold\n" + END.format(s) for s in SECTIONS), "end"]
)


def studies(root):
    return published.published(root / "results/published")


def section(text, name):
    return text.partition(START.format(name))[2].partition(END.format(name))[0]


@pytest.fixture
def copy(tmp_path):
    """A repository of nothing but the published quick study and a README."""
    for part in ("tables", "config.yaml", SUMS):
        source, target = (r / "results/published/quick" / part for r in (ROOT, tmp_path))
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (tmp_path / "README.md").write_text(EMPTY)
    return tmp_path


def test_the_sections_say_what_the_published_tables_say():
    made = rewritten(README, studies(ROOT), ROOT)
    assert made == README, "run: snakemake --cores 1 figures"


def test_the_first_screen_holds_figure_table_and_both_commands():
    first = README.partition("\n## ")[0]
    for name in STUDIES:
        if (ROOT / "results/published" / name).is_dir():
            assert f"](results/published/{name}/figures/headline.png)" in first
            break
    for command in ("pip install -e . && snakemake --cores all", "snakemake --cores 1 figures"):
        assert command in first
    assert first.count("\n| C") >= 6
    for link in re.findall(r"\]\((results/[^)#]+)", README):
        assert (ROOT / link).is_file(), link
    # two screens of some fifty lines, of which the figure takes twenty
    assert len(first.splitlines()) < 80


def test_only_what_stands_between_the_marks_is_replaced(copy):
    path = write_readme(studies(copy), copy)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nend")
    assert "\nold\n" not in text
    assert "| C1 VIMPO matches GRPO | " in section(text, "headline")
    assert "](results/published/quick/figures/headline.png)" in section(text, "headline")
    assert "35.9" in section(text, "paper")
    assert rewritten(text, studies(copy), copy) == text


def test_numbers_come_from_the_tables(copy):
    tables = copy / "results/published/quick/tables"
    before = section(rewritten(EMPTY, studies(copy), copy), "paper")
    summary = read_table(tables, "summary").query("benchmark == 'mean' and metric == 'sampled'")
    row = summary[(summary.algorithm == "grpo") & (summary["size"] == "all")].iloc[0]
    assert f"{100 * row['mean']:.1f} ([" in before
    path = tables / "summary.csv"
    path.write_text(path.read_text().replace(f",{row['mean']:.10g},", ",0.123,"))
    seal(tables.parent / SUMS, ["tables"])
    assert "| 12.3 ([" in section(rewritten(EMPTY, studies(copy), copy), "paper")


def test_the_larger_study_speaks_where_it_is_published(copy):
    folder = copy / "results/published"
    shutil.copytree(folder / "quick", folder / "study")
    made = rewritten(EMPTY, studies(copy), copy)
    assert "results/published/study/figures/headline.png" in section(made, "headline")
    assert "published/quick" not in section(made, "headline") + section(made, "paper")
    other = section(made, "others")
    assert "[Study “quick”](results/published/quick/report.md)" in other
    assert "24 of 24 runs complete" in " ".join(other.split())
    assert "*Is VIMPO better than GRPO here?* Open." in " ".join(other.split())
    assert "published/study" not in other


def test_a_readme_without_marks_or_studies_stays_as_it_is(copy):
    assert rewritten("mine\n", studies(copy), copy) == "mine\n"
    assert rewritten(EMPTY, [], copy) == EMPTY
    (copy / "README.md").unlink()
    assert write_readme(studies(copy), copy) is None
    assert not (copy / "README.md").exists()


def test_drawing_published_studies_rewrites_the_readme(copy, monkeypatch):
    monkeypatch.setattr(published, "draw", lambda *a: None)
    monkeypatch.setattr(published, "write_report", lambda *a, **k: None)
    folder = copy / "results/published"
    assert published.draw_published(folder) == [folder / "quick/report.html", copy / "README.md"]
    assert "| C1 VIMPO" in (copy / "README.md").read_text()


def test_paragraphs_are_wrapped_and_tables_are_not():
    long = "word " * 40
    lines = wrapped(f"{long}\n\n\n\n| {long}|\n").splitlines()
    assert max(map(len, lines[:-1])) <= 100
    assert lines[-2:] == ["", f"| {long}|"]
