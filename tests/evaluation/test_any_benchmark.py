"""Benchmarks beyond the registry: any of lm-eval's, a user's YAML and problems, and levels."""

from __future__ import annotations

import gzip
import json

import pytest
import yaml
from lm_eval.api.model import LM
from real_data import byte_model

from vimpo.analysis.reading import read_scores
from vimpo.config import ConfigError, load_study
from vimpo.evaluation import lm_eval as evaluate
from vimpo.evaluation.benchmarks import benchmark_task
from vimpo.planning.inputs import benchmark_responses
from vimpo.planning.preflight import check_before_running, check_inputs

ROWS = [
    {"ask": f"What is {n} plus {n}?", "gold": str(2 * n), "wrong": str(2 * n + 1)}
    for n in range(1, 7)
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def definition(folder, name, **fields):
    """A definition in lm-eval's format, of the problems in a file beside it."""
    source = lines(folder / f"{name}.jsonl", ROWS)
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": source}},
        "test_split": "test",
        "doc_to_text": "Q: {{ask}}\nA:",
        "doc_to_target": "{{gold}}",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | fields))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with three definitions: a free answer, a choice, and text that is only scored."""
    folder = tmp_path_factory.mktemp("definitions")
    last = {"function": "regex", "regex_pattern": r"(-?\d+)", "group_select": -1}
    take = {"function": "take_first"}
    definition(
        folder,
        "free_sums",
        output_type="generate_until",
        generation_kwargs={"until": ["\n"]},
        filter_list=[
            {"name": "strict", "filter": [take]},
            {"name": "flexible", "filter": [last, take]},
        ],
        metric_list=[
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
            {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
        ],
    )
    definition(
        folder,
        "chosen_sums",
        output_type="multiple_choice",
        doc_to_choice="{{[wrong, gold]}}",
        doc_to_target=1,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    definition(
        folder,
        "plain_text",
        output_type="loglikelihood_rolling",
        metric_list=[{"metric": "word_perplexity"}],
    )
    return folder


def study_of(model="some/model", evaluation=None, **benchmarks):
    return load_study(
        {
            "results": "nowhere",  # not where a reader's quick study lies
            "task": {
                "kind": "dataset",
                "datasets": [{"path": "some/dataset"}],
                "verifier": {"workers": 1},
                "benchmarks": benchmarks,
            },
            "train": {"max_response": 8},
            "evaluation": {"samples": 3, "batch_size": 8} | (evaluation or {}),
            "sizes": {"q": {"path": str(model)}},
            "grid": {"sizes": ["q"]},
        }
    )


class Answering(LM):
    """Answers by `answer(prompt, index)`; of two choices it likes the right one up to 3 plus 3."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer, self.seen, self.settings = answer, {}, []

    def generate_until(self, requests, disable_tqdm=False):
        texts = []
        for request in requests:
            prompt, settings = request.args
            self.seen[prompt] = self.seen.get(prompt, -1) + 1
            self.settings.append(settings)
            texts.append(self.answer(prompt, self.seen[prompt]))
        return texts

    def loglikelihood(self, requests, disable_tqdm=False):
        scores = []
        for request in requests:
            prompt, choice = request.args
            n = int(prompt.split(" plus ")[0].split()[-1])
            right = int(choice) == 2 * n
            scores.append((-1.0 if right == (n <= 3) else -2.0, False))
        return scores

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def gold_of(prompt):
    return 2 * int(prompt.split(" plus ")[-1].split("?")[0])


def scored(study, name, answer=None):
    lm = Answering(answer)
    results, logs = evaluate.run_benchmarks(lm, study, [name])
    return {row["metric"]: row for row in results}, logs, lm


# --- Tasks of lm-eval -----------------------------------------------------------------------------


def test_a_users_definition_is_scored_by_its_own_metric_and_filter(folder):
    fields = {"task": "free_sums", "include_path": str(folder), "metric": "exact_match"}
    study = study_of(strict=fields, flexible=fields | {"filter": "flexible", "samples": 2})
    results, logs, lm = scored(study, "strict", lambda p, i: f" {gold_of(p)}" if i else "no")
    assert results["sampled"]["value"] == 0  # "strict" does not even strip a space
    results, logs, lm = scored(study, "strict", lambda p, i: str(gold_of(p) + (i == 1)))
    assert results["sampled"]["value"] == pytest.approx(2 / 3)  # all three samples count
    assert results["greedy"]["samples"] == 1
    assert results["sampled"]["samples"] == 3
    assert [log["marks"] for log in logs[:6]] == [[1, 0, 1]] * 6
    assert lm.settings[0]["until"] == ["\n"]
    assert (logs[0]["prompt"], logs[0]["answer"]) == ("What is 1 plus 1?", "2")
    results, logs, _ = scored(study, "flexible", lambda p, i: f"hm 5, so it is {gold_of(p)}.")
    assert results["sampled"] == results["sampled"] | {"value": 1.0, "problems": 6, "samples": 2}


