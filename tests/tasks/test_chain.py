"""The chain task: its oracle on hand-written responses, its split, its demonstrations."""

from __future__ import annotations

import itertools
import random

import pytest

from vimpo.config import ChainTask
from vimpo.tasks.chain import (
    ALPHABET,
    Fork,
    Problem,
    demonstration,
    draw_problem,
    final_answer,
    forgets_carry,
    fork,
    grade_steps,
    held_out_problems,
    is_held_out,
    is_right,
    training_problems,
)

SUM = Problem("7+5-3=", "9")  # 7+5=12;12-3=9#9
NEGATIVE = Problem("3-9+4=", "-2")  # 3-9=-6;-6+4=-2#-2
PRODUCT = Problem("2+3*4=", "20")  # from left to right: 2+3=5;5*4=20#20


@pytest.mark.parametrize(
    ("problem", "response", "grades", "right"),
    [
        pytest.param(SUM, "7+5=12;12-3=9#9", "111", True, id="right chain"),
        pytest.param(NEGATIVE, "3-9=-6;-6+4=-2#-2", "111", True, id="negative values"),
        pytest.param(PRODUCT, "2+3=5;5*4=20#20", "111", True, id="left to right"),
        pytest.param(SUM, "7+5=2;2-3=-1#-1", "011", False, id="forgotten carry carried on"),
        pytest.param(SUM, "7+5=12;12-3=19#19", "101", False, id="last step wrong"),
        pytest.param(SUM, "7+5=13;12-3=9#9", "001", True, id="goes back to the right value"),
        pytest.param(SUM, "7+6=13;13-3=10#10", "011", False, id="wrong operand"),
        pytest.param(SUM, "7-5=2;2-3=-1#-1", "011", False, id="wrong operator"),
        pytest.param(SUM, "8+5=13;13-3=10#10", "011", False, id="wrong start"),
        pytest.param(SUM, "7+5=12#12", "10", False, id="missing step"),
        pytest.param(SUM, "12-3=9#9", "00", True, id="first step left out"),
        pytest.param(SUM, "7+5=12;12-3=9;9+1=10#10", "1100", False, id="extra step"),
        pytest.param(SUM, "7+5=12;12-3=9;9-0=9#9", "1100", True, id="idle extra step"),
        pytest.param(SUM, "7+5=12;12-3=9#8", "110", False, id="answer is not the value"),
        pytest.param(SUM, "7+5=12;12-3=9", "11", False, id="no answer"),
        pytest.param(SUM, "7+5=12;12-3=9#", "110", False, id="empty answer"),
        pytest.param(SUM, "7+5=12;12-3=9#9#8", "110", False, id="two answers"),
        pytest.param(SUM, "7+5=012;12-3=9#9", "011", True, id="leading zero"),
        pytest.param(SUM, "#9", "00", True, id="answer alone"),
        pytest.param(SUM, "", "0", False, id="empty"),
        pytest.param(SUM, ";;", "000", False, id="separators alone"),
        pytest.param(SUM, "=+-#*7", "00", False, id="garbage"),
        pytest.param(SUM, "7+5=12;oops;12-3=9#9", "1000", True, id="garbage between steps"),
    ],
)
def test_oracle_grades(problem, response, grades, right):
    assert "".join(str(int(step.right)) for step in grade_steps(problem, response)) == grades
    assert is_right(problem.answer, response) is right


def test_graded_spans_cut_the_response_at_its_separators():
    response = "7+5=2;2-3=-1#-1"
    spans = [(s.start, s.end) for s in grade_steps(SUM, response)]
    assert spans == [(0, 5), (6, 12), (13, 15)]
    assert [response[a:b] for a, b in spans] == ["7+5=2", "2-3=-1", "-1"]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("1#9", "9"),
        ("#-12", "-12"),
        ("#8#9", "9"),
        ("9", None),
        ("#", None),
        ("#9;", None),
        ("#--9", None),
        ("#9=", None),
        ("", None),
    ],
)
def test_final_answer_is_the_integer_behind_the_last_mark(response, answer):
    assert final_answer(response) == answer


def test_terms_of_a_prompt():
    assert SUM.terms == (7, [("+", 5), ("-", 3)])
    assert Problem("12*30-4=", "356").terms == (12, [("*", 30), ("-", 4)])


