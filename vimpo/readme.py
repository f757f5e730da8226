"""Sections of README.md that say what was found: made from a published study's tables alone.

A section stands between two comments, and only there is anything replaced:

    <!-- headline: made by `snakemake --cores 1 figures` -->
    ...
    <!-- end of headline -->

Its template is `report/readme_<section>.md.j2`, over the content of the report.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

from vimpo.config import load_study
from vimpo.records import write_atomic
from vimpo.report import report_content, template_environment

SECTIONS = ("headline", "paper")
# The studies that a README may open with, the best first.
STUDIES = ("study", "quick")
START, END = "<!-- {}: made by `snakemake --cores 1 figures` -->", "<!-- end of {} -->"
WIDTH = 100
KEPT = {"break_long_words": False, "break_on_hyphens": False}


def rewritten(text: str, published: Path, root: Path) -> str:
    """The text of a README in `root` with its sections made anew; unchanged where there are none.

    published: the folder of published studies. Of those that a README opens with, the first that is
    there speaks.
    """
    studies = [Path(published) / name for name in STUDIES]
    study = next((path for path in studies if (path / "config.yaml").is_file()), None)
    if study is None or not any(START.format(name) in text for name in SECTIONS):
        return text
    config, environment = study / "config.yaml", template_environment()
    folder = Path(os.path.relpath(study, root)).as_posix()
    content = report_content(load_study(config), study / "tables", config=config)
    for name in SECTIONS:
        template = environment.get_template(f"readme_{name}.md.j2")
        made = wrapped(template.render(content | {"folder": folder}))
        start, end = START.format(name), END.format(name)
        pattern = re.escape(start) + ".*?" + re.escape(end)
        section = f"{start}\n\n{made}\n\n{end}"
        text = re.sub(pattern, lambda _, section=section: section, text, flags=re.DOTALL)
    return text


def wrapped(text: str) -> str:
    """Paragraphs at the README's width; tables and images need one line each."""
    lines = re.sub(r"\n{3,}", "\n\n", text).strip().splitlines()
    return "\n".join(
        line if line.startswith(("|", "![")) else "\n".join(textwrap.wrap(line, WIDTH, **KEPT))
        for line in lines
    )


def write_readme(published: Path, root: Path) -> Path | None:
    """Write the sections of the README in `root`, where there is one."""
    path = Path(root) / "README.md"
    if not path.is_file():
        return None
    text = path.read_text()
    if (made := rewritten(text, published, root)) != text:
        write_atomic(path, made)
    return path