def test_the_verifier_can_judge_free_answers_instead(folder):
    fields = {"task": "free_sums", "include_path": str(folder), "metric": "exact_match"}
    for rule, text in (
        ("boxed", r"\boxed{%s.0}"),
        ("last_number", "1, then %s.00"),
        ({"pattern": "is (.*)!"}, r"it is \frac{%s}{1}!"),
    ):
        study = study_of(sums=fields | {"extract": rule})
        results, _, _ = scored(study, "sums", lambda p, i, text=text: text % gold_of(p))
        row = results["sampled"]
        assert (row["value"], row["stock_metric"], row["stock_value"]) == (1, "exact_match", 0)
        wrong, _, _ = scored(study, "sums", lambda p, i, text=text: text % (gold_of(p) + 1))
        assert wrong["sampled"]["value"] == 0


def test_a_gold_is_found_in_a_worked_target(folder, tmp_path):
    worked = {"output_type": "generate_until", "doc_to_target": "twice {{ask}} #### {{gold}}"}
    definition(tmp_path, "worked", **worked)
    fields = {"task": "worked", "include_path": str(tmp_path), "metric": "exact_match"}
    study = study_of(x=fields | {"extract": "boxed", "answer_pattern": "#### (.+)"})
    results, logs, _ = scored(study, "x", lambda p, i: rf"\boxed{{{gold_of(p)}}}")
    assert (results["sampled"]["value"], logs[0]["answer"]) == (1, "2")
    with pytest.raises(
        ConfigError, match=r"x\.extract: the gold answer 'twice What .* cannot be ju"
    ):
        benchmark_task(study_of(x=fields | {"extract": "boxed"}), "x")
    with pytest.raises(
        ConfigError, match=r"^task\.benchmarks\.x\.answer_pattern: .* with extract$"
    ):
        study_of(x=fields | {"answer_pattern": "#### (.+)"})


