# The validated study, and what the rules share. Nothing is computed until the study is valid.

import gc
import inspect
import re
import shlex
import sys
from pathlib import Path

from snakemake.common import overwrite_function_params
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from vimpo import forkserver
from vimpo.config import ConfigError, digest, dump_yaml, load_study
from vimpo.config.load import read_file
from vimpo.planning.jobs import job_request, launcher
from vimpo.planning.preflight import check_before_jobs, check_before_running
from vimpo.planning.progress import Progress
from vimpo.planning.slurm import check_cluster, check_one_machine
from vimpo.storage.continued import taken_over
from vimpo.storage.files import write_atomic
from vimpo.storage.registration import keep, register
from vimpo.storage.surprisal import betas_at, needs_surprisal, settings_digest, surprisal_file

# A graph of jobs holds no garbage; looking for it takes a quarter of the time for a large grid.
gc.disable()

try:
    for path in map(Path, workflow.configfiles):
        read_file(path)  # refuses repeated keys, which Snakemake's own reader does not
    STUDY = load_study(dict(config))
    check_before_running(STUDY)
    TAKEN_OVER = taken_over(STUDY)
    # Jobs of a cluster read what the main process has found, and need no git.
    registration = register(STUDY, workflow.configfiles) if workflow.is_main_process else None
except ConfigError as error:
    raise WorkflowError("\n".join(f"error: {line}" for line in str(error).splitlines()))

# Jobs run in the interpreter that runs Snakemake, which need not be the `python` of the PATH; in a
# rule's own environment (`--sdm conda`), in that one's.
own_environment = workflow.deployment_settings.deployment_method
PYTHON = "python" if own_environment else shlex.quote(sys.executable)

FOLDER = str(STUDY.folder)
# Snakemake may have merged the study from several files and options, so jobs read it from here. Named
# by its content, so that a running workflow never sees another one's.
MERGED = Path(".snakemake/studies") / f"{digest(STUDY)}.yaml"
if not MERGED.exists():
    write_atomic(MERGED, dump_yaml(STUDY))
keep(registration, MERGED)

CELLS = {cell.name: cell for cell in STUDY.cells()}
# Cells reused from a published study have no jobs here.
RUNS = [f"{FOLDER}/runs/{name}" for name, cell in CELLS.items() if cell not in TAKEN_OVER.cells]
SIZES = STUDY.used_sizes()
MADE_SIZES = [size for size in SIZES if size not in TAKEN_OVER.sizes]
# Pretrained critics, each made once for all cells that start with it: its folder, and one of these.
CRITICS = {
    str(folder): cell
    for cell in CELLS.values()
    if cell not in TAKEN_OVER.cells and (folder := STUDY.critic_folder(cell))
}
RUN = "{algorithm}/{size}/noise-{noise}/seed-{seed}"
# The policy of a step, next to the one at the end (vimpo/training/snapshots.py).
SNAPSHOT = "snapshots/step-{step}"
SNAPSHOTS = [f"{path}/{SNAPSHOT.format(step=n)}" for path in RUNS for n in STUDY.train.snapshots]

# One line per finished job in place of Snakemake's ten, unless more is asked for.
output = workflow.output_settings
talkative = output.dryrun or output.verbose or output.printshellcmds
if workflow.is_main_process and not talkative:
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            progress = Progress(handler.formatter, len(CELLS))
            handler.setFormatter(progress)
            handler.addFilter(progress)


def one_of(values):
    """A regular expression that matches exactly these values."""
    return "|".join(re.escape(str(value)) for value in dict.fromkeys(values))


wildcard_constraints:
    algorithm=one_of(cell.algorithm for cell in CELLS.values()),
    size=one_of(SIZES),
    noise=one_of(cell.noise for cell in CELLS.values()),
    seed=one_of(cell.seed for cell in CELLS.values()),
    step=one_of(STUDY.train.snapshots) or r"\d+",
    critic="[0-9a-f]+",


# A changed parameter reruns its job and no other: each digest covers exactly what the result depends
# on, so a new beta trains only VIMPO's cells. The paths of the study and of the interpreter must not
# rerun anything; Snakemake does not compare parameters that are derived from `output`.


def known(function):
    """Caches a function's parameters, which Snakemake would inspect several times per job."""
    overwrite_function_params(function, inspect.signature(function).parameters)
    return function


@known
def merged_study(wildcards, output):
    return str(MERGED)


@known
def interpreter(wildcards, output):
    return PYTHON


@known
def base_digest(wildcards):
    return STUDY.base_digest(wildcards.size)


@known
def surprisal_settings(wildcards):
    return settings_digest(STUDY, wildcards.size)


@known
def cell_digest(wildcards):
    return STUDY.cell_digest(CELLS[RUN.format(**wildcards)])


