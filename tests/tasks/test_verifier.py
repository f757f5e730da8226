r"""The answer verifier: equivalence, limits, and its score on labelled completions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_data import real_file

from vimpo.config.task import VerifierLimits
from vimpo.tasks import pool as pool_module
from vimpo.tasks import verifier as module
from vimpo.tasks.equality import is_equivalent, is_evaluated, is_readable
from vimpo.tasks.pool import GuardedPool
from vimpo.tasks.verifier import Verifier, obvious

LIMITS = VerifierLimits(workers=2, seconds=0.6, memory_mb=512)


@pytest.fixture(scope="module")
def verifier():
    made = Verifier(LIMITS)
    yield made
    made.close()


# --- Equivalence ---------------------------------------------------------------------------------

SAME = [
    (r"\frac{1}{2}", "0.5"),
    ("25", "025"),
    (r"3,\!110,\!400", "3110400"),
    ("17.5%", r"17.5 \%"),
    ("62.5%", "0.625"),
    (r"12\sqrt{35}", r"2\sqrt{1260}"),
    ("$f(z)=z$", "f(x) = x"),
    ("$[\\frac{1}{2}, 8]$", r"\frac{1}{2} \leq x \leq 8"),
    (r"(-\infty,-5)", "k < -5"),
    (r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}", "(-7,16,5)"),
    (r"\frac{\pi}{6}", r"30^\circ"),
    (r"\{x \mid -2<x<3\}", "(-2, 3)"),
    (r"4 < m \leq 8 \text{ or } 10 \leq m < 12", r"(4, 8] \cup [10, 12)"),
    ("$m_{\\max }=n^{2}-n-1$", "n^2 - n - 1"),
    ("16,3,1,1", "w=16, d=3, a=1, b=1"),
    ("21.93", r"21 \dfrac{13}{14}"),
    ("41.4\\%", r"\sqrt{2} - 1"),
    ("15th Day", "15"),
    ("7,4", r"7 \text{ stuffed goats and } 4 \text{ toy helicopters}"),
    ("line segment, circle", r"\text{line segment and circle}"),
    ("5", "5 \\text{ cm}"),
    ("x = 5", "5"),
    ("1 - x", "-x + 1"),
]
DIFFERENT = [
    ("25", "26"),
    ("25", "2.5"),
    (r"\frac{1}{2}", "0.51"),
    ("0.5", r"\frac{4}{9}"),  # a gold of one decimal place is exact
    ("21.93", r"21 \dfrac{12}{14}"),
    ("$f(z)=z$", "f(x) = 2x"),
    ("$f(x)=ax$", "f(a) = a^2"),  # renaming would capture
    ("[0, 1]", "(0, 1)"),
    (r"(-\infty,-5)", r"k \leq -5"),
    ("1,2", "1"),
    ("1,2", "1,3"),
    (r"\frac{\pi}{6}", r"60^\circ"),
    ("n^2 + 1", "n + 1"),
    ("x = 5", "y = 6"),
    ("5", ""),
    ("", "5"),
    ("even", "odd"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_equal_answers_are_right(gold, answer):
    assert is_equivalent(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_unequal_answers_are_wrong(gold, answer):
    assert not is_equivalent(gold, answer)


def test_gold_answers_that_cannot_be_judged_are_known():
    for gold in ("5", r"\frac{1}{2}", "17.5%", "(0,1]", "A", r"\text{even}", "x=3", "2, 3"):
        assert is_readable(gold), gold
    for gold in ("", "   ", "\\", "The triangle can be cut along the midline.", "\\frac{1}{"):
        assert not is_readable(gold), gold


def test_numbers_that_are_worked_out():
    for answer in (
        "7",
        "−4",
        "3/4",
        r"\frac{1}{2}",
        "1,000",
        r"7\text{ cm}",
        "50%",
        "x=7",
        "1 3/4",
    ):
        assert is_evaluated(answer), answer
    for answer in (
        "4+3",
        "14/2",
        "6/8",
        "10^2",
        r"2 \times 3",
        r"\sqrt{4}",
        "(4)+(3)",
        "4!",
        "",
        "x",
    ):
        assert not is_evaluated(answer), answer
    assert is_evaluated("4 + 3 = 7")
    assert not is_evaluated("4 + 3 =")


@pytest.mark.parametrize("boxed_only", [True, False])
def test_an_echo_of_the_problem_is_wrong_where_answers_must_be_worked_out(verifier, boxed_only):
    def right(gold, text, **how):
        return verifier.grade([gold], [text], boxed_only=boxed_only, **how) == [True]

    echoes = [("7", "4 + 3"), ("3", "0 + 3"), ("7", "14/2"), ("-4", "0 - 4"), ("6", "2 * 3")]
    for gold, echo in echoes:
        for text in (f"\\boxed{{{echo}}}", f"The answer is {echo}.", echo, f"{echo} ="):
            assert not right(gold, text, evaluated_only=True), text
    assert right("7", r"\boxed{4 + 3}")
    for text in (r"\boxed{7}", r"4 + 3 = \boxed{7.0}", r"\boxed{x = 7}"):
        assert right("7", text, evaluated_only=True)
    if not boxed_only:
        assert right("7", "The answer is 4 + 3 = 7.", evaluated_only=True)
        assert right("-4", "So 3 − 7 = −4", evaluated_only=True)


def test_a_minus_sign_of_typography_is_read(verifier):
    for text in ("The answer is −4.", "so we get −4", "3 − 7 = −4"):
        assert verifier.grade(["-4", "4"], [text, text], boxed_only=False) == [True, False]


def test_nothing_is_evaluated(tmp_path):
    """Neither our sources nor the text of an answer reaches `eval`."""
    folder = Path(module.__file__).parent
    names = ("answers", "pool", "verifier", "verifier_worker")
    for file in (*(folder / f"{name}.py" for name in names), *(folder / "equality").glob("*.py")):
        text = file.read_text()
        assert "eval(" not in text
        assert "exec(" not in text
        assert "ExprExtraction" not in text
    witness = tmp_path / "witness"
    script = f"""
