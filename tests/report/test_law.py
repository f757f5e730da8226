"""What is drawn and said of the capacity law."""

import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
from made_law import made_points

from vimpo.analysis import law
from vimpo.analysis.law import Finding, Remains
from vimpo.cli import main
from vimpo.report import published
from vimpo.report.figures.law import capacity_law, remainder_text
from vimpo.report.law import law_content, write_law
from vimpo.report.readme import END, START
from vimpo.storage.tables import read_table

YARDSTICK = Path(__file__).parents[2] / "results/published/yardstick"
SHOWN, NOT_SHOWN, NOT_KNOWN = Remains.SHOWN, Remains.NOT_SHOWN, Remains.NOT_KNOWN


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tables and figure of made studies in which length matters; without any warning."""
    folder = tmp_path_factory.mktemp("law")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_law(made_points(b=-0.6, noise=0.05).to_dict("records"), folder)
    return folder


@pytest.mark.parametrize(
    ("size", "length", "finding"),
    [
        (SHOWN, NOT_SHOWN, Finding.SIZE),
        (NOT_KNOWN, SHOWN, Finding.LENGTH),
        (SHOWN, SHOWN, Finding.BOTH),
        (NOT_SHOWN, NOT_SHOWN, Finding.NEITHER),
        (NOT_SHOWN, NOT_KNOWN, Finding.NOT_KNOWN),
        (NOT_KNOWN, NOT_KNOWN, Finding.NOT_KNOWN),
    ],
)
def test_two_remainders_make_one_finding(size, length, finding):
    assert Finding.of(str(size), str(length)) is finding


def test_tables_and_figure_are_written(written):
    assert sorted(path.name for path in written.iterdir()) == [
        *("capacity_law.csv", "capacity_law.png", "capacity_law.svg", "capacity_remainder.csv")
    ]
    points, remainder = (read_table(written, name) for name in (law.POINTS, law.REMAINDER))
    assert len(points) == 9 * 4 * 3 * 3
    assert set(remainder["measure"]) == set(law.MEASURES)
    found = law_content(written)
    assert found["found"] == {"explained variance": "length", "rank correlation": "length"}
    assert (found["bases"], found["runs"]) == (9, 108)


def test_what_is_drawn_and_in_no_fit_is_not_counted(tmp_path):
    points = made_points(b=-0.6, noise=0.05)
    own = points[points["base"] == points["base"].iloc[0]]
    alone = own.assign(study="other", base="other/model", family="vimpo, a pretrained model")
    write_law(pd.concat([points, alone]).to_dict("records"), tmp_path)
    found = law_content(tmp_path)
    assert (found["bases"], found["runs"]) == (9, 108)
    assert "other" not in found["studies"]


def test_the_figure_shows_every_unit_and_says_what_remains(written):
    points, remainder = (read_table(written, name) for name in (law.POINTS, law.REMAINDER))
    figure = capacity_law(points, remainder)
    for axes, term in zip(figure.axes, [law.SIZE, law.LENGTH] * 2, strict=True):
        assert sum(len(part.get_segments()) for part in axes.collections) == 36
        assert axes.get_title().startswith(f"remainder per tenfold {term}: ")
    row = remainder.query("measure == 'rank_correlation' and term == 'length'").iloc[0]
    low, high = row["low"], row["high"]
    said = remainder_text(remainder[remainder["measure"] == law.ORDER], law.LENGTH)
    assert f"{row['mean']:+.2f} ({low:+.2f} to {high:+.2f})\n(9 base policies, 36 units)" in said
    assert len(figure.axes[0].get_legend().get_texts()) == 3


def test_runs_below_the_floor_are_marked(written):
    points = read_table(written, law.POINTS)
    worst = points["measure"].eq(law.ACCURACY) & points["seed"].eq(1) & points["capacity"].eq(2)
    points.loc[worst, "value"] = -50.0
    below = points[points["measure"].eq(law.ACCURACY) & points["value"].lt(-1)]
    count = below.groupby(["base", "capacity"]).ngroups
    rows = [row for name in law.MEASURES for row in law.fit(points, name)]
    figure = capacity_law(points, pd.DataFrame(rows))
    marked = [
        sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == 7)
        for axes in figure.axes
    ]
    assert marked == [count, count, 0, 0]
    assert count >= 9
    assert "counted as -1" in figure.get_supxlabel()


def test_the_command_prints_and_writes(tmp_path, capsys):
    assert main(["law", str(YARDSTICK), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "all responses are of one length, n = 1" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "out/capacity_law.png")
    assert main(["law", str(tmp_path)]) == 2
    assert "law: " in capsys.readouterr().err


def test_drawing_published_studies_makes_the_law_and_its_section(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "draw", lambda *a: None)
    monkeypatch.setattr(published, "write_report", lambda *a, **k: None)
    folder = tmp_path / "results/published"
    shutil.copytree(YARDSTICK, folder / "yardstick")
    shutil.copytree(YARDSTICK.parent / "first_study", folder / "first_study")
    page = tmp_path / "README.md"
    page.write_text(f"{START.format('law')}\n{END.format('law')}\n")
    assert folder / "capacity_law/capacity_law.csv" in published.draw_published(folder)
    text = " ".join(page.read_text().split())
    assert (
        "At equal capacity, it is not known whether size or length matters, by explained variance "
        "and by rank correlation (n = 1 base policy, 25 runs; study yardstick)."
    ) in text
    assert "(results/published/capacity_law/capacity_law.png)" in text
    assert "| rank correlation | n/a (all base policies are of one size, n = 1) |" in text
    assert "| 0.02 | -1.29 (n = 1, no interval: one base policy has no spread) |" in text
