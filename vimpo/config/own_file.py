"""Files with algorithms of the user's own: their digests, and their source as it is run.

Neither torch nor the configuration is imported here. A study names the file, and its resolved copy
the file's sha256 as well, so that digests of cells change with the file. What such a file imports
is not part of that digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vimpo.config.types import ConfigError


def file_digest(path: str) -> str:
    """sha256 of the file. Raises ConfigError where there is none."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def read_own_file(path: str, sha256: str | None) -> bytes:
    """The file's content. Raises ConfigError where it is not the one that the study was made with.

    The same bytes are compared and run: a file that changes while a study runs trains nothing under
    the digest of its older self.
    """
    content = _bytes(path)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            f"algorithms: '{path}' has changed since this study was resolved (sha256 is not "
            f"{sha256[:12]}...); allowed: the same file, or a study without `sha256`"
        )
    return content


def _bytes(path: str) -> bytes:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"algorithms: '{path}' is not a file; allowed: a Python file, by a path from where the "
            "command is started"
        )
    return file.read_bytes()
