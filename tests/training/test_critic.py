"""PPO's critic: fitted to the base policy first, taught again by replay, left out by the gate."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from objective_cases import assert_equal, t
from safetensors.torch import load_file

from vimpo.algorithms import Batch, make_algorithm
from vimpo.config import Cell, ConfigError, CriticPretraining, PPOConfig
from vimpo.sampling.rollouts import Rollouts
from vimpo.storage.integrity import only_writer, read_sums
from vimpo.tasks.chain import ChainProblems
from vimpo.training.critic import CriticPretrainer, stopped_rising
from vimpo.training.replay import Replay
from vimpo.training.runs import pretrain_critic, require_critic, train_cell
from vimpo.training.trainer import Trainer

PRETRAIN = {
    "updates": 6,
    "least": 6,
    "check_every": 2,
    "rollouts": 8,
    "held_out": 10,
    "learning_rate": 0.01,
}
LEARNED = {
    "objective": "ppo",
    "value_clip": None,
    "critic_pretrain": PRETRAIN,
    "critic_lr": 0.004,
    "critic_updates": 3,
    "critic_replay": 3,
}


@pytest.fixture
def learned(tiny_study):
    """Makes the tiny study with an algorithm `learned`; changes are of its settings."""

    def make(folder="results", **changes):
        named = {"algorithms": {"learned": LEARNED | changes}}
        return tiny_study(folder, **named, grid={"algorithms": ["learned"]})

    return make


def cell(seed=1, noise="rollout-0.25"):
    return Cell("learned", "tiny", noise, seed)


def content(folder):
    names = ["metrics.csv", *sorted(name for name in read_sums(folder / "SHA256SUMS"))]
    kept = [name for name in names if name not in ("timing.csv", "manifest.json")]
    return {name: (folder / name).read_bytes() for name in kept}


# --- Value pretraining ---------------------------------------------------------------------------


def test_a_critic_is_made_once_for_all_seeds_and_counted_as_cost(learned, kill):
    study = learned()
    first = kill(CriticPretrainer, None, lambda: train_cell(study, cell(1), quiet=True))
    again = kill(CriticPretrainer, None, lambda: train_cell(study, cell(2), quiet=True))
    assert (first, again) == ([0, 1, 2], [])
    folder = study.critic_folder(cell(1))
    assert folder == study.critic_folder(cell(2))
    assert folder.parent == study.base_folder("tiny")
    made = json.loads((folder / "manifest.json").read_text())
    for seed in (1, 2):
        run = study.run_folder(cell(seed))
        manifest = json.loads((run / "manifest.json").read_text())
        cost = manifest["critic_pretraining"]
        assert cost["digest"] == made["digest"] == study.critic_digest(cell(seed))
        spent = made["phases_s"]
        assert cost["seconds"] == pytest.approx(sum(spent.values()) - spent["startup"], abs=1e-2)
        assert cost["seconds"] > spent["critic"] > 0
        assert len((run / "metrics.csv").read_text().splitlines()) == 1 + study.train.steps
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["updates"] for row in rows] == ["2", "4", "6"]
    assert all(math.isfinite(float(row["held_out_explained"])) for row in rows)


def test_a_run_starts_with_the_pretrained_critic_as_it_was_saved(learned):
    study = learned()
    folder = pretrain_critic(study, cell(), quiet=True)
    base = study.base_folder("tiny") / "model"
    trainer = Trainer(study.cell_config(cell()), base, critic=folder / "model")
    saved = load_file(folder / "model/critic.safetensors")
    assert trainer.critic.state_dict().keys() == saved.keys()
    assert all(torch.equal(w, saved[k]) for k, w in trainer.critic.state_dict().items())
    assert float(saved["head.weight"].abs().max()) > 0


def test_an_interrupted_pretraining_ends_with_the_bytes_of_an_undisturbed_one(learned, kill):
    expected = content(pretrain_critic(learned("a"), cell(), quiet=True))
    study = learned("b")

    def run():
        pretrain_critic(study, cell(), quiet=True)

    assert kill(CriticPretrainer, 2, run) == [0, 1]
    assert kill(CriticPretrainer, None, run) == [2]
    found = content(study.critic_folder(cell()))
    assert "model/critic.safetensors" in found
    assert found == expected


def test_a_critic_that_another_process_makes_is_refused(learned):
    study = learned()
    with only_writer(study.critic_folder(cell())), pytest.raises(ConfigError, match="another proc"):
        train_cell(study, cell(), quiet=True)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"critic_lr": 0.001, "critic_updates": 5, "lam": 0.9, "gate": "batch"}, True),
        ({"critic_pretrain": PRETRAIN | {"updates": 8}}, False),
        ({"critic_pretrain": PRETRAIN | {"held_out": 11}}, False),
        ({"critic_pretrain": PRETRAIN | {"patience": 7}}, False),
    ],
)
def test_what_a_pretrained_critic_depends_on(learned, changes, same):
    study = learned()
    assert (learned(**changes).critic_folder(cell()) == study.critic_folder(cell())) is same
    assert study.critic_folder(cell(noise="0")) != study.critic_folder(cell())
    assert learned(critic_pretrain=None).critic_folder(cell()) is None


def test_pretraining_learns_what_a_response_shows(learned, monkeypatch):
    """The last digit decides, so a critic that has learned knows it at the last prefix."""

    def rewards(self, problems, responses):
        return [float(text[-1:] in "13579") for text in responses]

    monkeypatch.setattr(ChainProblems, "rewards", rewards)
    changes = {"updates": 60, "check_every": 30, "rollouts": 16, "learning_rate": 0.03}
    study = learned(critic_pretrain=PRETRAIN | changes)
    folder = pretrain_critic(study, cell(noise="0"), quiet=True)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["held_out_end"]) > 0.25
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_the_best_critic_is_kept(learned, monkeypatch):
    study = learned()
    measured, weights = iter([0.1, 0.5, 0.4]), []

    def measure(self):
        weights.append(self._weights())
        return next(measured), 0.0

    monkeypatch.setattr(CriticPretrainer, "_measure", measure)
    folder = pretrain_critic(study, cell(), quiet=True)
    saved = load_file(folder / "model/critic.safetensors")
    same = [all(torch.equal(saved[k], w) for k, w in made.items()) for made in weights]
    assert same == [False, True, False]


@pytest.mark.parametrize(
    ("explained", "ends"),
    [
        ([0.1], False),
        ([0.1, 0.2, 0.3, 0.4, 0.5], False),
        ([0.5, 0.4], False),  # fewer than the least
        ([0.5, 0.4, 0.3], True),
        ([0.1, 0.5, 0.3], False),
        ([0.1, 0.5, 0.3, 0.4], True),
        ([0.1, 0.5, math.nan, math.nan], True),
        ([math.nan, math.nan, math.nan], True),
    ],
)
def test_it_ends_when_the_held_out_explained_variance_has_stopped_rising(explained, ends):
    settings = CriticPretraining(updates=100, least=30, patience=20, check_every=10)
    rows = [{"updates": 10 * (i + 1), "held_out_explained": x} for i, x in enumerate(explained)]
    assert stopped_rising(rows, settings) is ends


def test_an_end_before_the_limit_is_a_finished_run(learned, kill, capsys):
    early = {"updates": 40, "least": 2, "patience": 2, "learning_rate": 1e-9}
    study = learned(critic_pretrain=PRETRAIN | early)
    steps = kill(CriticPretrainer, None, lambda: pretrain_critic(study, cell(), quiet=True))
    assert len(steps) < 20
    manifest = json.loads((study.critic_folder(cell()) / "manifest.json").read_text())
    assert manifest["outcome"]["kind"] == "finished"
    assert "best held-out explained variance" in capsys.readouterr().err


def test_several_processes_need_a_critic_that_is_there(learned):
    study = learned()
    with pytest.raises(ConfigError, match=r"critic-.*' is missing.*vimpo critic --algorithm lear"):
        require_critic(study, cell())
    folder = pretrain_critic(study, cell(), quiet=True)
    assert require_critic(study, cell()) == folder
    assert require_critic(study, Cell("ppo", "tiny", "0", 1)) is None


# --- Replay --------------------------------------------------------------------------------------


def numbered(n):
    """Rollouts and a batch that are told apart by their number."""
    ids, ones = torch.full((2, 3), n), torch.full((2, 3), float(n))
    rewards = torch.tensor([float(n), 0.0])
    rollouts = Rollouts(ids, ids, ids, ones, ones, torch.tensor([True, n > 1]))
    batch = Batch(ones, rewards, torch.tensor([0, 1]), rewards, values=ones, logp=ones)
    return rollouts, batch


def test_the_latest_batches_are_read_in_turn_and_survive_a_checkpoint():
    replay = Replay(3)
    for n in range(5):
        replay.add(*numbered(n))
    assert [int(r.mask[0, 0]) for r, _ in replay.others(4)] == [3, 2, 4, 3]
    other = Replay(3)
    other.load(replay.tensors())
    for kept in (replay, other):
        kept.add(*numbered(5))
    assert [int(r.mask[0, 0]) for r, _ in other.others(3)] == [4, 3, 5]
    for (rollouts, batch), (theirs, read) in zip(replay.others(3), other.others(3), strict=True):
        assert all(torch.equal(x, getattr(theirs, name)) for name, x in vars(rollouts).items())
        assert torch.equal(batch.rewards, read.rewards)
        assert torch.equal(batch.values, read.values)
    assert Replay(1).tensors() == {}


def test_which_batches_the_critic_learns_from(make_trainer, monkeypatch):
    read, update = [], Trainer._update_critic

    def spy(self, rollouts, batch, graph):
        read.append(float(batch.values.double().sum()))
        return update(self, rollouts, batch, graph)

    monkeypatch.setattr(Trainer, "_update_critic", spy)
    trainer = make_trainer("learned", objective=LEARNED | {"critic_pretrain": None})
    torch.nn.init.normal_(trainer.critic.head.weight)
    for step in range(4):
        trainer.step(step)
    own = read[::3]  # the first of each step's three
    assert len(set(own)) == 4
    a, b, c, d = own
    assert read == [a, a, a, b, a, b, c, b, a, d, c, b]


def test_one_update_on_one_batch_is_what_ppo_always_did(make_trainer):
    """Through the newer path, to the last bit."""
    plain, same = (
        make_trainer("learned", objective={"objective": "ppo"} | changes)
        for changes in ({}, {"critic_lr": 0.006, "critic_lam": 1.0, "critic_updates": 1})
    )
    for step in range(2):
        first, second = plain.step(step), same.step(step)
        assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)


def test_an_interrupted_run_with_replay_ends_with_the_bytes_of_an_undisturbed_one(learned, kill):
    expected = content(train_cell(learned("a"), cell(), quiet=True))
    study = learned("b")

    def run():
        train_cell(study, cell(), quiet=True)

    assert kill(Trainer, 5, run) == [0, 1, 2, 3, 4]
    assert kill(Trainer, None, run) == [4, 5]
    assert content(study.run_folder(cell())) == expected


# --- Targets, gate, metrics ----------------------------------------------------------------------


def ppo_batch(values):
    mask, rewards = t([[1, 1], [1, 1]]), t([1, 0])
    return Batch(mask, rewards, torch.tensor([0, 1]), t([0.75, 0.25]), values=t(values))


def test_actor_and_critic_have_a_lambda_each():
    both = make_algorithm(PPOConfig(lam=0.5, critic_lam=1.0))
    one = make_algorithm(PPOConfig(lam=0.5))
    batch = ppo_batch([[0.2, 0.6], [0.4, 0.1]])
    assert_equal(both.returns(batch), [[1, 1], [0, 0]])
    # V + sum of td: .2 + .4 + .5 * .4, and 1; .4 - .3 - .5 * .1, and 0
    assert_equal(one.returns(batch), [[0.8, 1.0], [0.05, 0.0]])
    assert_equal(both.advantage(batch), one.advantage(batch))


@pytest.mark.parametrize("gate", ["off", "batch", "group"])
@pytest.mark.parametrize(
    ("values", "knows"), [([[0.9, 1], [0.2, 0]], True), ([[0, 0], [1, 1]], False)]
)
def test_a_critic_that_explains_nothing_is_left_out_of_the_advantage(gate, values, knows):
    algorithm, batch = make_algorithm(PPOConfig(gate=gate)), ppo_batch(values)
    found = algorithm.advantage(batch)
    if knows or gate == "off":
        plain = [[1 - v for v in values[0]], [0 - v for v in values[1]]]
    else:
        plain = [[0.5] * 2, [-0.5] * 2] if gate == "batch" else [[0.25] * 2, [-0.25] * 2]
    flat = t(plain)
    assert_equal(found, (flat - flat.mean()) / flat.std(), 1e-6)
    expected = {} if gate == "off" else {"gated": float(not knows)}
    assert {k: v for k, v in algorithm.metrics(batch).items() if k == "gated"} == expected


def test_the_gate_closes_where_nothing_can_be_explained():
    algorithm = make_algorithm(PPOConfig(gate="batch"))
    batch = ppo_batch([[0.9, 0.1], [0.2, 0.0]]).with_(rewards=t([1, 1]))
    assert_equal(algorithm.advantage(batch), [[0, 0], [0, 0]])


@pytest.mark.parametrize("algorithm", ["vimpo", "ppo", "grpo"])
def test_every_value_tells_what_it_knows_of_the_change(make_trainer, algorithm):
    row = make_trainer(algorithm).step(0)
    names = {name for name in row if name.startswith("change_explained")}
    if algorithm == "grpo":
        assert names == set()
        return
    assert names == {"change_explained", "change_explained_end", "change_explained_graded"}
    # At the first step, td and a fresh critic are zero: nothing is explained, and nothing spoilt.
    assert [row[name] for name in sorted(names)] == pytest.approx([0, 0, 0], abs=1e-5)
