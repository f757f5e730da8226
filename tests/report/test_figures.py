"""Figures: all of them, repeatable, one colour an algorithm, nothing outside or overlapping."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_results import large_study, seal_again, small_study, write_figures, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.config import Cell, ConfigError, load_study
from vimpo.report import figures as plots
from vimpo.report.figures.registry import FIGURES, SECTIONS, FigureEntry
from vimpo.report.figures.style import RC, dodged
from vimpo.report.labels import SPARE, STYLES, count_note, ordered_noise, styles
from vimpo.report.page import write_report
from vimpo.storage.tables import read_table

ROOT = Path(__file__).parents[2]
# A figure more, said in full: this is all that adding one takes, once its function is there.
MINE = {
    "draw": "cost:memory_projection",
    "tables": ("memory_projection",),
    "category": "Mine",
    "section": "precision",
    "title": "My figure",
    "caption": """
        What I drew of study
        {{ study.study }}.
    """,
    "alt": "Lines of {{ sizes | join(' and ') }}.",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("small"))
    write_results(study)
    shutil.rmtree(study.run_folder(Cell("grpo", "xs", "0", 1)))
    aggregate(study, study.folder / "tables")
    return study.folder / "tables"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["vimpo", "grpo"])
def test_a_study_of_one_algorithm_is_drawn_though_nothing_is_compared(
    tmp_path, algorithm, unprinted
):
    study = small_study(tmp_path, grid={"algorithms": [algorithm], "sizes": ["xs"], "noise": [0]})
    write_results(study)
    aggregate(study, study.folder / "tables")
    paths = plots.draw(study.folder / "tables", study.folder / "figures")
    assert len(paths) == 2 * len(FIGURES)


def test_known_algorithms_keep_their_style_and_all_differ():
    looks = styles(["base", *STYLES, "mine", "yours"])
    assert looks["vimpo"] == STYLES["vimpo"] == styles(["vimpo"])["vimpo"]
    for field in ("colour", "marker"):
        values = [getattr(style, field) for style in looks.values()]
        assert len(set(values)) == len(values)
    fixed = {style.colour for style in STYLES.values()}
    assert not fixed & {colour for colour, _, _ in SPARE}


def test_n_is_printed_with_its_exceptions(small):
    summary = read_table(small, "summary")
    looks = styles(summary["algorithm"])
    part = summary[(summary["size"] == "xs") & (summary["noise"] == "0")]
    assert count_note(part, looks) == "n = 2 seeds (GRPO 1)"
    assert count_note(part.iloc[:0], looks) == "no run"
    lines = summary[summary["size"] == "xs"]  # both noise levels, of which GRPO lacks a run in one
    assert count_note(lines, looks, "run") == "n = 2 runs (GRPO 1–2)"
    assert count_note(part[part["algorithm"] == "grpo"], looks) == "n = 1 seed"
    many = pd.DataFrame({"algorithm": list(STYLES)[:9], "n": [5] * 5 + [3] * 3 + [2]})
    assert count_note(many, STYLES) == "n = 2–5 seeds"


def test_small_pieces():
    assert ordered_noise(["rollout-0.1", "0.25", "0"]) == ["0", "0.25", "rollout-0.1"]
    offsets = dodged(3, [0.0, 0.1, 0.4])
    assert offsets.sum() == pytest.approx(0)
    assert offsets[-1] - offsets[0] < 0.5 * 0.1


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"provenance\.csv' is missing"):
        plots.draw(tmp_path, tmp_path)
    aggregate(small_study(tmp_path), tmp_path / "tables")
    (tmp_path / "tables/accuracy.csv").unlink()
    with pytest.raises(ConfigError, match=r"accuracy\.csv' is missing"):
        plots.draw(tmp_path / "tables", tmp_path)


def test_empty_tables_give_figures_that_say_so(tmp_path, unprinted):
    study = small_study(tmp_path)
    aggregate(study, tmp_path / "tables")
    assert len(plots.draw(tmp_path / "tables", tmp_path / "figures")) == 2 * len(FIGURES)


def test_a_figure_is_one_entry(small, tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "mine", FigureEntry(**MINE))
    tables = small
    study = load_study(tables.parent / "config.yaml")
    write_figures(tmp_path)
    frames = {name: read_table(tables, name) for name in MINE["tables"]}
    looks = styles(read_table(tables, "summary")["algorithm"])
    assert plots.draw_figures(frames, ["mine"], looks, tmp_path) == [
        tmp_path / "mine.svg",
        tmp_path / "mine.png",
    ]
    write_report(study, tables, tmp_path, tmp_path / "report.html")
    html, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert html.count('<figure id="mine"') == 1
    assert 'alt="Lines of xs and s."' in html
    assert "<strong>My figure.</strong> What I drew of study fake.</figcaption>" in html
    assert (
        "![Lines of xs and s.](mine.png)\n\n**My figure.** What I drew of study fake." in markdown
    )
    # after the others of its section, and nowhere else
    order = re.findall(r"!\[[^]]+\]\((\w+)\.png\)", markdown)
    assert order == re.findall(r'<figure id="(\w+)"', html)
    assert order[order.index("mine") - 1] == "precision"


def test_the_workflow_draws_what_the_registry_names(tmp_path):
    """Snakemake runs in a process of its own, where the entry is there from the start."""
    (tmp_path / "sitecustomize.py").write_text(
        "from vimpo.report.figures.registry import FIGURES, FigureEntry\n"
        f"FIGURES['mine'] = FigureEntry(**{MINE!r})\n"
    )
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", str(ROOT / "workflow/config/quick.yaml"), "--nolock", "--dry-run"]
    command += ["--directory", str(tmp_path), "--cores", "1"]
    result = subprocess.run(
        [*command, "results/quick/figures/mine.svg", "results/quick/figures/mine.png"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_unknown_figure_or_section_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="nothing"):
        plots.draw_figures({}, ["nothing"], {}, tmp_path)
    with pytest.raises(ValueError, match="section: 'nowhere' is not one of summary, headroom"):
        FigureEntry(**MINE | {"section": "nowhere"})


def test_every_section_of_the_registry_is_in_the_report():
    skeleton = (ROOT / "report/report.j2").read_text()
    assert set(re.findall(r'drawn\("(\w+)"', skeleton)) == set(SECTIONS)
    # figures that stand before a table, and those that follow it, are all of the section
    for section in SECTIONS:
        slots = re.findall(rf'drawn\("{section}"(.*?)\)', skeleton)
        assert slots in ([""], [", last=1", ", first=1"]), section


def test_the_registry_is_read_without_anything_that_draws():
    code = "import sys, vimpo.report.figures.registry; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "pandas", "numpy", "torch"} & set(result.stdout.split())


def boxes(figure):
    """Boxes of panels with their decorations, and of the text of each axis."""
    renderer = figure.canvas.get_renderer()
    panels = [axes.get_tightbbox(renderer) for axes in figure.axes]
    labels = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            labels.append([t.get_window_extent(renderer) for t in ticks])
    return panels, labels


@pytest.fixture(scope="module")
def widest(shared):
    """Tables of the widest grid; curves are left out, because they are slow and like the rest."""

    def fill(folder):
        study = large_study(folder)
        # figures of the probes show clean rewards only
        write_results(study, unprobed={cell.noise for cell in study.cells()} - {"0"})
        for path in study.folder.glob("runs/**/metrics.csv"):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
            seal_again(path.parent)
        aggregate(study, study.folder / "tables")

    return large_study(shared("widest", fill)).folder / "tables"


@pytest.fixture(scope="module")
def narrowest(tmp_path_factory):
    """Tables of one size, with as many algorithms and noise of two modes at different levels."""
    names = ["vimpo", "ppo", "grpo", "vimpo_value_only", "grpo_naive"]
    blocks = [
        {"algorithms": names, "sizes": ["xs"], "noise": noise, "noise_mode": mode}
        for mode, noise in (("group", [0, 0.1, 0.4]), ("rollout", [0.25]))
    ]
    study = small_study(tmp_path_factory.mktemp("narrowest"), grid=blocks)
    write_results(study)
    aggregate(study, study.folder / "tables")
    return study.folder / "tables"


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """Tables of three sizes, with variants and noise at one of them, so no mean over sizes."""
    main, variants = ["vimpo", "ppo", "grpo"], ["vimpo_value_only", "vimpo_k3", "grpo_naive"]
    blocks = [
        {"algorithms": main, "sizes": ["xs", "s", "m"], "noise": [0]},
        {"algorithms": main + variants, "sizes": ["xs"], "noise": [0, 0.25]},
    ]
    study = small_study(
        tmp_path_factory.mktemp("ablated"),
        grid=blocks,
        algorithms={"vimpo_k3": {"objective": "vimpo", "kl_estimator": "k3"}},
    )
    write_results(study)
    aggregate(study, study.folder / "tables")
    return study.folder / "tables"


def test_what_has_no_mean_over_sizes_is_not_counted_there(ablated):
    summary = read_table(ablated, "summary")
    figure = FIGURES["accuracy_vs_noise"].drawer()(summary, styles(summary["algorithm"]))
    assert figure.axes[0].get_title().endswith("n = 2 seeds")
    assert figure.axes[-1].get_title().endswith("n = 6 runs")


def test_panels_that_share_an_axis_have_the_noise_levels_of_all(narrowest):
    summary = read_table(narrowest, "summary")
    figure = FIGURES["accuracy_vs_noise"].drawer()(summary, styles(summary["algorithm"]))
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert axes.get_xticks().tolist() == [0, 0.1, 0.25, 0.4]


@pytest.mark.parametrize(
    "grid",
    [
        "small",
        *(pytest.param(g, marks=pytest.mark.slow) for g in ("widest", "narrowest", "ablated")),
    ],
)
@pytest.mark.parametrize("name", [name for name in FIGURES if name != "learning_curves"])
def test_nothing_overlaps_or_leaves_the_figure(grid, name, request):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.style import context

    tables = request.getfixturevalue(grid)
    looks = styles(read_table(tables, "summary")["algorithm"])
    with context(["default", RC]):
        entry = FIGURES[name]
        figure = entry.drawer()(*(read_table(tables, source) for source in entry.tables), looks)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        panels, labels = boxes(figure)
        panels += [legend.get_window_extent() for legend in figure.legends]
    for a, b in itertools.combinations(panels, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 2, (a, b)
    for row in labels:
        for a, b in itertools.pairwise(row):
            rotated = name in ("accuracy_by_benchmark", "memory_projection")
            assert rotated or not a.overlaps(b)
    for box in panels:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