TASKS = {
    "default": ChainTask(),
    "largest operands": ChainTask(largest=99, symbols="+-*", train_operators=[1, 2, 6]),
}


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def left_to_right(prompt):
    """Independent evaluation: parenthesise from the left and let Python compute."""
    terms = [""]
    for character in prompt.removesuffix("="):
        terms += [character, ""] if character in "+-*" else []
        terms[-1] += character if character.isdigit() else ""
    expression = terms[0]
    for symbol, operand in zip(terms[1::2], terms[2::2], strict=True):
        expression = f"({expression}{symbol}{operand})"
    return eval(expression)


def test_answers_are_those_of_left_to_right_arithmetic(task):
    rng = random.Random(0)
    for operators in range(1, 7):
        for _ in range(100):
            problem = draw_problem(task, operators, rng)
            assert problem.answer == str(left_to_right(problem.prompt))
            assert len(problem.terms[1]) == operators
            assert set(problem.prompt) <= set(ALPHABET)


def test_operands_and_symbols_cover_their_range(task):
    rng = random.Random(1)
    problems = [draw_problem(task, 3, rng) for _ in range(2000)]
    operands = {p.terms[0] for p in problems} | {n for p in problems for _, n in p.terms[1]}
    assert operands == set(range(1, task.largest + 1))
    assert {s for p in problems for s, _ in p.terms[1]} == set(task.symbols)


def test_demonstrations_without_step_errors_are_right_in_every_step(task):
    rng = random.Random(2)
    for operators in range(1, 7):
        for _ in range(100):
            problem = draw_problem(task, operators, rng)
            response = demonstration(problem, 0.0, rng)
            assert response.count(";") == operators - 1
            steps = grade_steps(problem, response)
            assert all(step.right for step in steps)
            assert len(steps) == operators + 1
            assert is_right(problem.answer, response)


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_carrying_steps_go_wrong_at_the_set_rate_and_others_never(rate):
    task, rng = ChainTask(), random.Random(3)
    carrying = wrong = other = 0
    for _ in range(3000):
        problem = draw_problem(task, 3, rng)
        response = demonstration(problem, rate, rng)
        body, _, answer = response.partition("#")
        for text, grade in zip(body.split(";"), grade_steps(problem, response), strict=False):
            left, _, result = text.partition("=")
            symbol = max(left.rfind("+"), left.rfind("-"))
            value, operand = int(left[:symbol]), int(left[symbol + 1 :])
            digits = value % 10 + operand if left[symbol] == "+" else value % 10 - operand
            if 0 <= digits < 10:
                other += 1
                assert grade.right
            else:
                carrying += 1
                wrong += not grade.right
        assert answer == result  # the chain continues from the wrong value
    assert carrying > 3000
    assert other > 1000
    spread = (rate * (1 - rate) / carrying) ** 0.5
    assert abs(wrong / carrying - rate) < 4 * spread


def test_forgotten_carry_is_ten_off_and_only_where_a_column_overflows():
    for value, operand in itertools.product(range(-99, 100), range(1, 100)):
        for symbol, right in (("+", value + operand), ("-", value - operand)):
            tens = value // 10 + (operand // 10 if symbol == "+" else -(operand // 10))
            found = forgets_carry(value, symbol, operand)
            if right // 10 == tens:
                assert found is None
            else:  # the ones digit is kept, the tens are those of the columns alone
                assert found == 10 * tens + right % 10
        product = forgets_carry(value, "*", operand)
        assert product == (value * operand - 10 if abs(value * operand) >= 10 else None)


# --- The split -----------------------------------------------------------------------------------


def test_training_never_meets_a_held_out_problem_at_any_length(task):
    benchmarks = {p.prompt for name in task.benchmarks for p in held_out_problems(task, name)}
    met = set()
    for seed in range(15):
        for step in range(15):
            for operators in (None, [1], [2], [3], [4], [5]):
                met |= {p.prompt for p in training_problems(task, seed, step, 16, operators)}
    lengths = {len(Problem(p, "").terms[1]) for p in met}
    assert lengths >= {b.operators for b in task.benchmarks.values()}
    assert len(met) > 5000
    assert not met & benchmarks
    assert not any(is_held_out(p) for p in met)
    assert all(is_held_out(p) for p in benchmarks)


