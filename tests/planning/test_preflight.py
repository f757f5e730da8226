r"""Bad input is one clear error before anything is computed: of `train`, `check` and Snakemake."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import snakes
import torch
import yaml
from real_data import byte_model, byte_tokenizer
from tokenizers_of_kinds import CHAT, DROPPING_CHAT, byte_pieces, save_model, unigram

from vimpo.cli import main
from vimpo.config import ConfigError, Probes, dump_yaml, load_study
from vimpo.planning.preflight import check_before_jobs, check_before_running, check_inputs
from vimpo.planning.sampled import Sampled, sample_bases
from vimpo.planning.shown import shared_problems, unwritten
from vimpo.tasks.sources import read_rows

ROOT = Path(__file__).parents[2]
ROWS = [{"problem": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(1, 21)]
PROSE = "Cut it along its midline and turn one half."
AIME = [{"problem": "What is 5 times 5?", "answer": "025"}]
OFFLINE = "with network or a filled cache"
# What is wrong -> the error in words: field, value, what to change. See `study_file`.
FAULTS = {
    "missing column": r"task\.datasets\[0\]\.answer: '.*' has no column 'gold'; allowed: problem,",
    "missing column in one row": r"task\.datasets\[0\]\.answer: '.*' has no column 'answer'; allow",
    "empty dataset": r"task\.datasets\[0\]\.path: '.*' holds no rows; allowed: a dataset with prob",
    "gold": r"task\.datasets: 1 gold answers cannot be read .* such as 'Cut it along .*; allowed",
    "no pad token": r"sizes\.bytes\.path: the tokenizer of '.*' has no pad_token; one must be set",
    "no EOS token": r"sizes\.bytes\.path: the tokenizer of '.*' has no eos_token; one must be set",
    "long prompts": r"task\.max_prompt: .* of 20 prompts are longer than 18 tokens, .*; allowed: a",
    "hub dataset": rf"datasets\[0\]\.path: 'nobody/nothing' could not be loaded .*{OFFLINE}",
    "hub model": rf"sizes\.bytes\.path: 'nobody/nothing' could not be loaded: .*{OFFLINE}",
    "hub benchmark": rf"task\.benchmarks\.aime\.path: '.*' could not be loaded .*{OFFLINE}",
    "long benchmark": r"train\.max_response: 1900 and the longest prompt of aime .*; allowed: at m",
}
LOCAL = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def study_file(folder, fault=None):
    """A study on files and a tiny model, with one fault."""
    special = {"no pad token": {"eos_token": "<eos>"}, "no EOS token": {"pad_token": "<pad>"}}
    model = byte_model(folder / "model", positions=2048, **special.get(fault, {}))
    rows = {
        "empty dataset": [],
        "gold": [*ROWS, {"problem": "Why?", "answer": PROSE}],
        "missing column in one row": [*ROWS, {"problem": "What?"}],
    }
    source = {"path": jsonl(folder / "train.jsonl", rows.get(fault, ROWS))}
    benchmark = {"task": "aime25", "path": jsonl(folder / "aime.jsonl", AIME), "samples": 1}
    task = {"kind": "dataset", "verifier": {"workers": 1}, "max_prompt": 120}
    train = {"steps": 2, "prompts_per_step": 3, "group_size": 2, "max_response": 6}
    if fault == "missing column":
        source["answer"] = "gold"
    if fault == "long prompts":
        task |= {"prompt": "{problem}", "max_prompt": 18, "long_prompts": "refuse"}
    if fault == "long benchmark":
        train["max_response"] = 1900
        benchmark["prompt"] = "{problem}" + "!" * 200
    if fault == "hub dataset":
        source["path"] = "nobody/nothing"
    if fault == "hub model":
        model = "nobody/nothing"
    if fault == "hub benchmark":
        del benchmark["path"]
    data = {
        "study": "real",
        "results": str(folder / "results"),
        "task": task | {"datasets": [source], "benchmarks": {"aime": benchmark}},
        "sizes": {"bytes": {"path": str(model)}},
        "train": train,
        "evaluation": {"greedy": False, "batch_size": 8},
        "probes": {"problems": 2, "continuations": 4, "baseline_continuations": 4},
        "grid": {"algorithms": ["grpo"], "sizes": ["bytes"], "noise": [0], "seeds": [1]},
    }
    if fault == "GPUs":
        data["runtime"] = {"device": "cuda", "processes": 3}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def errors(text):
    """Lines of errors, each once."""
    return list(dict.fromkeys(line for line in text.splitlines() if line.startswith("error: ")))


def computed(folder):
    """Whatever a base policy or a run would leave."""
    return [*folder.glob("results/real/base/*"), *folder.glob("results/real/runs/*")]


@pytest.mark.parametrize("command", ["train", "pretrain", "check"])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_error_before_any_compute(tmp_path, capsys, fault, command):
    arguments = {"train": ["--algorithm", "grpo", "--size", "bytes"], "pretrain": ["--size=bytes"]}
    file = study_file(tmp_path, fault)
    assert main([command, "--config", str(file), *arguments.get(command, [])]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert re.search(FAULTS[fault], line), line
    assert not computed(tmp_path)


def configured(**changes):
    """Change a folder's config.json."""

    def write(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")

    return write


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def other_tokenizer(tokens, **special):
    """Give the model a tokenizer with more tokens."""

    def write(folder):
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens(special)
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(folder)

    return write


def cut(name, size):
    """Cut a file of a folder."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# What is wrong with a model -> what does it, and the error of `check`.
MODEL_FAULTS = {
    "no tokenizer": (
        without_tokenizer,
        r"'.*' holds no tokenizer, such as tokenizer\.json; allow",
    ),
    "cut tokenizer": (
        cut("tokenizer.json", 99),
        r"'.*' could not be loaded: .*; allowed: a folder",
    ),
    "EOS beyond the embedding": (
        other_tokenizer([], eos_token="<end>"),
        r"the tokenizer gives token '<end>' the id 258, and the model's embedding has 258 rows; al",
    ),
    "token of every prompt beyond it": (
        other_tokenizer(["What"]),
        r"the tokenizer gives token 'What' the id 258, and the model's embedding has 258 rows; all",
    ),
    "small embedding": (
        configured(vocab_size=200),
        r"the tokenizer gives token '.*' the id 257, and the model's embedding has 200 rows; allow",
    ),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_bytes(POINTER),
        r"'.*/model\.safetensors' is a git-lfs pointer, not the weights; allowed: the file itself",
    ),
    "cut weights": (
        cut("model.safetensors", -9),
        r"'.*' is cut off or damaged \(.*\); allowed: a w",
    ),
    "cut configuration": (
        cut("config.json", 9),
        r"'.*' could not be loaded: .*; allowed: a folder",
    ),
    "encoder-decoder": (
        configured(model_type="t5"),
        r"'.*' is an encoder-decoder \(model type t5\); allowed: a causal language model",
    ),
    "quantised": (
        configured(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"the weights of '.*' are quantised \(gptq\), and cannot be trained; allowed: the model in",
    ),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_model_that_cannot_be_trained_is_one_error_of_check(tmp_path, capsys, fault):
    file = study_file(tmp_path)
    damage, message = MODEL_FAULTS[fault]
    damage(tmp_path / "model")
    assert main(["check", "--config", str(file)]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert re.search(rf"^error: sizes\.bytes\.path: {message}", line), line


def test_tokens_beyond_the_embedding_that_nothing_leads_to_are_no_fault(tmp_path):
    # Such as those of images in the text model of a family.
    file = study_file(tmp_path)
    other_tokenizer(["<image>"])(tmp_path / "model")
    assert main(["check", "--config", str(file)]) == 0


def test_good_input_passes_and_a_finished_run_belongs_to_it(tmp_path, capsys):
    file = study_file(tmp_path)
    arguments = ["train", "--config", str(file), "--algorithm", "grpo", "--size", "bytes"]
    assert main(["check", "--config", str(file)]) == 0
    assert not computed(tmp_path)
    assert main([*arguments, "--quiet"]) == 0
    assert main(arguments) == 0
    assert not errors(capsys.readouterr().err)
    (tmp_path / "train.jsonl").write_text(json.dumps({"problem": "?", "answer": PROSE}))
    assert main(arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "was made by another configuration" in line


# --- What `check` shows --------------------------------------------------------------------------


def chat_study(folder, chat, row=None, ends=None, **task):
    """The study on a model with BOS and a chat template; row: one more of the training data."""
    file = study_file(folder)
    model = save_model(folder / "chat", byte_pieces("^", chat), **(ends or {}))
    rows = [*([row] if row else []), *ROWS]
    data = yaml.safe_load(file.read_text())
    data["task"] |= {"chat_template": True, "prompt": "{problem}"} | task
    data["task"]["datasets"][0]["path"] = jsonl(folder / "chats.jsonl", rows)
    data["sizes"]["bytes"]["path"] = str(model)
    file.write_text(yaml.safe_dump(data))
    return file


def test_check_shows_a_prompt_as_the_model_reads_it_and_the_ends(tmp_path, capsys):
    file = chat_study(tmp_path, CHAT, ends={"eos_token_id": [1, 4]}, system="Be\nbrief.")
    assert main(["check", "--config", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bytes: responses end at </s> (1), <|end|> (4)"
    assert re.fullmatch(r"bytes: a prompt of \d+ tokens:", lines[1])
    assert lines[2] == "  | <s><|system|>Be"
    assert re.fullmatch(
        r"  \| brief\.<\|end\|><\|user\|>What is \d+ plus \d+\?<\|end\|><\|assistant\|>", lines[3]
    )
    assert lines[4].startswith("Capacity: beta times mean surprisal")
    assert lines[-1] == "models, data and benchmarks of 'real' are available"


def test_check_shows_the_ends_of_a_model_that_trains_on_chains(tmp_path, capsys):
    file = study_file(tmp_path)
    data = yaml.safe_load(file.read_text())
    data["task"] = {"kind": "chain"}
    file.write_text(yaml.safe_dump(data))
    assert main(["check", "--config", str(file)]) == 0
    assert "bytes: responses end at <eos> (1)\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "train", "pretrain"])
def test_prompts_without_their_problem_are_refused(tmp_path, capsys, command):
    file = chat_study(tmp_path, DROPPING_CHAT)
    arguments = {"train": ["--algorithm", "grpo", "--size", "bytes"], "pretrain": ["--size=bytes"]}
    assert main([command, "--config", str(file), *arguments.get(command, [])]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "task.chat_template: the chat template of the model's tokenizer leaves out what" in line
    assert not computed(tmp_path)


def test_a_benchmarks_prompts_without_their_problem_are_refused(tmp_path):
    """Its template drops long contents: those of training are all there."""
    chat = CHAT.replace("{{ m['content'] }}", "{{ m['content'] if m['content'] | length < 40 }}")
    file = chat_study(tmp_path, chat)
    check_inputs(load_study(file))
    jsonl(tmp_path / "aime.jsonl", [{"problem": "How many are they? " * 9, "answer": "025"}])
    with pytest.raises(ConfigError, match=r"task\.chat_template: .* leaves out what the user says"):
        check_inputs(load_study(file))


def test_training_problems_of_a_benchmark_are_counted_in_a_warning(tmp_path, capsys, monkeypatch):
    same = {"problem": "what is  5 times 5?\n", "answer": "25"}
    file = chat_study(tmp_path, CHAT, same, {"eos_token_id": [1, 4]})
    warning = "warning: task.benchmarks.aime: 1 of its 1 problems are also training problems"
    warning += ", such as 'What is 5 times 5?'"
    assert main(["check", "--config", str(file)]) == 0
    assert capsys.readouterr().err.splitlines() == [warning]
    done = subprocess.CompletedProcess([], 0, stdout="", stderr=f"noise\n{warning}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    check_before_jobs(load_study(file), file)  # Snakemake passes it on
    assert capsys.readouterr().err.splitlines() == [warning]
    assert shared_problems(["a b", "c"], {"x": ["A  B", "d", "c"], "y": ["d"]}) == {
        "x": ["A  B", "c"]
    }


@pytest.mark.parametrize("ends", [None, {"eos_token_id": [1, 4]}])
def test_a_turn_that_ends_at_no_declared_end_is_warned_of(tmp_path, capsys, ends):
    file = chat_study(tmp_path, CHAT, ends=ends)
    assert main(["check", "--config", str(file)]) == 0
    warning = (
        "warning: sizes.bytes.path: the chat template ends a turn with <|end|> (4), which ends no "
        "response; if it should, name it in eos_token_id of the model's generation_config.json"
    )
    assert capsys.readouterr().err.splitlines() == ([] if ends else [warning])


def test_a_tokenizer_that_cannot_write_a_problem_is_warned_of(tmp_path, capsys):
    file = study_file(tmp_path)
    data = yaml.safe_load(file.read_text())
    data["sizes"]["bytes"]["path"] = str(save_model(tmp_path / "few", unigram()))
    data["task"] |= {"prompt": "{problem}"}
    file.write_text(yaml.safe_dump(data))
    assert main(["check", "--config", str(file)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: sizes.bytes.path: the tokenizer cannot write all of a problem")
    assert not unwritten(byte_pieces("^"), "²³ Ａ=é?", "²³ Ａ=é?")


# --- What `check --sample` says of base models ---------------------------------------------------


def test_check_takes_a_file_as_plan_does_and_samples_the_base_model(tmp_path, capsys):
    file = study_file(tmp_path)
    assert main(["check", str(file), "--sample", "10"]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith("bytes: '")]
    model = tmp_path / "model"
    assert re.fullmatch(
        rf"bytes: '{model}', 10 responses: 0 right \(0%\), 0 with an answer \(0%\), \d+ cut off "
        r"\(\d+%\); [\d.]+ tokens on average",
        line,
    )
    warned = "warning: sizes.bytes: the base model gets hardly any training problem right (0 of 10)"
    assert warned in err
    assert not computed(tmp_path)
    assert main(["check", str(file), "--sample", "0"]) == 2
    assert "sample: 0 is not allowed; allowed: 1 or more" in capsys.readouterr().err


def test_a_base_policy_is_sampled_once_it_is_there(tiny_study, capsys):
    study = tiny_study(train={"truncated": "graded"})
    sample_bases(study, 60, {}, print)
    found = capsys.readouterr()
    (line,) = found.out.splitlines()
    right, answered = map(
        int, re.search(r"60 responses: (\d+) right .*, (\d+) with", line).groups()
    )
    assert line.startswith("tiny: the base policy, 60 responses: ")
    assert 3 < right < answered <= 60
    assert not found.err
    shutil.rmtree(study.base_folder("tiny"))
    sample_bases(study, 60, {}, print)
    assert "tiny: no base policy to sample yet; `python -m" in capsys.readouterr().out
    assert not study.base_folder("tiny").exists()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            (100, 5, 90, 0),
            "gets hardly any training problem right (5 of 100): at this rate, all 8 ",
        ),
        (
            (100, 1, 20, 0),
            "in 92% of groups, and teach little; most hold no answer: see task.promp",
        ),
        (
            (100, 0, 80, 80),
            "in 100% of groups, and teach little; most are cut off: see train.max_r",
        ),
        ((100, 99, 100, 0), "gets nearly every training problem right (99 of 100): at this rate, "),
        ((100, 6, 20, 90), None),
        ((100, 94, 100, 0), None),
    ],
)
def test_a_base_that_groups_cannot_learn_from_is_warned_of(counts, said):
    warning = Sampled(*counts, length=3.0).warning(group_size=8)
    assert said in warning if said else warning is None


# --- How often it reads --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_one_process_reads_its_data_once(tmp_path, monkeypatch, command):
    file = study_file(tmp_path)
    data = yaml.safe_load(file.read_text())
    data["task"]["datasets"][0]["solution"] = "answer"
    data["sizes"]["bytes"]["pretrain_steps"] = 1
    data["pretrain"] = {"batch_size": 4}
    file.write_text(yaml.safe_dump(data))
    read = []
    monkeypatch.setattr(
        "vimpo.tasks.dataset.read_rows",
        lambda path, *rest, **which: read.append(path) or read_rows(path, *rest, **which),
    )
    arguments = {"train": ["--algorithm=grpo"], "pretrain": []}[command]
    assert main([command, "--config", str(file), "--size=bytes", "--quiet", *arguments]) == 0
    assert read == [data["task"]["datasets"][0]["path"]]


def test_studies_from_scratch_have_nothing_to_look_at(capsys):
    script = (
        "import sys; from vimpo.cli import main; main(['check']); "
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_local_files_are_looked_at_quickly_while_snakemake_starts(tmp_path):
    study = load_study(study_file(tmp_path))
    start = time.perf_counter()
    check_before_running(study)
    assert time.perf_counter() - start < 20  # usually milliseconds: nothing heavy is imported


# --- Snakemake -----------------------------------------------------------------------------------


def snakemake(file, *arguments, **environment):
    """Run the workflow on a study, without a network."""
    words = ["--cores", "1", "--nolock", *arguments, "--configfile", file]
    return snakes.snakemake(*words, environment={"HF_HUB_OFFLINE": "1"} | environment)


@pytest.mark.parametrize(
    "fault",
    [
        "gold",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("missing column", "hub benchmark")),
    ],
)
def test_snakemake_says_the_same_before_any_job(tmp_path, fault):
    done = snakemake(study_file(tmp_path, fault), "--retries", "2", "--keep-going")
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert re.search(FAULTS[fault], line), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_what_began_to_run_is_not_looked_at_again(tmp_path):
    file = study_file(tmp_path, "hub dataset")
    study = load_study(file)
    study.folder.mkdir(parents=True)
    (study.folder / "config.yaml").write_text(dump_yaml(study))
    check_before_jobs(study, file)
    other = study.model_copy(update={"probes": Probes(problems=9)})
    with pytest.raises(ConfigError, match=FAULTS["hub dataset"]):
        check_before_jobs(other, file)


@pytest.mark.slow
@LOCAL
def test_snakemake_says_that_gpus_are_missing_before_any_job(tmp_path):
    done = snakemake(study_file(tmp_path, "GPUs"))
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert line.startswith("error: runtime.processes: 3 on 1 node(s) need 3 GPUs on each, torch se")
    assert not (tmp_path / "results").exists()


def test_snakemake_says_that_a_partition_is_unknown_before_any_job(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    answers = {
        "squeue": "",  # without it the plugin refuses to start
        "sinfo": "main*|up|infinite|2|16|64000|(null)",
        "scontrol": "AccountingStorageType   = accounting_storage/none\nMinJobAge = 300 sec",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
        (tmp_path / name).chmod(0o755)
    file = study_file(tmp_path)
    study = yaml.safe_load(file.read_text()) | {"cluster": {"partition": "gqu"}}
    file.write_text(yaml.safe_dump(study))
    profile = ["--profile", "workflow/profiles/slurm"]
    done = snakemake(file, *profile, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert "cluster.partition: 'gqu' is unknown to Slurm; allowed: main" in line
    assert not (tmp_path / "results").exists()
