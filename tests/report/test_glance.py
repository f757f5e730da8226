"""The figure that sums up a study: its panels and what they draw; and crowds of algorithms."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from vimpo.config import Noise
from vimpo.report.figures.registry import FIGURES
from vimpo.report.figures.style import FAINT, RC
from vimpo.report.glance import (
    by_capacity,
    glance,
    in_order,
    no_headroom,
    paths_of,
    regime_of,
    scores_of,
    value_rows,
)
from vimpo.report.labels import CROWD, FEATURED, STYLES, featured, styles
from vimpo.storage.columns import COLUMNS
from vimpo.storage.tables import empty_table

SIZES = {"xs": 1e5, "s": 2e5}
TABLES = FIGURES["headline"].tables
MANY = [name for name in STYLES if name not in ("base", "vimpo_value_only", "tbrm")]
VARIANTS = {"vimpo": 0.5, "low": 0.1, "high": 2.0}


def frame(table, rows):
    """Rows with what they leave out: clean rewards, known intervals."""
    usual = {"noise": "0", "noise_mode": "group", "noise_level": 0.0, "confidence": 0.95, "n": 3}
    usual |= {"expected": 3, "method": "Student t", "reason_code": "", "reason": "", "unit": "1"}
    filled = [usual | {"params": SIZES.get(row.get("size"), np.nan)} | row for row in rows]
    for row in filled:
        row.setdefault("low", row["mean"] - 0.1)
        row.setdefault("high", row["mean"] + 0.1)
        row["noise_level"] = Noise.parse(row["noise"]).level
    return pd.DataFrame(filled, columns=COLUMNS[table])


def headroom(names, size="xs", clear=True, noise="0"):
    """Areas .3, .31, ... in the order of `names`; the oracle's is the highest."""
    found = []
    where = {"size": size, "noise": noise, "floor": "grpo", "ceiling": "oracle"}
    for place, name in enumerate(sorted(names, key=lambda name: name == "oracle")):
        key = where | {"algorithm": name}
        found.append(key | {"metric": "area", "mean": 0.3 + place / 100})
        if name == "oracle":
            room = {"low": 0.1 if clear else -0.1, "high": 0.3}
            found.append(key | {"metric": "area_gap", "mean": 0.2} | room)
        elif name != "grpo":
            share = (
                {"mean": place / 10} if clear else {"mean": np.nan, "reason_code": "no_headroom"}
            )
            found.append(key | {"metric": "captured"} | share)
    return frame("headroom", found)


def frontier(names, size="xs", noise="0"):
    key = {"size": size, "noise": noise, "metric": "accuracy", "rival": ""}
    return frame(
        "frontier",
        [
            key | {"algorithm": name, "kl": float(kl), "mean": kl / 10}
            for name, kl in itertools.product(names, range(4))
        ],
    )


def probes(names, probe="value", sizes=("xs",), predictor="implied", base=0.0):
    key = {"probe": probe, "predictor": predictor, "target": "change", "position": "all"}
    return frame(
        "probe_summary",
        [
            key | {"algorithm": name, "size": size, "metric": metric, "mean": base + place / 10}
            for (place, name), size in itertools.product(enumerate(names), sizes)
            for metric in ("spearman", "explained_variance")
        ],
    )


def capacity(sizes=("xs",), **capacities):
    return frame(
        "capacity",
        [
            {"algorithm": name, "size": size, "capacity": value, "mean": 0}
            for (name, value), size in itertools.product(capacities.items(), sizes)
        ],
    )


def cost(names, size="xs"):
    return frame(
        "measured_summary",
        [
            {"kind": "measured", "algorithm": name, "size": size, "metric": metric, "mean": mean}
            for name in names
            for metric, mean in (("step_total", 2.0), ("memory_above_floor", 2.0**21))
        ],
    )


def accuracy(names, *noises):
    key = {"size": "xs", "benchmark": "mean", "metric": "sampled", "mean": 0.5}
    pairs = [("base", "0"), *itertools.product(names, noises)]
    return frame("summary", [key | {"algorithm": name, "noise": noise} for name, noise in pairs])


def tables(**found):
    return [found.get(name, empty_table(name)) for name in TABLES]


def seen(**found):
    panels = glance(*tables(**found))
    return panels.standing, panels.moved, panels.value, panels.cost


# --- Which panels --------------------------------------------------------------------------------


