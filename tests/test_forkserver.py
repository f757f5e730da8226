"""Jobs of the fork server: a user sees what a process of its own would show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vimpo import forkserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fork server needs Linux")
VIMPO = [sys.executable, "-m", "vimpo"]
PATIENCE = 120  # seconds until something that should happen is a failure


@pytest.fixture(scope="module", autouse=True)
def _server():
    """That of the whole test run; with `-n 0`, one of this process."""
    forkserver.start()


def alone(**changes):
    """An environment without a server."""
    return {k: v for k, v in os.environ.items() if k != forkserver.VARIABLE} | changes


def processes_in(folder):
    """Processes at work in a folder, as pairs of id and command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found[int(process.name)] = (process / "cmdline").read_text()
        except OSError:
            continue  # it ended meanwhile
    return found


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("arguments", [["check"], ["check", "--config", "none.yaml"], ["--help"]])
def test_output_and_exit_code_are_those_of_a_process_of_its_own(tmp_path, arguments):
    warm, cold = (
        subprocess.run([*VIMPO, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        for env in (dict(os.environ), alone())
    )
    assert (warm.returncode, warm.stdout, warm.stderr) == (
        cold.returncode,
        cold.stdout,
        cold.stderr,
    )


def test_an_exception_is_shown_and_ends_in_one(monkeypatch, capsys):
    monkeypatch.setattr("vimpo.cli.main", lambda arguments: 1 / len(arguments))
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    assert forkserver.run([]) == 1
    assert capsys.readouterr().err.endswith("ZeroDivisionError: division by zero\n")


@pytest.fixture
def long_run(tiny_study, tmp_path):
    """A client whose job trains in a folder of its own, until it is stopped."""
    study = tiny_study(train={"steps": 100_000})
    work = tmp_path / "work"
    work.mkdir()
    (work / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    command = [*VIMPO, "train", "--quiet", "--config=study.yaml", "--algorithm=grpo", "--size=tiny"]
    client = subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(study.folder.glob("runs/**/step-*.sha256")))
    yield client, work
    client.kill()
    client.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_job_as_ever(long_run, number):
    client, work = long_run
    jobs = processes_in(work)
    assert any("vimpo.forkserver" in command for command in jobs.values())
    client.send_signal(number)
    _, said = client.communicate(timeout=PATIENCE)
    assert client.returncode == 128 + number
    assert "stopped" in said
    assert not processes_in(work)


def test_a_killed_client_takes_its_job_along(long_run):
    client, work = long_run
    client.kill()
    client.wait()
    wait_until(lambda: not processes_in(work))


def test_a_job_of_another_origin_or_without_a_server_runs_by_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("LC_ALL", "POSIX")
    assert forkserver.ask(["check"]) is None
    monkeypatch.undo()
    monkeypatch.setenv(forkserver.VARIABLE, str(tmp_path / "nobody"))
    assert forkserver.ask(["check"]) is None


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    code = "from vimpo import forkserver; forkserver.start()"
    environment = alone(TMPDIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    wait_until(lambda: not list(tmp_path.iterdir()) and not processes_in(tmp_path))
