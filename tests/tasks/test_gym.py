"""reasoning-gym as a task: disjoint problems that repeat, its own scores, faults that are told."""

from __future__ import annotations

import builtins
import subprocess
import sys
import time

import pytest
from real_data import byte_model

from vimpo.config import ConfigError, load_study
from vimpo.config.asked import GymBenchmark
from vimpo.config.sources import GymSource
from vimpo.config.task import VerifierLimits
from vimpo.tasks import make_task
from vimpo.tasks.chain import is_held_out
from vimpo.tasks.extraction import extracted
from vimpo.tasks.gym.entries import HELD_OUT_SEEDS, TRAINING_SEEDS

GYM = pytest.importorskip(
    "reasoning_gym", reason="needs the extra: pip install -e '.[reasoning-gym]'"
)
EASY = {"dataset": "chain_sum", "settings": {"max_terms": 2}, "problems": 20}
SUMS = {"name": "chain_sum", "settings": {"min_terms": 2, "max_terms": 3}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from vimpo.models.networks import load_tokenizer

    return load_tokenizer(byte_model(tmp_path_factory.mktemp("model")))


def study_of(*datasets, benchmarks=None, **fields):
    task = {
        "kind": "reasoning_gym",
        "datasets": list(datasets) or [SUMS],
        "extract": "last_number",
        "verifier": {"workers": 1},
        "benchmarks": benchmarks or {"easy": EASY},
    }
    return load_study(
        {
            "task": task | fields,
            "sizes": {"q": {"path": "some/model"}},
            "grid": {"sizes": ["q"]},
            "train": {"max_response": 16},
        }
    )


def task_of(tokenizer, *datasets, batch_size=4, held_out=0, **fields):
    config = study_of(*datasets, **fields).task
    return make_task(config, tokenizer, batch_size=batch_size, held_out=held_out)


# --- Problems -------------------------------------------------------------------------------------


def test_the_library_draws_an_entry_from_seed_and_index_together():
    """Why every problem has a seed of its own: data sets of near seeds share entries."""
    first = GYM.create_dataset("chain_sum", seed=7, size=20)
    second = GYM.create_dataset("chain_sum", seed=10, size=20)
    assert [first[i]["question"] for i in range(3, 20)] == [
        second[i]["question"] for i in range(17)
    ]


def test_training_and_held_out_problems_are_disjoint_even_where_few_exist(tokenizer):
    """One-digit sums of two terms are 200 problems, so seeds alone would not keep them apart."""
    few = {"name": "chain_sum", "settings": {"max_terms": 2, "max_digits": 1}}
    task = task_of(tokenizer, few, held_out=15)
    held_out = {p.text for p in task.held_out(15)}
    trained = {p.text for step in range(30) for p in task.training_problems(1, step, 16)}
    assert len(held_out) == 15
    assert len(trained) > 100
    assert not held_out & trained
    assert all(map(is_held_out, held_out))
    assert all(p.seed in HELD_OUT_SEEDS for p in task.held_out(15))
    assert all(p.seed in TRAINING_SEEDS for p in task.training_problems(1, 0, 16))
    assert HELD_OUT_SEEDS.start - TRAINING_SEEDS.stop > 2**28
    assert HELD_OUT_SEEDS.stop <= 2**31  # numpy's generators take no larger seed


def test_problems_of_a_benchmark_are_held_out_and_the_same_for_every_run(tokenizer):
    from vimpo.evaluation.benchmarks import benchmark_task

    study = study_of()
    rows = benchmark_task(study, "easy", tokenizer).rows()
    assert rows == benchmark_task(study_of(right_from=0.5), "easy", tokenizer).rows()
    assert len({row["problem"] for row in rows}) == 20
    assert all(is_held_out(row["problem"]) for row in rows)
    task = task_of(tokenizer)
    trained = {p.text for step in range(20) for p in task.training_problems(0, step, 32)}
    assert not trained & {row["problem"] for row in rows}


def test_draws_are_a_function_of_seed_and_step(tokenizer):
    task, again = task_of(tokenizer), task_of(tokenizer)
    assert task.training_problems(1, 2, 8) == again.training_problems(1, 2, 8)
    for other in (task.training_problems(2, 2, 8), task.training_problems(1, 3, 8)):
        assert not {p.id for p in other} & {p.id for p in task.training_problems(1, 2, 8)}
    assert len({p.id for p in task.training_problems(1, 2, 64)}) == 64
    assert task.held_out(5) == again.held_out(9)[:5]


def test_datasets_are_drawn_by_weight(tokenizer):
    task = task_of(tokenizer, SUMS, {"name": "basic_arithmetic", "weight": 3})
    names = [p.generator.name for p in task.training_problems(0, 0, 200)]
    assert 25 < names.count("chain_sum") < 80  # 50 expected, by 200 draws with p = 1/4: sd 6


def test_long_prompts_are_drawn_again_and_small_supplies_are_told(tokenizer):
    task = task_of(tokenizer, max_prompt=190, batch_size=2)
    lengths = [len(tokenizer(p.prompt).input_ids) for p in task.training_problems(0, 0, 16)]
    assert max(lengths) <= 190
    with pytest.raises(ConfigError, match=r"task\.datasets\[0\]: only 0 of 8 distinct training"):
        task_of(tokenizer, max_prompt=20)
    one = {"name": "chain_sum", "settings": {"min_terms": 1, "max_terms": 1, "max_digits": 1}}
    with pytest.raises(ConfigError, match=r"only \d of \d+ distinct training problems found"):
        task_of(tokenizer, one, batch_size=64)
    with pytest.raises(ConfigError, match=r"leaves no room for train\.max_response"):
        make_task(study_of().task, tokenizer, room=100)


def test_supply_is_what_can_be_drawn(tokenizer):
    assert 1000 < task_of(tokenizer).supply() <= 2048  # a fifth of 128 draws is held out
    few = {"name": "chain_sum", "settings": {"max_terms": 2, "max_digits": 1}}
    task = task_of(tokenizer, few)
    assert len(task.training_problems(3, 4, task.supply())) == task.supply() >= 20


# --- Judging --------------------------------------------------------------------------------------


def test_rewards_are_the_librarys_own_scores(tokenizer):
    task = task_of(tokenizer)
    (problem,) = task.training_problems(0, 0, 1)
    gold = int(problem.answer)
    sign = "−" if gold < 0 else ""
    responses = [
        f"It is {gold}",
        f"so = {sign}{abs(gold)}.00 in all",
        f"{gold}, or rather {gold + 1}",
        f"0 + {gold}",  # an echo
        "none",
        "",
    ]
    assert task.rewards([problem] * 6, responses) == [1, 1, 0, 0, 0, 0]
    assert task.answered(responses) == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("rule", "response"),
    [
        ("boxed", r"hence \boxed{%s}."),
        ("last_number", "1 and 2, so %s."),
        ("library", "<think>1</think> <answer> %s </answer> 5"),
        ({"pattern": r"Result: (-?\d+)"}, "Result: 0; Result: %s; done 7"),
    ],
)
def test_every_rule_finds_the_answer(tokenizer, rule, response):
    task = task_of(tokenizer, extract=rule)
    problems = [p for p in task.training_problems(0, 0, 12) if p.answer not in "0125"][:3]
    assert task.rewards(problems, [response % p.answer for p in problems]) == [1.0] * 3
    assert task.rewards(problems, [response % "0" for _ in problems]) == [0.0] * 3
    assert task.rewards(problems, ["nothing"] * 3) == [0.0] * 3


