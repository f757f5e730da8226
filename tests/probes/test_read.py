"""Any pair of checkpoints: what is read of each token, against a plain forward pass."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from real_data import byte_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from vimpo.cli import main
from vimpo.config import ConfigError, load_study
from vimpo.probes.read import given_problems, read_pair, summary_rows

BETA = 0.5


@pytest.fixture(scope="session")
def pair(tiny_base, shared) -> tuple[str, str]:
    """The tiny base, and a copy of it with all of its weights a little larger."""

    def change(folder) -> None:
        base = tiny_base / "model"
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)

    return str(tiny_base / "model"), str(shared("scaled", change))


def a_study(**changes):
    return load_study({"algorithms": {"vimpo": {"objective": "vimpo", "beta": BETA}}} | changes)


def given(tmp_path, *rows: dict, name="problems.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def distributions(folder: str, text: str) -> torch.Tensor:
    """log pi of each next token, [T, V]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits[0].double().log_softmax(-1)


def test_every_token_is_read_as_a_plain_forward_pass_reads_it(pair, tmp_path):
    prompt, response = "3+4-1=", "3+4=7;7-1=5#5"
    file = given(tmp_path, {"prompt": prompt, "answer": 6, "response": response})
    tokens = read_pair(a_study(), *pair, 5, file).tokens
    assert "".join(tokens.token) == response
    old, new = (distributions(folder, prompt + response)[len(prompt) - 1 :] for folder in pair)
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    ids = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rows = range(len(ids))
    ratio = (new - old)[rows, ids]
    kl = (new.exp() * (new - old)).sum(-1)
    assert tokens.log_ratio.to_numpy() == pytest.approx(ratio.numpy(), abs=1e-5)
    assert tokens.kl.to_numpy() == pytest.approx(kl.numpy(), abs=1e-5)
    change = (BETA * (ratio - kl)).cumsum(0)
    assert tokens.change.to_numpy() == pytest.approx(change.numpy(), abs=1e-5)
    assert ratio.abs().max() > 0.05
    assert tokens.step.tolist() == [0] * 5 + [pd.NA] + [1] * 5 + [pd.NA, 2, pd.NA]
    assert tokens.right.dropna().tolist() == [1] * 5 + [0] * 5 + [1]
    assert set(tokens.reward) == {0.0}


def test_a_policy_against_itself_says_nothing_and_the_read_repeats(pair):
    study = a_study(task={"train_operators": [2]})
    found = read_pair(study, pair[0], pair[0], 4)
    assert not found.tokens[["log_ratio", "kl", "td", "change"]].to_numpy().any()
    assert found.tokens.response.nunique() == 4
    again = read_pair(study, pair[0], pair[0], 4)
    pd.testing.assert_frame_equal(found.tokens, again.tokens)
    (auc,) = [r for r in found.summary if r["metric"] == "auc" and r["predictor"] == "implied_td"]
    assert auc["value"] == 0.5 or auc["reason"]  # ties


def test_the_summary_is_of_whole_responses():
    tokens = pd.DataFrame(
        {
            "response": [0, 0, 1, 2],
            "problem": ["a", "a", "a", "b"],
            "token": ["x"] * 4,
            "logp": [-1.0, -2.0, -0.5, -1.0],
            "log_ratio": [0.5, 0.5, 0.25, -1.0],
            "kl": [0.1, 0.2, 0.3, 0.4],
            "td": [0.2, 0.3, -0.1, 0.6],
            "reward": [1.0, 1.0, 0.0, 1.0],
        }
    )
    found = {r["metric"]: r for r in summary_rows(tokens, beta=0.5)}
    expected = {
        "tokens": 4 / 3,
        "log_ratio": (1.0 + 0.25 - 1.0) / 3,
        "kl": 1.0 / 3,
        "base_surprisal": (4.0 + 0.75 + 0.0) / 3,
        "highest_change": 0.5 * (4.0 + 0.75 + 0.0) / 3,
        "change": (0.5 - 0.1 + 0.6) / 3,
        "reward": 2 / 3,
        "change_of_right": (0.5 + 0.6) / 2,
        "change_of_wrong": -0.1,
        "spearman": np.corrcoef([2, 1, 3], [2.5, 1, 2.5])[0, 1],
    }
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(expected)
    unknown = summary_rows(tokens.assign(reward=np.nan), beta=0.5)
    assert {r["metric"] for r in unknown}.isdisjoint({"reward", "spearman", "change_of_right"})


def test_answers_to_other_prompts_are_judged_by_the_verifier(pair, tmp_path):
    rows = [{"prompt": p, "answer": "7", "response": r} for p, r in (("12", "7"), ("1", "8"))]
    tokens = read_pair(a_study(), *pair, 5, given(tmp_path, *rows)).tokens
    assert tokens.groupby("response").reward.first().tolist() == [1, 0]
    assert tokens.step.isna().all()


