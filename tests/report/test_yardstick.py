"""Headroom, frontier and training on the paper's axes: figures draw, and the report says, what the
tables hold."""

import numpy as np
import pandas as pd
import pytest
from fake_results import seal_again, small_study, write_figures, write_results
from matplotlib.colors import to_rgb

from vimpo.analysis.aggregate import aggregate
from vimpo.report.figures.registry import FIGURES
from vimpo.report.findings import Critic
from vimpo.report.glance import fullest
from vimpo.report.labels import STYLES, styles
from vimpo.report.page import template_environment, write_report
from vimpo.report.yardstick import headroom_content, ignorant_critics, matched_said
from vimpo.storage.codes import Reason
from vimpo.storage.tables import empty_table, read_table

NAMES = ["vimpo", "ppo", "grpo", "oracle", "oracle_shuffled"]
SPEED = {"vimpo": 0.5, "ppo": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two noise levels at one size; at the second the oracle is no better than GRPO."""
    grid = {"algorithms": NAMES, "sizes": ["xs"], "noise": [0, 0.25], "seeds": [1, 2, 3]}
    study = small_study(tmp_path_factory.mktemp("yardstick"), grid=grid, train={"steps": 40})
    write_results(study, unprobed=("0", "0.25"))
    for cell in study.cells():
        path = study.run_folder(cell) / "metrics.csv"
        rows = pd.read_csv(path)
        distance = SPEED.get(cell.algorithm, 1.5) * 0.1 * rows.step
        rows["reference_kl"] = np.where(rows.step % 5 == 0, distance, np.nan)
        rows["validation_accuracy.greedy"] = np.where(rows.step % 10 == 0, rows.accuracy, np.nan)
        if cell.algorithm == "grpo":
            rows = rows.drop(columns="reference_kl") if cell.noise != "0" else rows
        if cell.algorithm == "oracle" and cell.noise != "0":
            rows["accuracy"] -= 0.1 * cell.seed
        rows.to_csv(path, index=False)
        seal_again(path.parent)
    aggregate(study, study.folder / "tables")
    write_report(study, study.folder / "tables", write_figures(study.folder / "figures"),
                 study.folder / "report.html")  # fmt: skip
    return study.folder


def drawn(folder, name):
    (source,) = FIGURES[name].tables
    table = read_table(folder / "tables", source)
    return FIGURES[name].drawer()(table, styles(NAMES)), table


def lines_of(axes):
    """(colour, x, y) of the lines with data."""
    return [(line.get_color(), *map(np.asarray, line.get_data())) for line in axes.lines]


def colour(name):
    return STYLES[name].colour


# --- Figures -------------------------------------------------------------------------------------


def test_headroom_draws_each_share_in_its_colour_with_its_interval(folder):
    figure, table = drawn(folder, "headroom")
    clear, _ = figure.axes
    shares = table[(table.metric == "captured") & (table.noise == "0")].set_index("algorithm")
    labels = [tick.get_text() for tick in clear.get_yticklabels()]
    assert labels == [STYLES[name].label for name in NAMES]
    points = {c: x for c, x, y in lines_of(clear) if len(x) == 1}
    bars = {tuple(b.get_color()[0][:3]): b.get_segments()[0][:, 0] for b in clear.collections}
    assert len(points) == 5
    assert len(bars) == 3  # an end of the scale has no interval
    assert (points[colour("grpo")], points[colour("oracle")]) == (0, 1)
    for name, row in shares.iterrows():
        assert points[colour(name)] == pytest.approx(row["mean"])
        assert bars[to_rgb(colour(name))] == pytest.approx([row["low"], row["high"]])
    ends = sorted(x[0] for c, x, y in lines_of(clear) if len(x) == 2)
    assert ends == [0, 1]
    assert "0 is GRPO, 1 is process oracle" in clear.get_xlabel()


def test_without_headroom_the_panel_has_the_areas_and_says_so(folder):
    figure, table = drawn(folder, "headroom")
    refused = figure.axes[1]
    areas = table[(table.metric == "area") & (table.noise == "0.25")].set_index("algorithm")
    points = {c: x for c, x, y in lines_of(refused) if len(x) == 1}
    assert {name: points[colour(name)] for name in NAMES} == pytest.approx(areas["mean"].to_dict())
    ends = sorted(x[0] for c, x, y in lines_of(refused) if len(x) == 2)
    assert ends == sorted(areas.loc[["grpo", "oracle"], "mean"])
    room = table[(table.metric == "area_gap") & (table.noise == "0.25")]
    (room,) = room[room.algorithm == "oracle"].to_dict("records")
    said = f"process oracle minus GRPO: {100 * room['mean']:+.1f} points"
    assert said in refused.get_title()
    assert refused.get_title().endswith(": no headroom")
    assert "no headroom" not in figure.axes[0].get_title()


def test_frontier_draws_each_line_with_its_band_and_leaves_out_what_has_no_distance(folder):
    figure, table = drawn(folder, "frontier")
    table = table[(table.metric == "accuracy") & (table.rival == "")]
    for axes, noise in zip(figure.axes, ("0", "0.25"), strict=True):
        lines = {c: (x, y) for c, x, y in lines_of(axes) if len(x) > 1}
        expected = [n for n in NAMES if n != "grpo" or noise == "0"]
        assert set(lines) == {colour(name) for name in expected}
        for name in expected:
            rows = table[(table.algorithm == name) & (table.noise == noise)]
            x, y = lines[colour(name)]
            assert x == pytest.approx(rows["kl"])
            assert y == pytest.approx(rows["mean"])
        assert len(axes.collections) == len(expected)  # bands
    own = table[(table.algorithm == "vimpo") & (table.noise == "0")]
    (band,) = [b for b in figure.axes[0].collections if b.get_zorder() == 2][:1]
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(own["low"].min())
    assert corners[:, 1].max() == pytest.approx(own["high"].max())
    ticks = figure.axes[0].get_xticks()
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= 7


def test_training_draws_a_row_per_number_and_a_column_per_noise_level(folder):
    figure, table = drawn(folder, "training_curves")
    metrics = [
        "accuracy",
        "validation_accuracy.greedy",
        "response_length",
        "entropy",
        "reference_kl",
    ]
    assert len(figure.axes) == len(metrics) * 2
    for i, metric in enumerate(metrics):
        for j, noise in enumerate(("0", "0.25")):
            axes = figure.axes[2 * i + j]
            part = table[(table.metric == metric) & (table.noise == noise)]
            lines = {c: (x, y) for c, x, y in lines_of(axes)}
            assert set(lines) == {colour(name) for name in set(part.algorithm)}
            rows = part[part.algorithm == "vimpo"]
            assert lines[colour("vimpo")][0] == pytest.approx(rows["step"])
            assert lines[colour("vimpo")][1] == pytest.approx(rows["mean"])
    held_out = table[(table.metric == "validation_accuracy.greedy") & (table.algorithm == "vimpo")]
    assert sorted(set(held_out["step"])) == [0, 10, 20, 30]
    assert figure.axes[2].get_ylabel() == "held-out accuracy,\ngreedy"


def test_training_shows_the_size_with_most_noise_levels():
    rows = [("xs", "0", 1), ("xs", "0.25", 1), ("s", "0", 2), ("s", "0.25", 2), ("m", "0", 3)]
    assert fullest(pd.DataFrame(rows, columns=["size", "noise", "params"]), "noise") == "s"


def test_curves_of_a_grid_have_a_panel_per_value_and_a_line_per_other_setting():
    rows = [
        {"sweep": "map", "objective": "vimpo", "trial": f"b{beta}c{c}", "axis": "beta", "at": beta}
        | {"settings": f"actor_coef {c}", "step": step, "window": 1, "metric": metric}
        | {"mean": beta + c + step / 10, "low": 0.0, "high": 1.0, "confidence": 0.95}
        for beta in (0.02, 0.1)
        for c in (0, 0.005, 0.2)
        for metric in ("accuracy", "reference_kl")
        for step in range(3)
    ]
    figure = FIGURES["sweeps_curves"].drawer()(pd.DataFrame(rows), {})
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels[:2]] == [
        r"map: VIMPO, $\beta$ 0.02",
        r"map: VIMPO, $\beta$ 0.1",
    ]
    assert [len(axes.lines) for axes in panels] == [3] * 4
    heights = sorted(line.get_ydata()[0] for line in panels[1].lines)
    assert heights == pytest.approx([0.1, 0.105, 0.3])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["actor_coef 0", "actor_coef 0.005", "actor_coef 0.2"]


# --- The report ----------------------------------------------------------------------------------


def test_the_report_says_first_who_captures_what(folder):
    text = (folder / "report.md").read_text()
    table = read_table(folder / "tables", "headroom").query("metric == 'captured'")
    own = table[(table.algorithm == "vimpo") & (table.noise == "0")].iloc[0]
    first = next(line for line in text.splitlines() if line.startswith("- **"))
    assert "Is there anything to gain from better credit here" in first
    assert "In 1 of 2 regimes." in first
    assert f"VIMPO {own['mean']:.2f} ({own['low']:.2f} to {own['high']:.2f}; n = 3)" in first
    assert "nobody has a share of it" in first
    assert "## Headroom captured" in text
    assert "n/a (no headroom)" in text
    html = (folder / "report.html").read_text()
    for name in ("headroom", "frontier", "training_curves"):
        assert f'<figure id="{name}"' in html


def test_the_report_compares_at_matched_distance_and_names_who_has_none(folder):
    text = (folder / "report.md").read_text()
    table = read_table(folder / "tables", "frontier")
    pairs = table[(table.algorithm == "vimpo") & (table.rival == "grpo")]
    assert list(pairs.noise) == ["0"] * 2  # training and held-out accuracy
    gap = pairs[pairs.metric == "accuracy"].iloc[0]
    assert f"VIMPO {100 * gap['mean']:+.1f} points ({100 * gap['low']:+.1f} to" in text
    assert f"| {gap['kl']:.2f} |" in text
    told = table[(table.algorithm == "grpo") & (table.noise == "0.25")]
    assert set(told["reason"]) == {"the runs of grpo have no KL to the base policy"}
    (regime,) = matched_said(
        table, styles(NAMES)
    )  # without GRPO's distance there is nobody to beat
    assert regime.where == "noise 0"


def headroom_rows(**changes):
    """A regime of GRPO, the oracle, a control and VIMPO. changes: algorithm -> area gap."""
    gaps = {"vimpo": (0.1, 0.05, 0.15), "oracle": (0.2, 0.1, 0.3)}
    gaps |= {"oracle_shuffled": (-0.2, -0.3, -0.1)} | changes
    common = {"size": "xs", "noise": "0", "params": 1e5, "floor": "grpo", "ceiling": "oracle"}
    common |= {"n": 3, "expected": 3, "reason_code": "", "reason": ""}
    rows = [
        common | {"algorithm": a, "metric": "area_gap", "mean": m, "low": low, "high": high}
        for a, (m, low, high) in gaps.items()
    ]
    share = common | {
        "algorithm": "vimpo",
        "metric": "captured",
        "mean": 0.5,
        "low": 0.2,
        "high": 0.8,
    }
    if gaps["oracle"][1] <= 0:
        share |= {"mean": np.nan, "low": np.nan, "high": np.nan, "reason": "no headroom: not clear"}
        share |= {"reason_code": Reason.NO_HEADROOM}
    return pd.DataFrame([*rows, share]).reindex(columns=empty_table("headroom").columns)


def said(frame):
    content = headroom_content(frame, styles(["grpo", *NAMES]))
    template = template_environment().from_string(
        '{% import "yardstick.j2" as y with context %}{{ y.short() }} {{ y.body() }}'
    )
    return template.render(content)


def test_headroom_is_said_with_its_controls():
    assert said(headroom_rows()) == (
        "Yes, the process oracle beats GRPO. Noise 0: the learning curve of the process oracle "
        "lies 20.0 points above that of GRPO (10.0 to 30.0; n = 3). Share of that headroom "
        "captured: VIMPO 0.50 (0.20 to 0.80; n = 3). Control, the shuffled oracle: 20.0 points "
        "below GRPO (-30.0 to -10.0; n = 3), as it should be."
    )


def test_without_headroom_no_share_is_said():
    text = said(headroom_rows(oracle=(0.2, -0.1, 0.5)))
    assert text.startswith("No headroom. Noise 0: the learning curve of the process oracle lies ")
    assert "which is not clearly above: there is no headroom, so nobody has a share of it" in text
    assert "VIMPO" not in text
    missing = said(headroom_rows(oracle=(np.nan, np.nan, np.nan)))
    assert "headroom is unknown" in missing


def test_a_control_that_beats_the_floor_is_a_warning():
    assert "which it should not be: what helps here" in said(
        headroom_rows(oracle_shuffled=(0.1, 0.05, 0.15))
    )
    assert "not clearly different from it" in said(headroom_rows(oracle_shuffled=(0.1, -0.1, 0.3)))


def critic(mean, name="ppo", size="xs", noise="0"):
    row = {"algorithm": name, "size": size, "noise": noise, "probe": "value"}
    row |= {"predictor": "critic", "target": "change", "position": "all"}
    return row | {"metric": "explained_variance", "mean": mean}


def test_only_a_critic_that_explains_less_than_a_tenth_knows_nothing():
    looks = styles(["ppo", "ppo_warm"])
    rows = [critic(0.02), critic(0.3, size="s"), critic(0.1, "ppo_warm"), critic(-1, noise="0.25")]
    assert ignorant_critics(pd.DataFrame(rows), looks) == {
        "ppo": Critic("PPO's critic", "0.02 at size xs")
    }
    assert ignorant_critics(pd.DataFrame([critic(np.nan)]), looks) == {}
