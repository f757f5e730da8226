"""A study's own hypotheses: what is measured, on whom, where, and which threshold decides.

Each becomes one test beside the claims C1 to C6, in the same correction for the number of tests.
The types of measures name what can be measured; vimpo/analysis/measures.py computes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from vimpo.config.decoders import SAMPLED
from vimpo.config.grid import Cell
from vimpo.config.judging import Probes
from vimpo.config.noise import Noise
from vimpo.config.training import Train
from vimpo.config.types import Count, Name, Strict
from vimpo.errors import ConfigError

# --- Measures ------------------------------------------------------------------------------------


class Measure(Strict):
    """What is measured, of every run of an algorithm.

    reads_steps: from grades of single steps, which not every task has.
    """

    reads_steps: ClassVar[bool] = False

    def others(self) -> tuple[tuple[str, str], ...]:
        """Further algorithms whose runs it needs: field, name."""
        return ()


class Accuracy(Measure):
    """Held-out accuracy after training, under a decoder."""

    name: Literal["accuracy"] = "accuracy"


class OfCurve(Strict):
    """Which accuracy along the run: of the rollouts of training, or on held-out problems."""

    of: Literal["training", "validation"] = Field(
        "training",
        # Left out where it is the default, so that studies without it resolve as before.
        exclude_if=lambda value: value == "training",
        description="validation: under where.decoder, one of train.validation.decoders",
    )


class Area(OfCurve, Measure):
    """Area under the learning curve: the mean clean accuracy along the run."""

    name: Literal["area"] = "area"


class StepsTo(OfCurve, Measure):
    """Updates until the smoothed clean accuracy reaches a level; validation is not smoothed."""

    name: Literal["steps_to"] = "steps_to"
    accuracy: float = Field(gt=0, le=1, description="the level; runs that miss it are censored")


class Lost(Measure):
    """Held-out accuracy lost per unit of noise, over all flip rates below one half (as C4)."""

    name: Literal["lost"] = "lost"


class Seconds(Measure):
    """Seconds per step, measured side by side; against an algorithm it is a ratio."""

    name: Literal["seconds"] = "seconds"


class Memory(Measure):
    """Peak memory above what the process holds before training, in bytes, or a ratio."""

    name: Literal["memory"] = "memory"


FITTED = ("ceiling", "linear", "log_probability")  # need probes.baselines
Predictor = Literal["implied", "critic", "ceiling", "linear", "log_probability"]
OWN: Literal["own"] = "own"


class OfValue(Strict):
    """Which prediction of value is judged."""

    predictor: Predictor = "implied"
    rival_predictor: Predictor | None = Field(None, description="default: the same")


class OnPrefixes(Strict):
    """Where the policy is read."""

    prefixes: Literal["own", "common"] = Field(
        OWN,
        exclude_if=lambda value: value == OWN,
        description="in its own responses, or in those of the base policy, the same for every "
        "algorithm",
    )


class OfChange(OnPrefixes, OfValue):
    """Of the change of value along a response."""


class ExplainedVariance(OfChange, Measure):
    """Explained variance of the change of value along a response (as C5)."""

    name: Literal["explained_variance"] = "explained_variance"


class RescaledVariance(OfChange, Measure):
    """The same after the best rescaling of the prediction: what its shape explains."""

    name: Literal["rescaled_variance"] = "rescaled_variance"


class RankCorrelation(OfChange, Measure):
    """Rank correlation of a predicted change of value with the true one (as C5)."""

    name: Literal["rank_correlation"] = "rank_correlation"


class PairsInOrder(OfValue, Measure):
    """Share of pairs of a right and a wrong digit of which the right one has the higher value."""

    name: Literal["pairs_in_order"] = "pairs_in_order"


class PairsDifference(OfValue, Measure):
    """By how much the value after the right digit is higher, a mean over pairs."""

    name: Literal["pairs_difference"] = "pairs_difference"


Signal = Literal["implied_td", "implied_gae", "critic_td", "critic_gae", "group", "position"]


class CreditAUC(OnPrefixes, Measure):
    """How often the first wrong step has a lower signal than another step (as C6)."""

    reads_steps = True
    name: Literal["credit_auc"] = "credit_auc"
    signal: Signal = "implied_td"


class CreditBeyondPlace(OnPrefixes, Measure):
    """The same, less what the token's place alone scores, rising or falling (as C6)."""

    reads_steps = True
    name: Literal["credit_beyond_place"] = "credit_beyond_place"
    signal: Signal = "implied_td"


class KL(Measure):
    """Summed KL to the base policy, the mean over the last tenth of training, in nats."""

    name: Literal["kl"] = "kl"


class Flawless(Measure):
    """Share of right rollouts without a wrong step, the mean over the last tenth of training."""

    reads_steps = True
    name: Literal["flawless"] = "flawless"


