"""Sections of README.md that say what was found: made from a published study's tables alone.

A section stands between two comments, and only there is anything replaced:

    <!-- headline: made by `snakemake --cores 1 figures` -->
    ...
    <!-- end of headline -->

Its template is `report/readme_<section>.md.j2`, over the content of a report: that of the study
which the README opens with, or, for `others`, of each of the rest.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from vimpo.config import load_study
from vimpo.report.page import report_content, template_environment
from vimpo.storage.files import write_atomic

SECTIONS = ("headline", "paper", "others")
# The studies that a README may open with, the best first.
STUDIES = ("study", "quick")
START, END = "<!-- {}: made by `snakemake --cores 1 figures` -->", "<!-- end of {} -->"
WIDTH = 100
KEPT = {"break_long_words": False, "break_on_hyphens": False}


def rewritten(text: str, studies: Sequence[Path], root: Path) -> str:
    """The text of a README in `root` with its sections made anew; unchanged where there are none.

    studies: folders of published studies. Of those that a README opens with, the first that is
    there speaks; the section of the others has a part for each.
    """
    first = next((path for name in STUDIES for path in studies if path.name == name), None)
    if first is None or not any(START.format(name) in text for name in SECTIONS):
        return text
    environment, content = template_environment(), {p: _content(p, root) for p in studies}
    speakers = {"others": [path for path in studies if path != first]}
    for name in SECTIONS:
        template = environment.get_template(f"readme_{name}.md.j2")
        parts = [template.render(content[path]) for path in speakers.get(name, [first])]
        start, end = START.format(name), END.format(name)
        pattern = re.escape(start) + ".*?" + re.escape(end)
        section = "\n\n".join([start, *map(wrapped, parts), end])
        text = re.sub(pattern, lambda _, section=section: section, text, flags=re.DOTALL)
    return text


def _content(study: Path, root: Path) -> dict:
    """What the report of a published study says, and where it is from the README's place."""
    config = study / "config.yaml"
    content = report_content(load_study(config), study / "tables", config=config)
    return content | {"folder": Path(os.path.relpath(study, root)).as_posix()}


def wrapped(text: str) -> str:
    """Paragraphs at the README's width; tables and images need one line each."""
    lines = re.sub(r"\n{3,}", "\n\n", text).strip().splitlines()
    return "\n".join(
        line if line.startswith(("|", "![")) else "\n".join(textwrap.wrap(line, WIDTH, **KEPT))
        for line in lines
    )


def write_readme(studies: Sequence[Path], root: Path) -> Path | None:
    """Write the sections of the README in `root`, where there is one."""
    path = Path(root) / "README.md"
    if not path.is_file():
        return None
    text = path.read_text()
    if (made := rewritten(text, studies, root)) != text:
        write_atomic(path, made)
    return path