@known
def critic_of_cell(wildcards):
    """Manifest of the critic that a cell starts with, if it starts with one."""
    folder = STUDY.critic_folder(CELLS[RUN.format(**wildcards)])
    return f"{folder}/manifest.json" if folder else []


@known
def critic_options(wildcards):
    """The cell that a critic is made for; `seed` does not matter."""
    cell = CRITICS[f"{FOLDER}/base/{wildcards.size}/critic-{wildcards.critic}"]
    return f"--algorithm {cell.algorithm} --size {cell.size} --noise {cell.noise}"


@known
def probe_digest(wildcards):
    return STUDY.probe_digest(CELLS[RUN.format(**wildcards)])


@known
def cost_digest(wildcards):
    return STUDY.cost_digest(wildcards.size)


# A beta given by its capacity has no number before the base policy is measured. Ancient: a base policy
# that is measured again has not changed.


def _measured_first(size, *betas):
    return [ancient(str(surprisal_file(STUDY, size)))] if needs_surprisal(*betas) else []


def surprisal_of_cell(wildcards):
    beta = getattr(STUDY.algorithms[wildcards.algorithm], "beta", None)
    return _measured_first(wildcards.size, beta)


def surprisal_of_values(wildcards):
    return _measured_first(wildcards.size, STUDY.readout_beta(wildcards.algorithm))


def surprisal_of_size(wildcards):
    return _measured_first(wildcards.size, *betas_at(STUDY, wildcards.size).values())


def scores_of_trials(wildcards):
    """Scores of all runs of a sweep, once its comparison is known to be fair."""
    # Imported only for this target: no other needs pandas to start Snakemake.
    from vimpo.analysis.sweep import trials

    try:
        trials(STUDY)
    except ConfigError as error:
        raise WorkflowError(f"error: {error}")
    return [f"{path}/eval.json" for path in RUNS]


def asks(stage):
    """Resources of a rule, by stage and size; a retry requests more memory.

    Keys are those of Snakemake's Slurm plugin; other executors ignore what they do not know.
    """

    requests = {size: job_request(STUDY, stage, size) for size in SIZES}

    def of_size(field):
        """A constant if all sizes request the same, because a function per job takes time."""
        values = {size: getattr(request, field) or "" for size, request in requests.items()}
        first = values[SIZES[0]]
        alike = all(value == first for value in values.values())
        return first if alike else known(lambda wildcards: values[wildcards.size])

    resources = {
        "mem_mb": known(lambda wildcards, attempt: attempt * requests[wildcards.size].memory_mb),
        "runtime": of_size("minutes"),
        # Empty: the cluster's default partition.
        "slurm_partition": of_size("partition"),
    }
    example = requests[SIZES[0]]
    if example.gpus:
        resources["gpu"] = example.gpus
    if example.nodes > 1:
        # `mpi` tells the plugin that the rule's own command calls srun; GPUs are per node.
        resources |= {
            "nodes": example.nodes,
            "tasks": example.nodes,
            "tasks_per_gpu": 0,
            "mpi": "srun",
        }
    return resources


def cores(stage):
    """Threads of a rule on each of its nodes."""
    request = job_request(STUDY, stage, SIZES[0])
    return request.threads // request.nodes


# A cell's stages run one after the other in one Slurm job. Executors without groups ignore this.
CELL_JOB = "cell" if STUDY.cluster.one_job_a_cell else None


onstart:
    if workflow.is_main_process:
        # To keep to a limit of jobs per second, Snakemake starts a timer whenever it schedules, and
        # schedules whenever a timer ends: after n jobs, n times per second. So its own default (100),
        # which no study reaches, is lifted.
        limit = workflow.scheduling_settings.max_jobs_per_timespan
        if limit and (limit.max_jobs, limit.timespan) == (100, 1):
            workflow.scheduler.job_rate_limiter = None
        # Before anything is submitted: a scheduler that cannot run this study, or unavailable data, is one
        # error now instead of one per job.
        try:
            if workflow.executor_plugin.name == "slurm":
                settings = workflow.executor_settings
                wait = settings.init_seconds_before_status_checks
                check_cluster(STUDY, settings.status_command, wait)
            else:
                check_one_machine(STUDY, workflow.executor_plugin.name == "local")
            if workflow.executor_plugin.name == "local" and STUDY.runtime.device == "cpu":
                forkserver.start()
            # Not a job: Snakemake does not compare parameters downstream of a job that is to run, so
            # a changed hyperparameter would go unnoticed.
            check_before_jobs(STUDY, MERGED)
        except ConfigError as error:
            raise WorkflowError("\n".join(f"error: {line}" for line in str(error).splitlines()))
