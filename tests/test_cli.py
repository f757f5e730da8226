"""The command line itself: wrong usage is one line and exit code 2, and help needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vimpo.cli import app, main

ROOT = Path(__file__).parents[1]
CELL = ["--algorithm", "vimpo", "--size", "xs"]
WRONG = {
    "no command": ([], "Missing command (see `python -m vimpo --help`)"),
    "unknown command": (["trian"], "No such command 'trian'. Did you mean 'train'"),
    "unknown option": (["check", "--foo"], "No such option: --foo (see `python -m vimpo check --h"),
    "unknown option before": (["--foo", "check"], "No such option: --foo"),
    "missing option": (["train", "--size", "xs"], "Missing option '--algorithm'"),
    "missing argument": (["compare", "a"], "Missing argument 'B'"),
    "missing value": (["train", *CELL, "--noise"], "Option '--noise' requires an argument"),
    "wrong seed": (["train", *CELL, "--seed", "x"], "'--seed': 'x' is not allowed; allowed: a wh"),
    "surplus": (["train", *CELL, "more"], "Got unexpected extra argument(s) (more)"),
    "not a file": (["plan", "no.yaml"], "config: 'no.yaml' is not a file; allowed: a YAML file"),
    "no cell": (
        ["evaluate"],
        "algorithm: is required; allowed: one of the study's, by --algorithm",
    ),
    "no size": (["evaluate", "--base"], "size: is required with --base; allowed: one of the stud"),
    "unknown size": (["pretrain", "--size", "zz"], "size: 'zz' is unknown; allowed: xs, s, m, l, "),
    "no critic": (["critic", *CELL], "'vimpo' pretrains no critic; allowed: ppo_pretrained, or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line(capsys, case):
    arguments, message = WRONG[case]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_every_command_explains_itself(capsys):
    commands = [command.name for command in app.registered_commands]
    assert len(commands) == 24
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert (
        "  python -m vimpo plan workflow/config/paper.yaml\n" in page
    )  # examples keep their lines
    for command in commands:
        assert f"\n  {command} " in page
        assert main([command, "-h"]) == 0
        assert f"Usage: python -m vimpo {command}" in capsys.readouterr().out


def test_help_plan_and_wrong_input_need_no_torch():
    script = (
        "import sys; from vimpo.cli import main; "
        "codes = [main(a) for a in (['--help'], ['plan'], ['train'], ['pretrain', '--size=zz'])]; "
        "assert codes == [0, 0, 2, 2], codes; "
        "assert not {'torch', 'transformers', 'pandas', 'lm_eval', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_an_error_of_a_library_is_not_taken_for_an_abort(monkeypatch):
    """Typer's own entry point would turn an EOFError, as of a truncated file, into `Aborted!`."""

    def truncated(config):
        raise EOFError("Ran out of input")

    monkeypatch.setattr("vimpo.cli.load_study", truncated)
    with pytest.raises(EOFError, match="Ran out of input"):
        main(["resolve"])
