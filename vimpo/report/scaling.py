"""The report's tables of the scaling caveat, of gaps between algorithms, and of measured cost."""

from __future__ import annotations

import math

import pandas as pd

from vimpo.analysis.scores import OURS, RIVALS
from vimpo.config import Noise
from vimpo.report.labels import GAE, READINGS, TD, VALUES, Line, Style, noise_name, ordered_noise
from vimpo.report.tables import Entry, Table, algorithm_entry, estimate_entry, only
from vimpo.storage.tables import ALL_SIZES, BASE, WHOLE


def _clean(probes: pd.DataFrame) -> pd.DataFrame:
    known = {label: Noise.parse(label).level == 0 for label in set(probes["noise"])}
    return probes[probes["noise"].map(known).astype(bool) & (probes["position"] == WHOLE)]


def _line_entry(line: Line, looks: dict[str, Style]) -> Entry:
    style = looks.get(line.algorithm)
    return Entry(line.label, "", style.colour if style else "")


def value_table(probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """Each predictor against the truth, by size: the change of value, and the value itself."""
    frame = _clean(probes)
    frame = frame[frame["probe"] == "value"]
    columns = {
        "explained variance of change": ("change", "explained_variance"),
        "after the best rescaling": ("change", "explained_variance_linear"),
        "rank correlation": ("change", "spearman"),
        "slope of truth on it": ("change", "slope"),
        "intercept": ("change", "intercept"),
        "error, rms": ("change", "rmse"),
        "explained variance of value": ("value", "explained_variance"),
    }
    rows = []
    for size in dict.fromkeys(frame["size"]):
        part = frame[frame["size"] == size]
        for line in VALUES:
            own = line.rows(part)
            if own.empty:
                continue
            entries = [
                estimate_entry(only(own, target=target, metric=metric), digits=".2f")
                for target, metric in columns.values()
            ]
            rows.append([Entry(size), _line_entry(line, looks), *entries])
    return Table(["size", "predictor", *columns], rows)


def truth_table(probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """What there is to predict: spread of the truth, its own noise, and what the noise allows."""
    frame = _clean(probes)
    frame = frame[(frame["probe"] == "value") & (frame["predictor"] == "truth")]
    columns = {
        "spread of V(s_t)": ("value", "spread"),
        "its standard error": ("value", "mean_stderr"),
        "spread of change": ("change", "spread"),
        "its error": ("change", "mean_stderr"),
        "highest rank correlation": ("change", "spearman_ceiling"),
    }
    rows = [
        [Entry(size), algorithm_entry(name, looks)]
        + [
            estimate_entry(only(part, target=target, metric=metric), digits=".3f")
            for target, metric in columns.values()
        ]
        for (size, name), part in frame.groupby(["size", "algorithm"], sort=False)
    ]
    return Table(["size", "policy", *columns], rows)


def value_noise_table(probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """Explained variance of the change by reward noise, of what each algorithm reckons with."""
    frame = probes[(probes["probe"] == "value") & (probes["position"] == WHOLE)]
    frame = frame[(frame["target"] == "change") & (frame["metric"] == "explained_variance")]
    noises = ordered_noise(frame["noise"])
    rows = []
    for size in dict.fromkeys(frame["size"]):
        for line in VALUES:
            own = line.rows(frame[frame["size"] == size])
            if own.empty or line.predictor == "group_mean":
                continue
            entries = [estimate_entry(only(own, noise=n), digits=".2f") for n in noises]
            rows.append([Entry(size), _line_entry(line, looks), *entries])
    return Table(["size", "predictor", *map(noise_name, noises)], rows)


def credit_table(probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """Area under the ROC and hits of the first wrong step, by size and signal."""
    frame = _clean(probes)
    frame = frame[(frame["probe"] == "credit") & (frame["target"] == "step")]
    columns = {"AUC": "auc", "hits of the lowest": "top1", "hits by chance": "top1_chance"}
    lines = [(line, line.label) for line in TD]
    lines += [(line, line.label.replace("td", "GAE")) for line in GAE if line.predictor != "group"]
    rows = []
    for size in dict.fromkeys(frame["size"]):
        part = frame[frame["size"] == size]
        for line, label in lines:
            own = line.rows(part)
            if own.empty:
                continue
            entries = [estimate_entry(only(own, metric=m), digits=".2f") for m in columns.values()]
            colour = _line_entry(line, looks).colour if line.label else ""
            rows.append([Entry(size), Entry(label, "", colour), *entries])
    return Table(["size", "signal", *columns], rows)


def precision_table(probes: pd.DataFrame) -> Table:
    """Drift over whole responses, of VIMPO's policy."""
    frame = _clean(probes)
    frame = frame[(frame["probe"] == "precision") & (frame["algorithm"] == OURS)]
    columns = {
        "log-ratio, nats": ("log_ratio", "rms_drift"),
        "implied value": ("implied_value", "rms_drift"),
        "over the spread of the true value": ("implied_value", "relative_drift"),
    }
    rows = [
        [Entry(size), Entry(READINGS[name][0])]
        + [
            estimate_entry(only(part, predictor=name, target=target, metric=metric), digits=".2g")
            for target, metric in columns.values()
        ]
        for size, part in frame.groupby("size", sort=False)
        for name in READINGS
    ]
    return Table(["size", "computed in", *columns], rows)


def consistency_table(probes: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """The implied value's own equations, on every policy."""
    frame = _clean(probes)
    frame = frame[frame["probe"] == "consistency"]
    columns = {
        "mean td": ("td", "mean", ".1e"),
        "td, rms": ("td", "rms", ".2g"),
        "terminal residual over target": ("terminal", "residual_ratio", ".3f"),
        "correlation of summed td and target": ("terminal", "pearson", ".2f"),
    }
    rows = [
        [Entry(size), algorithm_entry(name, looks)]
        + [
            estimate_entry(only(part, target=target, metric=metric), digits=digits)
            for target, metric, digits in columns.values()
        ]
        for (size, name), part in frame.groupby(["size", "algorithm"], sort=False)
    ]
    return Table(["size", "policy", *columns], rows)


# --- Gaps ----------------------------------------------------------------------------------------


def gap_table(comparisons: pd.DataFrame, looks: dict[str, Style], ablations: bool) -> Table:
    """VIMPO minus the rivals (or its ablations and variants) in percentage points, by noise."""
    frame = comparisons[comparisons["rival"] != ""]
    main = frame["rival"].isin(RIVALS)
    frame = frame[~main if ablations else main]
    noises = ordered_noise(frame["noise"])
    rows = []
    for size in dict.fromkeys(frame["size"]):
        for rival in dict.fromkeys(frame["rival"]):
            part = frame[(frame["size"] == size) & (frame["rival"] == rival)]
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
            label = "mean of sizes" if size == ALL_SIZES else size
            minus = looks[rival].label if rival in looks else rival
            colour = looks[rival].colour if rival in looks else ""
            rows.append([Entry(label), Entry(f"minus {minus}", "", colour), *entries])
    columns = [title for noise in noises for title in (noise_name(noise), "P(VIMPO better)")]
    return Table(["size", "VIMPO", *columns], rows)


def iqm_table(comparisons: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """Interquartile means over seeds and benchmarks of all sizes, percent."""
    frame = comparisons[comparisons["metric"] == "iqm"]
    noises = ordered_noise(frame["noise"])
    rows = [
        [algorithm_entry(name, looks)]
        + [estimate_entry(only(part, noise=noise), factor=100) for noise in noises]
        for name, part in frame.groupby("algorithm", sort=False)
    ]
    return Table(["algorithm", *map(noise_name, noises)], rows)


# --- Cost ----------------------------------------------------------------------------------------


def measured_table(measured: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """What a step took, measured side by side, and the memory model's figure beside it."""
    columns: dict[str, tuple[str, str, float, str]] = {
        "step, s": ("measured", "step_total", 1, ".3g"),
        "peak memory above idle, MB": ("measured", "memory_above_floor", 2**-20, ",.0f"),
        "memory model, MB": ("model", "memory_above_floor", 2**-20, ",.0f"),
        "trainable parameters": ("measured", "parameters_trainable", 1, ",.0f"),
        "resident parameters": ("measured", "parameters_resident", 1, ",.0f"),
        "optimiser, MB": ("measured", "optimizer", 2**-20, ".3g"),
    }
    rows = []
    for (size, name), part in measured.groupby(["size", "algorithm"], sort=False):
        entries = []
        for kind, metric, factor, digits in columns.values():
            row = only(part, kind=kind, metric=metric)
            if row is None:
                entries.append(Entry("n/a", "not measured"))
            elif not math.isfinite(row["low"]):
                entries.append(Entry(format(factor * row["mean"], digits)))
            else:
                entries.append(estimate_entry(row, factor, digits))
        rows.append([Entry(size), algorithm_entry(name, looks), *entries])
    return Table(["size", "algorithm", *columns], rows)


def projection_table(projection: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """The memory model's peak at published sizes: a projection."""
    frame = projection[projection["part"] == "peak"]
    names = [n for n in dict.fromkeys(frame["algorithm"]) if n != BASE]
    rows = []
    for size, part in frame.groupby("size", sort=False):
        entries = []
        for name in names:
            row = only(part, algorithm=name)
            ratio = "" if math.isnan(row["ratio_to_ppo"]) else f"{row['ratio_to_ppo']:.2f} of PPO's"
            entries.append(Entry(f"{row['bytes'] / 2**30:,.0f}", ratio))
        rows.append([Entry(size, part["source"].iloc[0]), *entries])
    titles = [f"{looks[n].label if n in looks else n}, GiB" for n in names]
    return Table(["projected size", *titles], rows)
