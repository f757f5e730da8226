"""Whether two answers are the same: a table of cases, the shared cases, and golds as answers."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from real_data import FILES, real_file

from vimpo.config.task import VerifierLimits
from vimpo.tasks.equality import is_equivalent, is_readable
from vimpo.tasks.verifier import Verifier

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


@pytest.mark.slow
def test_shared_cases_are_judged_as_labelled():
    """The hostile cases: few wrong answers accepted, few right ones refused."""
    rows = [json.loads(line) for line in real_file("verifier_triples.jsonl").open(encoding="utf-8")]
    verifier = Verifier(VerifierLimits(workers=2))
    golds, texts = ([row[key] for row in rows] for key in ("gold", "response"))
    marks = verifier.grade(golds, texts, boxed_only=False)
    verifier.close()
    pairs = [(row["expected"], mark) for row, mark in zip(rows, marks, strict=True)]
    counts = Counter(pairs)
    assert counts[False, True] <= 0.02 * (counts[False, True] + counts[False, False])
    assert counts[True, False] <= 0.05 * (counts[True, True] + counts[True, False])


GOLDS = {
    "math500": "answer",
    "aime24": "Answer",
    "aime25": "answer",
    "amc23": "answer",
    "olympiadbench": "final_answer",
}


@pytest.mark.parametrize("benchmark", GOLDS)
def test_every_gold_of_a_benchmark_accepts_itself_and_not_its_neighbour(benchmark):
    rows = [json.loads(line) for line in real_file(FILES[benchmark]).open(encoding="utf-8")]
    found = [row[GOLDS[benchmark]] for row in rows]
    golds = [str(gold[0] if isinstance(gold, list) else gold) for gold in found]
    assert [gold for gold in golds if not is_equivalent(gold, gold)] == []
    # three golds of OlympiadBench are prose or fragments
    assert sum(not is_readable(gold) for gold in golds) <= (
        3 if benchmark == "olympiadbench" else 0
    )
    integers = [gold for gold in golds if gold.isdigit()]
    assert not any(is_equivalent(gold, f"{gold}1") for gold in integers)
