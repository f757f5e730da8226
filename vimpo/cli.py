"""The command line: every stage of a study by hand, exactly as the workflow's rules call it.

A command returns its exit code, or None for 0. Stages are imported by the commands that need them,
so `--help`, `plan` and wrong input answer without torch.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Exit, Option, Typer, TyperException
from typer.main import get_command
from typer.models import OptionInfo

from vimpo.config import Cell, ConfigError, Study, dump_yaml, load_study, require, study_schema
from vimpo.errors import DiskFullError, StoppedError
from vimpo.planning.capacity import capacity_lines
from vimpo.planning.preflight import check_before_running
from vimpo.storage.files import room_for, write_atomic
from vimpo.storage.integrity import check_model
from vimpo.storage.registration import registration_of
from vimpo.storage.shipped import ship
from vimpo.storage.surprisal import surprisal_file
from vimpo.training.launch import is_first_process, is_launched, launch

PROGRAM = "python -m vimpo"
QUICK = Path(__file__).parents[1] / "workflow" / "config" / "quick.yaml"
FULL_DISK = 74  # EX_IOERR of sysexits.h

EXAMPLES = """\
\b
Examples:
  python -m vimpo train --algorithm vimpo --size xs --noise 0.25 --seed 1
      train one cell of the quick study, making its base policy first if it is missing
  python -m vimpo evaluate --algorithm vimpo --size xs --noise 0.25 --seed 1
      score that cell with lm-eval on every benchmark
  python -m vimpo check workflow/config/paper.yaml
      check a study's models, data and benchmarks before it runs; downloads what is on the hub
  python -m vimpo plan workflow/config/paper.yaml
      estimate a study's jobs, memory, GPU-hours and disk before anything runs
  python -m vimpo summarize
      tables, figures and a report of what is finished, listing the missing cells
  python -m vimpo compare results/published/quick results/quick
      does a re-run match what was published: to the last digit, or within chance?
  snakemake --cores all
      all of the above for the whole grid

\b
Every command takes --config FILE, except those that read or draw published studies; without it
the quick study (workflow/config/quick.yaml) is meant. Results go to results/<study>/. A command
whose result already exists does nothing.
"""

app = Typer(
    help="Compare VIMPO, critic-based PPO and GRPO by real reinforcement learning.",
    epilog=EXAMPLES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _file(text: str) -> OptionInfo:
    return Option(metavar="FILE", help=text, show_default=False)


def _folder(text: str) -> OptionInfo:
    return Option(metavar="FOLDER", help=text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadParameter(f"{text!r} is not allowed; allowed: a whole number") from None


Config = Annotated[Path, _file("a study file (default: the quick study)")]
StudyFile = Annotated[
    Path | None, Argument(metavar="CONFIG", help="the same as --config", show_default=False)
]
ALGORITHM, SIZE = "vimpo, ppo, grpo, ...", "a rung of the ladder, such as xs"
Algorithm = Annotated[str, Option(metavar="NAME", help=ALGORITHM)]
AnyAlgorithm = Annotated[str | None, Option(metavar="NAME", help=ALGORITHM)]
Size = Annotated[str, Option(metavar="NAME", help=SIZE)]
AnySize = Annotated[str | None, Option(metavar="NAME", help=SIZE)]
Noise = Annotated[str, Option(metavar="LEVEL", help="0.25, rollout-0.25, asymmetric-0.1-0.3")]
Seed = Annotated[int, Option(metavar="N", parser=_whole)]
SNAPSHOT = "the snapshot of this step; default: the end of training"
Step = Annotated[int | None, Option(metavar="N", parser=_whole, help=SNAPSHOT)]
Quiet = Annotated[bool, Option("--quiet", help="no progress bar")]
Checked = Annotated[bool, Option("--checked", help="`check` has already run: skip its checks")]
Tables = Annotated[Path | None, _folder("default: tables/ of the study")]
Figures = Annotated[Path | None, _folder("default: figures/ of the study")]
Published = Annotated[Path | None, _folder("default: results/published")]


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code.

    0; 1 if `compare` or `reproduce` finds different results; 2 for wrong usage, a configuration
    that cannot run, or a damaged file; 74 for a full disk; 143 or 130 if SIGTERM or Ctrl-C stopped
    a run, which the same command resumes.
    """
    # Hub libraries ask the network about local files too, unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, TextIOWrapper):  # a locale may lack the dash of a table
        sys.stdout.reconfigure(errors="backslashreplace")
    command = get_command(app)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Not command.main(), which hides the traceback of an EOFError.
        with room_for(), command.make_context(PROGRAM, arguments) as context:
            return command.invoke(context) or 0
    except Exit as done:  # --help
        return done.exit_code
    except TyperException as wrong:
        of = getattr(wrong, "ctx", None)
        where = of.command_path if of else PROGRAM
        _complain(f"{wrong.format_message().rstrip('.')} (see `{where} --help`)")
        return wrong.exit_code
    except (ConfigError, DiskFullError) as error:
        _complain(str(error))
        return FULL_DISK if isinstance(error, DiskFullError) else 2
    except StoppedError as stopped:
        if is_first_process():
            print(stopped, file=sys.stderr)
        return stopped.exit_code


