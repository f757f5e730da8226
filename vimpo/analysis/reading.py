"""Reading what runs left behind: complete and of this study, or the reason why not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from vimpo.config import Cell, Study
from vimpo.storage.integrity import SUMS, beside, fault_of, make_again, read_sums
from vimpo.storage.tables import NUMBERS, read_csv


class IncompleteError(Exception):
    """A stage of a cell has no usable result; carries the reason."""


def check_run(folder: Path, name: str) -> None:
    """Raise IncompleteError if a file of a run or base policy is missing or not what it wrote."""
    _check(folder / name, folder / SUMS, make_again(folder))


def check_stage(result: Path, *others: Path) -> None:
    """The same for the files of a later stage: its result and those sealed with it."""
    for path in (result, *others):
        _check(path, beside(result), f"remove '{result}', and `snakemake` makes it again")


def _check(path: Path, sums: Path, remedy: str) -> None:
    if fault := fault_of(path, sums):
        remedy = f"; {remedy}" if path.is_file() else ""
        raise IncompleteError(f"{path.name} {fault}{remedy}")


def read_manifest(folder: Path, digest: str) -> dict:
    """Manifest of a complete run, with the checksums of its other files as `outputs`.

    Raises IncompleteError, also for a run of another configuration.
    """
    check_run(folder, "manifest.json")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["digest"]
    if found != digest:
        raise IncompleteError(
            f"made by another configuration (digest {found} in '{folder}', {digest} here): remove "
            "the folder, or use the configuration beside its results"
        )
    if (status := manifest["status"]) != "complete":
        raise IncompleteError(f"the run is {status}")
    sums = read_sums(folder / SUMS)
    return manifest | {"outputs": {k: v for k, v in sums.items() if k != "manifest.json"}}


def read_outcome(manifest: dict) -> dict:
    """How a complete run ended."""
    found = manifest["outcome"]
    return {"outcome": found["kind"], "step": found["step"], "reason": found["reason"]}


def read_series(path: Path, numbers: Iterable[str] | None = None) -> pd.DataFrame:
    """Numbers of a run by step; numbers: as in :func:`read_csv`.

    Raises IncompleteError if it is missing or not what was written.
    """
    check_run(path.parent, path.name)
    return read_csv(path, numbers)


def read_scores(folder: Path, study: Study) -> list[dict]:
    """Results of lm-eval: every benchmark of the study with every metric, all finite.

    pass@k of a decoder is a metric of its own, as `sampled_pass@8`. A stock task adds rows of
    lm-eval's own score of the same responses, as `sampled_math_verify` or `greedy_exact_match`, and
    a task that grades steps the share of flawless responses among right ones, as
    `sampled_flawless`: metrics which no summary and no claim reads. Problems and
    samples must be those of the study, or scores of two settings would be compared.
    """
    path = folder / "eval.json"
    check_stage(path, folder / "samples.jsonl.gz")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    found = {(r["benchmark"], r["metric"]): r for r in results}
    wanted = list(itertools.product(study.task.benchmarks, study.decoders()))
    if absent := [f"{b} {m}" for b, m in wanted if (b, m) not in found]:
        raise IncompleteError(f"eval.json lacks {', '.join(absent)}")
    rows = [found[key] for key in wanted]
    for row in rows:
        problems = study.task.benchmarks[row["benchmark"]].problems
        samples = study.samples_of(row["benchmark"], row["metric"])
        for field, asked in (("problems", problems), ("samples", samples)):
            if asked is not None and row[field] != asked:
                raise IncompleteError(
                    f"eval.json has {row[field]} {field} of {row['benchmark']} {row['metric']}, "
                    f"the study asks for {asked}: it is of another evaluation"
                )
    if absent := [f"{r['benchmark']} {r['metric']}" for r in rows if _lacks_passes(study, r)]:
        raise IncompleteError(f"eval.json lacks pass@k of {', '.join(absent)}")
    rows += [
        *(pass_row for row in rows for pass_row in _pass_rows(study, row)),
        *(_stock_row(row) for row in rows if "stock_value" in row),
        *(_flawless_row(row) for row in rows if "flawless" in row),
    ]
    bad = [f"{r['benchmark']} {r['metric']}" for r in rows if not is_finite(r["value"])]
    if bad:
        raise IncompleteError(f"eval.json is not finite: {', '.join(bad)}")
    return [r | {"stderr": r["stderr"] if is_finite(r["stderr"]) else math.nan} for r in rows]


def _lacks_passes(study: Study, row: dict) -> bool:
    asked = set(map(str, study.passes_of(row["metric"])))
    return not asked <= row.get("pass_at", {}).keys()


def _pass_rows(study: Study, row: dict) -> list[dict]:
    """pass@k of the responses of a row."""
    ks = study.passes_of(row["metric"])
    return [row | {"metric": f"{row['metric']}_pass@{k}"} | row["pass_at"][str(k)] for k in ks]


def _flawless_row(row: dict) -> dict:
    """A ratio over all problems, without a standard error."""
    name = f"{row['metric']}_flawless"
    return row | {"metric": name, "value": row["flawless"], "stderr": None}


def _stock_row(row: dict) -> dict:
    """The score that lm-eval's own metric gave, beside that of the suite's verifier."""
    return row | {
        "metric": f"{row['metric']}_{row['stock_metric']}",
        "value": row["stock_value"],
        "stderr": row.get("stock_stderr"),
    }


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_probes(study: Study, cell: Cell, step: int | None = None) -> list[dict]:
    """Rows of probes.parquet (vimpo/probes/__init__.py); step: of a snapshot.

    Raises IncompleteError if there are none, or none of these settings.
    """
    path = study.run_folder(cell, step) / "probes.parquet"
    check_stage(path)
    table = pq.read_table(path)
    digest = table.schema.metadata[b"digest"].decode()
    if digest != study.probe_digest(cell):
        raise IncompleteError(f"{path.name} is of other probe settings (digest {digest})")
    return table.to_pylist()


def read_measured_cost(study: Study, size: str) -> list[dict]:
    """Rows of the side-by-side cost measurement (vimpo/probes/cost.py), or IncompleteError."""
    path = study.cost_file(size)
    check_stage(path)
    return read_csv(path, NUMBERS).to_dict("records")
