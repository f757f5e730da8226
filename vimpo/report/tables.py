"""The report's tables: numbers from the CSV tables and the configuration, formatted for reading.

Templates only lay these out. An entry that is not available says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.analysis.scores import NAMES
from vimpo.config import LADDER, DatasetTask, GymTask, Noise, Study, TextTask
from vimpo.report.labels import Style, noise_name, ordered_noise, styles
from vimpo.storage.codes import Reason
from vimpo.storage.tables import ALL_SIZES, BASE, MEAN, read_csv
from vimpo.text import short


@dataclass(frozen=True)
class Entry:
    """One table cell: its text, smaller detail below it, and a colour mark."""

    text: str
    detail: str = ""
    colour: str = ""
    known: bool = True


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)


def estimate_entry(row: pd.Series | None, factor: float = 1, digits: str = ".1f") -> Entry:
    """`51.0`, below it `[46.0, 56.1], n = 4`; or `n/a` with the reason."""
    if row is None:
        return Entry("n/a", "not in the grid", known=False)
    n, expected = int(row["n"]), int(row["expected"])
    count = f"n = {n}" + (f" of {expected}" if n < expected else "")
    if not math.isfinite(row["mean"]):
        return Entry("n/a", f"{row['reason']}, {count}", known=False)
    text = format(factor * row["mean"], digits)
    if not math.isfinite(row["low"]):
        return Entry(text, f"{count}, no interval: {row['reason']}")
    low, high = (format(factor * row[c], digits) for c in ("low", "high"))
    return Entry(text, f"[{low}, {high}], {count}")


def algorithm_entry(name: str, looks: dict[str, Style]) -> Entry:
    style = looks.get(name)
    return Entry(style.label, "", style.colour) if style else Entry(name)


def only(frame: pd.DataFrame, **values: str) -> pd.Series | None:
    """The first row with these values; None if there is none."""
    return _first(frame, _Equal(frame).all_of(values))


def matching(frame: pd.DataFrame, values: Mapping[str, str]) -> pd.DataFrame:
    return frame.iloc[np.flatnonzero(_Equal(frame).all_of(values))]


def _first(frame: pd.DataFrame, mask: np.ndarray) -> pd.Series | None:
    return frame.iloc[int(mask.argmax())] if mask.any() else None


class _Equal:
    """Masks of a frame's rows; a column is compared with a value once, which is what costs time."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self._masks: dict[tuple[str, str], np.ndarray] = {}

    def all_of(self, values: Mapping[str, str]) -> np.ndarray:
        """Which rows have all of these values, by column."""
        mask = np.ones(len(self._frame), bool)
        for column, value in values.items():
            if (column, value) not in self._masks:
                self._masks[column, value] = (self._frame[column] == value).to_numpy()
            mask &= self._masks[column, value]
        return mask


@dataclass(frozen=True)
class Row:
    """One row of a pivot: how it is headed, and which rows of the frame are its."""

    heads: tuple[Entry, ...]
    where: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """One column of a pivot: its title, which number it shows, and how that is printed."""

    title: str
    where: Mapping[str, str]
    digits: str = ".2f"
    factor: float = 1


def column_entry(row: pd.Series | None, column: Column) -> Entry:
    return estimate_entry(row, column.factor, column.digits)


def pivot(
    frame: pd.DataFrame,
    titles: Sequence[str],
    rows: Iterable[Row],
    columns: Sequence[Column],
    show: Callable[[pd.Series | None, Column], Entry] = column_entry,
) -> Table:
    """A table with one line for each of `rows` that the frame has. titles: of the rows' heads."""
    lines, equal = [], _Equal(frame)
    shown = [equal.all_of(column.where) for column in columns]
    for row in rows:
        own = equal.all_of(row.where)
        if own.any():
            found = (_first(frame, own & mask) for mask in shown)
            entries = map(show, found, columns)
            lines.append([*row.heads, *entries])
    return Table([*titles, *(column.title for column in columns)], lines)


