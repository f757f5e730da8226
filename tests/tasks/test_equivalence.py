"""Whether two answers are the same: a table of cases, the shared cases, and golds as answers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vimpo.tasks.equality import is_equivalent

with (Path(__file__).parent / "equivalence.tsv").open(encoding="utf-8") as table:
    CASES = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_right_answers_are_accepted_and_wrong_ones_refused(kind):
    cases = [case for case in CASES if case["kind"] == kind]
    misjudged = [
        (case["gold"], case["answer"], case["right"])
        for case in cases
        if is_equivalent(case["gold"], case["answer"]) != (case["right"] == "yes")
    ]
    assert not misjudged