def test_partial_scores_are_wrong_unless_asked_for(tokenizer):
    """spell_backward gives part of its score for part of a word."""
    words = {"name": "spell_backward", "settings": {"min_word_len": 6}}
    strict = task_of(tokenizer, words, extract="boxed")
    lenient = task_of(tokenizer, words, extract="boxed", right_from=0.01)
    (problem,) = strict.training_problems(0, 0, 1)
    response = rf"\boxed{{{problem.answer[:-2]}}}"
    assert strict.rewards([problem], [response]) == [0.0]
    assert lenient.rewards([problem], [response]) == [1.0]


def test_a_pattern_or_an_answer_that_takes_forever_is_wrong_in_time(tokenizer):
    slow = VerifierLimits(workers=1, seconds=0.5).model_dump()
    task = task_of(tokenizer, extract={"pattern": r"^((?:a+)+)$"}, verifier=slow)
    (problem,) = task.training_problems(0, 0, 1)
    started = time.perf_counter()
    assert task.rewards([problem], ["a" * 60 + "b"]) == [0.0]
    assert time.perf_counter() - started < 20


def test_what_a_model_wrote_is_not_evaluated(tokenizer, tmp_path):
    """countdown and puzzle24 parse answers, spiral_matrix calls `eval` on them."""
    witness = tmp_path / "witness"
    attacks = [
        f"open({str(witness)!r}, 'w')",
        f"__import__('os').system('touch {witness}')",
        f"[open({str(witness)!r}, 'w')]",
        f"Symbol('x').__class__.__init__.__globals__ and open({str(witness)!r}, 'w')",
    ]
    sources = [{"name": name} for name in ("countdown", "puzzle24", "spiral_matrix")]
    task = task_of(tokenizer, *sources, extract="library")
    problems = task.training_problems(0, 0, 12)
    assert {p.generator.name for p in problems} == {"countdown", "puzzle24", "spiral_matrix"}
    for attack in attacks:
        marks = task.rewards(problems, [f"<answer>{attack}</answer>"] * 12)
        assert marks == [0.0] * 12
    assert not witness.exists()
    right = task.rewards(problems, [f"<answer>{p.answer}</answer>" for p in problems])
    assert right == [1.0] * 12
    # A list of numbers is still evaluated; the library gives it a tenth of its score.
    task = task_of(tokenizer, {"name": "spiral_matrix"}, extract="library", right_from=0.1)
    matrices = task.training_problems(0, 0, 3)
    as_list = [f"<answer>[{', '.join(p.answer.split())}]</answer>" for p in matrices]
    assert task.rewards(matrices, as_list) == [1.0] * 3


