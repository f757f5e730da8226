r"""A study of real problems from base policy to report; the model is right now and then."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from real_data import real_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from vimpo.cli import main
from vimpo.config import Cell, load_study
from vimpo.probes import NO_ORACLE
from vimpo.probes.subject import Subject
from vimpo.storage.codes import Reason

ROOT = Path(__file__).parents[1]
WORDS = ["<pad>", "<eos>", "<unk>", "What", "plus", "is", "\\boxed{2}", "\\boxed{3}"]
PROBLEMS = [{"problem": f"What is {n} plus {2 - n}?", "answer": "2"} for n in range(8)]
PROBLEMS += [{"problem": f"What is {n} plus {3 - n}?", "answer": "3"} for n in range(4)]


def word_model(folder):
    """Save a random Qwen3 over eight words, two of which are answers; returns its folder."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "head_dim": 8, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 48}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = Qwen3Config(vocab_size=len(WORDS), initializer_range=0.2, **shape, **ends)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_study(folder, **sections):
    """A dataset study of two algorithms on the word model; its YAML file."""
    held_out = [{"problem": "What is 1 plus 2?", "answer": "3"}] * 2
    aime = {"task": "aime25", "path": lines(folder / "held_out.jsonl", held_out), "samples": 2}
    study = {
        "study": "real",
        "results": str(folder / "results"),
        "task": {
            "kind": "dataset",
            "datasets": [{"path": lines(folder / "problems.jsonl", PROBLEMS)}],
            "prompt": "{problem} \\boxed{}",
            "max_prompt": 16,
            "verifier": {"workers": 1},
            "benchmarks": {"aime25": aime},
        },
        "sizes": {"words": {"path": str(word_model(folder / "model")), "learning_rate": 0.02}},
        "train": {"steps": 2, "prompts_per_step": 4, "group_size": 4, "max_response": 12}
        | {"warmup_steps": 0, "micro_batch": 8},
        "evaluation": {"samples": 2, "batch_size": 30},
        "probes": {"problems": 10, "positions": [0.5], "continuations": 16}
        | {"baseline_continuations": 16, "credit_rollouts": 40},
        "statistics": {"resamples": 100},
        "grid": {"algorithms": ["vimpo", "ppo"], "sizes": ["words"], "noise": [0], "seeds": [1]},
        "runtime": {"logit_chunk": 8},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | sections))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study's file after the commands of the rules, in their order, but for `cost`."""
    path = write_study(tmp_path_factory.mktemp("study"))

    def run(command, *arguments):
        assert main([command, "--config", str(path), *arguments]) == 0, command

    run("pretrain", "--size=words", "--quiet")
    run("evaluate", "--size=words", "--base")
    for algorithm in ("vimpo", "ppo"):
        cell = (f"--algorithm={algorithm}", "--size=words")
        run("train", *cell, "--quiet")
        run("evaluate", *cell)
        run("probe", *cell)
    for command in ("aggregate", "plot", "report"):
        run(command)
    return path


def probes_of(path, algorithm):
    """probes.parquet as a frame with an index of its labels."""
    study = load_study(path)
    file = study.run_folder(Cell(algorithm, "words", "0", 1)) / "probes.parquet"
    labels = ["probe", "predictor", "target", "position", "metric"]
    return pq.read_table(file).to_pandas().set_index(labels).sort_index()


@pytest.mark.parametrize("algorithm", ["vimpo", "ppo"])
def test_every_probe_but_credit_has_numbers(finished, algorithm):
    rows = probes_of(finished, algorithm)
    assert (rows["value"].map(math.isfinite) == (rows["reason"] == "")).all()
    truth = rows.loc[("value", "truth", "value", "all")]["value"]
    assert 0.1 < truth["mean"] < 0.7  # some answers are right, some are not
    accuracy = rows.loc[("credit", "policy", "step", "all", "accuracy")]
    assert 0.1 < accuracy["value"] < 0.7
    assert accuracy["n"] == 40  # twelve problems, used several times
    predictors = {"implied", "group_mean"} | ({"critic"} if algorithm == "ppo" else set())
    for predictor in predictors:
        assert math.isfinite(rows.loc[("value", predictor, "value", "all", "mse"), "value"])
    mean = rows.loc[("consistency", "policy", "td", "all", "mean"), "value"]
    rms = rows.loc[("consistency", "policy", "td", "all", "rms"), "value"]
    assert abs(mean) < 0.5 * rms
    assert rows.loc[("consistency", "policy", "terminal", "all", "target_rms"), "value"] > 0.1
    drift = rows.loc["precision"].xs("rms_drift", level="metric")["value"]
    low, high = (drift[name, "log_ratio", "all"] for name in ("float32", "bfloat16"))
    assert 0 < 100 * low < high