def test_multiple_choice_has_one_score_under_every_decoder(folder):
    fields = {"task": "chosen_sums", "include_path": str(folder), "metric": "acc"}
    study = study_of(choices=fields | {"limit": 5}, evaluation={"pass_at": [1, 2]})
    results, logs, _ = scored(study, "choices")
    assert set(results) == {"sampled", "greedy"}
    for row in results.values():
        assert (row["value"], row["problems"]) == (pytest.approx(3 / 5), 5)
        assert row["stderr"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert results["sampled"]["pass_at"]["2"]["value"] == results["sampled"]["value"]
    assert [log["marks"] for log in logs if log["metric"] == "greedy"] == [[1], [1], [1], [0], [0]]
    prompts = benchmark_task(study, "choices").prompts()
    assert prompts[0] in ("Q: What is 1 plus 1?\nA: 2", "Q: What is 1 plus 1?\nA: 3")


def test_a_checkpoint_is_evaluated_and_read(folder, tmp_path):
    model = byte_model(tmp_path / "model")
    own = lines(tmp_path / "own.jsonl", ROWS)
    free = {"task": "free_sums", "include_path": str(folder), "metric": "exact_match"}
    study = study_of(
        model,
        free=free | {"limit": 2},
        choices={"task": "chosen_sums", "include_path": str(folder), "metric": "acc"},
        own={"path": own, "problem": "ask", "answer": "gold", "extract": "last_number"},
    )
    evaluate.evaluate_checkpoint(
        model, study, tmp_path / "eval.json", tmp_path / "samples.jsonl.gz", digest="d"
    )
    scores = {(row["benchmark"], row["metric"]): row for row in read_scores(tmp_path, study)}
    assert len(scores) == 6
    assert {row["problems"] for (name, _), row in scores.items() if name == "free"} == {2}
    for name in ("free", "choices", "own"):
        assert 0 <= scores[name, "sampled"]["value"] <= 1
    logged = gzip.decompress((tmp_path / "samples.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(logged) == 2 * (2 + 6 + 6)


@pytest.mark.slow
def test_lm_evals_own_tasks_are_found_by_name(monkeypatch):
    """Without a network the name is found, and its problems are not.

    Slow, because the index of lm-eval's thousands of tasks takes ten seconds.
    """

    def no_network(self, *arguments, **keywords):
        raise ConnectionError("offline")

    monkeypatch.setattr("lm_eval.api.task.ConfigurableTask.download", no_network)
    study = study_of(arc={"task": "arc_easy", "metric": "acc"})
    message = (
        r"^task\.benchmarks\.arc\.task: 'arc_easy' cannot be loaded \(ConnectionError: offline\)"
    )
    with pytest.raises(ConfigError, match=message):
        benchmark_task(study, "arc")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "f2"}, r"^task\.benchmarks\.x\.metric: 'f2' is no metric of free_sums; allow"
         "ed: exact_match$"),
        ({"metric": "bleu"}, r"metric: 'bleu' is not averaged over problems of free_sums; allow"),
        ({"filter": "loose"}, r"^task\.benchmarks\.x\.filter: 'loose' is no filter of free_sums; "
         "allowed: strict, flexible$"),
        ({"limit": 7}, r"^task\.benchmarks\.x\.limit: 7 is more than the 6 problems of free_sums"),
        ({"task": "plain_text", "metric": "word_perplexity"},
         r"task: 'plain_text' is of lm-eval's type loglikelihood_rolling, which has no right"),
        ({"task": "chosen_sums", "metric": "acc", "extract": "boxed"},
         r"^task\.benchmarks\.x\.extract: 'boxed' is for free answers"),
        ({"task": "chosen_sums", "metric": "acc", "samples": 2}, r"x\.samples: 2 is for free answ"),
        ({"include_path": "/no/such"}, r"^task\.benchmarks\.x\.include_path: '/no/such' is not a"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_clear_error(folder, fields, message):
    usual = {"task": "free_sums", "include_path": str(folder), "metric": "exact_match"}
    study = study_of(x=usual | fields)
    with pytest.raises(ConfigError, match=message):
        benchmark_task(study, "x").rows()


@pytest.mark.slow
def test_unknown_names_and_groups_are_told():
    near = r"^task\.benchmarks\.x\.task: 'arc_eazy' is no task of lm-eval .*; allowed: arc_easy, "
    with pytest.raises(ConfigError, match=near):
        benchmark_task(study_of(x={"task": "arc_eazy", "metric": "acc"}), "x")
    group = r"^task\.benchmarks\.x\.task: 'mmlu' is a group or tag of tasks; allowed: one of its"
    with pytest.raises(ConfigError, match=group):
        benchmark_task(study_of(x={"task": "mmlu", "metric": "acc"}), "x")


def test_the_metric_must_be_named():
    with pytest.raises(
        ConfigError, match=r"'arc_easy' is unknown; .* with the `metric` that counts"
    ):
        study_of(x={"task": "arc_easy"})
    with pytest.raises(ConfigError, match=r"^task\.benchmarks\.x\.metric: .*is not allowed"):
        study_of(x={"task": "arc_easy", "include_path": "somewhere"})
    with pytest.raises(
        ConfigError, match=r"^task\.benchmarks\.x\.extract: 'first' is no rule; allow"
    ):
        study_of(x={"task": "arc_easy", "metric": "acc", "extract": "first"})


# --- A user's own problems ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_own_problems_take_the_columns_of_training_data(tmp_path, kind):
    rows = [{"say": {"ask": row["ask"]}, "note": f"worked out #### {row['gold']}"} for row in ROWS]
    path = tmp_path / f"own.{kind}"
    if kind == "jsonl":
        lines(path, rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    fields = {"path": str(path), "problem": "say.ask", "answer": "note"}
    fields |= {"answer_pattern": "#### (.+)", "prompt": "Say: {problem}", "limit": 4}
    study = study_of(own=fields | {"samples": 2})
    check_before_running(study)
    results, logs, _ = scored(study, "own", lambda p, i: rf"\boxed{{{gold_of(p) + i}}}")
    assert results["sampled"] == results["sampled"] | {"value": 0.5, "problems": 4, "samples": 2}
    assert results["greedy"]["value"] in (0, 1)
    assert (logs[0]["prompt"], logs[0]["answer"]) == ("What is 1 plus 1?", "2")
    assert benchmark_task(study, "own").prompts()[0] == "Say: What is 1 plus 1?"
    assert benchmark_responses(study) == 4 * (2 + 1)
    assert study.task.benchmarks["own"].sha256  # what is replaced is another study


@pytest.mark.parametrize(
    ("rule", "text"), [("boxed", r"\boxed{%s}"), ({"pattern": "= (.*)"}, "= %s")]
)
def test_an_echo_of_an_own_problem_can_be_refused(tmp_path, rule, text):
    path = lines(tmp_path / "own.jsonl", ROWS)
    fields = {"path": path, "problem": "ask", "answer": "gold", "extract": rule}
    study = study_of(echo=fields, strict=fields | {"evaluated_only": True})

    def echo(prompt, index):
        return text % f"{gold_of(prompt) // 2} + {gold_of(prompt) // 2}"

    assert scored(study, "echo", echo)[0]["sampled"]["value"] == 1
    assert scored(study, "strict", echo)[0]["sampled"]["value"] == 0
    right = scored(study, "strict", lambda p, i: text % gold_of(p))[0]
    assert right["sampled"]["value"] == 1


def test_definitions_are_part_of_a_study(tmp_path):
    definition(tmp_path, "sums", output_type="generate_until")
    fields = {"task": "sums", "include_path": str(tmp_path), "metric": "exact_match"}
    study = study_of(x=fields)
    check_before_running(study)
    lines(tmp_path / "sums.jsonl", ROWS[:2])
    assert study_of(x=fields).evaluation_digest() != study.evaluation_digest()
    with pytest.raises(ConfigError, match=r"^task\.benchmarks\.x\.include_path: .* has changed"):
        check_before_running(study)
    assert study_of(x={"task": "arc_easy", "metric": "acc"}).task.benchmarks["x"].sha256 is None


def test_faults_of_own_problems_are_told_before_anything_runs(tmp_path):
    path = lines(tmp_path / "own.jsonl", ROWS)
    with pytest.raises(
        ConfigError, match=r"^task\.benchmarks\.x\.answer: '.*' has no column 'truth'; allowed: ask"
    ):
        check_before_running(study_of(x={"path": path, "problem": "ask", "answer": "truth"}))
    with pytest.raises(ConfigError, match=r"^task\.benchmarks\.x\.path: '.*\.jsonl' is not a file"):
        check_before_running(study_of(x={"path": str(tmp_path / "none.jsonl")}))
    prose = lines(tmp_path / "prose.jsonl", [{"problem": "?", "answer": None}])
    with pytest.raises(
        ConfigError, match=r"^task\.benchmarks\.x\.answer: the gold answer '' of row 1"
    ):
        benchmark_task(study_of(x={"path": prose}), "x").rows()
    fields = {"path": path, "problem": "ask", "answer": "gold", "limit": 9}
    asked = benchmark_task(study_of(x=fields), "x")
    with pytest.raises(ConfigError, match=r"^task\.benchmarks\.x\.limit: 9 is more than the 6"):
        asked.rows()


def test_a_benchmarks_problem_among_the_training_problems_is_named(folder, tmp_path, capsys):
    own = {"path": lines(tmp_path / "own.jsonl", ROWS[:3]), "problem": "ask", "answer": "gold"}
    free = {"task": "free_sums", "include_path": str(folder), "metric": "exact_match"}
    study = study_of(byte_model(tmp_path / "model"), own=own, free=free | {"limit": 2})
    trained = [{"problem": "what is  2 plus 2?", "answer": "4"}, {"problem": "?", "answer": "1"}]
    source = lines(tmp_path / "train.jsonl", trained)
    task = study.task.model_dump() | {"datasets": [{"path": source}], "max_prompt": 200}
    train = {"prompts_per_step": 2, "max_response": 8}
    check_inputs(load_study(study.model_dump() | {"task": task, "train": train}))
    assert capsys.readouterr().err.splitlines() == [
        f"warning: task.benchmarks.{name}: 1 of its {count} problems are also training problems, "
        "such as 'What is 2 plus 2?'"
        for name, count in (("own", 3), ("free", 2))
    ]


# --- Levels of difficulty -------------------------------------------------------------------------


def test_levels_of_reasoning_gym_are_benchmarks_of_any_task():
    pytest.importorskip(
        "reasoning_gym", reason="needs the extra: pip install -e '.[reasoning-gym]'"
    )
    level = {"dataset": "chain_sum", "problems": 6, "extract": "last_number", "prompt": "{problem}"}
    study = study_of(
        two=level | {"settings": {"min_terms": 2, "max_terms": 2}},
        six=level | {"settings": {"min_terms": 6, "max_terms": 6}, "samples": 1},
    )
    check_before_running(study)
    results, logs, _ = scored(study, "two", lambda p, i: str(total(p) + (i == 2)))
    assert results["sampled"]["value"] == pytest.approx(2 / 3)
    assert all(log["answer"] == str(total(log["prompt"])) for log in logs)
    six, logs, _ = scored(study, "six", lambda p, i: f"it is {total(p)}.0")
    assert six["sampled"] == six["sampled"] | {"value": 1.0, "samples": 1, "problems": 6}
    assert all(len(log["prompt"].split(": ")[1].split()) == 12 for log in logs)
    assert benchmark_responses(study) == 6 * (3 + 1) + 6 * (1 + 1)


def total(prompt):
    """The sum that a prompt asks for, added up here."""
    terms = prompt.split(": ")[1].removesuffix("=").split()
    value = int(terms[0])
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        value += int(term) if sign == "+" else -int(term)
    return value
