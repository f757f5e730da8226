# The validated study, and what the rules share. Nothing is computed before the study is sound.

import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from vimpo.config import ConfigError, check_before_running, digest, dump_yaml, load_study
from vimpo.records import write_atomic

try:
    STUDY = load_study(dict(config))
    check_before_running(STUDY)
except ConfigError as error:
    raise WorkflowError("\n".join(f"error: {line}" for line in str(error).splitlines()))

FOLDER = str(STUDY.folder)
# Snakemake may have merged the study from several files and options: jobs read it from here. Named by
# its content, so that a running workflow never sees another one's.
MERGED = Path(".snakemake/studies") / f"{digest(STUDY)}.yaml"
if not MERGED.exists():
    write_atomic(MERGED, dump_yaml(STUDY))

CELLS = {cell.name: cell for cell in STUDY.cells()}
RUNS = [f"{FOLDER}/runs/{name}" for name in CELLS]
SIZES = STUDY.used_sizes()
RUN = "{algorithm}/{size}/noise-{noise}/seed-{seed}"


def one_of(values):
    """A regular expression that matches exactly these values."""
    return "|".join(re.escape(str(value)) for value in dict.fromkeys(values))


wildcard_constraints:
    algorithm=one_of(cell.algorithm for cell in CELLS.values()),
    size=one_of(SIZES),
    noise=one_of(cell.noise for cell in CELLS.values()),
    seed=one_of(cell.seed for cell in CELLS.values()),


# A parameter that changes runs its job again, and only it: each digest covers exactly what the
# result depends on, so a new beta trains VIMPO's cells and nobody else's. Where the study lies is no
# such reason; Snakemake does not compare parameters that are derived from `threads`.


def merged_study(wildcards, threads):
    return str(MERGED)


def base_digest(wildcards):
    return STUDY.base_digest(wildcards.size)


def cell_digest(wildcards):
    return STUDY.cell_digest(CELLS[RUN.format(**wildcards)])


def probe_digest(wildcards):
    return STUDY.probe_digest(CELLS[RUN.format(**wildcards)])


def cost_digest(wildcards):
    return STUDY.cost_digest(wildcards.size)


def memory_mb(wildcards, attempt):
    """What the configuration says of the size; a retry asks for more."""
    return attempt * STUDY.sizes[wildcards.size].memory_mb
