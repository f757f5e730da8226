r"""Precision, recall and speed of the answer verifier on labelled completions.

    python tests/benchmarks/verifier.py --output tests/benchmarks/results/verifier.json

Reads ../shared/data/verifier_cases.jsonl (see the README beside it), prints one table with and one
without the rows whose label is disputed, lists every disagreement, and measures answers per
second: cold, from the cache, and for the answers that need no worker.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vimpo.config.task import VerifierLimits  # noqa: E402
from vimpo.tasks.answers import answers  # noqa: E402
from vimpo.tasks.verifier import Verifier, obvious  # noqa: E402
from vimpo.training.telemetry import versions  # noqa: E402

CASES = ROOT.parent / "shared" / "data" / "verifier_cases.jsonl"
# Math-Verify 0.9.0 alone (gold in $...$, default parse), disputed rows included.
REFERENCE = {
    "processbench_math": 655,
    "processbench_olympiadbench": 635,
    "processbench_gsm8k": 261,
    "openai_gsm8k_samples": 77,
    "hardverify_math": 270,
}
HEADER = ["source", "rows", "agree", "plain", "tp", "fp", "fn", "tn", "precision", "recall"]


def counts(rows: list[dict], marks: list[bool]) -> dict:
    """Confusion counts, precision and recall of the marks against the labels."""
    pairs = [(mark, row["is_correct"]) for row, mark in zip(rows, marks, strict=True)]
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    fn, tn = pairs.count((False, True)), pairs.count((False, False))
    precision = tp / (tp + fp) if tp + fp else None
    recall = tp / (tp + fn) if tp + fn else None
    return {
        "rows": len(rows), "agree": tp + tn, "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "precision": precision, "recall": recall,
    }  # fmt: skip


def by_source(rows: list[dict], marks: list[bool]) -> dict[str, dict]:
    table = {}
    for source in [*dict.fromkeys(row["source"] for row in rows), "all"]:
        chosen = [i for i, row in enumerate(rows) if source in (row["source"], "all")]
        table[source] = counts([rows[i] for i in chosen], [marks[i] for i in chosen])
    return table


def print_table(title: str, table: dict[str, dict], reference: dict[str, int]) -> None:
    print(f"\n{title}\n" + f"{HEADER[0]:28}" + "".join(f"{h:>10}" for h in HEADER[1:]))
    for source, row in table.items():
        cells = [row["rows"], row["agree"], reference.get(source, "")]
        cells += [row[key] for key in ("tp", "fp", "fn", "tn")]
        cells += [f"{row[key]:.4f}" for key in ("precision", "recall")]
        print(f"{source:28}" + "".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--output", type=Path, help="JSON with all counts and disagreements")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.cases.open(encoding="utf-8")]
    texts = [row["completion"] or f"\\boxed{{{row['model_answer']}}}" for row in rows]
    golds = [row["gold"] for row in rows]

    verifier = Verifier(VerifierLimits(workers=options.workers))
    verifier.equivalent([("12", "5+7"), ("12", "6+6")] * options.workers)  # workers are up
    start, cpu = time.perf_counter(), _cpu_seconds(verifier)
    marks = verifier.grade(golds, texts, boxed_only=False)
    cold, work = time.perf_counter() - start, _cpu_seconds(verifier) - cpu
    start = time.perf_counter()
    assert verifier.grade(golds, texts, boxed_only=False) == marks
    cached = time.perf_counter() - start
    easy = sum(
        any(obvious(gold, answer) is not None for answer in answers(text, False)[:1])
        for gold, text in zip(golds, texts, strict=True)
    )

    whole = by_source(rows, marks)
    sound = [i for i, row in enumerate(rows) if not row["disputed"]]
    clean = by_source([rows[i] for i in sound], [marks[i] for i in sound])
    print_table("all rows", whole, REFERENCE | {"all": sum(REFERENCE.values())})
    print_table("without disputed rows", clean, {})
    wrong = [
        {"id": row["id"], "verdict": mark, "label": row["is_correct"], "gold": row["gold"],
         "answers": answers(text, False), "disputed": row["disputed"]}
        for row, mark, text in zip(rows, marks, texts, strict=True) if mark != row["is_correct"]
    ]  # fmt: skip
    print(f"\n{len(wrong)} disagreements")
    for case in wrong:
        kind = "false +" if case["verdict"] else "false -"
        flag = "disputed" if case["disputed"] else ""
        print(f"{kind} {flag:8} {case['id']:32} {case['gold'][:60]!r} | {case['answers']!r:.100}")
    speed = {
        "workers": options.workers,
        "cores": os.cpu_count(),
        "answers": len(rows),
        "without_worker": easy,
        "seconds": round(cold, 2),
        "worker_cpu_seconds": round(work, 2),
        "answers_per_second": round(len(rows) / cold, 1),
        "answers_per_cpu_second": round(len(rows) / work, 1) if work else None,
        "cached_answers_per_second": round(len(rows) / cached),
        "restarts": verifier.pool.restarts,
    }
    print("\n" + "  ".join(f"{key} {value}" for key, value in speed.items()))
    verifier.close()
    if options.output:
        report = {"all": whole, "without_disputed": clean, "math_verify_alone": REFERENCE}
        used = versions() | {"math-verify": version("math-verify")}
        report |= {"versions": used, "speed": speed, "disagreements": wrong}
        options.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _cpu_seconds(verifier: Verifier) -> float:
    """CPU time of the pool's workers so far, which does not depend on how busy the machine is."""
    import psutil

    times = [psutil.Process(w.process.pid).cpu_times() for w in verifier.pool._workers]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
