"""A study's own hypotheses: each is one test, and what describes it, beside the claims C1 to C6.

An algorithm against another one is a difference over pairs of runs, or a ratio of costs over
rounds; against a constant it is a mean over runs. Sizes weigh equally, or give a slope. A number
that some run lacks is never replaced: the effect is not available, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vimpo.analysis.inference import share
from vimpo.analysis.intervals import not_available
from vimpo.analysis.measures import MEASURES, Entry, Scored
from vimpo.analysis.names import label
from vimpo.analysis.scores import Tables
from vimpo.analysis.verdicts import (
    ABOVE,
    Counted,
    Found,
    Key,
    Part,
    Role,
    difference,
    mean,
    slope,
)
from vimpo.config import Hypothesis, Study
from vimpo.config.decoders import GREEDY, SAMPLED
from vimpo.config.hypotheses import OF_COST, Asked, StepsTo
from vimpo.config.task import grades_steps
from vimpo.probes import NO_ORACLE
from vimpo.storage.codes import Reason, Why

Parts = list[tuple[Part, Found]]


def hypothesis_parts(study: Study, tables: Tables, params: Mapping[str, float]) -> Parts:
    """Tests and facts of all hypotheses, in the order of the study."""
    return [part for asked in study.hypotheses for part in _parts(asked, study, tables, params)]


def _parts(asked: Hypothesis, study: Study, tables: Tables, params: Mapping[str, float]) -> Parts:
    comparison = Comparison.of(asked, study, tables)
    part = _described(asked, comparison)
    test = tested(part, asked.threshold, comparison, params)
    by_size = at_sizes(comparison, part) if asked.by_size else []
    return [test, *by_size, *_reached(asked, comparison, part)]


def tested(
    part: Part, threshold: float, comparison: Comparison, params: Mapping[str, float]
) -> tuple[Part, Found]:
    """The part as a test of the comparison's number against the threshold."""
    above = comparison.asked.side == ABOVE
    test = part.above(threshold) if above else part.below(threshold)
    return test, comparison.found(params)


@dataclass(frozen=True)
class Comparison:
    """The numbers that a hypothesis or a claim compares. sides: of one algorithm, or of two."""

    study: Study
    asked: Asked
    entry: Entry
    sides: Sequence[Scored]
    keys: list[Key]

    @classmethod
    def of(cls, asked: Asked, study: Study, tables: Tables) -> Comparison:
        entry, contrast = MEASURES[type(asked.measure)], asked.contrast
        names = [name for name in (contrast.algorithm, contrast.rival) if name]
        others = [name for _, name in asked.measure.others()]
        keys = entry.keys(study, tables, asked, *dict.fromkeys([*names, *others]))
        keys = [key for key in keys if key[0] in (asked.where.sizes or study.used_sizes())]
        sides = [entry.scores(study, tables, asked, name) for name in names]
        return cls(study, asked, entry, sides, keys)

    @property
    def counted(self) -> Counted:
        if self.asked.measure.name in OF_COST:
            return Counted.ROUNDS
        return Counted.PAIRS if len(self.sides) > 1 else Counted.RUNS

    def found(self, params: Mapping[str, float]) -> Found:
        """The number that is asked for."""
        return self.slope(params) if self.asked.pooling == "slope" else self.mean(self.keys)

    def mean(self, keys: list[Key]) -> Found:
        """Mean of the contrast over these runs or pairs, sizes weighing equally."""
        confidence, scores = self.study.statistics.confidence, self.sides[0].scores
        if len(self.sides) > 1:
            found = difference(scores, self.sides[1].scores, keys, confidence)
        else:
            constant = float(self.asked.contrast.minus)
            above = {key: value - constant for key, value in scores.items()}
            low, high = (end - constant for end in self.entry.bounds)
            found = mean(above, keys, confidence, self.sides[0].stderr, (low, high))
        return self._explained(found, keys)

    def slope(self, params: Mapping[str, float]) -> Found:
        """Change of the contrast per tenfold of parameters."""
        gaps = dict(self.sides[0].scores)
        for other in self.sides[1:]:
            gaps = {k: gaps[k] - other.scores[k] for k in gaps if k in other.scores}
        found = slope(gaps, self.keys, params, self.study.statistics, self.counted)
        return self._explained(found, self.keys)

    def _explained(self, found: Found, keys: list[Key]) -> Found:
        """With the measure's own reason where it has no number, or none that says anything."""
        if self.asked.measure.reads_steps and not grades_steps(self.study.task):
            return _without(found, NO_ORACLE)
        known = [key for key in keys if all(key in side.scores for side in self.sides)]
        for side in self.sides:
            if side.absent.code and keys and not any(key in side.scores for key in keys):
                return _without(found, side.absent)
        if known and all(key in side.censored for side in self.sides for key in known):
            text = f"no run reached it in {self.study.train.steps} steps"
            return _without(found, Why(Reason.CENSORED, text))
        if refused := [s.refused[k] for s in self.sides for k in known if k in s.refused]:
            return _without(found, refused[0])
        if found.estimate.code == Reason.NOT_FINITE:
            reasons = {k: s.reasons[k] for s in self.sides for k in known if k in s.reasons}
            if len(reasons) == len(known) and len({why.code for why in reasons.values()}) == 1:
                return _without(found, next(iter(reasons.values())))
        return found


