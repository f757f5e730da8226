"""What is measured at some steps of training, as curves: validation, and snapshots.

Names of their metrics in curves.csv; `step` counts updates, so 0 is the base policy:

    validation_accuracy.<decoder>, validation_flawless.<decoder>     (vimpo/training/validation.py)
    evaluated.<decoder>                 accuracy of a snapshot by lm-eval, mean over benchmarks
    value.<predictor>.<metric>          of a snapshot's probes: the change of value
    credit.<signal>.auc

snapshot_accuracy.csv and snapshot_probes.csv have every number of the snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from vimpo.analysis.intervals import AT_MOST_ONE, FRACTION
from vimpo.storage.tables import WHOLE

Point = tuple[int, str, float]  # step, metric, value
VALIDATION, EVALUATED = "validation_accuracy", "evaluated"
HELD_OUT = f"{VALIDATION}."  # and the decoder
# What of the probes is a curve: probe, target, metric.
PROBED = (
    ("value", "change", "explained_variance"),
    ("value", "change", "spearman"),
    ("credit", "step", "auc"),
)
BOUNDS = {
    "accuracy": FRACTION,  # of training
    VALIDATION: FRACTION,
    "validation_flawless": FRACTION,
    EVALUATED: FRACTION,
    "value": AT_MOST_ONE,
    "credit": FRACTION,
}


def is_sparse(metric: str) -> bool:
    """Is it measured at some steps alone, each of which counts by itself?"""
    return metric.partition(".")[0] in BOUNDS and "." in metric


def validation_points(rows: pd.DataFrame) -> Iterator[Point]:
    """Of validation.csv."""
    for row in rows.itertuples():
        yield int(row.step), f"{VALIDATION}.{row.decoder}", row.accuracy
        yield int(row.step), f"validation_flawless.{row.decoder}", row.flawless


def snapshot_points(
    step: int, decoders: Iterable[str], scores: list[dict], probes: list[dict]
) -> Iterator[Point]:
    """Of one snapshot's rows, which are complete."""
    for decoder in decoders:
        values = [row["value"] for row in scores if row["metric"] == decoder]
        yield step, f"{EVALUATED}.{decoder}", sum(values) / len(values)
    for row in probes:
        if row["position"] == WHOLE and (row["probe"], row["target"], row["metric"]) in PROBED:
            yield step, f"{row['probe']}.{row['predictor']}.{row['metric']}", row["value"]
