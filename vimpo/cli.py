"""The command line: every stage of a study by hand, exactly as the rules call it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from vimpo import commands
from vimpo.config import ConfigError
from vimpo.errors import DiskFullError, StoppedError
from vimpo.storage.files import room_for

Command = Callable[[argparse.Namespace], int | None]
AddCommand = Callable[..., argparse.ArgumentParser]

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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Command, name: str, description: str, config: bool = True
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=description, description=description, formatter_class=style
        )
        sub.set_defaults(command=function)
        if config:
            sub.add_argument("--config", metavar="FILE", help="a study (default: the quick study)")
        return sub

    _stages(command)
    _results(command)
    _comparisons(command)
    _studies(command)
    return parser


def _stages(command: AddCommand) -> None:
    """Base policies and cells."""
    sub = command(commands.do_pretrain, "pretrain", "Make the base policy of a size.")
    sub.add_argument("--size", required=True, help="a rung of the ladder, such as xs")
    _job_options(sub)

    sub = command(
        commands.do_train, "train", "Train one cell: an algorithm, size, noise level and seed."
    )
    _cell_arguments(sub, required=True)
    _job_options(sub)

    command(
        commands.do_check, "check", "Look at a study's models, data and benchmarks before it runs."
    )

    sub = command(
        commands.do_evaluate, "evaluate", "Score a cell, a base policy or any model by lm-eval."
    )
    _cell_arguments(sub, required=False)
    sub.add_argument("--base", action="store_true", help="the base policy of --size")
    sub.add_argument("--model", metavar="FOLDER", help="a checkpoint outside the study")
    sub.add_argument("--output", metavar="FOLDER", help="with --model: where eval.json goes")
    sub.add_argument("--benchmarks", metavar="A,B", help="some of the study's benchmarks")

    sub = command(
        commands.do_probe, "probe", "Measure value, credit and precision of a trained cell."
    )
    _cell_arguments(sub, required=True)

    sub = command(
        commands.do_cost, "cost", "Measure step time and memory of the algorithms side by side."
    )
    sub.add_argument("--size", required=True, help="a rung of the ladder, such as xs")


def _results(command: AddCommand) -> None:
    """Tables, figures and reports."""
    sub = command(commands.do_aggregate, "aggregate", "Collect all runs into tidy tables.")
    sub.add_argument("--output", metavar="FOLDER", help="default: tables/ of the study")

    command(commands.do_sweep, "sweep", "Compare the trials of a sweep, and choose among them.")

    sub = command(commands.do_plot, "plot", "Draw every figure from the tables.")
    _table_arguments(sub)

    sub = command(commands.do_report, "report", "Write the report from tables and figures.")
    _table_arguments(sub)
    sub.add_argument("--output", metavar="FILE", help="default: report.html of the study")

    command(
        commands.do_summarize,
        "summarize",
        "Tables, figures and report of what is finished, in partial/.",
    )

    sub = command(
        commands.do_publish,
        "publish",
        "Copy a study's tables and rows of single runs to results/published/<study>.",
    )
    sub.add_argument("--published", metavar="FOLDER", help="default: results/published")
    sub.add_argument(
        "--cells", action="store_true", help="tables of single cells, for compare; not drawn"
    )

    sub = command(
        commands.do_figures,
        "figures",
        "Draw figures and reports of all published studies.",
        config=False,
    )
    sub.add_argument("--published", metavar="FOLDER", help="default: results/published")


def _comparisons(command: AddCommand) -> None:
    """Is a re-run the same?"""
    sub = command(
        commands.do_compare,
        "compare",
        "Is B what A was? Exit code 0: yes; 1: different; 2: not comparable.",
    )
    sub.add_argument("a", metavar="A", help="a results folder or a published one")
    sub.add_argument("b", metavar="B", help="another, of some or all of A's cells")
    sub.add_argument("--output", metavar="FILE", help="every number, as .csv or .json")

    sub = command(
        commands.do_reproduce,
        "reproduce",
        "Train cells of a finished study again, and compare with it.",
        config=False,
    )
    sub.add_argument("reference", metavar="A", help="a published folder or a results folder")
    sub.add_argument("--cells", metavar="C,D", help="algorithm/size/noise-.../seed-...; all")
    sub.add_argument("--results", metavar="FOLDER", help="default: results/reproduced")


def _studies(command: AddCommand) -> None:
    """The study file itself."""
    sub = command(
        commands.do_plan, "plan", "Estimate jobs, memory, device-hours and disk of a study."
    )
    sub.add_argument("study", nargs="?", metavar="CONFIG", help="the same as --config")

    command(commands.do_schema, "schema", "Print the JSON schema of a study file.", config=False)

    sub = command(commands.do_resolve, "resolve", "Write a study with every default spelled out.")
    sub.add_argument("--output", metavar="FILE", help="default: print it")


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
