"""`python -m vimpo`: a job's process."""

import gc

# torch and transformers create a million objects that stay. Scanning them for garbage while they
# load, and again at exit, is a third of a process's start-up time; set_up_torch in
# vimpo/models/networks.py switches the collector back on.
gc.disable()

from vimpo.cli import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