def other_tokens(folder, pair):
    """The same model with a token more, in the tokenizer alone."""
    shutil.copytree(pair[1], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(folder)


def other_logits(folder, pair):
    """The same tokenizer, and a model with more logits."""
    model = AutoModelForCausalLM.from_pretrained(pair[1])
    model.resize_token_embeddings(32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pair[1]).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_tokens, "policy: the tokenizer of '.*' has 19 tokens and that of base '.*' 18, and "
                       "'zz' is token 18 of only one of them; allowed: two checkpoints of one"),
        (other_logits, "policy: '.*' has 32 logits and base '.*' 18; allowed: two checkpoints of"),
        (lambda folder, pair: folder.mkdir(), "policy: '.*' holds no config.json; allowed: a"),
    ],
)  # fmt: skip
def test_pairs_that_share_no_vocabulary_are_one_error(pair, tmp_path, make, message):
    make(tmp_path / "other", pair)
    with pytest.raises(ConfigError, match=message) as error:
        read_pair(a_study(), pair[0], str(tmp_path / "other"), 2)
    assert "\n" not in str(error.value)
    assert "base" not in message or pair[0] in str(error.value)


def test_a_capacity_needs_a_base_policy_of_the_study(pair):
    study = a_study(algorithms={"vimpo": {"beta": {"capacity": 0.1}}})
    message = "^beta: capacity 0.1 is a number for base policies of the study 'quick' alone, and '"
    with pytest.raises(ConfigError, match=message):
        read_pair(study, *pair, 2)


def other_pieces(folder, pair):
    """The same tokens, read in another way."""
    shutil.copytree(pair[1], folder)
    place = folder / "tokenizer.json"
    tokenizer = json.loads(place.read_text())
    tokenizer["pre_tokenizer"]["pattern"] = {"Regex": "[0-9]+|."}
    tokenizer["model"]["unk_token"] = "<eos>"
    place.write_text(json.dumps(tokenizer))


def test_what_tokenizers_can_tell_is_told_before_weights_are_read(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("vimpo.probes.read.load_policy", lambda *_, **__: pytest.fail("read"))
    other_tokens(tmp_path / "more", pair)
    with pytest.raises(ConfigError, match="allowed: two checkpoints of one tokenizer"):
        read_pair(a_study(), pair[0], str(tmp_path / "more"), 2)
    other_pieces(tmp_path / "pieces", pair)
    message = (
        r"policy: its tokenizer reads '12\+34=' as \d tokens, other than the 6 of base; allowed"
    )
    file = given(tmp_path, {"prompt": "12+34="})
    with pytest.raises(ConfigError, match=message):
        read_pair(a_study(), pair[0], str(tmp_path / "pieces"), 2, file)
    rows = given(tmp_path, *({"problem": f"{n}+1=", "answer": f"{n + 1}"} for n in range(9)))
    model = str(byte_model(tmp_path / "plain"))
    asked = {"kind": "dataset", "datasets": [{"path": rows}], "chat_template": True}
    asked |= {"benchmarks": {"aime": {"task": "aime25"}}, "verifier": {"workers": 1}}
    study = a_study(task=asked, sizes={"b": {"path": model}}, grid={"sizes": ["b"]})
    with pytest.raises(
        ConfigError, match=r"task\.chat_template: true needs a tokenizer with a chat"
    ):
        read_pair(study, model, model, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1="}], "problems: '.*' has no column 'prompt'; allowed: question"),
        ([{"prompt": 3}], "problems: column 'prompt' of row 1 of '.*' is 3; allowed: a text"),
        ([{"prompt": "1", "response": ""}], "problems: column 'response' of row 1 .* is ''"),
        ([{"prompt": "1", "response": "2"}, {"prompt": "1"}],
         "problems: row 2 of '.*' has no response, and others have; allowed: responses of all"),
        ([], "problems: '.*' holds no rows"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_one_error(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        given_problems(given(tmp_path, *rows))


def test_responses_must_fit_the_policys_positions(pair, tmp_path):
    file = given(tmp_path, {"prompt": "1+1=", "response": "1" * 1100})
    with pytest.raises(ConfigError, match="problems: a prompt of 4 tokens and a response of 1101"):
        read_pair(a_study(), *pair, 1, file)


def test_the_command_writes_every_token_and_prints_a_small_table(pair, tmp_path, capsys):
    base, policy = pair
    output = tmp_path / "read.parquet"
    arguments = ["read", "--base", base, "--policy", policy, "--count", "3"]
    assert main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["of", "metric", "value", "stderr", "n", "unit"]
    assert printed[-1] == str(output)
    assert pd.read_parquet(output).response.nunique() == 3
    assert main([*arguments, "--output", "read.txt"]) == 2
    assert "output: 'read.txt' is not allowed; allowed: a name in .csv" in capsys.readouterr().err
    assert main([*arguments[:-1], "0"]) == 2
    assert "count: 0 is not allowed; allowed: 1 or more" in capsys.readouterr().err
