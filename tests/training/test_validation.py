"""What is looked at during training changes nothing, repeats, and is what it says."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from vimpo.config import Cell
from vimpo.models.networks import load_policy, load_tokenizer
from vimpo.storage.integrity import check_model
from vimpo.tasks.chain import Problem, is_held_out, is_right, validation_problems
from vimpo.tasks.prompts import encode
from vimpo.tasks.steps import flawless_among
from vimpo.training.collecting import Collector
from vimpo.training.runs import train_cell
from vimpo.training.trainer import Trainer

LOOKED_AT = {"validation": {"every": 4, "problems": 4, "samples": 2}, "snapshots": [3, 6]}
ADDED = {"reference_kl"}  # of an algorithm that reads no reference


def run_of(algorithm):
    return Cell(algorithm, "tiny", "rollout-0.25", 1)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def train(tiny_study):
    def train(folder, algorithm="grpo", **changes):
        study = tiny_study(folder, train=changes)
        return study, train_cell(study, run_of(algorithm), quiet=True)

    return train


@pytest.mark.parametrize("algorithm", ["vimpo", "grpo"])
def test_looking_changes_nothing(train, algorithm):
    _, plain = train("plain", algorithm)
    study, watched = train("watched", algorithm, **LOOKED_AT)
    for name in ("model/model.safetensors",):
        assert (plain / name).read_bytes() == (watched / name).read_bytes()
    for before, after in zip(*(rows_of(f / "metrics.csv") for f in (plain, watched)), strict=True):
        assert before.items() <= after.items()
        assert after.keys() - before.keys() <= ADDED
    assert study.cell_digest(run_of(algorithm)) != study.model_copy(
        update={"train": study.train.model_copy(update={"validation": None, "snapshots": []})}
    ).cell_digest(run_of(algorithm))
    assert not (plain / "validation.csv").exists()


def test_an_interrupted_run_is_looked_at_as_an_undisturbed_one(train, tiny_study, monkeypatch):
    def contents(folder):
        files = [folder / "metrics.csv", folder / "validation.csv", *folder.rglob("snapshots/**/*")]
        return {p.relative_to(folder): p.read_bytes() for p in files if p.is_file()}

    _, undisturbed = train("a", **LOOKED_AT)
    step = Trainer.step
    for dies_at in (4, 5):  # the first is due, and its checkpoint is the newest

        def dying(self, number, dies_at=dies_at):
            if number == dies_at:
                raise KeyError
            return step(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", dying)
            with pytest.raises(KeyError):
                train("b", **LOOKED_AT)
        seen = rows_of(tiny_study("b").run_folder(run_of("grpo")) / "validation.csv")
        assert list(dict.fromkeys(row["step"] for row in seen)) == ["0", "4"]
    study, resumed = train("b", **LOOKED_AT)
    assert contents(resumed) == contents(undisturbed)
    for number in (3, 6):
        check_model(study.run_folder(run_of("grpo"), number))
    assert (resumed / "snapshots/step-6/model/model.safetensors").read_bytes() == (
        resumed / "model/model.safetensors"
    ).read_bytes()


def test_rows_are_of_each_decoder_at_the_steps_asked_for(train):
    _, folder = train("a", **LOOKED_AT)
    rows = rows_of(folder / "validation.csv")
    assert [(r["step"], r["decoder"], r["samples"]) for r in rows] == [
        (step, decoder, samples)
        for step in ("0", "4", "6")
        for decoder, samples in (("training", "2"), ("sampled", "2"), ("greedy", "1"))
    ]
    assert {r["problems"] for r in rows} == {"4"}


def test_greedy_rows_are_what_a_plain_loop_scores(train):
    """A whole forward pass for every token, and the task's own check of the answer."""
    study, folder = train("a", snapshots=[3], validation={"every": 3, "problems": 5})
    for row in rows_of(folder / "validation.csv"):
        if row["decoder"] != "greedy":
            continue
        model = {
            "0": study.base_folder("tiny") / "model",
            "3": study.run_folder(run_of("grpo"), 3) / "model",
            "6": folder / "model",
        }[row["step"]]
        policy, tokenizer = load_policy(model, study.runtime), load_tokenizer(model, False)
        marks = []
        for problem in validation_problems(study.task, 5):
            (ids,) = encode(tokenizer, [problem.prompt])
            start, done = len(ids), False
            while len(ids) < start + study.train.max_response and not done:
                ids.append(int(policy(torch.tensor([ids])).logits[0, -1].argmax()))
                done = ids[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(ids[start:], skip_special_tokens=True)
            marks.append(done and is_right(problem.answer, text))
        assert float(row["accuracy"]) == pytest.approx(sum(marks) / 5)


def test_validation_problems_are_held_out_and_distinct(tiny_study):
    task = tiny_study(task={"train_operators": [1, 2]}).task
    problems = validation_problems(task, 20)
    assert len({p.id for p in problems}) == 20
    assert all(is_held_out(p.prompt) for p in problems)
    assert {len(p.terms[1]) for p in problems} == {1, 2}
    assert problems == validation_problems(task, 20)


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "tbrm"])
def test_the_distance_is_that_of_the_policy_that_drew_the_rollouts(make_trainer, algorithm):
    """k3 by hand, from whole forward passes of both networks."""
    trainer = make_trainer(algorithm, validation={"every": 2, "problems": 4})
    first = trainer.step(0)
    assert first["reference_kl"] == pytest.approx(0, abs=1e-6)
    if algorithm == "grpo":
        assert "reference_kl" not in trainer.step(1)
    else:
        trainer.step(1)
    for parameter in trainer.policy.parameters():
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(3)
        )
    drawn_by = {k: v.clone() for k, v in trainer.policy.state_dict().items()}
    found = trainer.step(2)["reference_kl"]
    rollouts, *_ = trainer._drawn
    base = trainer._load_network()
    trainer.policy.load_state_dict(drawn_by)
    total = 0.0
    for i, response in enumerate(rollouts.token_lists()):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i].bool()].tolist()
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            ours, theirs = (
                m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for m in (trainer.policy, base)
            )
        for t, token in enumerate(response):
            x = float(ours[t, token] - theirs[t, token])
            total += math.exp(-x) - 1 + x
    assert found == pytest.approx(total / len(rollouts.mask), rel=1e-4)
    assert found > 0.01


