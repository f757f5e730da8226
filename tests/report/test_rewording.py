"""Texts are for readers: with every one of them reworded, a report says the same of the same runs.

Each distinct text of the tables becomes a word that means nothing. Whatever is made from the tables
must then be what it was, but for these words: same sections, rows, verdicts and numbers.
"""

import html
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_results import small_study, write_figures, write_probes, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.config import Cell, load_study
from vimpo.probes import IS_THE_TRUTH, NO_ORACLE
from vimpo.report.findings import findings
from vimpo.report.page import write_report
from vimpo.report.parts import View
from vimpo.report.readme import END, SECTIONS, START, rewritten
from vimpo.storage.columns import COLUMNS, PUBLISHED_TABLES
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.tables import read_table, read_tables, write_tables

PUBLISHED = Path(__file__).parents[2] / "results/published"
README = "\n".join(START.format(s) + "\n" + END.format(s) for s in SECTIONS)
# Columns of words, and those of some tables alone: elsewhere a metric is a name.
TEXTS = {"statement", "reason", "method"}
ALSO = {
    "claims": {"metric"},
    "sweeps": {"metric", "settings"},
    "memory_projection": {"source"},
}
PRINTED = [name for name in dir(View) if isinstance(getattr(View, name), property)]


class Words:
    """text -> word. A word is as long as its text, because the layout may depend on that."""

    def __init__(self):
        self.known = {}

    def __call__(self, text):
        return self.known.setdefault(text, f"qx{len(self.known):04d}".ljust(len(text), "z"))

    def undo(self, made):
        """`made` with every text back in its place; one that opens a sentence is capitalised."""
        for text, word in self.known.items():
            made = made.replace(word, text)
            made = made.replace(word.capitalize(), text[0].upper() + text[1:])
        return made


def rewrite(source, target, words):
    """Write the tables of a study again in other words."""
    tables = dict.fromkeys(COLUMNS, ())
    for name, frame in read_tables(source, PUBLISHED_TABLES).items():
        for column in TEXTS.union(ALSO.get(name, ())).intersection(frame.columns):
            frame[column] = [words(text) if text else "" for text in frame[column]]
        tables[name] = frame.to_dict("records")
    write_tables(target, tables)
    seal(target / SUMS, [f"{name}.csv" for name in COLUMNS])


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """One seed at one size, a run and a cost missing, probes with reasons in place of numbers."""
    sweeps = [str(PUBLISHED / "sweeps/tuning.csv")]
    grid = [{"sizes": ["xs"], "seeds": [1]}, {"sizes": ["s"], "seeds": [1, 2]}]
    asked = {"id": "own", "question": "Is it a fair question?", "side": "above", "threshold": 0.1}
    asked |= {"measure": "area", "contrast": {"algorithm": "vimpo", "minus": "ppo"}}
    known = {"contrast": {"algorithm": "vimpo"}, "id": "other", "by_size": True}
    more = {"grid": grid, "sweeps": sweeps, "hypotheses": [asked, asked | known]}
    study = small_study(tmp_path_factory.mktemp("fake"), **more)
    write_results(study)
    reasons = {(name, "auc"): NO_ORACLE for name in ("implied_td", "position")}
    reasons |= {("float32", "rms_drift"): IS_THE_TRUTH}
    for cell in study.cells():
        write_probes(study, cell, np.random.default_rng(cell.seed), reasons)
    shutil.rmtree(study.run_folder(Cell("grpo", "s", "0.25", 2)))
    study.cost_file("s").unlink()
    aggregate(study, study.folder / "tables")
    return study.folder


@pytest.fixture(scope="module", params=["fake", "quick"])
def pair(request, tmp_path_factory):
    """The folder of a study, the same in other words, and the words."""
    name, root, words = request.param, tmp_path_factory.mktemp("pair"), Words()
    source = request.getfixturevalue("fake") if name == "fake" else PUBLISHED / name
    folders = [root / "old/quick", root / "new/quick"]
    for folder, change in zip(folders, (str, words), strict=True):
        rewrite(source / "tables", folder / "tables", change)
        write_figures(folder / "figures")
        shutil.copy(source / "config.yaml", folder)
    assert len(words.known) > 50
    return *folders, words


def test_findings_keep_parts_verdicts_and_numbers(pair):
    *folders, words = pair
    said = (findings(read_table(folder / "tables", "claims")) for folder in folders)
    for old, new in zip(*said, strict=True):
        for name in ("name", "claim", "verdicts", "settling"):
            assert words.undo(str(new[name])) == str(old[name])
        for kind in ("parts", "facts"):
            for a, b in zip(old[kind], new[kind], strict=True):
                assert a.metric not in str(b)
                for name in (*View.__dataclass_fields__, *PRINTED):
                    before, after = getattr(a, name), getattr(b, name)
                    assert words.undo(str(after)) == str(before), (a.part, name)


def test_the_report_keeps_sections_rows_and_numbers(pair):
    old, new, words = pair
    for folder in (old, new):
        config = folder / "config.yaml"
        paths = (folder / "tables", folder / "figures", folder / "report.html")
        write_report(load_study(config), *paths, config=config)
    for name in ("report.md", "report.html"):
        texts = (html.unescape((folder / name).read_text()) for folder in (old, new))
        before, after = (re.sub("[0-9a-f]{64}", "", text) for text in texts)  # checksums of tables
        assert after != before
        assert words.undo(after).splitlines() == before.splitlines(), name


def test_the_readme_keeps_sections_rows_and_numbers(pair):
    old, new, words = pair
    made = [
        rewritten({folder.parent / "README.md": README}, [folder])[folder.parent / "README.md"]
        for folder in (old, new)
    ]
    before, after = (" ".join(text.split()) for text in (made[0], words.undo(made[1])))
    assert made[0] != made[1]
    assert after == before
