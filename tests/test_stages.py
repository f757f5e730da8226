"""Training, evaluation, probes and the vLLM sampler: the same prompts, and the same ends."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers_of_kinds import CHAT, KINDS, NAMED, byte_pieces, save_model, unigram
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from vimpo.config import Cell, Study, load_study
from vimpo.evaluation import lm_eval as evaluate
from vimpo.models import networks
from vimpo.models.ends import declared_ends
from vimpo.probes.subject import Subject
from vimpo.training.runs import pretrain_base, train_cell
from vimpo.training.trainer import Trainer

CELL = Cell("grpo", "own", "0", 1)
EOS, TURN = NAMED.index("</s>"), NAMED.index("<|end|>")


def study_of(folder, tokenizer, problem="12+3=", ends=None, **train) -> Study:
    """A study whose benchmark has the one problem that is trained on."""
    model = save_model(folder / "model", tokenizer, **(ends or {}))
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"problem": problem, "answer": "15"}) + "\n")
    return load_study(
        {
            "study": "stages",
            "results": str(folder / "results"),
            "task": {
                "kind": "dataset",
                "datasets": [{"path": str(rows)}],
                "prompt": "{problem}",
                "chat_template": bool(tokenizer.chat_template),
                "max_prompt": 200,
                "verifier": {"workers": 1},
                "benchmarks": {"aime25": {"task": "aime25", "path": str(rows), "samples": 1}},
            },
            "sizes": {"own": {"path": str(model)}},
            "train": {"steps": 1, "prompts_per_step": 1, "group_size": 2, "max_response": 4}
            | train,
            "evaluation": {"batch_size": 4, "greedy": False},
            "probes": {"problems": 2},
            "grid": {"algorithms": ["grpo"], "sizes": ["own"], "noise": [0], "seeds": [1]},
        }
    )


def engine(answer, requests):
    """A stand-in for vLLM: every request gets `answer`, and all are kept in `requests`."""

    class Engine:
        def __init__(self, **settings):
            pass

        def collective_rpc(self, method, kwargs):
            pass

        def reset_prefix_cache(self):
            return True

        def generate(self, prompts, settings, use_tqdm):
            requests.extend(zip(prompts, settings, strict=True))
            output = types.SimpleNamespace(token_ids=answer, finish_reason="stop")
            return [types.SimpleNamespace(outputs=[output]) for _ in prompts]

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, types.SimpleNamespace
    return module


def with_vllm(config):
    """The same cell sampled by vLLM, which the configuration refuses on a CPU."""
    runtime = config.runtime.model_copy(update={"sampler": "vllm"})
    return config.model_copy(update={"runtime": runtime})


def ids_of_all_stages(study, monkeypatch) -> dict[str, list[int]]:
    """Tokens that the model reads as its prompt, by stage."""
    config, model = study.cell_config(CELL), study.sizes["own"].path
    trainer, found = Trainer(config, model), {}
    rollouts = trainer.collector.collect(0).rollouts
    found["training"] = rollouts.prompt_ids[0][rollouts.prompt_mask[0].bool()].tolist()

    def generate(self, input_ids, attention_mask, **settings):
        found["evaluation"] = input_ids[0][attention_mask[0].bool()].tolist()
        return torch.cat([input_ids, torch.full_like(input_ids[:, :1], EOS)], 1)

    with monkeypatch.context() as patched:
        patched.setattr(Qwen3ForCausalLM, "generate", generate)
        # The suite's own tokenizer cannot write the words at which the benchmark stops.
        patched.setattr("lm_eval.models.huggingface.stop_sequences_criteria", lambda *_: None)
        lm = evaluate.load_lm(Path(model), study)
        evaluate.run_benchmarks(lm, study, ["aime25"])

    subject = Subject(
        policy=trainer.policy, reference=trainer.policy, critic=None, tokenizer=trainer.tokenizer,
        task=trainer.task, train=config.train, probes=study.probes, beta=1.0, lam=1.0,
    )  # fmt: skip
    prompts = [subject.encode(problem) for problem in trainer.task.training_problems(1, 0, 1)]
    (chunk,) = subject.sample(prompts, "test")
    found["probes"] = chunk.prompt_ids[0][chunk.prompt_mask[0].bool()].tolist()

    requests = []
    monkeypatch.setitem(sys.modules, "vllm", engine((trainer.tokenizer.eos_token_id,), requests))
    Trainer(with_vllm(config), model).collector.collect(0)
    found["sampler"] = list(requests[0][0]["prompt_token_ids"])
    return found


TEXT = list("12+3=")
USER, ASSISTANT = list("<|user|>"), list("<|assistant|>")
READ = {
    "BPE": TEXT,
    "BPE, BOS": ["<s>", *TEXT],
    "BPE, BOS and EOS": ["<s>", *TEXT],
    "chat with BOS": ["<s>", *USER, *TEXT, "<|end|>", *ASSISTANT],
    "chat without BOS, BOS": ["<s>", *USER, *TEXT, "<|end|>", *ASSISTANT],
    "unigram, BOS": ["<s>", "▁", "12", "+", "3", "="],
    "characters": TEXT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_stages_read_the_same_prompt(kind, tmp_path, monkeypatch):
    tokenizer = KINDS[kind]()
    found = ids_of_all_stages(study_of(tmp_path, tokenizer), monkeypatch)
    assert list(found) == ["training", "evaluation", "probes", "sampler"]
    for stage, ids in found.items():
        assert tokenizer.convert_ids_to_tokens(ids) == READ[kind], stage


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (byte_pieces("^"), ["<s>", *"1</s>2<s><|end|>="]),
        (
            byte_pieces("^", CHAT),
            ["<s>", *USER, *"1</s>2<s><|end|>=", "<|end|>", *ASSISTANT],
        ),
        (unigram(), ["<s>", "▁", *"1</s>2<s><|end|>="]),
    ],
    ids=["plain", "chat", "unigram"],
)
def test_a_problem_that_spells_control_tokens_is_read_as_text(
    tokenizer, expected, tmp_path, monkeypatch
):
    study = study_of(tmp_path, tokenizer, "1</s>2<s><|end|>=")
    for stage, ids in ids_of_all_stages(study, monkeypatch).items():
        assert tokenizer.convert_ids_to_tokens(ids) == expected, stage


# --- Ends ----------------------------------------------------------------------------------------

PIECES = byte_pieces("^")
FIVE, ORDINARY = PIECES.convert_tokens_to_ids(["5", "="])


def answering(model, end):
    """The model, now certain to write `5` until it has, and then `end`."""

    def certain(_module, _args, settings, output):
        keep = output.logits.shape[1]
        after = settings["input_ids"][:, -keep:]
        token = torch.where(after == FIVE, end, FIVE)[..., None]
        output.logits.fill_(-100.0).scatter_(-1, token, 100.0)
        return output

    model.register_forward_hook(certain, with_kwargs=True)
    return model


@pytest.fixture(params=[TURN, ORDINARY], ids=["special", "ordinary"])
def end(request) -> int:
    return request.param


@pytest.fixture
def two_ends(end, tmp_path) -> Study:
    """A study of a model that declares a second end beside its tokenizer's."""
    ends = {"eos_token_id": [EOS, end]}
    return study_of(tmp_path, PIECES, "12+3?", ends, max_response=9)