def test_flawless_is_right_without_a_wrong_step():
    from vimpo.tasks.chain import grade_steps

    problem = Problem("7+5-3=", "9")
    texts = ["7+5=12;12-3=9#9", "7+5=11;11-3=9#9", "7+5=12;12-3=9#8", "#9", "7+5=12;12-3=9#9"]
    right = [float(is_right("9", text)) for text in texts]
    right[-1] = 0.0  # cut off
    assert right == [1, 1, 0, 1, 0]
    found = flawless_among(grade_steps, [problem] * 5, texts, right)
    assert found == [1, 0, 0, 0, 0]
    assert flawless_among(None, [problem] * 5, texts, right) == [0] * 5


def test_the_share_of_flawless_responses_is_among_the_right_ones(make_trainer, monkeypatch):
    trainer = make_trainer("grpo")
    drawn = []
    share = Collector._flawless_share

    def noted(self, grade, problems, texts, right):
        drawn.append((problems, texts, right))
        return share(self, grade, problems, texts, right)

    monkeypatch.setattr(Collector, "_flawless_share", noted)
    found = trainer.step(0)["flawless"]
    ((problems, texts, right),) = drawn
    written = [f"{p.prompt}{p.answer}#{p.answer}" for p in problems]  # the only flawless text
    both = [t == w for t, w in zip(texts, written, strict=True)]
    assert 0 < sum(right) < len(right)
    assert found == pytest.approx(sum(both) / sum(right))
    monkeypatch.setattr(trainer.task, "rewards", lambda problems, texts: [0.0] * len(texts))
    assert math.isnan(trainer.step(1)["flawless"])


def test_a_run_that_fails_leaves_all_its_snapshots(train, monkeypatch):
    from vimpo.training.outcomes import Outcome

    monkeypatch.setattr(
        Trainer, "outcome", lambda self, rows: Outcome("collapsed", 3) if len(rows) == 4 else None
    )
    study, folder = train("a", **LOOKED_AT)
    last = study.run_folder(run_of("grpo"), 6)
    check_model(last)
    assert '"updates": 4' in (last / "manifest.json").read_text()
    assert (last / "model/model.safetensors").read_bytes() == (
        folder / "model/model.safetensors"
    ).read_bytes()