class Headroom(OfCurve, Measure):
    """(A - floor) / (ceiling - floor) on the area under the learning curve, paired by seed."""

    name: Literal["headroom"] = "headroom"
    floor: Name = Field("grpo", description="algorithm that captures none of it")
    ceiling: Name = Field("oracle", description="algorithm that captures all of it")

    def others(self) -> tuple[tuple[str, str], ...]:
        return (("floor", self.floor), ("ceiling", self.ceiling))

    @model_validator(mode="after")
    def _has_two_ends(self) -> Headroom:
        if self.floor == self.ceiling:
            raise ValueError(f"ceiling: '{self.ceiling}' is the floor; allowed: another algorithm")
        return self


AnyMeasure = (
    Accuracy
    | Area
    | StepsTo
    | Lost
    | Seconds
    | Memory
    | ExplainedVariance
    | RescaledVariance
    | RankCorrelation
    | PairsInOrder
    | PairsDifference
    | CreditAUC
    | CreditBeyondPlace
    | KL
    | Flawless
    | Headroom
)
MEASURES: dict[str, type[Measure]] = {
    kind.model_fields["name"].default: kind for kind in Measure.__subclasses__()
}
OF_ANSWERS = ("accuracy", "lost")  # read from the benchmarks, under a decoder
OF_PROBES = ("explained_variance", "rank_correlation", "credit_auc", "credit_beyond_place")
OF_SNAPSHOTS = ("accuracy", *OF_PROBES)  # known of the policy at a step, too
OF_COST = ("seconds", "memory")  # measured apart from the runs; against an algorithm a ratio


def _by_name(value: Any) -> Any:
    """`area` is short for `{name: area}`."""
    value = {"name": value} if isinstance(value, str) else value
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", value)
    if not isinstance(name, str) or name not in MEASURES:
        raise ValueError(f"{name!r:.80} is unknown; allowed: {', '.join(MEASURES)}")
    return value


Tagged = Annotated[AnyMeasure, Discriminator("name")]
MeasureConfig = Annotated[
    Tagged,
    BeforeValidator(
        _by_name,
        json_schema_input_type=Annotated[str, Field(json_schema_extra={"enum": [*MEASURES]})]
        | Tagged,
    ),
]


# --- Hypotheses ----------------------------------------------------------------------------------