def _complain(message: str) -> None:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)


def _study(config: Path) -> Study:
    study = load_study(config)
    check_before_running(study)
    return study


# --- base policies and cells ---------------------------------------------------------------------


@app.command("pretrain")
def _pretrain(
    size: Size, config: Config = QUICK, quiet: Quiet = False, checked: Checked = False
) -> None:
    """Make the base policy of a size."""
    study = _study(config)
    require(size, study.sizes, "size")
    registration_of(study, config)  # raises before anything is made
    from vimpo.planning.preflight import check_inputs
    from vimpo.training.runs import is_complete, pretrain_base

    done = is_complete(study.base_folder(size), study.base_digest(size))
    tasks = {} if done or checked else check_inputs(study, [size])
    print(pretrain_base(study, size, quiet=quiet, task=tasks.get(size)))


@app.command("ship")
def _ship(size: Size, config: Config = QUICK) -> None:
    """Put a base policy and its critics among those that come with the suite (vimpo/bases)."""
    study = load_study(config)
    require(size, study.sizes, "size")
    for folder in ship(study, size):
        print(folder)


@app.command("surprisal")
def _surprisal(size: Size, config: Config = QUICK, quiet: Quiet = False) -> None:
    """Measure how surprised a base policy is by its own responses."""
    study = _study(config)
    require(size, study.sizes, "size")
    from vimpo.training.runs import pretrain_base
    from vimpo.training.surprisal import measured_surprisal

    pretrain_base(study, size, quiet=quiet)
    measured_surprisal(study, size)
    print(surprisal_file(study, size))


@app.command("critic")
def _critic(
    algorithm: Algorithm,
    size: Size,
    noise: Noise = "0",
    config: Config = QUICK,
    quiet: Quiet = False,
    checked: Checked = False,
) -> None:
    """Make the pretrained critic that all seeds of an algorithm start with."""
    study, cell = _study(config), Cell(algorithm, size, noise, 0)
    study.cell_config(cell)
    folder = study.critic_folder(cell)
    if folder is None:
        able = [
            name for name in study.algorithms if study.critic_digest(replace(cell, algorithm=name))
        ]
        raise ConfigError(
            f"algorithm: '{algorithm}' pretrains no critic; allowed: {', '.join(able) or 'none'}, "
            "or an algorithm of objective ppo with critic_pretrain"
        )
    from vimpo.planning.preflight import check_inputs
    from vimpo.training.runs import is_complete, pretrain_critic

    done = is_complete(folder, folder.name.removeprefix("critic-"))
    tasks = {} if done or checked else check_inputs(study, [size])
    print(pretrain_critic(study, cell, quiet=quiet, task=tasks.get(size)))