def test_only_arithmetic_is_harmless():
    from vimpo.tasks.gym.judges import guarded_eval, harmless

    for text in ("1 + 2", "[['Q', '_'], [0, 1]]", "Integer (2 )*Symbol ('x' )", "-3**2", "(1, 2)"):
        assert harmless(text), text
    for text in (
        "open('x')",
        "(1).real",
        "[x for x in (1,)]",
        "lambda: 1",
        "x[0]",
        "f'{1}'",
        "1 +",
    ):
        assert not harmless(text), text
    assert guarded_eval("[1, 2 + 3]") == [1, 5]
    with pytest.raises(ValueError, match="not evaluated"):
        guarded_eval(compile("1", "", "eval"))


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datasets": [{"name": "chain_sums"}]}, r"^task\.datasets\[0\]\.name: 'chain_sums' is no "
         r"data set of reasoning-gym; allowed: chain_sum, .*DATASETS`\)$"),
        ({"datasets": [{"name": "composite"}]}, r"^task\.datasets\[0\]\.name: 'composite' is no "),
        ({"datasets": [SUMS | {"settings": {"terms": 3}}]}, r"^task\.datasets\[0\]\.settings\."
         r"terms: 3 is for a setting that chain_sum does not have; allowed: allow_neg"),
        ({"datasets": [SUMS | {"settings": {"min_terms": 9}}]}, r"settings: \{\"min_terms\": 9\} "
         r"is not allowed for chain_sum; allowed: max_terms must be >= min_terms$"),
        ({"datasets": [SUMS | {"settings": {"min_terms": "two"}}]}, r"settings: .* is not allowed"),
        ({"benchmarks": {"hard": {"dataset": "chain_prod"}}},
         r"^task\.benchmarks\.hard\.dataset: 'chain_prod' is no data set"),
    ],
)  # fmt: skip
def test_names_and_settings_are_checked(fields, message):
    from vimpo.tasks.gym.generators import check_gym

    task = {"datasets": [SUMS], "benchmarks": None} | fields
    study = study_of(*task["datasets"], benchmarks=task["benchmarks"])
    with pytest.raises(ConfigError, match=message):
        check_gym(study.task)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datasets": [SUMS | {"settings": {"seed": 1}}]}, r"^task\.datasets\.0\.settings: seed is "
         "decided by the suite; allowed: settings without it$"),
        ({"extract": "last"}, r"^task\.extract: 'last' is no rule; allowed: boxed, last_number, "
         r"library, or \{pattern: "),
        ({"extract": {"pattern": "(a)(b)"}}, r"^task\.extract\.pattern: '\(a\)\(b\)' has 2 groups"),
        ({"extract": {"pattern": "("}}, r"^task\.extract\.pattern: '\(' is not a regular expr"),
        ({"right_from": 0}, r"^task\.right_from: 0 is not allowed; allowed: a number in \(0, 1\]$"),
        ({"datasets": []}, r"^task\.datasets: \[\] is not allowed"),
    ],
)  # fmt: skip
def test_the_configuration_is_checked_without_the_library(fields, message):
    task = study_of().task.model_dump() | fields
    with pytest.raises(ConfigError, match=message):
        load_study({"task": task, "sizes": {"q": {"path": "m"}}, "grid": {"sizes": ["q"]}})


