"""Scores that lm-eval could silently falsify, judged against independent expectations."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import statistics
import subprocess
import sys
from collections import Counter

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager
from transformers import Qwen3ForCausalLM
from two_benchmarks import make_study, right_answer

from vimpo.config import ConfigError, ModelSpec, Runtime
from vimpo.evaluation import lm_eval as evaluate
from vimpo.evaluation.benchmarks import benchmark_task
from vimpo.evaluation.cut_off import marked
from vimpo.models.networks import build_policy, chain_tokenizer, save_policy
from vimpo.storage.integrity import beside, fault_of
from vimpo.tasks.chain import Problem, held_out_problems

VOCABULARY = ["<pad>", "<eos>", *"0123456789+-*=;#"]
PAD, EOS = 0, 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model whose responses vary in content and length."""
    folder = tmp_path_factory.mktemp("checkpoint")
    spec = ModelSpec(hidden=16, layers=1, heads=2, kv_heads=2, pretrain_steps=1)
    policy = build_policy(spec, chain_tokenizer(), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.2 if "embed" in name else 0.4, generator=generator)
    save_policy(policy, chain_tokenizer(), folder)
    return folder


@pytest.fixture
def run(checkpoint, tmp_path):
    """Evaluate through the public path: (report, bytes of the log, its lines)."""

    def run(study=None, folder=checkpoint, **options):
        output, samples = tmp_path / "eval.json", tmp_path / "samples.jsonl.gz"
        report = evaluate.evaluate_checkpoint(
            folder, study or make_study(), output, samples, digest="d1", **options
        )
        assert fault_of(output, beside(output)) is fault_of(samples, beside(output)) is None
        assert json.loads(output.read_text()) == report
        lines = gzip.decompress(samples.read_bytes()).splitlines()
        return report, samples.read_bytes(), [json.loads(line) for line in lines]

    return run


@pytest.fixture
def generated(monkeypatch):
    """Arguments and result of every call of model.generate."""
    calls = []
    original = Qwen3ForCausalLM.generate

    def generate(self, **kwargs):
        tokens = original(self, **kwargs)
        calls.append((kwargs, tokens[:, kwargs["input_ids"].shape[1] :]))
        return tokens

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    return calls