@app.command("train")
def _train(
    algorithm: Algorithm,
    size: Size,
    noise: Noise = "0",
    seed: Seed = 1,
    config: Config = QUICK,
    quiet: Quiet = False,
    checked: Checked = False,
) -> None:
    """Train one cell: an algorithm, size, noise level and seed."""
    study, cell = _study(config), Cell(algorithm, size, noise, seed)
    runtime = study.cell_config(cell).runtime
    registration = registration_of(study, config)
    from vimpo.planning.preflight import check_inputs
    from vimpo.training.runs import is_complete, prepare_cell, train_cell

    done = is_complete(study.run_folder(cell), study.cell_digest(cell))
    looked_at = done or checked or is_launched()
    tasks = {} if looked_at else check_inputs(study, [size])
    task, alone = tasks.get(size), runtime.processes == 1 or is_launched()
    if not alone and prepare_cell(study, cell, quiet=quiet, task=task):
        options = [f"--config={config}"]
        options += [f"--{field}={value}" for field, value in vars(cell).items()]
        launch(runtime, ["train", *options, *["--quiet"] * quiet])
    folder = train_cell(study, cell, quiet=quiet, task=task, registration=registration)
    if is_first_process():
        print(folder)


@app.command("check")
def _check(
    study_file: StudyFile = None,
    sample: Annotated[
        int | None,
        Option(metavar="N", parser=_whole, help="also sample N responses of each base model"),
    ] = None,
    config: Config = QUICK,
) -> None:
    """Check a study's models, data and benchmarks before it runs."""
    from vimpo.planning.preflight import check_inputs

    if sample is not None and sample < 1:
        raise ConfigError(f"sample: {sample} is not allowed; allowed: 1 or more")
    config = study_file or config
    study = _study(config)
    registration = registration_of(study, config)
    tasks = check_inputs(study, say=print)
    if registration:
        print(f"'{registration.file}' is registered in commit {registration.commit}")
    for line in capacity_lines(study):
        print(line)
    if sample:
        from vimpo.planning.sampled import sample_bases

        sample_bases(study, sample, tasks, print)
    print(f"models, data and benchmarks of '{study.study}' are available")


@app.command("evaluate")
def _evaluate(
    algorithm: AnyAlgorithm = None,
    size: AnySize = None,
    noise: Noise = "0",
    seed: Seed = 1,
    step: Step = None,
    base: Annotated[bool, Option("--base", help="the base policy of --size")] = False,
    model: Annotated[Path | None, _folder("a checkpoint outside the study")] = None,
    output: Annotated[Path | None, _folder("with --model: where eval.json goes")] = None,
    benchmarks: Annotated[str | None, Option(metavar="A,B", help="only these benchmarks")] = None,
    config: Config = QUICK,
) -> None:
    """Score a cell, a base policy or any model with lm-eval."""
    from vimpo.evaluation.lm_eval import choose_benchmarks, evaluate_checkpoint

    study = _study(config)
    names = benchmarks.split(",") if benchmarks else None
    choose_benchmarks(study, names)
    if step is not None and (model or base):
        raise ConfigError(f"step: {step} is of a run; allowed: without --base and --model")
    if model:
        folder = output or model.parent
    elif base:
        if size is None:
            raise ConfigError("size: is required with --base; allowed: one of the study's")
        require(size, study.sizes, "size")
        folder = study.base_folder(size)
    else:
        if algorithm is None or size is None:
            name = "size" if algorithm else "algorithm"
            raise ConfigError(f"{name}: is required; allowed: one of the study's, by --{name}")
        cell = Cell(algorithm, size, noise, seed)
        study.cell_config(cell)
        folder = study.run_folder(cell, _snapshot(study, step))
    if not model:
        check_model(folder)
    scores = folder / "eval.json"
    report = evaluate_checkpoint(
        model or folder / "model",
        study,
        scores,
        folder / "samples.jsonl.gz",
        digest=study.evaluation_digest(),
        benchmarks=names,
    )
    for result in report["results"]:
        error = "n/a" if result["stderr"] is None else f"{result['stderr']:.3f}"
        print(f"{result['benchmark']:16} {result['metric']:8} {result['value']:.3f} +- {error}")
    print(scores)


@app.command("probe")
def _probe(
    algorithm: Algorithm,
    size: Size,
    noise: Noise = "0",
    seed: Seed = 1,
    step: Step = None,
    config: Config = QUICK,
) -> None:
    """Measure value, credit and precision of a trained cell."""
    from vimpo.probes.run import probe_run

    study, cell = _study(config), Cell(algorithm, size, noise, seed)
    study.cell_config(cell)
    output = study.run_folder(cell, _snapshot(study, step)) / "probes.parquet"
    probe_run(study, cell, output, step)
    print(output)


