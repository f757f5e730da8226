"""What takes long to find out and never changes, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def remembered(kind: str, key: str, find: Callable[[], str]) -> str:
    """`find()`, or what it gave for the same key before, in this process or another.

    Without a home, or with one that cannot be written, it is found again each time.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(home).expanduser() / "vimpo" / kind
    except RuntimeError:
        return find()
    kept = folder / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError, ValueError):
        if known := kept.read_text(encoding="utf-8"):
            return known
    found = find()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f"{kept.name}.{os.getpid()}")
        aside.write_text(found, encoding="utf-8")
        aside.replace(kept)
    return found
