"""Errors that end a command with one line: what is wrong, and what is allowed."""

from __future__ import annotations

import signal


class ConfigError(ValueError):
    """A configuration that cannot run: the message names field, value and allowed range."""


class DamagedError(ConfigError):
    """A file that is not what was written: the message names it and says how to make it again."""


class StoppedError(Exception):
    """A run was told to stop and saved its work; `exit_code` is the shell's for that signal."""

    def __init__(self, number: int, title: str, done: int, steps: int) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"{title}: stopped by {name} after step {done} of {steps}, which is saved; the same "
            "command resumes from there"
        )
        self.exit_code = 128 + number


class DiskFullError(OSError):
    """The disk is full; the message names the folder and says how to continue."""