def test_panels_are_what_the_study_has():
    names = ["vimpo", "grpo", "oracle"]
    assert seen() == ("", "noise", "", False)
    assert seen(headroom=headroom(names)) == ("captured", "", "", False)
    assert seen(headroom=headroom(names, clear=False)) == ("area", "", "", False)
    noisy = accuracy(names, "0", "0.25")
    assert seen(headroom=headroom(names), summary=noisy)[1] == "noise"
    assert seen(headroom=headroom(names), summary=noisy, frontier=frontier(names))[1] == "distance"
    assert seen(probe_summary=probes(names))[2] == "size"
    found = {"probe_summary": probes(VARIANTS), "capacity": capacity(**VARIANTS)}
    assert seen(**found)[2] == "capacity"
    assert seen(**found | {"capacity": capacity(vimpo=0.5)})[2] == "size"
    assert seen(measured_summary=cost(names))[3]


def test_the_regime_shown_is_clean_has_headroom_and_most_algorithms():
    few, many = ["vimpo", "grpo", "oracle"], ["vimpo", "ppo", "grpo", "oracle"]
    both = pd.concat([headroom(many), headroom(few, "s"), headroom(many, noise="0.25")])
    shown = regime_of(both)
    assert set(shown["size"]) == {"xs"}
    assert set(shown["noise"]) == {"0"}
    assert set(regime_of(pd.concat([headroom(few), headroom(few, "s")]))["size"]) == {"s"}
    refused = pd.concat([headroom(few), headroom(many, "s", clear=False)])
    assert set(regime_of(refused)["size"]) == {"xs"}
    assert not len(regime_of(empty_table("headroom")))


def test_headroom_is_judged_over_all_seeds_and_not_by_an_algorithm_with_fewer():
    rows = headroom(["vimpo", "few", "grpo", "oracle"])
    few = (rows.algorithm == "few") & (rows.metric == "captured")
    rows.loc[few, ["mean", "reason_code"]] = [np.nan, "no_headroom"]
    assert not no_headroom(rows)
    rows.loc[rows.metric == "area_gap", "low"] = -0.1
    assert no_headroom(rows)


def test_the_best_stand_first_and_controls_last():
    names = ["entropy", "vimpo", "grpo", "oracle", "ppo", "oracle_shuffled"]
    rows = headroom(names)  # vimpo has .1, ppo .3
    assert in_order(rows, names)[:4] == ["oracle", "ppo", "vimpo", "grpo"]
    assert set(in_order(rows, names)[4:]) == {"entropy", "oracle_shuffled"}
    rows.loc[(rows.algorithm == "ppo") & (rows.metric == "captured"), "mean"] = np.nan
    assert in_order(rows, names)[:4] == ["oracle", "vimpo", "grpo", "ppo"]


def test_values_are_of_common_prefixes_where_there_are_any():
    own, common = probes(["vimpo"]), probes(["vimpo"], "common")
    assert set(value_rows(pd.concat([own, common]))["probe"]) == {"common"}
    unknown = common.assign(mean=np.nan)
    assert set(value_rows(pd.concat([own, unknown]))["probe"]) == {"value"}


def test_a_capacity_has_one_point_at_each_size_and_other_methods_none():
    names = ["vimpo", "same", "low", "tbrm", "grpo"]
    known = capacity(("xs", "s"), vimpo=0.5, same=0.5, low=0.1, tbrm=0.9)
    rows = by_capacity(probes(names, sizes=("xs", "s")), known)
    points = rows[rows.metric == "spearman"][["size", "algorithm", "capacity"]]
    expected = [(size, *pair) for size in ("xs", "s") for pair in (("low", 0.1), ("vimpo", 0.5))]
    assert [tuple(row) for row in points.to_numpy()] == expected
    once = capacity(("xs",), vimpo=0.5, low=0.1)
    more = pd.concat([once, capacity(("s",), vimpo=0.5)])
    assert set(by_capacity(probes(names, sizes=("xs", "s")), more)["size"]) == {"xs"}


@pytest.mark.parametrize(
    ("noises", "few", "expected"),
    [
        (["0.1", "0.25"], ["0.4"], "0.25"),
        (["0.1", "0.25", "0.4", "0.5", "rollout-0.25"], [], "0.25"),
        (["0.5"], [], "0.5"),
    ],
)
def test_distance_is_shown_clean_and_at_the_middle_level_with_most_algorithms(
    noises, few, expected
):
    names = ["vimpo", "grpo"]
    levels = [frontier(names, "xs"), frontier(names, "s")]
    levels += [frontier(names, "s", noise) for noise in noises]
    levels += [frontier(names[:1], "s", noise) for noise in few]
    shown = paths_of(pd.concat(levels))
    assert set(shown["size"]) == {"s"}
    assert set(shown["noise"]) == {"0", expected}


