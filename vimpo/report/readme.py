"""The parts of README.md and docs/ that say what was found, made from published tables alone.

A section stands between two comments, and only what is between them is replaced:

    <!-- headline: made by `snakemake --cores 1 figures` -->
    ...
    <!-- end of headline -->

Its template is `report/readme_<section>.md.j2`, over the content of a report: for `headline` of the
study the README opens with, for `paper` of the one that has most of the paper's runs, and for
`studies` of each study in turn. `law` is over all studies together.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vimpo.config import load_study
from vimpo.report.law import FIGURE as LAW
from vimpo.report.law import law_content
from vimpo.report.page import report_content, template_environment
from vimpo.storage.files import write_atomic

PAGES = ("README.md", "docs/published-studies.md")
SECTIONS = ("headline", "paper", "law", "studies")
# The studies a README may open with, best first.
STUDIES = ("study", "yardstick", "first_study", "quick")
START, END = "<!-- {}: made by `snakemake --cores 1 figures` -->", "<!-- end of {} -->"
WIDTH = 100
KEPT: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def rewritten(pages: Mapping[Path, str], studies: Sequence[Path]) -> dict[Path, str]:
    """The pages (path -> text) with their sections made again; other text stays as it is.

    studies: folders of published studies. The page opens with the first of STUDIES among them;
    without one, nothing changes. Links are relative to the folder of the page.
    """
    known = [path for name in STUDIES for path in studies if path.name == name]
    marked = {
        page: [name for name in SECTIONS if START.format(name) in text]
        for page, text in pages.items()
    }
    if not known or not any(marked.values()):
        return dict(pages)
    environment, content = template_environment(), {path: _content(path) for path in studies}
    law = known[0].parent / LAW
    content[law] = law_content(law)
    speaking = {
        "headline": known[:1],
        "law": [law],
        "paper": [max(known, key=lambda path: _beside_paper(content[path]))],
        "studies": [*known, *(path for path in studies if path not in known)],
    }
    made = dict(pages)
    for page, names in marked.items():
        for name in names:
            template = environment.get_template(f"readme_{name}.md.j2")
            parts = [
                template.render(content[path] | {"folder": _link(path, page.parent)})
                for path in speaking[name]
            ]
            made[page] = _replaced(made[page], name, parts)
    return made


def _content(study: Path) -> dict:
    """What the report of a published study says."""
    config = study / "config.yaml"
    return report_content(load_study(config), study / "tables", config=config)


def _beside_paper(content: dict) -> int:
    """How many of the paper's results a study has its own for."""
    return sum(row[-1].known for row in content["paper"].rows)


def _link(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target, folder)).as_posix()


def _replaced(text: str, name: str, parts: Sequence[str]) -> str:
    start, end = START.format(name), END.format(name)
    section = "\n\n".join([start, *map(wrapped, parts), end])
    pattern = re.escape(start) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: section, text, flags=re.DOTALL)


def wrapped(text: str) -> str:
    """Paragraphs and list items at the page's width; tables and images need one line each."""
    lines = re.sub(r"\n{3,}", "\n\n", text).strip().splitlines()
    return "\n".join(line if line.startswith(("|", "![")) else _wrap(line) for line in lines)


def _wrap(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=indent, **KEPT))


def write_readme(studies: Sequence[Path], root: Path) -> list[Path]:
    """Write the sections of the pages in `root`; returns the pages that are there."""
    pages = {
        path: path.read_text(encoding="utf-8")
        for name in PAGES
        if (path := Path(root) / name).is_file()
    }
    for path, text in rewritten(pages, studies).items():
        if text != pages[path]:
            write_atomic(path, text)
    return list(pages)
