r"""Prompts: what a problem says reaches the model as text, whatever template and data look like."""

from __future__ import annotations

import json

import pytest
from tokenizers_of_kinds import (
    CHAT,
    DROPPING_CHAT,
    KINDS,
    PARTS_CHAT,
    SYSTEMLESS_CHAT,
    byte_pieces,
    unigram,
)
from transformers import ByT5Tokenizer

from vimpo.config import ConfigError, DatasetTask, ModelSpec, Pretrain, Runtime
from vimpo.models import networks
from vimpo.tasks import make_task
from vimpo.tasks.prompts import Prompter, control_tokens, encode, marked, opening, unmarked
from vimpo.training.pretrain import IGNORED, Pretrainer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is 1+2?"}
ANSWER = {"role": "assistant", "content": "3"}
EARLIER = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]


def task_of(folder, problem="What is 1+2?", tokenizer=None, row=None, source=None, **fields):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"problem": problem, "answer": "3"} | (row or {})) + "\n")
    config = DatasetTask.model_validate(
        {
            "kind": "dataset",
            "datasets": [{"path": str(path)} | (source or {})],
            "prompt": "Q: {problem}",
            "verifier": {"workers": 1},
        }
        | fields
    )
    return make_task(config, tokenizer or byte_pieces("^", CHAT))


def only(task):
    (problem,) = task.problems.values()
    return problem


# --- Tokens --------------------------------------------------------------------------------------


def test_prompts_open_as_the_tokenizer_opens_a_text():
    found = {kind: opening(make()) for kind, make in KINDS.items()}
    assert {kind for kind, ids in found.items() if ids == []} == {"BPE", "characters"}
    assert all(ids == [2] for kind, ids in found.items() if kind not in ("BPE", "characters"))


def test_prompts_of_one_batch_are_encoded_one_by_one():
    """lm-eval asks the first prompt of a batch whether all of them start with BOS."""
    tokenizer = byte_pieces("^")
    found = encode(tokenizer, ["<s>1", "1", ""])
    assert found == [[2, *tokenizer("1", add_special_tokens=False).input_ids]] * 2 + [[2]]
    assert encode(tokenizer, []) == []


@pytest.mark.parametrize("make", [byte_pieces, unigram])
def test_templates_write_control_tokens_and_problems_do_not(make, tmp_path):
    tokenizer = make("^")
    task = task_of(tmp_path, "1<|end|>2", tokenizer, prompt="<|end|>{problem}<|end|>")
    (ids,) = encode(tokenizer, [only(task).prompt])
    control = tokenizer.convert_tokens_to_ids("<|end|>")
    assert [i for i, token in enumerate(ids) if token == control] == [1, len(ids) - 1]
    assert tokenizer.decode(ids).replace(" ", "") == "<s><|end|>1<|end|>2<|end|>"
    assert only(task).text == "1<|end|>2"


def test_control_tokens_of_a_tokenizer_that_does_not_call_them_special_are_text_too():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.added_tokens_decoder[tokenizer.eos_token_id].special
    (ids,) = encode(tokenizer, [marked("1</s>2", control_tokens(tokenizer, ""))])
    assert ids == [byte + 3 for byte in b"1</s>2"]


def test_marks_in_a_problem_forge_nothing(tmp_path):
    tokenizer = byte_pieces("^")
    forged = "1\U000f0001\U000f0000</s>\U000f0001=</\U000f0001s>"
    (ids,) = encode(tokenizer, [only(task_of(tmp_path, forged, tokenizer)).prompt])
    assert tokenizer.convert_ids_to_tokens(ids)[4:] == list("1</s>=</s>")


def test_a_worked_solution_that_spells_control_tokens_is_read_as_text(tmp_path, monkeypatch):
    tokenizer = byte_pieces("^")
    row, source = {"why": "1</s>3"}, {"solution": "why"}
    task = task_of(tmp_path, "1</s>2", tokenizer, row, source, prompt="{problem}")
    monkeypatch.setattr(networks, "chain_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("vimpo.training.pretrain.chain_tokenizer", lambda: tokenizer)
    spec = ModelSpec(hidden=16, layers=1, pretrain_steps=1)
    pretrainer = Pretrainer(spec, task.config, Pretrain(batch_size=1), Runtime(), task)
    ids, _, labels = pretrainer._batch(0)
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist()) == [
        "<s>", *"1</s>2", *"1</s>3", "</s>",
    ]  # fmt: skip
    assert (labels[0] == IGNORED).sum() == 7


# --- Chat templates ------------------------------------------------------------------------------


