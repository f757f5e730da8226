"""The command line: every stage of a study by hand, exactly as the rules call it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vimpo.config import (
    Cell,
    ConfigError,
    Study,
    check_before_running,
    dump_yaml,
    load_study,
    require,
    study_schema,
)
from vimpo.integrity import check_model
from vimpo.records import DiskFullError, room_for, write_atomic
from vimpo.stopping import StoppedError

FULL_DISK = 74  # EX_IOERR of sysexits.h

EPILOG = """\
examples:
  python -m vimpo train --algorithm vimpo --size xs --noise 0.25 --seed 1
      train one cell of the quick study (its base policy is made first where it is missing)
  python -m vimpo evaluate --algorithm vimpo --size xs --noise 0.25 --seed 1
      score that cell by lm-eval on every benchmark
  python -m vimpo check --config workflow/config/paper.yaml
      look at models, data and benchmarks of a study before it runs; fetches what is on the hub
  python -m vimpo plan workflow/config/paper.yaml
      jobs, memory, GPU-hours and disk of a study, before anything is run
  python -m vimpo summarize
      tables, figures and a report of whatever is finished, with the missing cells by name
  python -m vimpo compare results/published/quick results/quick
      is this re-run what was published: to the last digit, or as far as chance allows?
  snakemake --cores all
      all of the above for the whole grid

Every command takes --config FILE; without it, the quick study's defaults hold. Results go to
results/<study>/, and a command whose result is already there does nothing.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code.

    0; 1 where `compare` or `reproduce` finds other results; 2 for a configuration that cannot run
    or a damaged file; 74 for a full disk; 143 and 130 where SIGTERM or Ctrl-C stopped a run, which
    then goes on from there.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    # Hub libraries ask the network about local files too, unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with room_for():
            return options.command(options) or 0
    except (ConfigError, DiskFullError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return FULL_DISK if isinstance(error, DiskFullError) else 2
    except StoppedError as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr)
        return stopped.exit_code


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m vimpo",
        description="Compare VIMPO, critic-based PPO and GRPO by real reinforcement learning.",
        epilog=EPILOG,
        formatter_class=style,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, name: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=description, description=description, formatter_class=style
        )
        sub.set_defaults(command=function)
        if function not in (_schema, _figures, _reproduce):
            sub.add_argument("--config", metavar="FILE", help="a study (default: the quick study)")
        return sub

    sub = command(_pretrain, "pretrain", "Make the base policy of a size.")
    sub.add_argument("--size", required=True, help="a rung of the ladder, such as xs")
    _job_options(sub)

    sub = command(_train, "train", "Train one cell: an algorithm, size, noise level and seed.")
    _cell_arguments(sub, required=True)
    _job_options(sub)

    sub = command(_check, "check", "Look at a study's models, data and benchmarks before it runs.")

    sub = command(_evaluate, "evaluate", "Score a cell, a base policy or any model by lm-eval.")
    _cell_arguments(sub, required=False)
    sub.add_argument("--base", action="store_true", help="the base policy of --size")
    sub.add_argument("--model", metavar="FOLDER", help="a checkpoint outside the study")
    sub.add_argument("--output", metavar="FOLDER", help="with --model: where eval.json goes")
    sub.add_argument("--benchmarks", metavar="A,B", help="some of the study's benchmarks")

    sub = command(_probe, "probe", "Measure value, credit and precision of a trained cell.")
    _cell_arguments(sub, required=True)
    sub = command(_cost, "cost", "Measure step time and memory of the algorithms side by side.")
    sub.add_argument("--size", required=True, help="a rung of the ladder, such as xs")

    sub = command(_aggregate, "aggregate", "Collect all runs into tidy tables.")
    sub.add_argument("--output", metavar="FOLDER", help="default: tables/ of the study")
    sub = command(_plot, "plot", "Draw every figure from the tables.")
    _table_arguments(sub)
    sub = command(_report, "report", "Write the report from tables and figures.")
    _table_arguments(sub)
    sub.add_argument("--output", metavar="FILE", help="default: report.html of the study")
    sub = command(
        _summarize, "summarize", "Tables, figures and report of what is finished, in partial/."
    )

    sub = command(_publish, "publish", "Copy a study's tables to results/published/<study>.")
    sub.add_argument("--published", metavar="FOLDER", help="default: results/published")
    sub.add_argument(
        "--cells", action="store_true", help="tables of single cells, for compare; not drawn"
    )
    sub = command(_figures, "figures", "Draw figures and reports of all published studies.")
    sub.add_argument("--published", metavar="FOLDER", help="default: results/published")

    _comparisons(command)

    sub = command(_plan, "plan", "Estimate jobs, memory, device-hours and disk of a study.")
    sub.add_argument("study", nargs="?", metavar="CONFIG", help="the same as --config")
    command(_schema, "schema", "Print the JSON schema of a study file.")
    sub = command(_resolve, "resolve", "Write a study with every default spelled out.")
    sub.add_argument("--output", metavar="FILE", help="default: print it")
    return parser