import builtins
from vimpo.tasks import equality
def refuse(*args, **kwargs):
    raise SystemExit("eval was called")
equality.is_equivalent("1", "2")
builtins.eval = refuse
assert equality.is_equivalent("3.5", "7/2")
for answer in ("1+1", "2**8", "(3)", "__import__('os')", "open({str(witness)!r}, 'w')", "1/3"):
    equality.is_equivalent("17/3", answer)
print("none")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "none", done.stderr
    assert not witness.exists()


# --- Guarded processes ---------------------------------------------------------------------------

NESTED = "9" + "^{9" * 40 + "}" * 40
HOSTILE = {
    "nested powers": NESTED,
    "power tower": "9^{9^{9^{9}}}",
    "factorials": "((((9!)!)!)!)!",
    "million digits": "7" * 1_000_000,
    "a thousand digits": "7" * 900 + "^{" + "7" * 50 + "}",
    "deep braces": "{" * 400 + "1" + "}" * 400,
    "deep fractions": r"\frac{1}{" * 60 + "2" + "}" * 60,
    "deep roots": r"\sqrt{" * 120 + "2" + "}" * 120,
    "unclosed": r"\frac{1}{" * 90,
    "code": "__import__('os').system('touch /tmp/vimpo_hostile')",
    "lambda": "(lambda: exit())()",
    "null bytes": "\x00" * 500 + "1",
    "control characters": "".join(map(chr, range(32))) * 20,
    "lone surrogate": "\ud800",
    "a megabyte": "x+" * 500_000,
    "large integral": r"\int_0^{10^9} \sum_{k=1}^{10^9} \sin(k^{x!}) dx",
    "large sum": r"\sum_{k=1}^{99999999} k!",
    "large product": r"\prod_{n=1}^{1000000000} (x-n)^{n}",
    "large matrix": r"\begin{pmatrix}" + "1&" * 300 + r"1\end{pmatrix}^{9999}",
    "infinite": r"\frac{\infty}{\infty}",
}


# Each of these costs a worker, whose successor takes a second to start.
COSTLY = ("power tower", "factorials", "a thousand digits", "deep braces", "large sum")
COSTLY += ("large product", "large matrix")


@pytest.mark.parametrize(
    "names",
    [[n for n in HOSTILE if n not in COSTLY], pytest.param(COSTLY, marks=pytest.mark.slow)],
    ids=["most", "costly"],
)
def test_hostile_answers_end_within_the_limit_as_wrong_and_the_pool_survives(verifier, names):
    assert verifier.grade(["12"], ["\\boxed{6+6}"]) == [True]  # workers are up
    start = time.perf_counter()
    responses = [f"so \\boxed{{{HOSTILE[name]}}}" for name in names]
    marks = dict(zip(names, verifier.grade(["12"] * len(names), responses), strict=True))
    seconds = time.perf_counter() - start
    assert not any(marks.values()), marks
    # Each may use its limit and a new worker, two at a time; the machine may be busy.
    assert seconds < len(names) / 2 * (pool_module.WALL_FACTOR * LIMITS.seconds + 5)
    assert verifier.grade(["12", "12"], ["\\boxed{6+6}", "\\boxed{13}"]) == [True, False]
    assert not Path("/tmp/vimpo_hostile").exists()


def test_one_hostile_answer_costs_its_neighbours_nothing(verifier):
    before = verifier.pool.restarts
    pairs = [("12", "4+8"), ("12", "9^{9^{9^{9}}}+1"), ("12", "3 \\cdot 4"), ("12", "3 \\cdot 5")]
    assert verifier.equivalent(pairs) == [True, False, True, False]
    assert verifier.pool.restarts > before
    assert len(verifier.pool._workers) <= LIMITS.workers


