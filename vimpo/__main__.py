"""`python -m vimpo`: a job's process."""

import gc
import sys

from vimpo.forkserver import ask

# torch and transformers create a million objects that stay. Scanning them for garbage while they
# load, and again at exit, is a third of a process's start-up time; set_up_torch in
# vimpo/models/networks.py switches the collector back on.
gc.disable()

if __name__ == "__main__":
    if (code := ask(sys.argv[1:])) is None:
        from vimpo.cli import main

        code = main()
    raise SystemExit(code)
