"""One row of claims.csv, and how it is printed: in tables (to three digits) and in sentences.

What is printed depends on the row's codes and numbers, never on its texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import pandas as pd

from vimpo.analysis.names import label
from vimpo.analysis.verdicts import ABOVE, BELOW, FACT, INCONCLUSIVE, NOT_APPLICABLE, Counted, Role
from vimpo.storage.codes import Reason

RELATIONS = {ABOVE: ">", BELOW: "<"}
COUNTABLE = 100  # beyond it the estimate's own error is larger than any study


@dataclass(frozen=True)
class Scale:
    """How sentences print an effect: times `factor`, with its unit; `of`: what it is, in tables."""

    factor: float = 1
    digits: str = ".2f"
    unit: str = ""
    of: str = ""
    signed: bool = False

    def text(self, number: float) -> str:
        text = self.amount(number)
        positive = float(text) > 0
        return f"+{text}" if self.signed and positive else text

    def amount(self, number: float) -> str:
        """Without a plus sign; zero has no sign at all."""
        text = format(self.factor * number, self.digits)
        return text.lstrip("-") if float(text) == 0 else text


POINTS = Scale(100, ".1f", " points", signed=True)
PERCENT = Scale(100, ".0f", " %")
PLAIN, SIGNED = Scale(), Scale(signed=True)
EXPLAINED = replace(PLAIN, of=" explained variance")
AUC = replace(PLAIN, of=" AUC")
SCALES = {
    Role.MATCH: POINTS,
    Role.CHEAPER: replace(PERCENT, of=" of the time"),
    Role.LOST: Scale(10, ".1f", " points", " per tenth of flips", signed=True),
    Role.ACCURATE: EXPLAINED,
    Role.ORDER: replace(PLAIN, of=" rank correlation"),
    Role.SLOPE: replace(SIGNED, of=" explained variance per tenfold"),
    Role.BEHIND_CRITIC: replace(EXPLAINED, signed=True),
    Role.CREDIT: AUC,
    Role.PLACE: replace(AUC, signed=True),
    Role.FINER: replace(AUC, signed=True),
    Role.COST: PERCENT,
    Role.AREA: POINTS,
    Role.SPREAD: replace(POINTS, signed=False),
    Role.COLLAPSE: PLAIN,
    Role.SHAPE: PLAIN,
    Role.HIDDEN: PLAIN,
    Role.SIGNAL: PLAIN,
    Role.REACHED: PERCENT,
    # those of hypotheses have the unit of what is measured
    Role.BY_SIZE: PLAIN,
    Role.LEVEL: PLAIN,
    Role.DIFFERENCE: SIGNED,
}
UNITS = {
    "ratio": PERCENT,
    "share": replace(POINTS, signed=False),
    "steps": Scale(1, ".1f", " steps"),
    "seconds": Scale(1, ".3g", " s"),
    "bytes": Scale(1e-6, ".1f", " MB"),
    "nats": Scale(1, ".2f", " nats"),
}
# What a hypothesis measures, after its number: the end of `part` -> words.
MEASURED = {
    "accuracy": " of accuracy",
    "area": " of area",
    "lost": " per unit of noise",
    "explained_variance": " explained variance",
    "rescaled_variance": " explained variance, rescaled",
    "rank_correlation": " rank correlation",
    "pairs_in_order": " of pairs in order",
    "pairs_difference": " between pairs",
    "credit_auc": " AUC",
    "credit_beyond_place": " AUC beyond place",
    "kl": " of KL",
    "flawless": " of answers flawless",
    "headroom": " of the headroom",
}


def number(value: float, unit: str = "") -> str:
    """`+0.012`, or `0.80×` for a ratio; zero has no sign."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.3g}×" if unit == "ratio" else f"{value:.3f}"
    return "0" + text[2:] if text.startswith("-0.") and float(text.rstrip("×")) == 0 else text