def test_panels_of_one_size_have_the_size_with_most_algorithms():
    lines = pd.concat([frontier(["vimpo", "grpo"], "xs"), frontier(["vimpo"], "s")])
    assert set(paths_of(lines)["size"]) == {"xs"}
    costs = pd.concat([cost(["vimpo", "grpo", "oracle"]), cost(["vimpo"], "s")])
    found = whole(["vimpo", "grpo", "oracle"], measured_summary=costs)
    _, seconds, *_ = drawn("headline", *tables(**found), names=["vimpo", "grpo", "oracle"]).axes
    assert [patch.get_width() for patch in seconds.patches] == [2.0] * 3


def test_accuracy_under_noise_is_over_all_sizes_only_if_they_have_the_noise():
    names = ["vimpo", "grpo"]
    clean, noisy = accuracy(names, "0"), accuracy(names, "0", "0.25")
    both = [noisy, noisy.assign(size="s"), noisy.assign(size="all")]
    assert set(scores_of(pd.concat(both))["size"]) == {"all"}
    one = [clean.assign(size="s"), clean.assign(size="all"), noisy, clean.assign(size="m")]
    assert set(scores_of(pd.concat(one))["size"]) == {"xs"}
    assert set(scores_of(pd.concat([noisy, noisy.assign(size="all")]))["size"]) == {"xs"}
    assert not len(scores_of(empty_table("summary")))