@app.command("read")
def _read(
    base: Annotated[str, Option(metavar="MODEL", help="the policy before, a folder or a hub name")],
    policy: Annotated[str, Option(metavar="MODEL", help="the policy after")],
    problems: Annotated[
        str | None,
        _file(".jsonl or .parquet with prompt, if known answer, response (default: the task's)"),
    ] = None,
    count: Annotated[int, Option(metavar="N", parser=_whole, help="at most so many")] = 16,
    output: Annotated[Path, _file("every token, as .csv or .parquet")] = Path("read.csv"),
    config: Annotated[
        Path | None, _file("a study with the beta and the task (default: 0.02, and short chains)")
    ] = None,
) -> None:
    """Read implied value and credit out of any pair of checkpoints."""
    from vimpo.probes.read import check_output, described, read_pair, write_tokens

    check_output(output)
    if count < 1:
        raise ConfigError(f"count: {count} is not allowed; allowed: 1 or more")
    found = read_pair(load_study(config), base, policy, count, problems)
    write_tokens(found.tokens, output)
    print(described(found.summary))
    print(output)


def _snapshot(study: Study, step: int | None) -> int | None:
    """The step of a snapshot, or None. Raises ConfigError if the study does not make it."""
    known = study.train.snapshots
    if step is not None and step not in known:
        allowed = ", ".join(map(str, known)) or "none; train.snapshots names the steps to keep"
        raise ConfigError(f"step: {step} has no snapshot in this study; allowed: {allowed}")
    return step


@app.command("cost")
def _cost(size: Size, config: Config = QUICK) -> None:
    """Measure step time and memory of the algorithms side by side."""
    from vimpo.probes.cost import compare_costs

    study = _study(config)
    require(size, study.sizes, "size")
    output = study.cost_file(size)
    compare_costs(study, size, study.algorithms_at(size), output)
    print(output)


# --- tables, figures and reports -----------------------------------------------------------------


@app.command("aggregate")
def _aggregate(
    output: Annotated[Path | None, _folder("default: tables/ of the study")] = None,
    config: Config = QUICK,
) -> None:
    """Collect all runs into tidy tables."""
    from vimpo.analysis.aggregate import aggregate

    study = _study(config)
    aggregate(study, output or study.folder / "tables")


@app.command("sweep")
def _sweep(config: Config = QUICK) -> None:
    """Compare the trials of a sweep, and choose among them."""
    from vimpo.analysis.sweep import CURVES, TABLE, sweep
    from vimpo.report.figures import draw_figures
    from vimpo.storage.tables import read_table

    study = _study(config)
    table = sweep(study, study.folder / "sweep")
    frames = {name: read_table(table.parent, name) for name in (TABLE, CURVES)}
    draw_figures(frames, list(frames), {}, table.parent)
    print(table)


@app.command("plot")
def _plot(tables: Tables = None, figures: Figures = None, config: Config = QUICK) -> None:
    """Draw every figure from the tables."""
    from vimpo.report.figures import draw

    folder = _study(config).folder
    for path in draw(tables or folder / "tables", figures or folder / "figures"):
        print(path)


@app.command("report")
def _report(
    tables: Tables = None,
    figures: Figures = None,
    output: Annotated[Path | None, _file("default: report.html of the study")] = None,
    config: Config = QUICK,
) -> None:
    """Write the report from tables and figures."""
    from vimpo.report.page import write_report

    study = _study(config)
    output = output or study.folder / "report.html"
    tables, figures = tables or study.folder / "tables", figures or study.folder / "figures"
    write_report(study, tables, figures, output, config=config)
    print(output)