def p_text(p: float) -> str:
    if not math.isfinite(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


@dataclass(frozen=True)
class View:
    """A row of claims.csv (the fields), and what templates and tables print of it."""

    part: str
    claim: str
    kind: str
    role: Role
    algorithm: str
    rival: str
    statement: str
    metric: str
    unit: str
    effect: float
    low: float
    high: float
    n: int
    expected: int
    counted: Counted
    p_holm: float
    threshold: float
    side: str
    verdict: str
    per_size: int
    needed_per_size: float
    reason_code: Reason
    reason: str

    @classmethod
    def of(cls, row: pd.Series) -> View:
        values = {field.name: row[field.name] for field in fields(cls)}
        counts = {name: int(row[name]) for name in ("n", "expected", "per_size")}
        codes = {"role": Role(row["role"]), "counted": Counted(row["counted"])}
        return cls(**values | counts | codes | {"reason_code": Reason(row["reason_code"])})

    # what is known

    @property
    def decoder(self) -> str:
        """Of a row of kind `decoder`."""
        return self.part.partition("@")[2]

    @property
    def test(self) -> str:
        """The part of the test that a row of kind `decoder` repeats."""
        return self.part.partition("@")[0]

    @property
    def available(self) -> bool:
        return math.isfinite(self.effect)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low)

    @property
    def open(self) -> bool:
        return self.verdict == INCONCLUSIVE

    @property
    def applies(self) -> bool:
        """Can the task have such a number?"""
        return self.verdict != NOT_APPLICABLE

    @property
    def passes(self) -> bool:
        """By the interval alone, which no correction for the number of tests has widened."""
        return self.low > self.threshold if self.side == ABOVE else self.high < self.threshold

    # tables: three digits, and the unit of claims.csv

    @property
    def effect_text(self) -> str:
        return number(self.effect, self.unit)

    @property
    def interval(self) -> str:
        ends = f"[{number(self.low, self.unit)}, {number(self.high, self.unit)}]"
        return ends if self.bounded else ""

    @property
    def n_of_expected(self) -> str:
        return f"{self.n} of {self.expected}" if self.n < self.expected else str(self.n)

    @property
    def asked(self) -> str:
        relation = RELATIONS.get(self.side, "")
        return f"{relation} {self.threshold:g}" + ("×" if self.unit == "ratio" else "")

    # sentences: the scale of the role

    @property
    def scale(self) -> Scale:
        usual = SCALES[self.role]
        if self.role not in (Role.BY_SIZE, Role.LEVEL, Role.DIFFERENCE):
            return usual
        scale = UNITS.get(self.unit, PLAIN)
        signed = usual.signed or (self.role == Role.BY_SIZE and bool(self.rival))
        what = MEASURED.get(self.part.partition(".")[2], "")
        return replace(scale, of=what, signed=signed and self.unit != "ratio")

    @property
    def whose(self) -> str:
        """The rival if there is one, else whom the number describes."""
        return label(self.rival or self.algorithm)

    @property
    def value(self) -> str:
        return self.scale.text(self.effect) + self.scale.unit

    @property
    def value_of(self) -> str:
        return self.value + self.scale.of

    @property
    def amount(self) -> str:
        return self.scale.amount(abs(self.effect)) + self.scale.unit

    @property
    def mark(self) -> str:
        """The threshold."""
        return self.scale.amount(self.threshold) + self.scale.unit

    @property
    def mark_amount(self) -> str:
        return self.scale.amount(abs(self.threshold)) + self.scale.unit

    @property
    def asked_mark(self) -> str:
        return f"{RELATIONS.get(self.side, '')} {self.mark}"

    @property
    def interval_n(self) -> str:
        """`-0.5 to +1.0; 4 pairs`; empty if the number follows from the design."""
        if not self.bounded and self.kind == FACT and self.reason_code == Reason.DESIGN:
            return ""
        ends = " to ".join(self.scale.text(end) for end in (self.low, self.high))
        if self.scale.unit == PERCENT.unit:
            ends += self.scale.unit
        n = self.n_of_expected
        counted = self.counted.singular if n == "1" else self.counted
        return f"{ends if self.bounded else 'no interval'}; {n} {counted}"

    @property
    def share(self) -> str:
        return f"{self.effect * self.n:.0f} of {self.n}"

    # what would settle it

    @property
    def needed(self) -> str:
        """`about 17`; empty if no number of seeds would do, or none is known."""
        if self.reason_code or math.isnan(self.needed_per_size):
            return ""
        few = self.needed_per_size <= COUNTABLE
        return f"about {self.needed_per_size:.0f}" if few else "more than a hundred"

    @property
    def units(self) -> str:
        return "rounds" if self.counted == Counted.ROUNDS else "seeds"