def _one_or_the_other(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (math.isfinite(value) if number else isinstance(value, str)):
        raise ValueError(f"{value!r:.80} is not allowed; allowed: an algorithm, or a finite number")
    return value


class Contrast(Strict):
    """An algorithm, minus another one or a constant; costs of two are compared as a ratio."""

    algorithm: Name
    minus: Annotated[
        Name | float, BeforeValidator(_one_or_the_other, json_schema_input_type=Name | float)
    ] = Field(0.0, description="an algorithm, or a number")

    @property
    def rival(self) -> str:
        """The other algorithm, if there is one."""
        return self.minus if isinstance(self.minus, str) else ""


def _a_rate(value: Any) -> Any:
    """A number is a flip rate of groups, a text a name as in tables: `rollout-0.25`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return Noise.parse(value) if isinstance(value, str) else {"rate": value}
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("noise: ")) from None


class Where(Strict):
    """Which runs, problems and decoder count."""

    noise: Annotated[Noise | None, BeforeValidator(_a_rate)] = Field(
        None, description="a flip rate, or a noise as in the grid; default: clean rewards"
    )
    sizes: list[Name] | None = Field(None, min_length=1, description="default: all of the grid")
    benchmark: Name | None = Field(None, description="default: the mean over all benchmarks")
    decoder: Name = Field(SAMPLED, description="one of the study's: `greedy`, `training`, ...")
    step: Count | None = Field(
        None,
        # Left out where it is not set, so that studies without it resolve as before.
        exclude_if=lambda value: value is None,
        description="one of train.snapshots; default: the end of training",
    )


class Asked(Strict):
    """What is measured, on whom, where, and how it is pooled: one number with an interval."""

    measure: MeasureConfig
    contrast: Contrast
    where: Where = Where()
    pooling: Literal["mean", "slope"] = Field(
        "mean", description="over sizes with equal weight, or the slope in log10 of `axis`"
    )
    axis: Literal["params"] = Field("params", description="of a slope: the number of parameters")
    by_size: bool = Field(False, description="also print the number at each size, without a test")
    side: Literal["above", "below"] = Field(description="of the threshold that would support it")

    @property
    def validated(self) -> bool:
        """Is it about accuracy in validation?"""
        return isinstance(self.measure, OfCurve) and self.measure.of == "validation"

    @property
    def is_ratio(self) -> bool:
        return self.measure.name in OF_COST and bool(self.contrast.rival)


class Hypothesis(Asked):
    """One question to a study, decided by one number, its interval and a threshold."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)
    question: str = Field(min_length=1, max_length=300, description="as the report prints it")
    threshold: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits_together(self) -> Hypothesis:
        if re.fullmatch(r"C\d+", self.id):
            raise ValueError(f"id: '{self.id}' is one of the suite's claims; allowed: another name")
        if not self.question.isprintable() or not self.question.strip():
            raise ValueError(f"question: {self.question!r:.80} is no line of text; allowed: one")
        if self.contrast.rival == self.contrast.algorithm:
            raise ValueError(
                f"contrast.minus: '{self.contrast.minus}' is the algorithm itself; allowed: "
                "another algorithm, or a number"
            )
        if self.is_ratio and self.threshold <= 0:
            raise ValueError(
                f"threshold: {self.threshold:g} is not allowed; costs are compared as a ratio; "
                "allowed: a number in (0, inf)"
            )
        self._place_means_something()
        return self

    def _place_means_something(self) -> None:
        name = self.measure.name
        if self.where.step and name not in OF_SNAPSHOTS:
            raise ValueError(
                f"where.step: has no meaning for measure '{name}'; allowed: without it, or measure "
                f"{' or '.join(OF_SNAPSHOTS)}"
            )
        for field in ("benchmark", "decoder"):
            # a resolved study writes its defaults out
            usual = getattr(self.where, field) == Where.model_fields[field].default
            validated = field == "decoder" and self.validated
            if not usual and name not in OF_ANSWERS and not validated:
                raise ValueError(
                    f"where.{field}: has no meaning for measure '{name}'; allowed: without it, or "
                    f"measure {' or '.join(OF_ANSWERS)}"
                )
        if self.where.noise and name in ("lost", *OF_COST):
            raise ValueError(
                f"where.noise: has no meaning for measure '{name}', which "
                f"{'is about all noise levels' if name == 'lost' else 'noise does not change'}; "
                "allowed: without it"
            )


def check_hypotheses(
    hypotheses: Sequence[Hypothesis],
    cells: Sequence[Cell],
    benchmarks: Collection[str],
    decoders: Collection[str],
    train: Train,
) -> None:
    """Raise ValueError, naming field, value and what is allowed, for what the study lacks."""
    validation = train.validation.decoders if train.validation else {}
    used: Mapping[str, list[str]] = {
        field: list(dict.fromkeys(getattr(cell, field) for cell in cells))
        for field in ("algorithm", "size", "noise")
    }
    ids = [hypothesis.id for hypothesis in hypotheses]
    for i, (name, hypothesis) in enumerate(zip(ids, hypotheses, strict=True)):
        if name in ids[:i]:
            raise ValueError(f"hypotheses[{i}].id: '{name}' is repeated; allowed: each id once")
        contrast, where = hypothesis.contrast, hypothesis.where
        rival = [("contrast.minus", contrast.rival)] * bool(contrast.rival)
        others = [(f"measure.{field}", other) for field, other in hypothesis.measure.others()]
        noise = [("where.noise", where.noise.label)] if where.noise else []
        place = [("where.benchmark", where.benchmark)] if where.benchmark else []
        step = [("where.step", where.step)] if where.step else []
        if hypothesis.validated and not validation:
            raise ValueError(
                f"hypotheses[{i}].measure.of: 'validation' is not in this study; allowed: "
                "training, or with train.validation"
            )
        for known, named in (
            (used["algorithm"], [("contrast.algorithm", contrast.algorithm), *rival, *others]),
            (used["noise"], noise),
            (used["size"], [("where.sizes", size) for size in where.sizes or ()]),
            (benchmarks, place),
            (validation if hypothesis.validated else decoders, [("where.decoder", where.decoder)]),
            (train.snapshots, step),
        ):
            for field, value in named:
                if value not in known:
                    raise ValueError(
                        f"hypotheses[{i}].{field}: '{value}' is not in this study; allowed: "
                        f"{', '.join(map(str, known)) or 'none'}"
                    )


def check_probed(hypotheses: Sequence[Hypothesis], probes: Probes) -> None:
    """Raise ValueError for a measure of a probe that the study leaves out."""
    for i, hypothesis in enumerate(hypotheses):
        measure = hypothesis.measure
        pairs = isinstance(measure, PairsInOrder | PairsDifference)
        common = isinstance(measure, OnPrefixes) and measure.prefixes != OWN
        fitted = []
        if isinstance(measure, OfValue):
            read = (measure.predictor, measure.rival_predictor)
            fitted = [name for name in read if name in FITTED]
        for field, value, needs, given in (
            ("name", measure.name, "pairs", probes.pairs or not pairs),
            ("prefixes", "common", "common", probes.common or not common),
            ("predictor", fitted[0] if fitted else "", "baselines", probes.baselines or not fitted),
        ):
            if not given:
                raise ValueError(
                    f"hypotheses[{i}].measure.{field}: '{value}' is not measured without "
                    f"probes.{needs}; allowed: with it, or another {field}"
                )