def test_a_method_alone_with_its_distance_is_not_compared_by_it():
    names = ["vimpo", "grpo"]
    found = {"summary": accuracy(names, "0", "0.25"), "frontier": frontier(["vimpo"])}
    assert seen(**found)[1] == "noise"
    faint = drawn("headline", *tables(**found | {"frontier": frontier(["low"])}), names=names)
    assert not [text for text in faint.legends[0].get_texts() if "other" in text.get_text()]
    assert seen(**found | {"frontier": frontier(["vimpo", "low"])})[1] == "noise"
    assert seen(**found | {"summary": accuracy(names, "0")})[1] == "distance"
    figure = drawn("headline", *tables(**found | {"summary": accuracy(names, "0")}), names=names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["VIMPO", "95 % interval"]


def test_the_legend_has_a_base_policy_only_if_it_has_a_number():
    names = ["vimpo", "grpo"]
    scores = accuracy(names, "0", "0.25")
    for known in (True, False):
        scores.loc[scores.algorithm == "base", "mean"] = 0.5 if known else np.nan
        figure = drawn("headline", *tables(summary=scores), names=["base", *names])
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("base policy" in labels) == known


# --- What is drawn -------------------------------------------------------------------------------


def drawn(name, *frames, names):
    from matplotlib.style import context

    with context(["default", RC]):
        return FIGURES[name].drawer()(*frames, styles(names))


def whole(names, **more):
    return {
        "summary": accuracy(names, "0", "0.25"),
        "headroom": headroom(names),
        "frontier": pd.concat([frontier(names), frontier(names[:3], noise="0.25")]),
        "probe_summary": probes([*VARIANTS, *names], "common", SIZES),
        "capacity": capacity(SIZES, **VARIANTS),
        "measured_summary": cost(names),
    } | more


def test_rows_of_standing_and_cost_agree_and_lines_are_of_sizes():
    names = ["grpo", "oracle", "vimpo", "ppo"]
    looks = ["base", *names, "low", "high"]
    figure = drawn("headline", *tables(**whole(names)), names=looks)
    rows, seconds, memory, clean, noisy, rank, explained = figure.axes
    labels = [tick.get_text() for tick in rows.get_yticklabels()]
    assert labels == ["process oracle", "PPO", "VIMPO", "GRPO"]
    assert len(seconds.patches) == len(memory.patches) == len(names)
    assert rows.get_ylim() == seconds.get_ylim() == memory.get_ylim()
    assert {patch.get_width() for patch in memory.patches} == {2.0}
    assert "noise 0.25" in noisy.get_title()
    for axes, count in ((clean, 4), (noisy, 3)):
        assert len([line for line in axes.lines if len(line.get_xdata()) > 1]) == count
    for axes in (rank, explained):
        lines = [line for line in axes.lines if list(line.get_xdata()) == [0.1, 0.5, 2.0]]
        assert len(lines) == len(SIZES)
        assert to_hex(lines[-1].get_color()) == STYLES["vimpo"].colour.lower()
        # low, vimpo, high: second, first and third of the rows
        assert list(lines[0].get_ydata()) == pytest.approx([0.1, 0.0, 0.2])


def test_a_value_below_the_panel_is_a_triangle_at_its_floor():
    names = ["grpo", "oracle", "vimpo"]
    low = probes([*VARIANTS], "value")
    low.loc[(low.algorithm == "high") & (low.metric == "explained_variance"), "mean"] = -90.0
    found = whole(names, probe_summary=low, capacity=capacity(**VARIANTS))
    explained = drawn("headline", *tables(**found), names=[*names, *VARIANTS]).axes[-1]
    marks = [line for line in explained.lines if line.get_marker() == 7]
    assert [list(line.get_data()[0]) for line in marks] == [[2.0]]
    assert explained.get_ylim()[0] > -2


def test_without_a_yardstick_panels_stand_side_by_side():
    names = ["vimpo", "ppo", "grpo"]
    found = {"summary": accuracy(names, "0", "0.25"), "measured_summary": cost(names)}
    found["probe_summary"] = pd.concat(
        [probes(["vimpo"], sizes=SIZES), probes(["ppo"], sizes=SIZES, predictor="critic")]
    )
    figure = drawn("headline", *tables(**found), names=["base", *names])
    noise, value, seconds, memory = figure.axes
    assert noise.get_title() == "Accuracy under reward noise"
    assert value.get_ylabel() == "explained change in value"
    assert len(seconds.patches) == len(memory.patches) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(["base policy", "VIMPO", "PPO", "GRPO", "95 % interval"])


# --- Crowds --------------------------------------------------------------------------------------


def curves(names, metrics=("accuracy", "entropy")):
    key = {"size": "xs", "window": 2}
    return frame(
        "curves_summary",
        [
            key | {"algorithm": name, "metric": metric, "step": step, "mean": step / 10}
            for name, metric, step in itertools.product(names, metrics, range(3))
        ],
    )


def test_few_stand_out_of_a_crowd():
    assert featured(MANY[:CROWD]) == MANY[:CROWD]
    assert set(featured(MANY)) == set(FEATURED)
    own = [f"a{i}" for i in range(CROWD + 1)]
    assert featured(own) == own[:CROWD]


def test_training_of_a_crowd_is_grey_but_for_the_featured():
    figure = drawn("training_curves", curves(MANY), names=MANY)
    for axes in figure.axes:
        colours = [line.get_color() for line in axes.lines]
        assert colours.count(FAINT) == len(MANY) - len(FEATURED)
        assert {STYLES[name].colour for name in FEATURED} == set(colours) - {FAINT}
        assert len(axes.collections) == len(FEATURED)  # bands
    last = figure.legends[0].get_texts()[-1].get_text()
    assert last == f"{len(MANY) - len(FEATURED)} others"


def test_learning_of_a_crowd_has_a_panel_for_each():
    figure = drawn("learning_curves", curves(MANY), names=MANY)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title().partition("\n")[0] for axes in panels] == [
        STYLES[name].label for name in MANY
    ]
    for axes, name in zip(panels, MANY, strict=True):
        colours = [line.get_color() for line in axes.lines]
        assert colours.count(FAINT) == len(MANY) - 1
        assert colours.count(STYLES[name].colour) == 1


def test_the_frontier_of_a_crowd_keeps_every_marker():
    (axes,) = drawn("frontier", frontier(MANY), names=MANY).axes
    ends = {line.get_color() for line in axes.lines if len(line.get_xdata()) == 1}
    assert ends == {STYLES[name].colour for name in MANY}
    faint = [line for line in axes.lines if line.get_color() == FAINT]
    assert len(faint) == len(MANY) - len(FEATURED)


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("name", ["headline", "headroom", "learning_curves"])
def test_a_crowd_fits_into_its_figures(name, clear):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = whole(MANY, headroom=headroom(MANY, clear=clear), curves_summary=curves(MANY))
    frames = [found[table] for table in FIGURES[name].tables]
    figure = drawn(name, *frames, names=["base", *MANY, "low", "high"])
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.axison]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for a, b in itertools.combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 2, (a, b)
    for box in boxes:
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
