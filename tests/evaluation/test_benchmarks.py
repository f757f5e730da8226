r"""MATH-500, AIME, OlympiadBench and others through lm-eval, offline, on the published files."""

from __future__ import annotations

import gzip
import json
import socket
import statistics
from collections import Counter

import pytest
from lm_eval.api.model import LM
from real_data import FILES, byte_model, real_file
from tokenizers_of_kinds import byte_pieces
from transformers import Qwen3ForCausalLM

from vimpo.analysis.reading import IncompleteError, read_scores
from vimpo.config import ConfigError, load_study
from vimpo.config.benchmarks import BENCHMARKS
from vimpo.evaluation import lm_eval as evaluate
from vimpo.evaluation.benchmarks import benchmark_task, needs_hub
from vimpo.planning.preflight import check_before_running
from vimpo.tasks.prompts import encode

STOCK = ("math500", "aime24", "aime25")


def study_of(benchmarks, model="some/model", **fields):
    return load_study(
        {
            "task": {
                "kind": "dataset",
                "datasets": [{"path": "some/dataset"}],
                "verifier": {"workers": 1},
                "benchmarks": benchmarks,
            }
            | fields,
            "train": {"max_response": 8},
            "evaluation": {"greedy": False, "batch_size": 8},
            "sizes": {"q": {"path": str(model)}},
            "grid": {"sizes": ["q"]},
        }
    )


def local(task, **fields):
    return {"task": task, "path": str(real_file(FILES[task]))} | fields