@app.command("summarize")
def _summarize(config: Config = QUICK) -> None:
    """Report on what is finished so far, in partial/."""
    from vimpo.analysis.aggregate import aggregate
    from vimpo.report.figures import draw
    from vimpo.report.page import write_report

    study = _study(config)
    folder = study.folder / "partial"
    tables, figures, output = folder / "tables", folder / "figures", folder / "report.html"
    aggregate(study, tables)
    draw(tables, figures)
    write_report(study, tables, figures, output, config=config)
    print(output)


@app.command("publish")
def _publish(
    published: Published = None,
    cells: Annotated[
        bool, Option("--cells", help="publish the tables of single cells, for compare; not drawn")
    ] = False,
    config: Config = QUICK,
) -> None:
    """Copy a study's tables to results/published/<study>."""
    from vimpo.report.published import FOLDER, publish
    from vimpo.storage.columns import CELL_TABLES, PUBLISHED_TABLES

    names = CELL_TABLES if cells else PUBLISHED_TABLES
    print(publish(_study(config), published or FOLDER, config, names))


@app.command("rename")
def _rename(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="of a published study")],
    name: Annotated[str, Argument(metavar="NAME", help="its new name")],
) -> None:
    """Give a published study another name; its numbers stay as they are."""
    from vimpo.report.published import rename

    print(rename(folder, name))


@app.command("figures")
def _figures(published: Published = None) -> None:
    """Draw figures and reports of all published studies."""
    from vimpo.report.published import FOLDER, draw_published

    for path in draw_published(published or FOLDER):
        print(path)


@app.command("law")
def _law(
    folders: Annotated[
        list[Path],
        Argument(metavar="FOLDER...", help="results/<study> or results/published/<study>"),
    ],
    output: Annotated[Path, _folder("where tables and figure go")] = Path("results/capacity_law"),
) -> None:
    """Does the accuracy of the implied value depend on capacity alone, over several studies?"""
    from vimpo.analysis.law import gather
    from vimpo.report.law import described, write_law

    written = write_law(gather(folders), output)
    print(described(output))
    for path in written:
        print(path)


# --- is a re-run the same? -----------------------------------------------------------------------


@app.command("compare")
def _compare(
    a: Annotated[str, Argument(metavar="A", help="a results folder or a published one")],
    b: Annotated[str, Argument(metavar="B", help="another, with some or all of A's cells")],
    output: Annotated[str | None, _file("every number, as .csv or .json")] = None,
    config: Config = QUICK,
) -> int:
    """Compare two results folders: is B what A was?

    Exit code 0: yes; 1: different; 2: not comparable.
    """
    from vimpo.compare.compare import compare, read_side
    from vimpo.compare.text import check_output, describe, write_comparison

    if output:
        check_output(output)
    old, new = read_side(a, config), read_side(b, config)
    found = compare(old, new)
    print(describe(old, new, found))
    if output:
        write_comparison(old, new, found, Path(output))
    return found.exit_code


@app.command("reproduce")
def _reproduce(
    reference: Annotated[
        Path, Argument(metavar="A", help="a published folder or a results folder")
    ],
    cells: Annotated[
        str | None,
        Option(metavar="C,D", help="algorithm/size/noise-.../seed-...; default: all cells"),
    ] = None,
    results: Annotated[Path | None, _folder("default: results/reproduced")] = None,
) -> int:
    """Train cells of a finished study again, and compare with it."""
    from vimpo.compare.reproduce import FOLDER, reproduce

    return reproduce(reference, results or FOLDER, cells.split(",") if cells else None)


# --- the study file ------------------------------------------------------------------------------


@app.command("plan")
def _plan(study_file: StudyFile = None, config: Config = QUICK) -> None:
    """Estimate jobs, memory, device-hours and disk of a study."""
    from vimpo.planning.text import describe

    print(describe(load_study(study_file or config)))


@app.command("schema")
def _schema() -> None:
    """Print the JSON schema of a study file."""
    print(json.dumps(study_schema(), indent=2))


@app.command("resolve")
def _resolve(
    output: Annotated[Path | None, _file("default: print it")] = None,
    config: Config = QUICK,
) -> None:
    """Write a study with every default spelled out."""
    text = dump_yaml(load_study(config))
    if output:
        # Atomic: jobs that run meanwhile compare themselves with this file.
        write_atomic(output, text)
    else:
        print(text, end="")
