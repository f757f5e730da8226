"""What a cell of a dataset says as text, and which cells are no gold answer."""

from __future__ import annotations

import datetime
import gzip
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_data import byte_model, byte_tokenizer

from vimpo.config import ConfigError, DatasetTask, load_study
from vimpo.evaluation.benchmarks import benchmark_task
from vimpo.models.networks import load_tokenizer
from vimpo.tasks import make_task
from vimpo.tasks.golds import accepted, as_text, fault_of
from vimpo.tasks.sources import check_sources, read_rows

GOOD = [{"problem": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 4)]


def jsonl(folder, rows, name="problems.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def task_of(path, **fields):
    limits = {"workers": 1, "seconds": 5}
    return DatasetTask.model_validate(
        {"kind": "dataset", "datasets": [{"path": str(path)}], "verifier": limits} | fields
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00001, "0.00001"),
        (1e22, "10000000000000000000000"),
        (27.0, "27"),
        (-0.0, "0"),
        (-2.5, "-2.5"),
        (Decimal("1.50"), "1.50"),
        (3, "3"),
        ([1.0, "x", 2e-7], "1, x, 0.0000002"),
        (None, ""),
    ],
)
def test_cells_become_the_text_that_a_reader_would_write(value, text):
    assert as_text(value) == text


NO_GOLDS = [
    *(None, True, False, math.nan, math.inf, {"a": 1}, b"5", [], [1, None]),
    *(datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2), datetime.timedelta(1)),
    *("", " NaN", "null", "None", "N/A", "<NA>", "2024-01-02", "2024-01-02T10:00:00Z"),
    *("{'answer': 4}", '["4"]', "b'4'"),
]
GOLDS = ["0", "5-2", "2024-1", r"\text{None of these}", "b'(x)", "[1, 2]", "n", r"\{1, 2\}", "Yes"]


@pytest.mark.parametrize("value", NO_GOLDS, ids=repr)
def test_values_that_are_no_answer_are_told(value):
    assert fault_of(value)


@pytest.mark.parametrize("value", [*GOLDS, 0, -1, 2.5, [1, 2]], ids=repr)
def test_values_that_may_be_an_answer_pass(value):
    assert fault_of(value) is None


def test_a_row_without_a_gold_is_refused_or_dropped_with_a_count(tmp_path):
    bad = [None, math.nan, True, {"a": 1}, "null", "2024-01-02"]
    bad += ["x}"]  # its own box does not hold it
    rows = [{"problem": f"Bad {i}?", "answer": value} for i, value in enumerate(bad)]
    rows = [{"problem": "Small?", "answer": 0.00001}, *GOOD, *rows]
    path = jsonl(tmp_path, rows)
    with pytest.raises(ConfigError, match=r"6 gold answers cannot .* row 5 of .* is null; allowed"):
        make_task(task_of(path), byte_tokenizer())
    task = make_task(task_of(path, unreadable_answers="drop"), byte_tokenizer())
    assert task.counts["problems"] + task.counts["unreadable"] == len(rows)
    assert {p.answer for p in task.problems.values()} >= {"2", "4", "6", "0.00001"}
    (small,) = (p for p in task.problems.values() if p.answer == "0.00001")
    told = [rf"\boxed{{{text}}}" for text in ("0.00001", "e-5", "0.0001")]
    assert task.rewards([small] * 3, told) == [1, 0, 0]
    nothing = jsonl(tmp_path, rows[4:6], "nothing.jsonl")
    with pytest.raises(ConfigError, match="0 problems remain of 2 rows"):
        make_task(task_of(nothing, unreadable_answers="drop"), byte_tokenizer())


def test_a_number_whose_exponent_is_read_as_a_subtraction_is_not_accepted():
    class ReadsLatex:
        def grade(self, golds, responses):
            return [True] * len(golds)

        def equivalent(self, pairs):
            return [one == other for one, other in pairs]

    assert accepted(["1e-10", "e-10", "5"], ReadsLatex()) == [False, True, True]


def test_a_problem_with_two_answers_is_reported(tmp_path, capsys):
    again = [GOOD[0], GOOD[1] | {"answer": "8/2"}, GOOD[2] | {"answer": "7"}]
    task = make_task(task_of(jsonl(tmp_path, [*GOOD, *again])), byte_tokenizer())
    assert (task.counts["repeated"], task.counts["conflicting"]) == (3, 1)
    assert "1 problems have different answers, such as '6' in row 3 of" in capsys.readouterr().err
    assert {p.answer for p in task.problems.values()} == {"2", "4", "6"}