def test_what_cannot_be_scored_or_repeated_is_refused_before_anything_runs(tokenizer):
    with pytest.raises(ConfigError, match=r"name: 'graph_color' cannot be scored: its own answer"):
        task_of(tokenizer, {"name": "graph_color"}, extract="boxed")
    with pytest.raises(ConfigError, match="'countdown' cannot be scored with extract: last_number"):
        task_of(tokenizer, {"name": "countdown"})
    with pytest.raises(ConfigError, match="'word_ladder' does not draw the same problem"):
        task_of(tokenizer, {"name": "word_ladder"}, extract="boxed")


def test_the_few_problems_that_cannot_be_scored_are_drawn_again(tokenizer):
    """Of base_conversion, one answer in forty is refused by its own score."""
    conversions = {"name": "base_conversion", "settings": {"min_value": 1, "max_value": 9999}}
    task = task_of(tokenizer, conversions, extract="library")
    problems = task.training_problems(0, 0, 200)
    answers = [f"<answer>{problem.answer}</answer>" for problem in problems]
    assert task.rewards(problems, answers) == [1.0] * 200


def test_a_missing_library_is_one_clear_error(monkeypatch):
    from vimpo.tasks.gym.generators import check_gym

    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.startswith("reasoning_gym"):
            raise ModuleNotFoundError("No module named 'reasoning_gym'", name="reasoning_gym")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        ConfigError,
        match=r"^task\.datasets\[0\]\.name: 'chain_sum' needs the package reasoning-gym, .*"
        r"pip install -e '\.\[reasoning-gym\]'",
    ):
        check_gym(study_of().task)


def test_the_configuration_needs_no_library():
    """A study is read in moments, whether or not the library is there."""
    script = (
        "import sys; from vimpo.config import load_study\n"
        "from vimpo.tasks.gym import problems\n"
        "assert 'reasoning_gym' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_of_a_level_are_those_of_training():
    assert GymSource(name="a", settings={"x": 1}).settings == {"x": 1}
    assert GymBenchmark(dataset="a", settings={"x": 1}).settings == {"x": 1}


def test_rules_of_extraction():
    assert extracted("boxed", r"\boxed{−4}") == "-4"
    assert extracted("last_number", "so −4") == "-4"
    assert extracted({"pattern": r"x=(\S+)"}, "x=1 x=2") == "2"
    for rule in ("boxed", "last_number", {"pattern": "x=(.)"}):
        assert extracted(rule, "") is None