class Oracle(LM):
    """Answers every problem by `answer(doc, index of the sample)`; remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen, self.asked = answer, Counter(), []

    def generate_until(self, requests, disable_tqdm=False):
        responses = []
        for request in requests:
            prompt, settings = request.args
            index, self.seen[prompt] = self.seen[prompt], self.seen[prompt] + 1
            self.asked.append((prompt, settings))
            responses.append(self.answer(request.doc, index))
        return responses

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def score(study, name, answer):
    """(result, log, oracle) of one benchmark with `sampled` alone."""
    oracle = Oracle(answer)
    (result,), log = evaluate.run_benchmarks(oracle, study, [name])
    return result, log, oracle


def boxed(text):
    return f"So the answer is $\\boxed{{{text}}}$."


# --- Gold and wrong answers ----------------------------------------------------------------------


# The verifier's workers read the gold answers of one of them for most of a minute.
@pytest.mark.parametrize(
    ("task", "limit"),
    [
        *((task, None) for task in FILES if task != "olympiadbench"),
        ("olympiadbench", 60),
        pytest.param("olympiadbench", None, marks=pytest.mark.slow),
    ],
)
def test_gold_answers_score_all_and_wrong_ones_nothing(task, limit):
    study = study_of({task: local(task, samples=2, limit=limit)})
    benchmark = benchmark_task(study, task)
    result, log, _ = score(study, task, lambda doc, index: boxed(benchmark.gold(doc)))
    assert result["value"] == 1
    assert result["problems"] == len(log) == (limit or BENCHMARKS[task].problems)
    assert result["samples"] == 2
    result, _, _ = score(study, task, lambda doc, index: boxed("-987654321/7"))
    assert result["value"] == 0
    result, _, _ = score(study, task, lambda doc, index: str(benchmark.gold(doc)))
    assert result["value"] == 0  # no box, no answer


@pytest.mark.parametrize("task", STOCK)
def test_stock_definitions_score_by_the_verifier_and_by_their_own_metric(task):
    limit = 25
    study = study_of({task: local(task, style="stock", samples=1, limit=limit)})
    benchmark = benchmark_task(study, task)

    def right(doc, index):
        gold = benchmark.gold(doc)
        return f"Final Answer: The final answer is ${gold}$. I hope it is correct.\n{boxed(gold)}"

    result, log, _ = score(study, task, right)
    assert result["problems"] == len(log) == limit
    assert result["value"] == result["stock_value"] == 1
    assert result["stock_metric"] == ("math_verify" if task == "math500" else "exact_match")
    assert result["stock_stderr"] == 0
    result, _, _ = score(study, task, lambda doc, index: boxed("-987654321/7"))
    assert result["value"] == result["stock_value"] == 0


@pytest.mark.slow
def test_the_stock_metric_gives_all_published_solutions_full_marks():
    study = study_of({"math500": local("math500", style="stock")})
    result, _, _ = score(study, "math500", lambda doc, index: doc["solution"])
    assert result["value"] == result["stock_value"] == 1


@pytest.mark.parametrize("style", ["boxed", "stock"])
def test_leading_zeros_of_an_aime_answer_are_right(style):
    study = study_of({"aime24": local("aime24", style=style, samples=1)})
    benchmark = benchmark_task(study, "aime24")
    zeros = [doc for doc in benchmark.rows() if int(doc["Answer"]) < 100]
    assert zeros
    result, log, _ = score(study, "aime24", lambda doc, i: boxed(f"{int(doc['Answer']):03d}"))
    assert result["value"] == 1
    assert all(entry["marks"] == [1] for entry in log)
    if style == "stock":  # lm-eval's own metric compares texts
        share = 1 - len(zeros) / 30
        assert result["stock_value"] == pytest.approx(share)
        assert result["stock_stderr"] == pytest.approx((share * (1 - share) / 29) ** 0.5)


def test_average_at_k_counts_every_sample_and_its_error_is_over_problems():
    study = study_of({"aime25": local("aime25")})
    benchmark = benchmark_task(study, "aime25")

    def sometimes(doc, index):
        right = index < int(benchmark.gold(doc)) % 33
        return boxed(benchmark.gold(doc) if right else -1)

    result, log, oracle = score(study, "aime25", sometimes)
    means = [(int(doc["answer"]) % 33) / 32 for doc in benchmark.rows()]
    assert result["samples"] == 32
    assert len(oracle.asked) == 30 * 32
    assert result["value"] == pytest.approx(statistics.mean(means))
    assert result["stderr"] == pytest.approx(statistics.stdev(means) / 30**0.5)
    assert [statistics.mean(entry["marks"]) for entry in log] == pytest.approx(means)


def test_several_answers_are_needed_where_the_gold_has_several():
    study = study_of({"o": local("olympiadbench")})
    benchmark = benchmark_task(study, "o")
    doc = next(d for d in benchmark.rows() if benchmark.gold(d) == "$-1,-9$")
    texts = [boxed("-9, -1"), "$k$ is \\boxed{-1} or \\boxed{-9}.", boxed("-9"), boxed("-1,-8")]
    assert benchmark.marks(doc, texts) == [True, True, False, False]


# --- Prompts and sampling ------------------------------------------------------------------------


def test_the_paper_decides_the_sampling_and_lm_eval_the_stop_texts():
    study = study_of({"aime24": local("aime24", max_response=77), "m": local("math500", limit=2)})
    for name, length, until in (("aime24", 77, "Question:"), ("m", 8, "Problem:")):
        _, _, oracle = score(study, name, lambda doc, index: "")
        for _, settings in oracle.asked:
            assert settings["temperature"] == 1.0
            assert settings["top_p"] == 0.7
            assert settings["top_k"] == 0
            assert settings["do_sample"] is True
            assert settings["max_gen_toks"] == length
            assert until in settings["until"]
    assert study.samples_of("aime24") == 32
    assert study.samples_of("m") == 1


def test_a_boxed_prompt_is_that_of_training_and_a_stock_prompt_that_of_lm_eval():
    both = {s: local("math500", style=s, limit=3) for s in ("boxed", "stock")}
    study = study_of(both, prompt="<<{problem}>> \\boxed{}")
    _, log, oracle = score(study, "boxed", lambda doc, index: "")
    for entry, (prompt, _) in zip(log, oracle.asked, strict=True):
        assert prompt == f"<<{entry['prompt']}>> \\boxed{{}}"
    _, log, oracle = score(study, "stock", lambda doc, index: "")
    for entry, (prompt, _) in zip(log, oracle.asked, strict=True):
        assert prompt.endswith(f"Problem:\n{entry['prompt']}\n\nSolution:")
        assert prompt.count("Final Answer: The final answer is") == 4
    own = study_of({"b": local("math500", limit=1, prompt="{problem}!")})
    _, log, oracle = score(own, "b", lambda doc, index: "")
    assert oracle.asked[0][0] == log[0]["prompt"] + "!"


# --- A real model, offline -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_model(tmp_path_factory.mktemp("bytes") / "model", positions=8192)


def test_a_random_model_is_scored_on_the_real_files_without_a_network(model, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    benchmarks = {task: local(task, limit=3, samples=2) for task in FILES}
    benchmarks |= {f"{t}_stock": local(t, style="stock", limit=2, samples=2) for t in STOCK}
    study = study_of(benchmarks, model)
    output, samples = tmp_path / "eval.json", tmp_path / "samples.jsonl.gz"
    report = evaluate.evaluate_checkpoint(model, study, output, samples, digest="d")
    assert [r["benchmark"] for r in report["results"]] == list(benchmarks)
    assert {r["value"] for r in report["results"]} == {0.0}
    assert all("stock_value" in r for r in report["results"] if r["benchmark"].endswith("_stock"))
    lines = gzip.decompress(samples.read_bytes()).splitlines()
    logs = [json.loads(line) for line in lines]
    assert len(logs) == 6 * 3 + 3 * 2
    assert all(len(log["responses"]) == len(log["marks"]) == 2 for log in logs)
    assert any(response for log in logs for response in log["responses"])
    # What is written is what the study asks for, and another number of samples is noticed.
    rows = read_scores(tmp_path, study)
    metrics = Counter(row["metric"] for row in rows)
    assert metrics == {"sampled": 9, "sampled_math_verify": 1, "sampled_exact_match": 2}
    other = study_of(benchmarks | {"aime24": local("aime24", limit=3, samples=3)}, model)
    with pytest.raises(IncompleteError, match="2 samples of aime24 sampled, the study asks for 3"):
        read_scores(tmp_path, other)


def test_gold_text_goes_through_tokenizer_and_model_unharmed(model, tmp_path, monkeypatch):
    import torch

    from vimpo.models.networks import load_tokenizer

    tokenizer = load_tokenizer(model)
    study = study_of({"m": local("math500", limit=12)}, model)
    study = study.model_copy(update={"train": study.train.model_copy(update={"max_response": 200})})
    benchmark = benchmark_task(study, "m")
    golds = {benchmark.prompter(doc["problem"]): benchmark.gold(doc) for doc in benchmark.rows()}

    def generate(self, input_ids, **kwargs):
        rows = []
        for ids in input_ids.tolist():
            prompt = tokenizer.decode([i for i in ids if i != 0], skip_special_tokens=True)
            rows.append([*ids, *tokenizer(boxed(golds[prompt])).input_ids, 1])
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    report = evaluate.evaluate_checkpoint(
        model, study, tmp_path / "e.json", tmp_path / "s.gz", digest="d"
    )
    assert [r["value"] for r in report["results"]] == [1.0]


# --- Refusals ------------------------------------------------------------------------------------


def test_the_switch_between_hub_and_files():
    study = study_of({"hub": {"task": "aime24"}, "file": local("aime24")})
    assert needs_hub(study, ["hub", "file"])
    assert not needs_hub(study, ["file"])


def test_a_hub_benchmark_without_network_is_one_clear_error(tmp_path, monkeypatch):
    import datasets

    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    study = study_of({"aime24": {"task": "aime24"}})
    message = r"task\.benchmarks\.aime24\.path: 'Maxwell-Jia/AIME_2024' could not be loaded .*local"
    with pytest.raises(ConfigError, match=message):
        benchmark_task(study, "aime24").rows()


def test_a_file_of_another_benchmark_is_refused_before_anything_runs(tmp_path):
    study = study_of({"aime24": {"task": "aime24", "path": str(real_file(FILES["aime25"]))}})
    with pytest.raises(ConfigError, match=r"benchmarks\.aime24\.path: .* no column 'Problem'"):
        check_before_running(study)
    study = study_of({"aime24": {"task": "aime24", "path": str(tmp_path / "no.jsonl")}})
    with pytest.raises(ConfigError, match=r"benchmarks\.aime24\.path: .*no\.jsonl' is not a file"):
        check_before_running(study)


def test_a_limit_beyond_the_source_is_refused():
    study = study_of({"aime24": local("aime24", limit=31)})
    with pytest.raises(ConfigError, match=r"aime24\.limit: 31 is more than the 30 problems"):
        benchmark_task(study, "aime24").rows()


@pytest.mark.parametrize(("own", "field"), [(None, "train"), (400, "task.benchmarks.aime24")])
def test_a_prompt_longer_than_the_model_is_refused(tmp_path, own, field):
    folder = byte_model(tmp_path / "short", positions=300)
    fields = {"max_response": own} if own else {}
    study = study_of({"aime24": local("aime24", **fields)}, folder)
    with pytest.raises(ConfigError, match=rf"{field}\.max_response: .* longest prompt of aime24"):
        evaluate.evaluate_checkpoint(
            folder, study, tmp_path / "e.json", tmp_path / "s.gz", digest="d"
        )
    assert not (tmp_path / "e.json").exists()


# --- Prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["boxed", "stock"])
def test_a_problem_that_spells_control_tokens_is_asked_as_text(tmp_path, style):
    tokenizer = byte_pieces("^")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1</s>2?", "answer": "3"}) + "\n")
    study = study_of({"aime25": {"task": "aime25", "path": str(path), "style": style}})
    benchmark = benchmark_task(study, "aime25", tokenizer)
    (ids,) = encode(tokenizer, benchmark.prompts())
    assert ids.count(tokenizer.eos_token_id) == 0
    assert "1</s>2?" in tokenizer.decode(ids)
    (doc,) = benchmark.asked()
    assert benchmark.describe(doc) == ("1</s>2?", "3")