def test_a_worker_that_died_while_idle_is_replaced(verifier):
    verifier.equivalent([("12", "5+7")])
    for worker in verifier.pool._workers:
        worker.process.kill()
        worker.process.wait()
    assert verifier.equivalent([("12", "2 \\cdot 6"), ("12", "2 \\cdot 7")]) == [True, False]


def scorer(folder, body):
    """A file with a scoring function in lm-eval's format."""
    file = folder / "utils.py"
    file.write_text(f"import time\ndef process_results(doc, results):\n    {body}\n")
    return str(file)


@pytest.mark.parametrize(("megabytes", "verdict"), [(128, False), (2048, True)])
def test_memory_is_limited(tmp_path, megabytes, verdict):
    pool = GuardedPool(VerifierLimits(workers=1, seconds=20, memory_mb=megabytes))
    file = scorer(tmp_path, "return {'m': len(bytearray(2**29)) > 0}")
    try:
        assert pool.run([("stock_score", file, "m", {}, "")]) == [verdict]
        assert pool.run([("is_equivalent", "12", "5+7")]) == [True]
    finally:
        pool.close()


def test_a_stuck_worker_is_ended_by_the_clock(tmp_path):
    pool = GuardedPool(VerifierLimits(workers=1, seconds=0.5))
    file = scorer(tmp_path, "time.sleep(600)")
    start = time.perf_counter()
    try:
        assert pool.run([("stock_score", file, "m", {}, "")]) == [False]
    finally:
        pool.close()
    assert time.perf_counter() - start < 60
    assert pool.restarts == 1


def test_workers_that_cannot_start_are_one_clear_error(monkeypatch):
    monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="workers do not start"):
        GuardedPool(LIMITS).run([("is_equivalent", "1", "2")])


def test_workers_end_with_the_pool():
    pool = GuardedPool(LIMITS)
    assert pool.run([("is_equivalent", "12", "5+7")]) == [True]
    processes = [worker.process for worker in pool._workers]
    pool.close()
    assert processes
    assert all(process.poll() is not None for process in processes)


# --- Verdicts ------------------------------------------------------------------------------------


def test_plain_verdicts_need_no_worker(monkeypatch):
    monkeypatch.setattr(GuardedPool, "run", lambda self, jobs: pytest.fail("asked") if jobs else [])
    pairs = [("25", "025"), ("25", "26"), ("x^2", "x^2"), ("3", "4" * 5000), ("5", " ")]
    assert Verifier(LIMITS).equivalent(pairs) == [True, False, True, False, False]
    assert obvious("25", "25.0") is None


def test_verdicts_are_cached_by_gold_and_answer(verifier, monkeypatch):
    asked = []
    original = GuardedPool.run
    monkeypatch.setattr(
        GuardedPool, "run", lambda self, jobs: asked.extend(jobs) or original(self, jobs)
    )
    pairs = [("1/7", "\\frac{1}{7}"), ("1/7", "\\frac{2}{14}"), ("1/7", "\\frac{1}{7}")]
    first = verifier.equivalent(pairs)
    assert first == [True, True, True]
    assert len(asked) == 2
    assert verifier.equivalent(pairs) == first
    assert len(asked) == 2
    monkeypatch.setattr(module, "CACHED_VERDICTS", 3)
    verifier.equivalent([(str(n), f"{n}+1") for n in range(10, 15)])
    verifier.equivalent([("1", "2+2")])
    assert len(verifier._verdicts) <= 3


# --- Labelled completions ------------------------------------------------------------------------


def labelled(source, count=None):
    rows = [json.loads(line) for line in real_file("verifier_cases.jsonl").open()]
    rows = [r for r in rows if r["source"] == source and not r["disputed"]]
    return rows[:count]


def agreement(verifier, rows):
    texts = [r["completion"] or f"\\boxed{{{r['model_answer']}}}" for r in rows]
    marks = verifier.grade([r["gold"] for r in rows], texts, boxed_only=False)
    right = sum(mark == r["is_correct"] for mark, r in zip(marks, rows, strict=True))
    false_positives = sum(m and not r["is_correct"] for m, r in zip(marks, rows, strict=True))
    return right / len(rows), false_positives


@pytest.mark.parametrize(
    ("source", "least"), [("openai_gsm8k_samples", 1.0), ("processbench_gsm8k", 0.98)]
)
def test_it_agrees_with_labels_that_no_verifier_made(verifier, source, least):
    share, false_positives = agreement(verifier, labelled(source))
    assert share >= least
    assert false_positives == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "least", "most_false"),
    [
        ("processbench_math", 0.985, 2),
        ("processbench_olympiadbench", 0.975, 2),
        ("hardverify_math", 0.85, 1),
    ],
)
def test_it_agrees_with_the_harder_labels(source, least, most_false):
    judge = Verifier(VerifierLimits(seconds=5))
    share, false_positives = agreement(judge, labelled(source))
    judge.close()
    assert share >= least
    assert false_positives <= most_false