def test_every_declared_end_stops_training_and_probes(two_ends, end):
    config = two_ends.cell_config(CELL)
    trainer = Trainer(config, two_ends.sizes["own"].path)
    answering(trainer.policy, end)
    row = trainer.step(0)
    assert (row["truncated"], row["response_length"]) == (0.0, 2.0)
    assert trainer._drawn[0].response_ids.tolist() == [[FIVE, end]] * 2
    assert trainer._drawn[0].texts(trainer.tokenizer) == ["5"] * 2
    subject = Subject(
        policy=trainer.policy, reference=trainer.policy, critic=None, tokenizer=trainer.tokenizer,
        task=trainer.task, train=config.train, probes=two_ends.probes, beta=1.0, lam=1.0,
    )  # fmt: skip
    (problem,) = trainer.task.training_problems(1, 0, 1)
    (chunk,) = subject.sample([subject.encode(problem)], "test", 3)
    assert chunk.finished.all()
    assert chunk.mask.sum(1).tolist() == [2, 2, 2]
    assert subject.text([FIVE, end]) == "5"


def test_every_declared_end_stops_an_evaluation(two_ends, end, monkeypatch):
    load = networks.load_policy
    monkeypatch.setattr(networks, "load_policy", lambda *a, **k: answering(load(*a, **k), end))
    lm = evaluate.load_lm(Path(two_ends.sizes["own"].path), two_ends)
    _, (log,) = evaluate.run_benchmarks(lm, two_ends, ["aime25"])
    assert log["responses"] == ["5"]


def test_every_declared_end_stops_vllm(two_ends, end, monkeypatch):
    requests = []
    monkeypatch.setitem(sys.modules, "vllm", engine((FIVE, end), requests))
    trainer = Trainer(with_vllm(two_ends.cell_config(CELL)), two_ends.sizes["own"].path)
    rollouts = trainer.collector.collect(0).rollouts
    assert [settings.stop_token_ids for _, settings in requests] == [sorted([EOS, end])] * 2
    assert rollouts.finished.all()
    assert rollouts.texts(trainer.tokenizer) == ["5"] * 2


def test_every_declared_end_is_saved_with_base_and_policy(two_ends, end):
    folders = [pretrain_base(two_ends, "own", quiet=True), train_cell(two_ends, CELL, quiet=True)]
    for folder in folders:
        for name in ("config", "generation_config"):
            saved = json.loads((folder / "model" / f"{name}.json").read_text())
            assert saved["eos_token_id"] == sorted([EOS, end])


@pytest.mark.parametrize(
    ("tokenizer", "config", "generation", "expected"),
    [
        (1, None, None, (1,)),
        (1, 1, [1, 9], (1, 9)),
        (1, 7, None, (1, 7)),
        (1, [3, 1], 5, (1, 3, 5)),
        (9, -1, [2, 400], (2, 9)),  # no token of the model
    ],
)
def test_ends_are_all_that_anything_declares(tokenizer, config, generation, expected):
    named = types.SimpleNamespace(eos_token_id=tokenizer)
    model = Qwen3Config(vocab_size=20, eos_token_id=config)
    assert declared_ends(named, model, GenerationConfig(eos_token_id=generation)) == expected
    if generation is None:
        assert declared_ends(named, model, None) == expected