def algorithm_rows(frame: pd.DataFrame, looks: dict[str, Style]) -> list[Row]:
    """One row per size and algorithm, in the frame's order."""
    pairs = dict.fromkeys(zip(frame["size"], frame["algorithm"], strict=True))
    return [
        Row((Entry(size), algorithm_entry(name, looks)), {"size": size, "algorithm": name})
        for size, name in pairs
    ]


def noise_columns(frame: pd.DataFrame, digits: str = ".2f", factor: float = 1) -> list[Column]:
    return [
        Column(noise_name(noise), {"noise": noise}, digits, factor)
        for noise in ordered_noise(frame["noise"])
    ]


def size_entry(size: str) -> Entry:
    return Entry("mean of sizes" if size == ALL_SIZES else size)


# --- Accuracy ------------------------------------------------------------------------------------


def headline(
    summary: pd.DataFrame, looks: dict[str, Style], metric: str, sizes: list[str]
) -> Table:
    """Accuracy in percent, mean of benchmarks: by algorithm (and size, if several) and noise."""
    frame = summary[(summary["metric"] == metric) & (summary["benchmark"] == MEAN)]
    trained, base = frame[frame["algorithm"] != BASE], frame[frame["algorithm"] == BASE]
    columns = noise_columns(trained, ".1f", factor=100)
    # no reward has touched the base policy: it is the same at every noise level
    known = [base.assign(**column.where) for column in columns]
    several = len(sizes) > 1
    rows = [
        Row(
            (*[size_entry(size)] * several, algorithm_entry(name, looks)),
            {"size": size, "algorithm": name},
        )
        for size in sizes
        for name in dict.fromkeys(frame["algorithm"])
    ]
    titles = ["size"] * several + ["policy"]
    return pivot(pd.concat([*known, trained]), titles, rows, columns)


# --- Outcomes ------------------------------------------------------------------------------------

FAILURES = {"not_finite": "not finite", "collapsed": "collapsed"}