def _comparisons(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        _compare, "compare", "Is B what A was? Exit code 0: yes; 1: different; 2: not comparable."
    )
    sub.add_argument("a", metavar="A", help="a results folder or a published one")
    sub.add_argument("b", metavar="B", help="another, of some or all of A's cells")
    sub.add_argument("--output", metavar="FILE", help="every number, as .csv or .json")
    sub = command(
        _reproduce, "reproduce", "Train cells of a finished study again, and compare with it."
    )
    sub.add_argument("reference", metavar="A", help="a published folder or a results folder")
    sub.add_argument("--cells", metavar="C,D", help="algorithm/size/noise-.../seed-...; all")
    sub.add_argument("--results", metavar="FOLDER", help="default: results/reproduced")


def _job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--checked", action="store_true", help="`check` has run: do not look at all inputs again"
    )


def _cell_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--algorithm", required=required, help="vimpo, ppo, grpo, ...")
    parser.add_argument("--size", required=required, help="a rung of the ladder, such as xs")
    parser.add_argument("--noise", default="0", help="0.25, rollout-0.25 or asymmetric-0.1-0.3")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", metavar="FOLDER", help="default: tables/ of the study")
    parser.add_argument("--figures", metavar="FOLDER", help="default: figures/ of the study")


def _study(options: argparse.Namespace) -> Study:
    study = load_study(options.config)
    check_before_running(study)
    return study


def _cell(options: argparse.Namespace) -> Cell:
    for field in ("algorithm", "size"):
        if getattr(options, field) is None:
            raise ConfigError(f"{field}: is required; allowed: one of the study's, by --{field}")
    return Cell(options.algorithm, options.size, options.noise, options.seed)


def _folder(given: str | None, default: Path) -> Path:
    return Path(given) if given else default


# Stages import what they need when they run: `--help` and wrong input answer at once.


def _pretrain(options: argparse.Namespace) -> None:
    study = _study(options)
    require(options.size, study.sizes, "size")
    from vimpo.preflight import check_inputs
    from vimpo.runs import is_complete, pretrain_base

    done = is_complete(study.base_folder(options.size), study.base_digest(options.size))
    if not (done or options.checked):
        check_inputs(study, [options.size])
    print(pretrain_base(study, options.size, quiet=options.quiet))


def _train(options: argparse.Namespace) -> None:
    study, cell = _study(options), _cell(options)
    runtime = study.cell_config(cell).runtime
    from vimpo.launch import is_launched, launch
    from vimpo.preflight import check_inputs
    from vimpo.runs import is_complete

    done = is_complete(study.run_folder(cell), study.cell_digest(cell))
    if not (done or options.checked or is_launched()):
        check_inputs(study, [cell.size])
    if runtime.processes > 1 and not is_launched():
        from vimpo.runs import prepare_cell

        if prepare_cell(study, cell, quiet=options.quiet):
            launch(runtime, _train_arguments(options))
    from vimpo.runs import train_cell

    folder = train_cell(study, cell, quiet=options.quiet)
    if os.environ.get("RANK", "0") == "0":
        print(folder)


def _train_arguments(options: argparse.Namespace) -> list[str]:
    """The command line of these options."""
    named = ("config", "algorithm", "size", "noise", "seed")
    given = {name: getattr(options, name) for name in named}
    pairs = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return ["train", *pairs, *["--quiet"] * options.quiet]


def _check(options: argparse.Namespace) -> None:
    from vimpo.preflight import check_inputs

    study = _study(options)
    check_inputs(study)
    print(f"models, data and benchmarks of '{study.study}' are at hand")