def test_one_problem_in_five_is_held_out_at_every_length():
    rng = random.Random(4)
    for operators in range(1, 6):
        prompts = {draw_problem(ChainTask(largest=99), operators, rng).prompt for _ in range(4000)}
        share = sum(map(is_held_out, prompts)) / len(prompts)
        assert abs(share - 52 / 256) < 4 * (0.2 * 0.8 / len(prompts)) ** 0.5


def test_benchmarks_have_their_number_of_distinct_problems(task):
    for name, spec in task.benchmarks.items():
        problems = held_out_problems(task, name)
        assert len({p.id for p in problems}) == len(problems) == spec.problems
        assert {len(p.terms[1]) for p in problems} == {spec.operators}


def test_benchmarks_get_longer_and_the_last_exceeds_the_training_lengths():
    task = ChainTask()
    lengths = [spec.operators for spec in task.benchmarks.values()]
    assert len(lengths) == 4
    assert lengths == sorted(set(lengths))
    assert lengths[-1] > max(task.train_operators)
    assert min(spec.problems for spec in task.benchmarks.values()) >= 200


def test_a_benchmark_of_the_largest_allowed_number_is_filled():
    task = ChainTask(largest=5, benchmarks={"all": {"operators": 1, "problems": 5}})
    assert len({p.id for p in held_out_problems(task, "all")}) == 5


def test_a_published_benchmark_draws_no_chains():
    task = ChainTask(benchmarks={"aime": {"task": "aime24"}})
    with pytest.raises(TypeError, match="benchmark 'aime' is a RealBenchmark; allowed: Benchmark"):
        held_out_problems(task, "aime")


def test_problems_are_pure_functions_of_their_arguments(task):
    first = training_problems(task, 7, 3, 16)
    random.seed(123)
    training_problems(task, 1, 1, 5)
    assert training_problems(task, 7, 3, 16) == first
    assert len({p.id for p in first}) == 16
    name = next(iter(task.benchmarks))
    assert held_out_problems(task, name) == held_out_problems(task, name)
    problem = first[0]
    assert demonstration(problem, 0.5, random.Random(5)) == demonstration(
        problem, 0.5, random.Random(5)
    )


def test_streams_of_other_seeds_and_steps_differ(task):
    streams = {
        tuple(p.id for p in training_problems(task, seed, step, 16))
        for seed in range(5)
        for step in range(20)
    }
    assert len(streams) == 100


def test_a_step_draws_from_all_training_lengths():
    task = ChainTask(train_operators=[2, 3, 4])
    problems = [p for step in range(20) for p in training_problems(task, 0, step, 16)]
    counts = [sum(len(p.terms[1]) == n for p in problems) for n in (2, 3, 4)]
    assert sum(counts) == 320
    assert min(counts) > 70


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        pytest.param("7+5-3=", [("7+5=", "1", "2"), ("7+5=12;12-3=", "9", "1")], id="two places"),
        pytest.param("45+7+1=", [("45+7=", "5", "4")], id="tens digit"),
        pytest.param("21-9=", [("21-9=", "1", "2")], id="borrow"),
        pytest.param("10-9+1=", [("10-9=1", ";", "1")], id="one result begins with the other"),
        pytest.param("10-9=", [("10-9=1", "#", "1")], id="the same at the last step"),
        pytest.param("3-9=", [("3-9=", "-", "4")], id="sign"),
        pytest.param("1+2-3=", [], id="nothing to carry"),
    ],
)
def test_forks_are_where_a_carry_may_be_forgotten(prompt, places):
    rng = random.Random(0)
    drawn = {fork(Problem(prompt, ""), rng) for _ in range(40)}
    assert drawn == ({Fork(*place) for place in places} or {None})


def test_forks_lead_to_a_right_and_to_a_wrong_demonstration():
    rng, task = random.Random(1), ChainTask(symbols="+-*", largest=9)
    for _ in range(200):
        problem = draw_problem(task, 3, rng)
        if (place := fork(problem, rng)) is None:
            continue
        assert demonstration(problem, 0.0, rng).startswith(place.prefix + place.right)
        slips = {
            demonstration(problem, 1.0, rng),
            *(demonstration(problem, 0.5, rng) for _ in range(60)),
        }
        assert any(text.startswith(place.prefix + place.wrong) for text in slips)
