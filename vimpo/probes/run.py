"""All probes of one run, and their two tables."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vimpo.config import Cell, Study
from vimpo.models.networks import set_up_torch
from vimpo.probes import COLUMNS
from vimpo.probes.baselines import NOTHING, fit_baselines
from vimpo.probes.consistency import consistency_probe
from vimpo.probes.credit import common_credit, credit_probe
from vimpo.probes.pairs import pairs_probe
from vimpo.probes.precision import precision_probe
from vimpo.probes.subject import Subject
from vimpo.probes.value import measure_prefixes, prefix_table, value_rows
from vimpo.storage.files import remove_leftovers, write_atomic
from vimpo.storage.integrity import beside, check_model, sealing
from vimpo.storage.surprisal import needs_surprisal
from vimpo.training.surprisal import measured_surprisal

PREFIXES = "prefixes.parquet"
TYPES = {"value": pa.float64(), "stderr": pa.float64(), "n": pa.int64()}


def probe_run(study: Study, cell: Cell, output: Path, step: int | None = None) -> None:
    """Probe the finished run of `cell`; write the file `output`, and `prefixes.parquet` next to it.

    step: its snapshot of that step instead of its end.

    `output` is written last, so it marks the other as complete. Sets torch's threads. Raises
    ConfigError for an unknown cell, and if the run, its base policy or its critic is missing.
    """
    for folder in (study.run_folder(cell, step), study.base_folder(cell.size)):
        check_model(folder)
    if needs_surprisal(study.readout_beta(cell.algorithm)):
        measured_surprisal(study, cell.size)
    remove_leftovers(output.parent, output.name, PREFIXES, beside(output).name)
    set_up_torch(study.runtime)
    subject = Subject.load(study, cell, step)
    fitted, fits = NOTHING, list[dict]()
    if study.probes.baselines:
        fitted, fits = fit_baselines(subject, study.probes.baselines)
    prefixes = measure_prefixes(subject, fitted)
    rows = value_rows(prefixes, study.probes.seed)
    rows += credit_probe(subject)
    rows += consistency_probe(subject)
    rows += precision_probe(subject)
    if study.probes.common:
        common = measure_prefixes(subject, fitted, common=prefixes)
        rows += value_rows(common, study.probes.seed, "common")
        rows += common_credit(subject)
    if study.probes.pairs:
        rows += pairs_probe(subject, fitted)
    rows += fits
    digest = study.probe_digest(cell)
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    schema = pa.schema([(name, TYPES.get(name, pa.string())) for name in COLUMNS])
    with sealing(beside(output), [PREFIXES, output.name]):
        write_parquet(output.with_name(PREFIXES), pa.table(prefix_table(prefixes)), digest)
        write_parquet(output, pa.table(columns, schema=schema), digest)


def write_parquet(path: Path, table: pa.Table, digest: str) -> None:
    """Atomic; the digest of what the table depends on goes into its schema's metadata."""
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({"digest": digest})
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())