def _without(found: Found, why: Why) -> Found:
    return replace(found, estimate=not_available(why, found.estimate.n))


def described(asked: Asked, comparison: Comparison) -> str:
    """What is measured, of whom and where, in words."""
    contrast = asked.contrast
    whose, rival = map(label, (contrast.algorithm, contrast.rival))
    if rival:
        whose += f" {'over' if asked.is_ratio else 'minus'} {rival}"
    elif contrast.minus:
        whose += f" minus {contrast.minus:g}"
    where = asked.where
    noise = f"noise {where.noise.label}" if where.noise else "clean rewards"
    details = [
        noise if comparison.keys and comparison.keys[0][1] and asked.measure.name != "lost" else "",
        f"size {', '.join(where.sizes)}" if where.sizes else "",
        f"step {where.step}" if where.step else "",
        "per tenfold of parameters" if asked.pooling == "slope" else "",
    ]
    fields = asked.measure.model_dump() | {"decoded": accuracy_by(where.decoder)}
    fields |= {end: label(fields[end]) for end in ("floor", "ceiling") if end in fields}
    fields |= {"of": "training", "curve": "learning", "under": ""}
    if asked.validated:
        fields |= {"of": "validation", "curve": "validation", "under": f" under {where.decoder}"}
    details += ["in responses of the base policy"] * (fields.get("prefixes") == "common")
    if other := fields.get("rival_predictor"):
        fields["predictor"] += f" minus {other}"
    on = f" on {where.benchmark}" if where.benchmark else ""
    steps = comparison.study.train.steps
    what = comparison.entry.text.format(**fields, on=on, steps=steps)
    return ", ".join([what, whose, *filter(None, details)])


def accuracy_by(decoder: str) -> str:
    """`greedy accuracy`; the name of a further decoder may be any word."""
    usual = decoder in (SAMPLED, GREEDY)
    return f"{decoder} accuracy" if usual else f"accuracy by decoder {decoder}"


def _described(asked: Hypothesis, comparison: Comparison) -> Part:
    """The part without its threshold."""
    contrast = asked.contrast
    signed = bool(contrast.rival or contrast.minus) or asked.pooling == "slope"
    return Part(
        claim=asked.id,
        name=asked.measure.name,
        role=Role.DIFFERENCE if signed else Role.LEVEL,
        statement=asked.question,
        metric=described(asked, comparison),
        counted=comparison.counted,
        algorithm=contrast.algorithm,
        rival=contrast.rival,
        unit="ratio" if asked.is_ratio else comparison.entry.unit,
    )


def at_sizes(comparison: Comparison, part: Part) -> Parts:
    """The contrast at each size, without a test; none if there is only one size."""
    sizes = list(dict.fromkeys(key[0] for key in comparison.keys))
    if len(sizes) < 2:
        return []
    found = {size: comparison.mean([k for k in comparison.keys if k[0] == size]) for size in sizes}
    facts = {
        size: replace(
            part,
            name=f"{part.name}.{size}",
            role=Role.BY_SIZE,
            statement=f"size {size}",
            metric=f"{part.metric}, size {size}",
        )
        for size in sizes
    }
    return [(facts[size], found[size]) for size in sizes]


def _reached(asked: Hypothesis, comparison: Comparison, part: Part) -> Parts:
    """Share of the runs of each side that reached what was asked, where runs can miss it."""
    if not isinstance(asked.measure, StepsTo):
        return []
    parts: Parts = []
    names = (asked.contrast.algorithm, asked.contrast.rival)
    for name, side in zip(names, comparison.sides, strict=False):
        known = [k for k in comparison.keys if math.isfinite(side.scores.get(k, math.nan))]
        happened = [key not in side.censored for key in known]
        found = Found(
            share(happened, comparison.study.statistics.confidence), len(comparison.keys), 0
        )
        text = f"share of {label(name)}'s runs that reach {asked.measure.accuracy:g}"
        fact = replace(
            part, name=f"reached.{name}", role=Role.REACHED, statement="reached", metric=text,
            counted=Counted.RUNS, algorithm=name, rival="", unit="",
        )  # fmt: skip
        parts.append((fact, found))
    return parts
