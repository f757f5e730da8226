"""The report's tables of the scaling caveat, of gaps between algorithms, and of measured cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from vimpo.analysis.scores import OURS, RIVALS
from vimpo.config.hypotheses import FITTED
from vimpo.report.labels import (
    GAE,
    READINGS,
    TD,
    VALUES,
    Line,
    Style,
    noise_name,
    on_clean_rewards,
    ordered_noise,
)
from vimpo.report.tables import (
    Column,
    Entry,
    Row,
    Table,
    algorithm_entry,
    algorithm_rows,
    column_entry,
    estimate_entry,
    matching,
    noise_columns,
    only,
    pivot,
    size_entry,
)
from vimpo.storage.tables import ALL_SIZES, BASE, WHOLE


@dataclass(frozen=True)
class ProbeTable:
    """A table of the probes over whole responses: which rows of probe_summary.csv, and as what."""

    title: str  # of the column that says who is measured
    where: Mapping[str, str]
    lines: Sequence[Line] = ()  # its rows at each size; without any: one per algorithm
    columns: Sequence[Column] = ()  # on clean rewards; without any: one per noise level
    predictors: Mapping[str, str] = field(default_factory=dict)  # its rows, for each algorithm


def _column(title: str, target: str, metric: str, digits: str = ".2f") -> Column:
    return Column(title, {"target": target, "metric": metric}, digits)


READ = {  # read out of every policy
    "implied": "implied value",
    "critic": "its own critic",
    "ceiling": "ceiling: a critic fitted offline",
    "linear": "linear probe of its states",
    "log_probability": "log-probability so far",
}
OF_CHANGE = [
    _column("explained variance of change", "change", "explained_variance"),
    _column("after best rescaling", "change", "explained_variance_linear"),
    _column("rank correlation", "change", "spearman"),
]
FOUND = [
    _column("AUC", "step", "auc"),
    _column("hits", "step", "top1"),
    _column("hits by chance", "step", "top1_chance"),
]
PROBE_TABLES = {
    # Each predictor against the truth: the change of value, and the value itself.
    "value": ProbeTable(
        "predictor",
        {"probe": "value"},
        VALUES,
        [
            *OF_CHANGE,
            _column("slope of truth on prediction", "change", "slope"),
            _column("intercept", "change", "intercept"),
            _column("rms error", "change", "rmse"),
            _column("explained variance of value", "value", "explained_variance"),
        ],
    ),
    # What there is to predict: spread of the truth, its own noise, and what the noise allows.
    "truth": ProbeTable(
        "policy",
        {"probe": "value", "predictor": "truth"},
        columns=[
            _column("spread of V(s_t)", "value", "spread", ".3f"),
            _column("its standard error", "value", "mean_stderr", ".3f"),
            _column("spread of change", "change", "spread", ".3f"),
            _column("its standard error", "change", "mean_stderr", ".3f"),
            _column("highest possible rank correlation", "change", "spearman_ceiling", ".3f"),
        ],
    ),
    # By reward noise, for the predictor that each algorithm itself uses.
    "value_noise": ProbeTable(
        "predictor",
        {"probe": "value", "target": "change", "metric": "explained_variance"},
        [line for line in VALUES if line.predictor != "group_mean"],
    ),
    # Between a floor and a ceiling, on the policy's own prefixes.
    "baselines": ProbeTable("policy", {"probe": "value"}, columns=OF_CHANGE, predictors=READ),
    # On the same prefixes for every policy.
    "common": ProbeTable("policy", {"probe": "common"}, columns=OF_CHANGE, predictors=READ),
    "common_credit": ProbeTable(
        "policy",
        {"probe": "common"},
        columns=FOUND,
        predictors={
            "implied_td": "implied td",
            "critic_td": "td of its own critic",
            "position": "the token's place",
        },
    ),
    # After the right digit and after a wrong one.
    "pairs": ProbeTable(
        "policy",
        {"probe": "pairs"},
        columns=[
            _column("right one higher", "value", "ordered"),
            _column("right minus wrong", "value", "difference", ".2g"),
        ],
        predictors={"truth": "truth"} | READ,
    ),
    # Area under the ROC and hits of the first wrong step.
    "credit": ProbeTable(
        "signal",
        {"probe": "credit"},
        [*TD, *(line for line in GAE if line.predictor != "group")],
        FOUND,
    ),
    # Drift of VIMPO's policy.
    "precision": ProbeTable(
        "computed in",
        {"probe": "precision"},
        [Line(OURS, name, label) for name, (label, _, _) in READINGS.items()],
        [
            _column("log-ratio, nats", "log_ratio", "rms_drift", ".2g"),
            _column("implied value", "implied_value", "rms_drift", ".2g"),
            _column("relative to spread of true value", "implied_value", "relative_drift", ".2g"),
        ],
    ),
    # The implied value's own equations, for every policy.
    "consistency": ProbeTable(
        "policy",
        {"probe": "consistency"},
        columns=[
            _column("mean td", "td", "mean", ".1e"),
            _column("rms td", "td", "rms", ".2g"),
            _column("terminal residual / target", "terminal", "residual_ratio", ".3f"),
            _column("correlation of summed td and target", "terminal", "pearson"),
        ],
    ),
}


def probe_tables(probes: pd.DataFrame, looks: dict[str, Style]) -> dict[str, Table]:
    """PROBE_TABLES of a study."""
    whole = probes[probes["position"] == WHOLE]
    tables = {name: _probe_table(table, whole, looks) for name, table in PROBE_TABLES.items()}
    if not set(whole["predictor"]) & set(FITTED):
        tables["baselines"].rows.clear()  # nothing that the table of values does not say
    return tables


def _probe_table(table: ProbeTable, probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    frame = matching(probes, table.where)
    if table.columns:
        frame = on_clean_rewards(frame)
    titles, columns = ["size", table.title], table.columns or noise_columns(frame)
    if table.predictors:
        rows = _predictor_rows(table.predictors, frame, looks)
        return pivot(frame, [*titles, "predictor"], rows, columns, _if_measured)
    rows = _line_rows(table.lines, frame, looks) if table.lines else algorithm_rows(frame, looks)
    return pivot(frame, titles, rows, columns)


def _if_measured(row: pd.Series | None, column: Column) -> Entry:
    """Not every number means something of every predictor."""
    return Entry("–") if row is None else column_entry(row, column)


def _predictor_rows(
    predictors: Mapping[str, str], frame: pd.DataFrame, looks: dict[str, Style]
) -> list[Row]:
    """One row per size, algorithm and predictor."""
    return [
        Row((*row.heads, Entry(label)), {**row.where, "predictor": name})
        for row in algorithm_rows(frame, looks)
        for name, label in predictors.items()
    ]


def _line_rows(lines: Iterable[Line], frame: pd.DataFrame, looks: dict[str, Style]) -> list[Row]:
    """One row per size and line of a figure."""
    return [
        Row(
            (Entry(size), Entry(line.label, "", algorithm_entry(line.algorithm, looks).colour)),
            {"size": size, "algorithm": line.algorithm, "predictor": line.predictor},
        )
        for size in dict.fromkeys(frame["size"])
        for line in lines
    ]


# --- Gaps ----------------------------------------------------------------------------------------


def gap_table(comparisons: pd.DataFrame, looks: dict[str, Style], ablations: bool) -> Table:
    """VIMPO minus the rivals (or its ablations and variants) in percentage points, by noise."""
    frame = comparisons[comparisons["rival"] != ""]
    frame = frame[frame["rival"].isin(RIVALS) != ablations]
    noises = ordered_noise(frame["noise"])
    rows = []
    for size in dict.fromkeys(frame["size"]):
        for rival in dict.fromkeys(frame["rival"]):
            part = matching(frame, {"size": size, "rival": rival})
            if part.empty:
                continue
            entries = []
            for noise in noises:
                gap = only(part, noise=noise, metric="difference")
                chance = only(part, noise=noise, metric="probability")
                entries.append(estimate_entry(gap, factor=100, digits="+.1f"))
                entries.append(
                    estimate_entry(chance, digits=".2f") if size != ALL_SIZES else Entry("–")
                )
            head = algorithm_entry(rival, looks)
            rows.append([size_entry(size), replace(head, text=f"minus {head.text}"), *entries])
    columns = [title for noise in noises for title in (noise_name(noise), "P(VIMPO better)")]
    return Table(["size", "VIMPO", *columns], rows)


def iqm_table(comparisons: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """Interquartile means over seeds and benchmarks of all sizes, percent."""
    frame = comparisons[comparisons["metric"] == "iqm"]
    rows = [
        Row((algorithm_entry(name, looks),), {"algorithm": name})
        for name in dict.fromkeys(frame["algorithm"])
    ]
    return pivot(frame, ["algorithm"], rows, noise_columns(frame, ".1f", factor=100))


# --- Cost ----------------------------------------------------------------------------------------


def _measured(
    title: str, metric: str, digits: str, factor: float = 1, kind: str = "measured"
) -> Column:
    return Column(title, {"kind": kind, "metric": metric}, digits, factor)


MEASURED = [
    _measured("step, s", "step_total", ".3g"),
    _measured("peak memory above idle, MB", "memory_above_floor", ",.0f", 2**-20),
    _measured("memory model, MB", "memory_above_floor", ",.0f", 2**-20, kind="model"),
    _measured("trainable parameters", "parameters_trainable", ",.0f"),
    _measured("resident parameters", "parameters_resident", ",.0f"),
    _measured("optimiser, MB", "optimizer", ".3g", 2**-20),
]


def measured_table(measured: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """What a step took, measured side by side, and the memory model's figure next to it."""
    rows = algorithm_rows(measured, looks)
    return pivot(measured, ["size", "algorithm"], rows, MEASURED, _measured_entry)


def _measured_entry(row: pd.Series | None, column: Column) -> Entry:
    if row is None:
        return Entry("n/a", "not measured")
    if not math.isfinite(row["low"]):
        return Entry(format(column.factor * row["mean"], column.digits))
    return column_entry(row, column)


def projection_table(projection: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """The memory model's peak at published sizes: a projection."""
    frame = projection[projection["part"] == "peak"]
    sources = frame.drop_duplicates("size")
    rows = [
        Row((Entry(size, source),), {"size": size})
        for size, source in zip(sources["size"], sources["source"], strict=True)
    ]
    columns = [
        Column(f"{algorithm_entry(name, looks).text}, GiB", {"algorithm": name}, ",.0f", 2**-30)
        for name in dict.fromkeys(frame["algorithm"])
        if name != BASE
    ]
    return pivot(frame, ["projected size"], rows, columns, _projection_entry)


def _projection_entry(row: pd.Series, column: Column) -> Entry:
    ratio = "" if math.isnan(row["ratio_to_ppo"]) else f"{row['ratio_to_ppo']:.2f} of PPO's"
    return Entry(format(column.factor * row["bytes"], column.digits), ratio)