def test_narrow_floats_of_parquet_are_read_as_they_were_meant(tmp_path):
    path = tmp_path / "narrow.parquet"
    columns = {"problem": ["a", "b"], "answer": pa.array([0.1, None], pa.float32())}
    pq.write_table(pa.table(columns), path)
    assert [row["answer"] for row in read_rows(str(path), "path")] == [0.1, None]


# --- Files ---------------------------------------------------------------------------------------

LINE = '{"problem": "é?", "answer": "1"}\n'
BAD_FILES = {
    "Latin-1": (LINE.encode("latin-1"), "is not UTF-8 text"),
    "UTF-16": (LINE.encode("utf-16"), "is not UTF-8 text"),
    "UTF-16 without a mark": (LINE.encode("utf-16-le"), "is not UTF-8 text|is not JSON"),
    "gzip": (gzip.compress(LINE.encode()), "is not UTF-8 text .* not compressed"),
    "a lone surrogate": (b'{"problem": "\\ud83d", "answer": "1"}', "line 1 .*is not JSON .*surrog"),
    "nesting": (b'{"problem": ' + b"[" * 100_000, "line 1 of .* is not JSON"),
    "a key twice": (b'{"answer": "1", "problem": "a", "answer": "2"}', "'answer' is repeated"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_json_lines_is_one_error(kind, tmp_path):
    content, message = BAD_FILES[kind]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    for use in (check_sources, lambda task: make_task(task, byte_tokenizer())):
        with pytest.raises(ConfigError, match=rf"task\.datasets\[0\]\.path: .*({message})"):
            use(task_of(path))


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINE.encode())
    assert read_rows(str(path), "path") == [{"problem": "é?", "answer": "1"}]


@pytest.mark.parametrize("value", [None, True, math.nan, {"a": 1}], ids=repr)
def test_a_problem_without_text_is_refused(value, tmp_path):
    path = jsonl(tmp_path, [{"problem": value, "answer": "1"}])
    with pytest.raises(ConfigError, match=r"problem: column 'problem' .*row 1 .*allowed"):
        make_task(task_of(path), byte_tokenizer())


def test_a_chat_template_that_fails_is_one_error(tmp_path):
    tokenizer = load_tokenizer(byte_model(tmp_path / "model", chat=True))
    task = task_of(jsonl(tmp_path, GOOD), chat_template=True, system="Be brief.")
    for template, reason in (
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[7]['content'] }}", "undefined|no element"),
        ("{% for %}", "Expected|unexpected"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(ConfigError, match=rf"task\.chat_template: .*({reason}).*allowed"):
            make_task(task, tokenizer)


# --- Benchmarks ----------------------------------------------------------------------------------


def benchmark(folder, rows, **fields):
    real = {"task": "aime25", "path": jsonl(folder, rows, "benchmark.jsonl")} | fields
    task = {"benchmarks": {"real": real}}
    sizes = {"q": {"path": "some/model"}}
    return benchmark_task(
        load_study({"task": task, "sizes": sizes, "grid": {"sizes": ["q"]}}), "real"
    )


@pytest.mark.parametrize("style", ["boxed", "stock"])
def test_numbers_and_texts_may_mix_in_a_benchmark(style, tmp_path):
    rows = [{"problem": 17, "answer": 3}, {"problem": "2+1?", "answer": "3"}]
    task = benchmark(tmp_path, [*rows, {"problem": "Half?", "answer": 0.5}], style=style)
    assert [task.gold(row) for row in task.rows()] == ["3", "3", "0.5"]
    first, *_ = prompts = task.prompts()
    assert len(prompts) == 3
    assert "17" in first


@pytest.mark.parametrize("answer", [None, math.nan, True, {"a": 1}, "None", "1}"], ids=repr)
def test_a_benchmark_without_a_gold_is_refused(answer, tmp_path):
    rows = [{"problem": "1+1?", "answer": 2}, {"problem": "2+2?", "answer": answer}]
    with pytest.raises(ConfigError, match=r"task\.benchmarks\.real: the gold .* of row 2 .*allow"):
        benchmark(tmp_path, rows).rows()
    with pytest.raises(ConfigError, match=r"real: column 'problem' holds no text in row 1"):
        benchmark(tmp_path, [{"problem": None, "answer": 2}]).rows()
