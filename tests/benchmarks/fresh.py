"""A measurement in a process of its own: its peak memory and its caches are then its alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def in_fresh_process(script: str, **order: object) -> Any:
    """What `script --case ORDER` prints as JSON in its last line. Raises SystemExit if it fails."""
    words = [sys.executable, script, "--case", json.dumps(order)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{order}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
