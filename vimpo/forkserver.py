"""A fork server: the jobs of one workflow start from a process that has imported everything.

Importing torch and transformers takes seconds, which is longer than many jobs compute. `start` runs
a server beside the workflow. `python -m vimpo` then sends its command to it (`ask`), with its
folder, environment and standard streams; the server forks, and the child runs the command. The
client waits, passes signals on, and ends as the child ends; if the client is killed, so is the
child. Without a server, or with one that started in another environment, the command runs in its
own process.

For Linux, and for the CPU: no GPU driver survives a fork.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

VARIABLE = "VIMPO_FORK_SERVER"  # the path of the socket, for all processes below
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STREAMS = (0, 1, 2)
STARTED = b"\0"
KEPT: list[subprocess.Popen] = []  # their standard input ends with this process
LENGTH, EXIT_CODE = struct.Struct("!I"), struct.Struct("!i")
# What the stages import, some of it only when they run.
PRELOADED = (
    "vimpo.cli",
    "vimpo.training.runs",
    "vimpo.evaluation.lm_eval",
    "vimpo.probes.run",
    "vimpo.probes.cost",
    "vimpo.analysis.aggregate",
    "vimpo.report.page",
    "vimpo.report.figures.style",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.style",
)


def start() -> None:
    """Start a server that lives as long as this process, unless one already serves it."""
    if sys.platform != "linux" or VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="vimpo-")
    os.environ[VARIABLE] = path = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)  # orders wait here while the server imports
        server = subprocess.Popen(
            [sys.executable, "-m", "vimpo.forkserver", str(listener.fileno()), folder],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the clients, which pass it on
        )
    KEPT.append(server)


# --- Client --------------------------------------------------------------------------------------


def ask(arguments: Sequence[str]) -> int | None:
    """Have a command run by the server. Returns its exit code; None if no server takes it."""
    path = os.environ.get(VARIABLE)
    if not path or sys.platform != "linux":
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            _send_order(server, arguments)
            if server.recv(1) != STARTED:
                return None
        except OSError:
            return None
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        answer = server.recv(EXIT_CODE.size)
    if not answer:
        print("error: the fork server died; run the command again", file=sys.stderr)
        return 1
    (code,) = EXIT_CODE.unpack(answer)
    if code < 0:  # the child died of a signal
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _send_order(server: socket.socket, arguments: Sequence[str]) -> None:
    order = json.dumps(
        {
            "origin": origin(os.environ),
            "arguments": list(arguments),
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "ignored": [n for n in PASSED_ON if signal.getsignal(n) == signal.SIG_IGN],
        }
    ).encode()
    socket.send_fds(server, [LENGTH.pack(len(order))], STREAMS)
    server.sendall(order)


def origin(environment: Mapping[str, str]) -> list[str]:
    """What a process takes up once, when it starts: a child of another origin would differ."""
    read_once = ("PYTHON", "LC_", "LANG")
    return [
        sys.prefix,
        *sorted(f"{k}={v}" for k, v in environment.items() if k.startswith(read_once)),
    ]


# --- Server --------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> list[str] | None:
    """Fork for every client. Returns the arguments in a job's process, and None in any other.

    The server ends when its standard input does; jobs that are running go on.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who attend to clients
    while True:
        ready, _, _ = select.select([listener.fileno(), STREAMS[0]], [], [])
        if STREAMS[0] in ready:
            return None
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return attend(client)
        client.close()


def attend(client: socket.socket) -> list[str] | None:
    """Run one client's job in a child. Returns as `serve` does."""
    message, streams, _, _ = socket.recv_fds(client, LENGTH.size, len(STREAMS))
    (length,) = LENGTH.unpack(message)
    order = json.loads(client.recv(length, socket.MSG_WAITALL))
    if order["origin"] != origin(os.environ):
        return None
    job = os.fork()
    if job == 0:
        client.close()
        _become(order, streams)
        return order["arguments"]
    client.sendall(STARTED)
    ended = os.pidfd_open(job)
    while ended not in select.select([client.fileno(), ended], [], [])[0]:
        for number in client.recv(len(PASSED_ON)) or [signal.SIGKILL]:  # nothing: it was killed
            # as a terminal does, Ctrl-C reaches what the job has started, too
            (os.kill if number == signal.SIGTERM else os.killpg)(job, number)
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    with suppress(BrokenPipeError):  # the client was killed
        client.sendall(EXIT_CODE.pack(code))
    return None


def _become(order: dict, streams: Sequence[int]) -> None:
    """Take over a client's folder, environment, streams and signals."""
    os.setpgid(0, 0)
    for number in PASSED_ON:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in order["ignored"] else usual)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for own, theirs in zip(STREAMS, streams, strict=True):
        os.dup2(theirs, own)
        os.close(theirs)
    sys.stdout = os.fdopen(STREAMS[1], "w", buffering=1, closefd=False)  # line by line


def main(descriptor: str, folder: str) -> NoReturn:
    """The server's process."""
    # Asked as usual, the driver would be loaded, and no child could use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    with socket.socket(fileno=int(descriptor)) as listener:
        for module in PRELOADED:
            import_module(module)
        gc.freeze()  # so that no child copies what it does not use
        server = os.getpid()
        arguments = serve(listener)
    if arguments is not None:
        _end(run(arguments))
    if os.getpid() == server:
        shutil.rmtree(folder)
    _end(0)


def run(arguments: list[str]) -> int:
    """The command's exit code; an exception is shown as the interpreter would."""
    from vimpo.cli import main as command

    try:
        return command(arguments)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        atexit._run_exitfuncs()


def _end(code: int) -> NoReturn:
    """Without taking a million imported objects down one by one, which takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    gc.disable()  # as vimpo/__main__.py does
    main(*sys.argv[1:])