def test_credit_without_an_oracle_says_so(finished):
    for algorithm, count in (("vimpo", 4), ("ppo", 6)):
        credit = probes_of(finished, algorithm).loc["credit"].drop("accuracy", level="metric")
        assert set(credit["reason"]) == {NO_ORACLE.text}
        assert len(credit) == 3 * count + 1


def test_the_report_renders_and_c6_is_not_applicable(finished):
    folder = load_study(finished).folder
    missing = pd.read_csv(folder / "tables/missing.csv")
    assert missing[["cell", "stage"]].values.tolist() == [["cost/words", "cost"]]
    tests = pd.read_csv(folder / "tables/claims.csv").query("kind == 'test'").set_index("claim")
    claims = tests.loc["C6"]
    assert set(claims.verdict) == {"not applicable"}
    assert set(claims.reason_code) == {Reason.NO_ORACLE}
    assert set(claims.reason) == {NO_ORACLE.text}
    assert claims[["effect", "p", "p_holm", "needed_per_size"]].isna().all(axis=None)
    assert "not applicable" not in set(tests.drop("C6").verdict)
    report = (folder / "report.md").read_text()
    question = "Does its credit find the step that went wrong?"
    assert f"{question} Not applicable.** Not applicable: {NO_ORACLE.text}." in report
    assert f"Holm-corrected over all {len(tests) - len(claims)} tests." in report
    assert "1 is not applicable. The thresholds" in report
    assert "Credit cannot be judged, because no oracle grades the steps" in report
    assert "against double precision. The last column" in report
    assert (folder / "figures/credit.svg").stat().st_size > 1000
    assert "data:image/svg" in (folder / "report.html").read_text()


def test_only_a_tasks_own_problems_are_drawn_and_prompts_are_those_of_training(finished):
    study = load_study(finished)
    subject = Subject.load(study, Cell("vimpo", "words", "0", 1))
    problems = subject.problems(10, 0)
    assert len({p.id for p in problems}) == 10
    assert [p.id for p in problems] == [p.id for p in subject.problems(10, 0)]
    assert [p.id for p in problems] != [p.id for p in subject.problems(10, 1)]
    assert {p.prompt for p in problems} < {row["problem"] + " \\boxed{}" for row in PROBLEMS}
    right = [WORDS.index(f"\\boxed{{{problems[0].answer}}}"), subject.tokenizer.eos_token_id]
    rewards = subject.rewards([problems[0]] * 3, [right, [5, 1], right], [True, True, False])
    assert rewards == [1.0, 0.0, 0.0]  # cut off before its end
    assert (subject.sample_rows, subject.read_rows, subject.chunk) == (30, 8, 8)


def test_probes_refuse_prompts_without_room_as_training_does(finished, capsys):
    study = yaml.safe_load(finished.read_text())
    study["task"]["max_prompt"] = 40
    arguments = ["--algorithm=vimpo", "--size=words"]
    changed = finished.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(study | {"study": "other"}))
    source, target = (load_study(f).folder for f in (finished, changed))
    target.symlink_to(source)
    assert main(["probe", "--config", str(changed), *arguments]) == 2
    assert "task.max_prompt: 40 leaves no room for train.max_response" in capsys.readouterr().err


@pytest.mark.slow
def test_the_workflow_runs_to_its_report(tmp_path):
    """Snakemake on a study of MATH-500 and AIME problems; its cost is measured too."""
    math500 = {"task": "math500", "path": str(real_file("math500_test.jsonl")), "limit": 2}
    path = write_study(tmp_path)
    study = yaml.safe_load(path.read_text())
    study["task"]["benchmarks"]["math500"] = math500 | {"prompt": "\\boxed{} {problem}"}
    columns = {"problem": "Problem", "answer": "Answer"}
    study["task"]["datasets"].append({"path": str(real_file("aime24_test.jsonl"))} | columns)
    study["task"]["max_prompt"] = 30
    path.write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", str(path)]
    command += ["--nolock", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "results/real"
    assert pd.read_csv(folder / "tables/missing.csv").empty
    cost = pd.read_csv(folder / "tables/measured_cost.csv")
    assert set(cost["algorithm"]) == {"vimpo", "ppo"}
    assert NO_ORACLE.text in (folder / "report.md").read_text()