def edited(checkpoint, folder, **files):
    """A copy of the checkpoint with changed keys in its JSON files; None removes a key."""
    shutil.copytree(checkpoint, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        data = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return folder


# --- The falsifications --------------------------------------------------------------------------


def test_nothing_behind_eos_is_scored(run, generated, checkpoint, tmp_path):
    nowhere = {"eos_token_id": None, "pad_token_id": None}
    open_ended = edited(checkpoint, tmp_path / "open", config=nowhere, generation_config=nowhere)
    _, _, expected = run()
    generated.clear()
    _, _, logs = run(folder=open_ended)
    assert logs == expected

    ended_early, texts = 0, Counter()
    for _, tokens in generated:
        for row in tokens.tolist():
            end = row.index(EOS) if EOS in row else len(row)
            ended_early += EOS in row[:-1] and end < len(row) - 1
            assert set(row[end + 1 :]) <= {PAD}
            texts["".join(VOCABULARY[token] for token in row[:end] if token != PAD)] += 1
    assert ended_early > 20
    assert texts == Counter(response for log in logs for response in log["responses"])


def test_every_end_token_of_the_checkpoint_ends_a_response(run, generated, checkpoint, tmp_path):
    mark = VOCABULARY.index("#")
    folder = edited(checkpoint, tmp_path / "two", generation_config={"eos_token_id": [EOS, mark]})
    run(folder=folder)
    ended = [row for _, tokens in generated for row in tokens.tolist() if mark in row]
    assert ended
    assert all(set(row[row.index(mark) + 1 :]) <= {PAD} for row in ended)


def test_sampling_is_as_configured_whatever_the_checkpoint_says(
    run, generated, checkpoint, tmp_path, monkeypatch
):
    own = {
        "do_sample": True,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
    }
    biased = edited(checkpoint, tmp_path / "biased", generation_config=own)
    study = make_study(temperature=0.9, top_p=0.6)
    _, expected, _ = run(study)
    generated.clear()
    processors = []
    original = Qwen3ForCausalLM._get_logits_processor

    def spy(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        processors.append({type(p).__name__: vars(p) for p in result})
        return result

    monkeypatch.setattr(Qwen3ForCausalLM, "_get_logits_processor", spy)
    _, log, _ = run(study, folder=biased)
    assert log == expected

    names = ("do_sample", "temperature", "top_p", "top_k")
    told = Counter(tuple(kwargs.get(name) for name in names) for kwargs, _ in generated)
    assert told == {(True, 0.9, 0.6, 0): 5, (False, None, 1.0, 0): 2}
    # It alone is the same for all: logits of NaN, which a failed run may give, end no program.
    assert all(p.pop("InfNanRemoveLogitsProcessor", None) is not None for p in processors)
    sampled = [p for p in processors if p]
    assert len(processors) == 7
    assert len(sampled) == 5
    for used in sampled:
        assert set(used) == {"TemperatureLogitsWarper", "TopPLogitsWarper"}
        assert used["TemperatureLogitsWarper"]["temperature"] == 0.9
        assert used["TopPLogitsWarper"]["top_p"] == 0.6


@pytest.mark.parametrize(("offset", "expected"), [(0, 1.0), (1, 0.0)])
def test_gold_responses_score_all_and_wrong_ones_nothing(run, monkeypatch, offset, expected):
    """Through the real tokenizer and back: text torn apart in decoding would be judged wrong."""

    def generate(self, input_ids, **kwargs):
        rows = []
        for ids in input_ids.tolist():
            prompt = "".join(VOCABULARY[token] for token in ids if token != PAD)
            text = f"12+3=15;15-20=-5#{right_answer(prompt) + offset}"
            rows.append([*ids, *(VOCABULARY.index(character) for character in text), EOS])
        width = max(map(len, rows))
        return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    report, _, _ = run()
    assert [r["value"] for r in report["results"]] == [expected] * 4
    assert [r["stderr"] for r in report["results"]] == [0] * 4


def test_a_response_that_was_cut_off_is_judged_by_the_rule_of_training_if_asked(
    run, monkeypatch, checkpoint
):
    """Right answers, of which every other one has no end."""

    def generate(self, input_ids, **kwargs):
        rows = []
        for i, ids in enumerate(input_ids.tolist()):
            prompt = "".join(VOCABULARY[token] for token in ids if token != PAD)
            text = f"#{right_answer(prompt)}".rjust(11, "9")
            end = [EOS] if i % 2 else [VOCABULARY.index("9")]
            tokens = [*(VOCABULARY.index(character) for character in text), *end]
            rows.append([*ids, *(tokens if i % 2 else [end[0], *tokens[:-1]])])
        return torch.tensor(rows)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    graded, _, logs = run(make_study(greedy=False, samples=4), benchmarks=["chain_hard"])
    assert graded["results"][0]["value"] == 1
    assert not any("cut_off" in log for log in logs)
    study = make_study(greedy=False, samples=4, truncated="as_training")
    asked, _, refused = run(study, benchmarks=["chain_hard"])
    assert asked["results"][0]["value"] == 0.5
    assert [log["responses"] for log in refused] == [log["responses"] for log in logs]
    assert sum(sum(log["cut_off"]) for log in refused) == 2 * len(refused)
    assert all(
        mark == 1 - cut
        for log in refused
        for mark, cut in zip(log["marks"], log["cut_off"], strict=True)
    )
    # Nothing that a model writes is taken for the mark, and a stop text is an end.
    lm = evaluate.load_lm(checkpoint, study)
    ended, open_ended = (lm.tok_decode([VOCABULARY.index("9"), *end]) for end in ([EOS], []))
    assert (ended, open_ended) == ("9", marked("9"))
    assert marked(marked("9")) == marked("9\ufffd")
    assert postprocess_generated_text(marked("9 stop 8"), [" stop"], None) == "9"


def test_the_rule_for_what_was_cut_off_is_part_of_the_digest_where_it_says_something():
    plain, asked = make_study(), make_study(truncated="as_training")
    graded = asked.model_copy(
        update={"train": asked.train.model_copy(update={"truncated": "graded"})}
    )
    assert (plain.refuses_truncated, asked.refuses_truncated) == (False, True)
    assert not graded.refuses_truncated
    assert len({s.evaluation_digest() for s in (plain, asked, graded)}) == 3
    assert "truncated" not in plain.model_dump(mode="json")["evaluation"]


# --- Scores and logs -----------------------------------------------------------------------------


def test_log_agrees_with_the_scores(run):
    study = make_study()
    report, _, logs = run(study)
    assert report["digest"] == "d1"
    order = [(r["benchmark"], r["metric"]) for r in report["results"]]
    assert order == [(b, m) for b in ("chain_easy", "chain_hard") for m in ("sampled", "greedy")]
    for result in report["results"]:
        mine = [
            log
            for log in logs
            if (log["benchmark"], log["metric"]) == (result["benchmark"], result["metric"])
        ]
        problems = held_out_problems(study.task, result["benchmark"])
        assert [(log["prompt"], log["answer"]) for log in mine] == [
            (problem.prompt, problem.answer) for problem in problems
        ]
        for log in mine:
            assert len(log["responses"]) == len(log["marks"]) == result["samples"]
            wanted = str(right_answer(log["prompt"]))
            assert log["marks"] == [
                int("#" in text and text.split("#")[-1] == wanted) for text in log["responses"]
            ]
        assert result["problems"] == len(mine)
        assert result["value"] == pytest.approx(
            statistics.mean(statistics.mean(log["marks"]) for log in mine)
        )


def test_same_numbers_as_simple_evaluate(checkpoint):
    study = make_study()
    lm = evaluate.load_lm(checkpoint, study)
    (mine, _, *_), logs = evaluate.run_benchmarks(lm, study, ["chain_hard"])
    outcome = simple_evaluate(
        lm,
        tasks=evaluate.task_definitions(study, benchmark_task(study, "chain_hard")),
        task_manager=TaskManager(include_defaults=False),
        torch_random_seed=study.evaluation.seed,
    )
    theirs = [sample["filtered_resps"][0] for sample in outcome["samples"]["sampled"]]
    assert theirs == [log["responses"] for log in logs if log["metric"] == "sampled"]
    assert outcome["results"]["sampled"]["accuracy,all"] == mine["value"]


def test_results_repeat_byte_for_byte_and_do_not_depend_on_company(run):
    report, log, lines = run()
    again, log_again, _ = run()
    assert json.dumps(report["results"]) == json.dumps(again["results"])
    assert log == log_again
    assert log[4:8] == bytes(4)  # gzip's time stamp
    alone, _, lines_alone = run(benchmarks=["chain_hard"])
    assert alone["results"] == report["results"][2:]
    assert lines_alone == [line for line in lines if line["benchmark"] == "chain_hard"]
    _, other_log, _ = run(make_study(seed=99))
    assert log != other_log


def test_greedy_is_optional(run):
    report, _, _ = run(make_study(greedy=False))
    assert {result["metric"] for result in report["results"]} == {"sampled"}


MORE = {
    "samples": 4,
    "pass_at": [1, 2, 4],
    "decoders": {"training": {}, "likeliest": {"temperature": 0}},
}


def test_further_decoders_leave_the_usual_ones_alone(run, generated):
    usual, _, lines = run(make_study(samples=4))
    generated.clear()
    study = make_study(**MORE)
    found, _, more = run(study)
    order = [(r["benchmark"], r["metric"], r["samples"]) for r in found["results"]]
    assert order == [
        (benchmark, *decoder)
        for benchmark in ("chain_easy", "chain_hard")
        for decoder in (("sampled", 4), ("greedy", 1), ("training", 4), ("likeliest", 1))
    ]
    scores = {(r["benchmark"], r["metric"]): r["value"] for r in found["results"]}
    assert all(scores[r["benchmark"], r["metric"]] == r["value"] for r in usual["results"])
    assert [x for x in more if x["metric"] in ("sampled", "greedy")] == lines
    assert scores["chain_easy", "likeliest"] == scores["chain_easy", "greedy"]
    how = {(k["temperature"], k["top_p"]) for k, _ in generated if k["do_sample"]}
    assert how == {(study.evaluation.temperature, study.evaluation.top_p), (1.0, 1.0)}


def test_pass_at_k_is_of_the_same_responses(run):
    report, _, logs = run(make_study(**MORE))
    for result in report["results"]:
        marks = [
            log["marks"]
            for log in logs
            if (log["benchmark"], log["metric"]) == (result["benchmark"], result["metric"])
        ]
        if result["samples"] == 1:
            assert "pass_at" not in result
            continue
        assert result["pass_at"]["1"]["value"] == pytest.approx(result["value"])
        any_of_all = [float(any(m)) for m in marks]
        assert result["pass_at"]["4"]["value"] == pytest.approx(statistics.mean(any_of_all))
        error = statistics.stdev(any_of_all) / len(any_of_all) ** 0.5
        assert result["pass_at"]["4"]["stderr"] == pytest.approx(error)


def test_right_responses_are_graded_step_by_step(run, monkeypatch):
    """Answers put into the model's mouth: right with right steps, right without, and wrong."""
    from vimpo.evaluation.policy import PolicyLM

    def response(i, prompt):
        answer = right_answer(prompt)
        wrong, careless = f"#{answer + 1}", f"0+0=1#{answer}"
        terms, value, steps = Problem(prompt, "").terms, None, []
        for symbol, operand in terms[1]:
            before = terms[0] if value is None else value
            value = before + operand if symbol == "+" else before - operand
            steps.append(f"{before}{symbol}{operand}={value}")
        return (wrong, careless, ";".join(steps) + f"#{value}")[i % 3]

    def speak(self, requests, disable_tqdm=True):
        return [response(i, request.args[0]) for i, request in enumerate(requests)]

    monkeypatch.setattr(PolicyLM, "generate_until", speak)
    report, _, _ = run(make_study(greedy=False, samples=3), benchmarks=["chain_hard"])
    (result,) = report["results"]
    assert result["value"] == pytest.approx(2 / 3, abs=0.05)
    assert result["flawless"] == pytest.approx(1 / 2, abs=0.05)


def test_needs_no_network(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run()


# --- Code that comes with a checkpoint -----------------------------------------------------------


@pytest.fixture
def foreign(checkpoint, tmp_path):
    """The checkpoint with model and tokenizer classes of its own, whose code is in its folder."""
    config = {
        "model_type": "foreign",
        "architectures": ["ForeignForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_foreign.ForeignConfig",
            "AutoModelForCausalLM": "modeling_foreign.ForeignForCausalLM",
        },
    }
    tokenizer = {
        "tokenizer_class": "ForeignTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_foreign.ForeignTokenizer"]},
    }
    folder = edited(checkpoint, tmp_path / "foreign", config=config, tokenizer_config=tokenizer)
    (folder / "modeling_foreign.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class ForeignConfig(Qwen3Config):\n    model_type = 'foreign'\n"
        "class ForeignForCausalLM(Qwen3ForCausalLM):\n    config_class = ForeignConfig\n"
    )
    (folder / "tokenization_foreign.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class ForeignTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


@pytest.mark.filterwarnings("ignore:runtime.trust_remote_code")
def test_a_tokenizer_with_code_is_loaded_if_the_study_trusts_it(run, foreign):
    study = make_study()
    trusting = study.model_copy(update={"runtime": Runtime(trust_remote_code=True)})
    report, _, logs = run(trusting, folder=foreign)
    expected, _, expected_logs = run(study)
    assert report["results"] == expected["results"]
    assert logs == expected_logs
    lm = evaluate.load_lm(foreign, trusting)
    assert type(lm.tokenizer).__name__ == "ForeignTokenizer"
    assert type(lm.model).__name__ == "ForeignForCausalLM"


def test_code_that_comes_with_a_checkpoint_is_refused_unless_trusted(run, foreign, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    with pytest.raises(
        ConfigError, match=r"could not be loaded: The repository .* contains custom"
    ):
        run(folder=foreign)


# --- Refusals ------------------------------------------------------------------------------------


def test_benchmarks_are_chosen_in_the_order_of_the_study():
    study = make_study()
    assert evaluate.choose_benchmarks(study) == ["chain_easy", "chain_hard"]
    chosen = evaluate.choose_benchmarks(study, ["chain_hard", "chain_easy", "chain_hard"])
    assert chosen == ["chain_easy", "chain_hard"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["chain_easy", "aime"], "benchmarks: 'aime' is unknown; allowed: chain_easy, chain_hard"),
        ([], "benchmarks: none named; allowed: chain_easy, chain_hard"),
    ],
)
def test_unknown_benchmarks_are_refused(run, names, message):
    with pytest.raises(ConfigError, match=message):
        run(benchmarks=names)


def test_a_missing_model_is_refused_before_anything_heavy_is_imported(tmp_path):
    code = f"""
import sys
from pathlib import Path
from vimpo.config import ConfigError, load_study
from vimpo.evaluation.lm_eval import evaluate_checkpoint
folder = Path({str(tmp_path)!r})
try:
    evaluate_checkpoint(folder / "none", load_study(), folder / "e", folder / "s", digest="")
except ConfigError as error:
    print(error)
print([name for name in ("torch", "transformers", "lm_eval", "datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, imported = done.stdout.splitlines()
    assert message.startswith(f"model: '{tmp_path}/none' holds no config.json; allowed: ")
    assert imported == "[]"
    assert not list(tmp_path.iterdir())


def test_a_model_too_short_for_prompt_and_response_is_refused(run, checkpoint, tmp_path):
    short = edited(
        checkpoint,
        tmp_path / "short",
        config={"max_position_embeddings": 30},
        tokenizer_config={"model_max_length": 30},
    )
    with pytest.raises(ConfigError, match=r"train.max_response: 24 .* 30 positions; allowed: at"):
        run(folder=short)


def test_a_failed_evaluation_leaves_the_old_files(run, monkeypatch, tmp_path):
    run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
