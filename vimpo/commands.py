"""What each command of the command line does; every one takes the options that vimpo/cli.py read.

A function returns the exit code, or None for 0.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from vimpo.config import Cell, ConfigError, Study, dump_yaml, load_study, require, study_schema
from vimpo.planning.preflight import check_before_running
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import check_model


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


def do_pretrain(options: argparse.Namespace) -> None:
    study = _study(options)
    require(options.size, study.sizes, "size")
    from vimpo.planning.preflight import check_inputs
    from vimpo.training.runs import is_complete, pretrain_base

    done = is_complete(study.base_folder(options.size), study.base_digest(options.size))
    if not (done or options.checked):
        check_inputs(study, [options.size])
    print(pretrain_base(study, options.size, quiet=options.quiet))


def do_train(options: argparse.Namespace) -> None:
    study, cell = _study(options), _cell(options)
    runtime = study.cell_config(cell).runtime
    from vimpo.planning.preflight import check_inputs
    from vimpo.training.launch import is_launched, launch
    from vimpo.training.runs import is_complete

    done = is_complete(study.run_folder(cell), study.cell_digest(cell))
    if not (done or options.checked or is_launched()):
        check_inputs(study, [cell.size])
    if runtime.processes > 1 and not is_launched():
        from vimpo.training.runs import prepare_cell

        if prepare_cell(study, cell, quiet=options.quiet):
            launch(runtime, _train_arguments(options))
    from vimpo.training.runs import train_cell

    folder = train_cell(study, cell, quiet=options.quiet)
    if os.environ.get("RANK", "0") == "0":
        print(folder)


def _train_arguments(options: argparse.Namespace) -> list[str]:
    """The command line of these options."""
    named = ("config", "algorithm", "size", "noise", "seed")
    given = {name: getattr(options, name) for name in named}
    pairs = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return ["train", *pairs, *["--quiet"] * options.quiet]


def do_check(options: argparse.Namespace) -> None:
    from vimpo.planning.preflight import check_inputs

    study = _study(options)
    check_inputs(study)
    print(f"models, data and benchmarks of '{study.study}' are at hand")


def do_evaluate(options: argparse.Namespace) -> None:
    from vimpo.evaluation.lm_eval import choose_benchmarks, evaluate_checkpoint

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


def do_probe(options: argparse.Namespace) -> None:
    from vimpo.probes import probe_run

    study, cell = _study(options), _cell(options)
    study.cell_config(cell)
    output = study.run_folder(cell) / "probes.parquet"
    probe_run(study, cell, output)
    print(output)


def do_cost(options: argparse.Namespace) -> None:
    from vimpo.probes.cost import compare_costs

    study = _study(options)
    require(options.size, study.sizes, "size")
    output = study.cost_file(options.size)
    compare_costs(study, options.size, study.algorithms_at(options.size), output)
    print(output)


def do_aggregate(options: argparse.Namespace) -> None:
    from vimpo.analysis.aggregate import aggregate

    study = _study(options)
    aggregate(study, _folder(options.output, study.folder / "tables"))


def do_sweep(options: argparse.Namespace) -> None:
    from vimpo.analysis.sweep import TABLE, sweep
    from vimpo.report.figures import draw_figures
    from vimpo.storage.tables import read_table

    study = _study(options)
    table = sweep(study, study.folder / "sweep")
    draw_figures({TABLE: read_table(table.parent, TABLE)}, [TABLE], {}, table.parent)
    print(table)


def do_plot(options: argparse.Namespace) -> None:
    from vimpo.report.figures import draw

    study = _study(options)
    tables = _folder(options.tables, study.folder / "tables")
    for path in draw(tables, _folder(options.figures, study.folder / "figures")):
        print(path)


def do_report(options: argparse.Namespace) -> None:
    from vimpo.report.page import write_report

    study = _study(options)
    output = _folder(options.output, study.folder / "report.html")
    tables = _folder(options.tables, study.folder / "tables")
    figures = _folder(options.figures, study.folder / "figures")
    write_report(study, tables, figures, output, config=options.config)
    print(output)


def do_summarize(options: argparse.Namespace) -> None:
    from vimpo.analysis.aggregate import aggregate
    from vimpo.report.figures import draw
    from vimpo.report.page import write_report

    study = _study(options)
    folder = study.folder / "partial"
    aggregate(study, folder / "tables")
    draw(folder / "tables", folder / "figures")
    output = folder / "report.html"
    write_report(study, folder / "tables", folder / "figures", output, config=options.config)
    print(folder / "report.html")


def do_publish(options: argparse.Namespace) -> None:
    from vimpo.report.published import FOLDER, publish
    from vimpo.storage.columns import CELL_TABLES, PUBLISHED_TABLES

    config = Path(options.config) if options.config else None
    names = CELL_TABLES if options.cells else PUBLISHED_TABLES
    print(publish(_study(options), _folder(options.published, FOLDER), config, names))


def do_compare(options: argparse.Namespace) -> int:
    from vimpo.compare.compare import compare, read_side
    from vimpo.compare.text import check_output, describe, write_comparison

    if options.output:
        check_output(options.output)
    config = Path(options.config) if options.config else None
    a, b = read_side(options.a, config), read_side(options.b, config)
    found = compare(a, b)
    print(describe(a, b, found))
    if options.output:
        write_comparison(a, b, found, Path(options.output))
    return found.exit_code


def do_reproduce(options: argparse.Namespace) -> int:
    from vimpo.compare.reproduce import FOLDER, reproduce

    cells = options.cells.split(",") if options.cells else None
    return reproduce(Path(options.reference), _folder(options.results, FOLDER), cells)


def do_figures(options: argparse.Namespace) -> None:
    from vimpo.report.published import FOLDER, draw_published

    for path in draw_published(_folder(options.published, FOLDER)):
        print(path)


def do_plan(options: argparse.Namespace) -> None:
    from vimpo.planning.text import describe

    print(describe(load_study(options.study or options.config)))


def do_schema(options: argparse.Namespace) -> None:
    print(json.dumps(study_schema(), indent=2))


def do_resolve(options: argparse.Namespace) -> None:
    text = dump_yaml(load_study(options.config))
    if options.output:
        # Atomic: jobs that run meanwhile compare themselves with this file.
        write_atomic(Path(options.output), text)
    else:
        print(text, end="")
