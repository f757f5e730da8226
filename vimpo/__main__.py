"""`python -m vimpo`: a job's process."""

import gc

# torch and transformers make a million objects that stay. Looking through them for garbage while
# they load, and once more at the end, is a third of a process's start-up; models.set_up_torch
# switches the collector on again.
gc.disable()

from vimpo.cli import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