def outcomes(summary: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """How many runs failed, of those whose end is known."""
    rows = algorithm_rows(summary, looks)
    return pivot(summary, ["size", "algorithm"], rows, noise_columns(summary), _outcome_entry)


def _outcome_entry(row: pd.Series | None, _: Column) -> Entry:
    """`1 of 2`, below it `collapsed: 1; share [0.01, 0.99]`."""
    if row is None:
        return Entry("n/a", "not in the grid")
    kinds = [f"{name}: {int(row[kind])}" for kind, name in FAILURES.items() if row[kind]]
    count = f"{sum(int(row[kind]) for kind in FAILURES)} of {int(row['n'])}"
    return Entry(count, "; ".join([*kinds, f"share [{row['low']:.2f}, {row['high']:.2f}]"]))


def failures(runs: pd.DataFrame) -> Table:
    """Every failed run by name, with its step and what happened."""
    failed = runs[runs["outcome"].isin(list(FAILURES))]
    rows = [
        [
            Entry(f"{r.algorithm}/{r.size}/noise-{r.noise}/seed-{int(r.seed)}"),
            Entry(FAILURES[r.outcome]),
            Entry(f"{r.step:g}"),
            Entry(r.reason),
        ]
        for r in failed.itertuples()
    ]
    return Table(["run", "outcome", "step", "what happened"], rows)


# --- Capacity ------------------------------------------------------------------------------------


def capacity(table: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """One row per size: surprisal in nats, and what it makes of each algorithm's beta."""
    names = list(dict.fromkeys(table.loc[table["algorithm"] != BASE, "algorithm"]))
    rows = []
    for size, own in table.groupby("size", sort=False):
        base = own.iloc[0]
        right = _surprisal_entry(base, "right_") if base["right_responses"] else Entry("none")
        betas = (_capacity_entry(only(own, algorithm=name)) for name in names)
        rows.append([Entry(str(size)), _surprisal_entry(base), right, *betas])
    titles = (f"capacity of {algorithm_entry(name, looks).text}" for name in names)
    return Table(["size", "surprisal, nats", "of right responses", *titles], rows)


def _surprisal_entry(row: pd.Series, kind: str = "") -> Entry:
    """`3.87`, below it `standard error 0.16, 256 responses of 8.3 tokens`; kind: a prefix."""
    error, count = row[f"{kind}stderr"], row[f"{kind}responses"]
    known = f"standard error {error:.2g}, " if math.isfinite(error) else ""
    detail = f"{known}{count:g} responses of {row[f'{kind}tokens']:.3g} tokens"
    return Entry(f"{row[f'{kind}surprisal']:.3g}", detail)


def _capacity_entry(row: pd.Series | None) -> Entry:
    if row is None:
        return Entry("n/a", "not in the grid")
    return Entry(f"{row['capacity']:.3g}", f"beta {row['beta']:.4g}")


# --- Cost ----------------------------------------------------------------------------------------

COST_COLUMNS: dict[str, tuple[str, float, str]] = {
    "step_total": ("step, s", 1, ".3g"),
    "step_rollout": ("rollout, s", 1, ".3g"),
    "step_reference": ("reference, s", 1, ".3g"),
    "step_critic": ("critic, s", 1, ".3g"),
    "step_update": ("update, s", 1, ".3g"),
    "tokens_per_second": ("tokens / s", 1, ",.0f"),
    "peak_memory_mb": ("peak memory, MB", 1, ",.0f"),
    "optimizer_bytes": ("optimiser, MB", 2**-20, ".3g"),
}


def cost(costs: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """One row per algorithm and size; all runs of a design have the same parameters and bytes."""
    runs = costs[costs["algorithm"] != BASE]
    rows = []
    for (size, name), part in runs.groupby(["size", "algorithm"], sort=False):
        values = {row["metric"]: row for _, row in part.iterrows()}
        parameters = [
            short(values[m]["mean"]) if m in values else "n/a"
            for m in ("trainable_parameters", "resident_parameters")
        ]
        n = max(int(part["n"].max()), 0)
        entries = [
            _cost_entry(values.get(metric), factor, digits)
            for metric, (_, factor, digits) in COST_COLUMNS.items()
        ]
        rows.append(
            [Entry(size), algorithm_entry(name, looks), Entry(str(n))]
            + [Entry(p) for p in parameters]
            + entries
        )
    titles = [title for title, _, _ in COST_COLUMNS.values()]
    return Table(["size", "algorithm", "runs", "trainable", "resident", *titles], rows)


def _cost_entry(row: pd.Series | None, factor: float, digits: str) -> Entry:
    if row is None:
        return Entry("n/a", "not measured")
    text = format(factor * row["mean"], digits)
    if math.isfinite(row["low"]):
        low, high = (format(factor * row[c], digits) for c in ("low", "high"))
        return Entry(text, f"[{low}, {high}]")
    # a number that no run varies needs no interval: it is a property of the design
    return Entry(text, "" if row["reason_code"] == Reason.ALL_EQUAL else row["reason"])


# --- The paper -----------------------------------------------------------------------------------


def paper_results(path: Path, summary: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """The paper's results, next to ours for the same algorithm and noise."""
    paper = read_csv(path)
    ours = summary[(summary["metric"] == "sampled") & (summary["benchmark"] == MEAN)]
    several = ALL_SIZES in set(ours["size"])
    size = ALL_SIZES if several else next(iter(ours["size"]), "")
    benchmarks = list(dict.fromkeys(paper["benchmark"]))
    metrics = dict(zip(paper["benchmark"], paper["metric"], strict=True))
    looks = styles(paper["algorithm"]) | looks
    rows, names = [], dict.fromkeys(zip(paper["algorithm"], paper["noise"], strict=True))
    # what we trained and the paper did not
    names |= dict.fromkeys((n, noise) for noise in dict.fromkeys(paper["noise"]) for n in NAMES)
    for name, noise in sorted(names, key=lambda pair: ordered_noise(paper["noise"]).index(pair[1])):
        part = paper[(paper["algorithm"] == name) & (paper["noise"] == noise)]
        cells = [only(part, benchmark=b) for b in benchmarks]
        rows.append(
            [algorithm_entry(name, looks), Entry(noise_name(noise))]
            + [Entry("–" if c is None else c["value"]) for c in cells]
            + [estimate_entry(only(ours, algorithm=name, size=size, noise=noise), factor=100)]
        )
    titles = [f"{b} {metrics[b]}".strip() for b in benchmarks]
    notes = [f"Source of the paper's numbers: {s}." for s in dict.fromkeys(paper["source"])]
    notes += [
        f"{looks[r['algorithm']].label} on "
        f"{r['benchmark']}: another source quotes {r['alternative']} instead of {r['value']}."
        for _, r in paper[paper["alternative"] != ""].iterrows()
    ]
    columns = ["policy", "reward noise", *(f"paper: {t}" for t in titles)]
    return Table([*columns, "ours: mean of benchmarks"], rows, notes)


def paper_setup(path: Path, study: Study, looks: dict[str, Style]) -> Table:
    """Differences of set-up, one row per setting; ours is read from the configuration."""
    rows = [
        [Entry(r["setting"]), Entry(r["paper"]), _ours(study, r["ours"], looks)]
        for _, r in read_csv(path).iterrows()
    ]
    return Table(["setting", "paper", "this study"], rows)


def _training_problems(study: Study) -> list[str]:
    if isinstance(study.task, DatasetTask):
        return [source.path for source in study.task.datasets]
    if isinstance(study.task, GymTask):
        return [f"reasoning-gym {source.name}" for source in study.task.datasets]
    return [f"generated {study.task.kind} problems, new at every step"]


def _prompts(study: Study) -> dict[str, str]:
    """How prompts are written, and what happens to long ones."""
    if not isinstance(study.task, TextTask):
        return {"prompts": "plain text", "long_prompts": "none is too long"}
    chat = "chat template of the tokenizer" if study.task.chat_template else "plain text"
    long = {"drop": "left out", "refuse": "refused", "cut": "cut on the left"}
    kept = study.task.long_prompts if isinstance(study.task, DatasetTask) else "drop"
    return {"prompts": chat, "long_prompts": long[kept]}


def _ours(study: Study, key: str, looks: dict[str, Style]) -> Entry:
    used = list(dict.fromkeys(cell.algorithm for cell in study.cells()))
    named: dict[str, Callable[[], Iterable[object]]] = {
        "policies": lambda: (
            f"{s} ({study.sizes[s].path or 'made from scratch'})" for s in study.used_sizes()
        ),
        "training_problems": lambda: _training_problems(study),
        "benchmarks": lambda: study.task.benchmarks,
        "algorithms": lambda: (looks[a].label if a in looks else a for a in used),
        "seeds": lambda: sorted({cell.seed for cell in study.cells()}),
        "noise": lambda: [
            f"{noise_name(label)} ({Noise.parse(label).mode})"
            for label in ordered_noise(cell.noise for cell in study.cells())
        ],
        "learning_rates": lambda: (
            f"{study.sizes[s].learning_rate:g} ({s})" for s in study.used_sizes()
        ),
        "prompts": lambda: [_prompts(study)["prompts"]],
        "long_prompts": lambda: [_prompts(study)["long_prompts"]],
        "beta": lambda: _distinct(study, used, "beta"),
        "actor_coef": lambda: _distinct(study, used, "actor_coef"),
    }
    if key in named:
        text = ", ".join(map(str, named[key]()))
        return Entry(text) if text else Entry("n/a: no VIMPO in this study", known=False)
    value: object = study
    for part in key.split("."):
        value = getattr(value, part)
    return Entry(str(value))


def _distinct(study: Study, used: list[str], name: str) -> list[str]:
    values = (getattr(study.algorithms[a], name, None) for a in used)
    shown = (f"{v:g}" if isinstance(v, float) else str(v) for v in values if v is not None)
    return list(dict.fromkeys(shown))


# --- Methods -------------------------------------------------------------------------------------


def hyperparameters(study: Study, looks: dict[str, Style]) -> Table:
    """Every hyperparameter of every algorithm used; a dash if it has none of that name."""
    used = list(dict.fromkeys(cell.algorithm for cell in study.cells()))
    settings = {name: study.algorithms[name].model_dump() for name in used}
    names = list(dict.fromkeys(key for values in settings.values() for key in values))
    rows = [
        [Entry(key), *(Entry(_plain(settings[a].get(key, "–"))) for a in used)] for key in names
    ]
    return Table(["hyperparameter", *(algorithm_entry(a, looks).text for a in used)], rows)


def shared_settings(study: Study) -> Table:
    """What all algorithms share, from the task to the thresholds of the claims."""
    sections = (
        *("task", "pretrain", "train", "evaluation", "probes", "statistics", "claims"),
        "runtime",
    )
    rows = []
    for section in sections:
        values = getattr(study, section).model_dump()
        rows += [[Entry(f"{section}.{key}"), Entry(_plain(v))] for key, v in values.items()]
    return Table(["setting", "value"], rows)


def sizes(study: Study, params: dict[str, float]) -> Table:
    names = list(next(iter(LADDER.values())).model_dump())
    rows = [
        [Entry(size), Entry(short(params.get(size, math.nan)))]
        + [Entry(_plain(getattr(study.sizes[size], name))) for name in names]
        for size in study.used_sizes()
    ]
    return Table(["size", "parameters", *names], rows)


def tuning(study: Study, looks: dict[str, Style]) -> Table:
    """Learning rates of this study: entries that differ in nothing but `lr_scale` are one family.

    Budgets are equal only where the last column is.
    """
    used = list(dict.fromkeys(cell.algorithm for cell in study.cells()))
    sizes_of = {
        name: list(dict.fromkeys(c.size for c in study.cells() if c.algorithm == name))
        for name in used
    }

    def family(name: str) -> str:
        return study.algorithms[name].model_copy(update={"lr_scale": 1.0}).model_dump_json()

    def rate(name: str, size: str) -> float:
        return study.sizes[size].learning_rate * study.algorithms[name].scale_at(size)

    tried_at: dict[tuple[str, str], set[float]] = {}
    for name in used:
        for size in sizes_of[name]:
            tried_at.setdefault((family(name), size), set()).add(rate(name, size))
    rows = []
    for name in used:
        rates = [f"{rate(name, size):g} ({size})" for size in sizes_of[name]]
        tried = max(len(tried_at[family(name), size]) for size in sizes_of[name])
        rows.append([algorithm_entry(name, looks), Entry(", ".join(rates)), Entry(str(tried))])
    return Table(["algorithm", "learning rate (size)", "rates tried in this study"], rows)


def sweep_table(sweeps: pd.DataFrame, looks: dict[str, Style]) -> Table:
    """One row per trial of the sweeps that a study names, one column per metric."""
    metrics = list(dict.fromkeys(sweeps["metric"]))
    rows = []
    for (name, _), own in sweeps.groupby(["sweep", "trial"], sort=False):
        first = own.iloc[0]
        swept = f"{first['axis']} {first['at']:g}"
        settings = ", ".join(filter(None, [swept, first["settings"]]))
        rows.append(
            [Entry(name), algorithm_entry(first["objective"], looks), Entry(settings)]
            + [estimate_entry(only(own, metric=metric), digits=".3f") for metric in metrics]
            + [Entry(f"{first['failed']:g}"), Entry("best" if "yes" in set(own.chosen) else "")]
        )
    return Table(["sweep", "algorithm", "settings", *metrics, "failed runs", ""], rows)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)


def plain_table(frame: pd.DataFrame) -> Table:
    """A CSV table as it is."""
    rows = [
        [Entry(f"{v:g}" if isinstance(v, float) else str(v)) for v in row]
        for row in frame.itertuples(index=False)
    ]
    return Table(list(frame.columns), rows)