def _evaluate(options: argparse.Namespace) -> None:
    from vimpo.evaluate import choose_benchmarks, evaluate_checkpoint

    study = _study(options)
    names = options.benchmarks.split(",") if options.benchmarks else None
    choose_benchmarks(study, names)
    if options.model:
        model = Path(options.model)
        folder = _folder(options.output, model.parent)
    elif options.base:
        if options.size is None:
            raise ConfigError("size: is required with --base; allowed: one of the study's")
        require(options.size, study.sizes, "size")
        folder = study.base_folder(options.size)
        model = folder / "model"
    else:
        cell = _cell(options)
        study.cell_config(cell)
        folder = study.run_folder(cell)
        model = folder / "model"
    if not options.model:
        check_model(folder)
    output = folder / "eval.json"
    report = evaluate_checkpoint(
        model,
        study,
        output,
        folder / "samples.jsonl.gz",
        digest=study.evaluation_digest(),
        benchmarks=names,
    )
    for result in report["results"]:
        error = "n/a" if result["stderr"] is None else f"{result['stderr']:.3f}"
        print(f"{result['benchmark']:16} {result['metric']:8} {result['value']:.3f} +- {error}")
    print(output)


def _probe(options: argparse.Namespace) -> None:
    from vimpo.probes import probe_run

    study, cell = _study(options), _cell(options)
    study.cell_config(cell)
    output = study.run_folder(cell) / "probes.parquet"
    probe_run(study, cell, output)
    print(output)


def _cost(options: argparse.Namespace) -> None:
    from vimpo.probes.cost import compare_costs

    study = _study(options)
    require(options.size, study.sizes, "size")
    output = study.cost_file(options.size)
    compare_costs(study, options.size, study.algorithms_at(options.size), output)
    print(output)


def _aggregate(options: argparse.Namespace) -> None:
    from vimpo.aggregate import aggregate

    study = _study(options)
    aggregate(study, _folder(options.output, study.folder / "tables"))


def _plot(options: argparse.Namespace) -> None:
    from vimpo.plots import draw

    study = _study(options)
    tables = _folder(options.tables, study.folder / "tables")
    for path in draw(tables, _folder(options.figures, study.folder / "figures")):
        print(path)


def _report(options: argparse.Namespace) -> None:
    from vimpo.report import write_report

    study = _study(options)
    output = _folder(options.output, study.folder / "report.html")
    tables = _folder(options.tables, study.folder / "tables")
    figures = _folder(options.figures, study.folder / "figures")
    write_report(study, tables, figures, output, config=options.config)
    print(output)


def _summarize(options: argparse.Namespace) -> None:
    from vimpo.aggregate import aggregate
    from vimpo.plots import draw
    from vimpo.report import write_report

    study = _study(options)
    folder = study.folder / "partial"
    aggregate(study, folder / "tables")
    draw(folder / "tables", folder / "figures")
    output = folder / "report.html"
    write_report(study, folder / "tables", folder / "figures", output, config=options.config)
    print(folder / "report.html")


def _publish(options: argparse.Namespace) -> None:
    from vimpo.contents import CELL_TABLES, PUBLISHED_TABLES
    from vimpo.published import FOLDER, publish

    config = Path(options.config) if options.config else None
    names = CELL_TABLES if options.cells else PUBLISHED_TABLES
    print(publish(_study(options), _folder(options.published, FOLDER), config, names))


def _compare(options: argparse.Namespace) -> int:
    from vimpo.compare import compare, read_side
    from vimpo.compare_text import check_output, describe, write_comparison

    if options.output:
        check_output(options.output)
    config = Path(options.config) if options.config else None
    a, b = read_side(options.a, config), read_side(options.b, config)
    found = compare(a, b)
    print(describe(a, b, found))
    if options.output:
        write_comparison(a, b, found, Path(options.output))
    return found.exit_code


def _reproduce(options: argparse.Namespace) -> int:
    from vimpo.reproduce import FOLDER, reproduce

    cells = options.cells.split(",") if options.cells else None
    return reproduce(Path(options.reference), _folder(options.results, FOLDER), cells)


def _figures(options: argparse.Namespace) -> None:
    from vimpo.published import FOLDER, draw_published

    for path in draw_published(_folder(options.published, FOLDER)):
        print(path)


def _plan(options: argparse.Namespace) -> None:
    from vimpo.plan_text import describe

    print(describe(load_study(options.study or options.config)))


def _schema(options: argparse.Namespace) -> None:
    print(json.dumps(study_schema(), indent=2))


def _resolve(options: argparse.Namespace) -> None:
    text = dump_yaml(load_study(options.config))
    if options.output:
        # Atomic: jobs that run meanwhile compare themselves with this file.
        write_atomic(Path(options.output), text)
    else:
        print(text, end="")
