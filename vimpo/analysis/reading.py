"""Reading what runs left behind: complete and of this study, or the reason why not."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vimpo.analysis.summaries import metrics_of
from vimpo.config import Cell, ConfigError, Study
from vimpo.probes import COLUMNS as PROBE_COLUMNS
from vimpo.probes.cost import COLUMNS as COST_COLUMNS
from vimpo.probes.cost import KINDS, MEASURED
from vimpo.storage.columns import OUTCOMES
from vimpo.storage.files import read_sealed, read_sealed_rows
from vimpo.storage.integrity import fault_of, make_again

FINISHED = OUTCOMES[0]


class IncompleteError(Exception):
    """A stage of a cell has no usable result; carries the reason."""


class DamagedFileError(IncompleteError):
    """A file is not what its stage wrote; the message says what to remove."""

    def __init__(self, path: Path, fault: object, remedy: str | None = None) -> None:
        remedy = remedy or f"remove '{path}', and `snakemake` makes it again"
        super().__init__(f"{path.name} is damaged: {fault}; {remedy}")


def read_json(path: Path, remedy: str | None = None) -> dict:
    """Raises IncompleteError where there is no such file, or another than was written."""
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    try:
        return read_sealed(path)
    except ValueError as error:
        raise DamagedFileError(path, error, remedy) from None


def read_manifest(folder: Path, digest: str, name: str) -> dict:
    """Manifest of a complete run. Raises IncompleteError, or ConfigError for a foreign one."""
    manifest = read_json(folder / "manifest.json", make_again(folder))
    found = manifest.get("digest")
    if found != digest:
        raise ConfigError(
            f"results: '{name}' was made by another configuration (digest {found} in '{folder}'); "
            f"allowed: {digest}; remove the folder, or use the configuration beside its results"
        )
    if (status := manifest.get("status", "complete")) != "complete":
        raise IncompleteError(f"the run is {status}")
    return manifest


def read_outcome(manifest: dict) -> dict:
    """How a complete run ended; runs made before that was recorded did all of their steps."""
    found = manifest.get("outcome")
    found = found if isinstance(found, dict) else {}
    return {
        "outcome": found.get("kind", FINISHED),
        "step": found.get("step", math.nan),
        "reason": found.get("reason", ""),
    }


NO_TABLE = (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError)


def read_csv(path: Path, manifest: dict) -> pd.DataFrame:
    """A table of the run that wrote `manifest`. Raises IncompleteError where it is not that."""
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    if fault := fault_of(path, manifest.get("outputs", {}).get(path.name)):
        raise DamagedFileError(path, fault, make_again(path.parent))
    try:
        frame = pd.read_csv(path)
    except NO_TABLE as error:
        raise DamagedFileError(path, f"not a table: {error}", make_again(path.parent)) from None
    if frame.empty or "step" not in frame:
        raise IncompleteError(f"{path.name} has no rows")
    return frame


def read_scores(folder: Path, study: Study) -> list[dict]:
    """Results of lm-eval: every benchmark of the study with every metric, all finite.

    A stock task adds rows of lm-eval's own score of the same responses, as `sampled_math_verify` or
    `greedy_exact_match`: metrics of their own, which no summary and no claim reads. Problems and
    samples must be those of the study, or scores of two settings would be compared.
    """
    path = folder / "eval.json"
    report = read_json(path)
    for name, checksum in report.get("samples", {}).items():
        if fault := fault_of(folder / name, checksum):
            remedy = f"remove it and '{path}', and `snakemake` makes both again"
            raise DamagedFileError(folder / name, fault, remedy)
    results = report.get("results", [])
    found = {(r["benchmark"], r["metric"]): r for r in results}
    wanted = list(itertools.product(study.task.benchmarks, metrics_of(study)))
    if absent := [f"{b} {m}" for b, m in wanted if (b, m) not in found]:
        raise IncompleteError(f"eval.json lacks {', '.join(absent)}")
    rows = [found[key] for key in wanted]
    for row in rows:
        problems = study.task.benchmarks[row["benchmark"]].problems
        samples = study.samples_of(row["benchmark"]) if row["metric"] == "sampled" else 1
        for field, asked in (("problems", problems), ("samples", samples)):
            if asked is not None and row[field] != asked:
                raise IncompleteError(
                    f"eval.json has {row[field]} {field} of {row['benchmark']} {row['metric']}, "
                    f"the study asks for {asked}: it is of another evaluation"
                )
    rows += [_stock_row(row) for row in rows if "stock_value" in row]
    bad = [f"{r['benchmark']} {r['metric']}" for r in rows if not is_finite(r["value"])]
    if bad:
        raise IncompleteError(f"eval.json is not finite: {', '.join(bad)}")
    return [r | {"stderr": r["stderr"] if is_finite(r["stderr"]) else math.nan} for r in rows]


def _stock_row(row: dict) -> dict:
    """The score that lm-eval's own metric gave, beside that of the suite's verifier."""
    return row | {
        "metric": f"{row['metric']}_{row['stock_metric']}",
        "value": row["stock_value"],
        "stderr": row.get("stock_stderr"),
    }


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_probes(study: Study, cell: Cell) -> list[dict]:
    """Rows of probes.parquet (vimpo/probes/__init__.py).

    Raises IncompleteError where there are none, or none of these settings.
    """
    path = study.run_folder(cell) / "probes.parquet"
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"not a table: {error}") from None
    if table.column_names != list(PROBE_COLUMNS):
        raise DamagedFileError(path, f"its columns are {', '.join(table.column_names)}")
    digest = (table.schema.metadata or {}).get(b"digest", b"").decode()
    if digest != study.probe_digest(cell):
        raise IncompleteError(f"{path.name} is of other probe settings (digest {digest})")
    return table.to_pylist()


def read_measured_cost(study: Study, size: str) -> list[dict]:
    """Rows of the side-by-side cost measurement (vimpo/probes/cost.py), or IncompleteError."""
    path = study.cost_file(size)
    if not path.is_file():
        raise IncompleteError(f"{path.name} is missing")
    try:
        frame = pd.read_csv(io.StringIO(read_sealed_rows(path)))
    except NO_TABLE as error:
        raise DamagedFileError(path, f"not a table: {error}") from None
    except ValueError as error:
        raise DamagedFileError(path, error) from None
    if list(frame.columns) != COST_COLUMNS:
        raise DamagedFileError(path, f"its columns are {', '.join(frame.columns)}")
    measured = frame[frame["kind"] == MEASURED]
    if measured.empty or measured["value"].isna().any() or not frame["kind"].isin(KINDS).all():
        raise DamagedFileError(path, "not what was written: rows are missing, cut or of no kind")
    return frame.to_dict("records")