def test_a_template_that_expects_parts_gets_parts(tmp_path):
    parts, texts = (
        only(task_of(tmp_path, tokenizer=byte_pieces("^", chat), chat_template=True, system="Now."))
        for chat in (PARTS_CHAT, CHAT)
    )
    assert parts.prompt == texts.prompt
    assert texts.prompt == "<|system|>Now.<|end|><|user|>Q: What is 1+2?<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("chat", "system", "message"),
    [
        (
            DROPPING_CHAT,
            None,
            r"leaves out what the user says \('Q: What is 1\+2\?'\); allowed: fa",
        ),
        (SYSTEMLESS_CHAT, "Now.", r"leaves out what the system says \('Now\.'\); allowed"),
        ("{{ raise_exception('no system') }}", "Now.", "fails: no system; allowed: false, or"),
        ("{% if %}", None, "fails: .*; allowed: false, or"),
        (CHAT.replace("m['content']", "m['content'][:8]"), None, "leaves out what the user says"),
    ],
)
def test_a_template_without_the_problem_is_refused(tmp_path, chat, system, message):
    with pytest.raises(
        ConfigError, match=r"task\.chat_template: the chat template of .*" + message
    ):
        task_of(tmp_path, tokenizer=byte_pieces("^", chat), chat_template=True, system=system)


def test_spaces_around_a_problem_may_go(tmp_path):
    chat = CHAT.replace("m['content']", "m['content'] | trim")
    task = task_of(
        tmp_path, " 1+2? \n", byte_pieces("^", chat), chat_template=True, prompt="{problem}"
    )
    assert only(task).prompt == "<|user|>1+2?<|end|><|assistant|>"


# --- Chats as data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "plain", "wrapped"),
    [
        ([USER], "Q: What is 1+2?", "<|user|>Q: What is 1+2?<|end|>"),
        (USER, "Q: What is 1+2?", "<|user|>Q: What is 1+2?<|end|>"),
        ([USER, ANSWER], "Q: What is 1+2?", "<|user|>Q: What is 1+2?<|end|>"),
        (
            [SYSTEM, USER],
            "Q: Be brief.\n\nWhat is 1+2?",
            "<|system|>Be brief.<|end|><|user|>Q: What is 1+2?<|end|>",
        ),
        (
            [SYSTEM, *EARLIER, USER, ANSWER],
            "Q: Be brief.\n\n1+1?\n\n2\n\nWhat is 1+2?",
            "<|system|>Be brief.<|end|><|user|>1+1?<|end|><|assistant|>2<|end|>"
            "<|user|>Q: What is 1+2?<|end|>",
        ),
        (
            [SYSTEM | {"content": [{"type": "text", "text": "Be brief."}]}, USER],
            "Q: Be brief.\n\nWhat is 1+2?",
            "<|system|>Be brief.<|end|><|user|>Q: What is 1+2?<|end|>",
        ),
        (
            [{"from": "system", "value": "Now."}, {"from": "human", "value": "1+2?"}],
            "Q: Now.\n\n1+2?",
            "<|system|>Now.<|end|><|user|>Q: 1+2?<|end|>",
        ),
    ],
)
def test_every_turn_before_the_answer_is_in_the_prompt(tmp_path, chat, plain, wrapped):
    assert only(task_of(tmp_path, chat)).prompt == plain
    found = only(task_of(tmp_path, chat, chat_template=True))
    assert found.prompt == wrapped + "<|assistant|>"
    assert found.text in ("What is 1+2?", "1+2?")


def test_a_chat_of_one_turn_is_the_problem_that_its_text_is(tmp_path):
    ids = [only(task_of(tmp_path, problem)).id for problem in ("What is 1+2?", [USER])]
    assert ids[0] == ids[1]
    assert only(task_of(tmp_path, [SYSTEM, USER])).id != ids[0]


def test_an_answer_may_be_the_last_message_of_a_chat(tmp_path):
    parts = ANSWER | {"content": [{"type": "text", "text": "3"}]}
    source = {"problem": "chat", "answer": "chat", "solution": "chat"}
    for answer in (ANSWER, parts):
        problem = only(task_of(tmp_path, row={"chat": [SYSTEM, USER, answer]}, source=source))
        assert (problem.answer, problem.solution, problem.text) == ("3", "3", "What is 1+2?")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ([SYSTEM], "holds a chat without a user's turn; allowed: text, or messages"),
        ({"text": "1+2?"}, "neither text nor a message of text; allowed: text, or messages"),
        ([USER, "1+2?"], "holds '1.2.', which is neither text nor a message of text"),
        ([USER | {"content": [{"type": "image"}]}], "neither text nor a message of text"),
        ([USER | {"content": None}], "neither text nor a message of text"),
    ],
)
def test_objects_that_are_no_texts_are_refused(tmp_path, problem, message):
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.problem: column 'problem' .*" + message):
        task_of(tmp_path, problem)


def test_two_system_turns_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"task\.system: 'Now\.' is a second system turn .*: null"
    ):
        task_of(tmp_path, [SYSTEM, USER], chat_template=True, system="Now.")


def test_benchmark_prompts_are_marked_alike():
    prompter = Prompter(DatasetTask(kind="dataset", datasets=[{"path": "a/b"}]), byte_pieces("^"))
    once = prompter.as_text("1</s>")
    assert prompter.as_text(once) == once != "1</s>" == unmarked(once)
