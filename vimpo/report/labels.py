"""Names and looks of algorithms, sizes and noise levels, the same in figures, tables and text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vimpo.analysis.names import LABELS
from vimpo.config import Noise
from vimpo.storage.tables import ALL_SIZES, BASE
from vimpo.text import short

Dashes = Any  # a line style of matplotlib: `--`, or (offset, (on, off, ...))


@dataclass(frozen=True)
class Style:
    """How an algorithm looks, everywhere."""

    label: str
    colour: str
    marker: str
    line: Dashes = "-"


LOOKS = {
    BASE: ("#7f7f7f", "_", (0, (1, 1))),
    "vimpo": ("#0072B2", "o", "-"),
    "ppo": ("#E69F00", "s", "--"),
    "ppo_pretrained": ("#B35900", "4", (0, (6, 1, 2, 1))),
    "grpo": ("#009E73", "^", "-."),
    "vimpo_value_only": ("#56B4E9", "D", (0, (5, 1))),
    "grpo_naive": ("#CC79A7", "v", (0, (3, 1, 1, 1))),
    "grpo_kl": ("#117733", "<", (0, (4, 1))),
    "dapo": ("#0D7A6F", "3", (0, (6, 1, 1, 1))),
    "grpo_corrected": ("#999933", ">", (0, (2, 1))),
    "dr_grpo": ("#44AA99", "d", "-."),
    "gspo": ("#882255", "p", (0, (5, 1, 1, 1))),
    "rloo": ("#AA4499", "8", "--"),
    "reinforce_pp": ("#661100", "H", (0, (1, 1))),
    "tbrm": ("#332288", "1", "-"),
    "vineppo": ("#6699CC", "2", "--"),
    "oracle": ("#4D4D4D", "+", "-"),
    "oracle_shuffled": ("#A6A6A6", "x", "--"),
    "entropy": ("#DDCC77", "|", (0, (3, 1, 1, 1))),
}
STYLES = {name: Style(LABELS[name], *look) for name, look in LOOKS.items()}


CROWD = 8  # lines that a reader can tell apart in one panel
FEATURED = ("vimpo", "ppo", "ppo_pretrained", "grpo", "oracle")


def featured(algorithms: Iterable[str]) -> list[str]:
    """Those that stand out in a panel of all: every one, or in a crowd the featured ones."""
    names = list(dict.fromkeys(algorithms))
    if len(names) <= CROWD:
        return names
    return [name for name in names if name in FEATURED] or names[:CROWD]


SPARE = [
    ("#D55E00", "P", (0, (1, 1))),
    ("#000000", "X", (0, (6, 2))),
    ("#B8A800", "*", (0, (3, 1, 1, 1, 1, 1))),
    ("#8C510A", "h", (0, (8, 1, 1, 1))),
]


def styles(algorithms: Iterable[str]) -> dict[str, Style]:
    """Style of each algorithm; names without a fixed one get spare ones, in order."""
    spare = map(spare_style, itertools.count())
    return {
        name: STYLES[name] if name in STYLES else Style(name, *next(spare))
        for name in dict.fromkeys(algorithms)
    }


def spare_style(i: int) -> tuple[str, str, tuple]:
    """Colour, marker and line; once the spare ones are used up, they are recombined."""
    turn = i // len(SPARE)
    colour, (_, marker, line) = SPARE[i % len(SPARE)][0], SPARE[(i + turn) % len(SPARE)]
    return colour, marker, line


NAMED = 3  # exceptions that a title can name


def count_note(frame: pd.DataFrame, looks: dict[str, Style], unit: str = "seed") -> str:
    """`n = 2 seeds`, or `n = 2 seeds (GRPO 1)` if some algorithms have another number.

    `1–2` if the points of one line differ. More exceptions than a title holds are not named:
    `n = 1–2 seeds`.
    """
    runs = frame[frame["algorithm"] != BASE].groupby("algorithm", sort=False)["n"]
    ends = runs.agg(["min", "max"])
    counts = {
        name: f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"
        for name, low, high in ends.itertuples()
    }
    if not counts:
        return "no run"
    values = list(counts.values())
    usual = max(values, key=lambda v: (values.count(v), v))
    others = [f"{looks[name].label} {n}" for name, n in counts.items() if n != usual]
    if len(others) > NAMED:
        usual, others = f"{ends['min'].min():.0f}–{ends['max'].max():.0f}", []
    plural = "" if usual == "1" else "s"
    return f"n = {usual} {unit}{plural}" + (f" ({', '.join(others)})" if others else "")


def noise_name(label: str) -> str:
    noise = Noise.parse(label)
    if noise.mode == "asymmetric":
        return f"noise {noise.false_positive:g} / {noise.false_negative:g}"
    return f"noise {noise.rate:g}" + (" per rollout" if noise.mode == "rollout" else "")


def size_name(frame: pd.DataFrame, size: str) -> str:
    if size == ALL_SIZES:
        return "mean over sizes"
    params = frame.loc[frame["size"] == size, "params"].dropna()
    return f"{size}, {short(params.iloc[0])}" if len(params) else size


def interval_name(frame: pd.DataFrame) -> str:
    return f"{100 * frame['confidence'].iloc[0]:g} % interval" if len(frame) else "interval"


def ordered_noise(labels: Iterable[str]) -> list[str]:
    order = ("group", "rollout", "asymmetric")
    unique = {label: Noise.parse(label) for label in labels}
    return sorted(unique, key=lambda k: (order.index(unique[k].mode), unique[k].level, k))


def on_clean_rewards(frame: pd.DataFrame) -> pd.DataFrame:
    clean = {label: Noise.parse(label).level == 0 for label in set(frame["noise"])}
    return frame[frame["noise"].map(clean).astype(bool)]


@dataclass(frozen=True)
class Line:
    """One line of a figure: a predictor of an algorithm."""

    algorithm: str
    predictor: str
    label: str
    hollow: bool = False

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[
            (frame["algorithm"] == self.algorithm) & (frame["predictor"] == self.predictor)
        ]

    def dashes(self, looks: dict[str, Style]) -> Dashes:
        return ":" if self.hollow else looks[self.algorithm].line


VALUES = (
    Line("vimpo", "implied", "VIMPO: implied value"),
    Line("ppo", "critic", "PPO: critic"),
    Line("grpo", "group_mean", "GRPO: group mean"),
    Line("ppo", "implied", "PPO: implied value of its policy", hollow=True),
    Line("grpo", "implied", "GRPO: implied value of its policy", hollow=True),
)


TD = (
    Line("vimpo", "implied_td", "VIMPO: implied td"),
    Line("ppo", "critic_td", "PPO: critic td"),
    Line("grpo", "group", "GRPO: group advantage"),
    Line("ppo", "implied_td", "PPO: implied td of its policy", hollow=True),
    Line("grpo", "implied_td", "GRPO: implied td of its policy", hollow=True),
)


GAE = tuple(
    Line(x.algorithm, x.predictor.replace("_td", "_gae"), x.label.replace(" td", " GAE"), x.hollow)
    for x in TD
)


READINGS: dict[str, tuple[str, str, Dashes]] = {
    "float32": ("float32", "o", "-"),
    "bfloat16_float32_softmax": ("bfloat16, log-softmax in float32", "s", "--"),
    "bfloat16": ("bfloat16", "^", ":"),
}
