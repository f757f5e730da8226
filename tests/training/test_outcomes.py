"""Runs that fail: noticed at their step, and kept as they were before it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from failing import ALGORITHMS, NAN, cell, collapsing, manifest_of, rows_of
from safetensors.torch import load_file

from vimpo.algorithms import make_batch
from vimpo.algorithms.ppo import Ppo
from vimpo.algorithms.vimpo import Vimpo
from vimpo.config import Cell, Collapse, ConfigError, VimpoConfig, cell_digest, load_study
from vimpo.tasks.chain import ChainProblems
from vimpo.training.outcomes import Watch, outcome_of, steps_without_reward
from vimpo.training.runs import pretrain_base, train_cell
from vimpo.training.trainer import Trainer

BAD_STEP = 3


# --- Rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "count"),
    [
        ([0.5], 0),
        ([0.5, 0.0], 1),
        ([0.5, 0.0, 0.0, 0.1, 0.0, 0.0], 2),
        ([0.0, 0.0, 0.0], 0),  # a base that is never right has nothing to lose
        ([0.0, 0.1, 0.0, 0.0], 2),
    ],
)
def test_steps_without_reward_are_counted_behind_the_last_right_rollout(scores, count):
    assert steps_without_reward([{"accuracy": s} for s in scores]) == count


def judged(scores, kl, limits=None, fault=""):
    rows = [{"step": i, "accuracy": s} for i, s in enumerate(scores)]
    asked, watch = [], Watch()
    watch.fault = fault
    found = outcome_of(rows, watch, limits or Collapse(), lambda: asked.append(1) or kl)
    return found and (found.kind, found.step), len(asked)


def test_a_collapse_needs_both_no_reward_and_a_distance():
    dead = [0.5] + [0.0] * 5
    assert judged(dead, 10.1) == (("collapsed", 5), 1)
    assert judged(dead, 10) == (None, 1)
    assert judged(dead[:-1], 1000) == (None, 0)
    assert judged([0.5] * 9, 1000) == (None, 0)
    assert judged([0.0] * 9, 1000) == (None, 0)
    assert judged(dead, 2, Collapse(kl=1)) == (("collapsed", 5), 1)
    assert judged(dead[:3], 51, Collapse(steps=2)) == (("collapsed", 2), 1)


def test_the_distance_is_measured_once_in_so_many_steps_without_reward():
    asked = [judged([0.5] + [0.0] * n, 10)[1] for n in range(12)]
    assert asked == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]


def test_a_number_that_is_not_finite_comes_first():
    assert judged([0.5] + [0.0] * 5, 100, fault="the loss is not finite") == (("not_finite", 5), 0)


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_watch_keeps_the_first_fault_and_reads_no_padding(bad):
    watch, mask = Watch(), torch.tensor([[1.0, 0.0]])
    logp = torch.tensor([[-1.0, bad]])
    watch.sound_ratios(mask, logp, torch.zeros(1, 2), None)
    assert watch.sound("the loss", 1.0)
    watch.sound_ratios(1 - mask, logp, torch.zeros(1, 2))
    assert not watch.sound("the loss", bad)
    assert watch.fault == "a log-ratio is not finite"


# --- Digests -------------------------------------------------------------------------------------


def test_limits_of_a_collapse_make_another_run_only_where_they_are_set(tiny_study):
    plain, same = tiny_study("a"), tiny_study("b", train={"collapse": {"steps": 5, "kl": 10}})
    other = tiny_study("c", train={"collapse": {"steps": 4}})
    digests = [s.cell_digest(cell("vimpo")) for s in (plain, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len({s.cost_digest("tiny") for s in (plain, other)}) == 1


def test_runs_made_before_there_were_limits_stay_valid():
    study = load_study()
    config = study.cell_config(Cell("vimpo", "xs", "0.25", 1))
    assert cell_digest(config) == "cfd6ef4d335dc58a"
    assert study.cost_digest("xs") == "2d85a2591b60b12c"


# --- Faults injected -----------------------------------------------------------------------------


def loss_is_nan(monkeypatch, algorithm, counter):
    kind, own = ALGORITHMS[algorithm], ALGORITHMS[algorithm].loss

    def loss(self, *arguments):
        return own(self, *arguments) * (NAN if counter() == BAD_STEP else 1.0)

    monkeypatch.setattr(kind, "loss", loss)
    return "the loss"


def gradient_is_infinite(monkeypatch, algorithm, counter):
    kind, own = ALGORITHMS[algorithm], ALGORITHMS[algorithm].loss

    def loss(self, logp, *arguments):
        if counter() == BAD_STEP:
            logp.register_hook(lambda g: g * math.inf)
        return own(self, logp, *arguments)

    monkeypatch.setattr(kind, "loss", loss)
    return "the policy's gradient norm"


def log_ratio_is_infinite(monkeypatch, algorithm, counter):
    own = Trainer._score

    def score(self, rollouts, kept=None):
        found = own(self, rollouts, kept)
        if counter() == BAD_STEP:
            found.logp.data[0, 0] = -math.inf
        return found

    monkeypatch.setattr(Trainer, "_score", score)
    return ""


def counted():
    calls = []

    def count():
        calls.append(1)
        return len(calls) - 1

    return count


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("inject", [loss_is_nan, gradient_is_infinite, log_ratio_is_infinite])
def test_a_number_that_is_not_finite_ends_the_run_with_the_weights_before_it(
    tiny_study, monkeypatch, algorithm, inject
):
    study, healthy = tiny_study("a"), tiny_study("b", train={"steps": BAD_STEP})
    expected = train_cell(healthy, cell(algorithm), quiet=True)
    what = inject(monkeypatch, algorithm, counted())
    folder = train_cell(study, cell(algorithm), quiet=True)
    outcome = manifest_of(folder)["outcome"]
    assert (outcome["kind"], outcome["step"]) == ("not_finite", BAD_STEP)
    assert outcome["reason"].startswith(what)
    assert outcome["reason"].endswith(f"is not finite at step {BAD_STEP}")
    assert manifest_of(folder)["status"] == "complete"
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[:BAD_STEP] == rows_of(expected)
    assert rows[BAD_STEP]["accuracy"] != "nan"
    found, before = (load_file(f / "model/model.safetensors") for f in (folder, expected))
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert manifest_of(expected)["outcome"] == {
        "kind": "finished",
        "step": BAD_STEP - 1,
        "reason": "",
    }
    assert not list(folder.glob("checkpoint-*"))


def test_a_clipped_log_ratio_hides_in_the_loss_but_not_from_the_watch(tiny_study, monkeypatch):
    """Of a later update the surrogate clamps what is infinite: the loss alone would go on."""
    study = tiny_study(train={"epochs": 2})
    count = counted()
    log_ratio_is_infinite(monkeypatch, "grpo", lambda: count() - 4)  # step 3, its second update
    folder = train_cell(study, cell("grpo"), quiet=True)
    last = rows_of(folder)[-1]
    assert last["step"] == "3"
    assert math.isfinite(float(last["loss"]))
    assert manifest_of(folder)["outcome"]["reason"] == "a log-ratio is not finite at step 3"


def test_a_critic_that_is_not_finite_ends_the_run_and_moves_neither_network(
    tiny_study, monkeypatch
):
    expected = train_cell(tiny_study("b", train={"steps": BAD_STEP}), cell("ppo"), quiet=True)
    own, count = Ppo.critic_loss, counted()

    def critic_loss(self, *arguments):
        return own(self, *arguments) * (NAN if count() == BAD_STEP else 1.0)

    monkeypatch.setattr(Ppo, "critic_loss", critic_loss)
    folder = train_cell(tiny_study("a"), cell("ppo"), quiet=True)
    assert manifest_of(folder)["outcome"]["reason"] == "the critic's loss is not finite at step 3"
    for name in ("model.safetensors", "critic/critic.safetensors"):
        found, before = (load_file(f / "model" / name) for f in (folder, expected))
        assert all(torch.equal(found[key], before[key]) for key in before)


def test_a_base_policy_that_is_not_finite_is_an_error(tiny_study):
    sizes = {"new": {"hidden": 16, "layers": 1, "heads": 2, "pretrain_steps": 9}}
    sizes["new"]["pretrain_lr"] = 1e30
    study = tiny_study(sizes=sizes)
    with pytest.raises(ConfigError, match=r"pretrain_lr: at 1e\+30 the loss is nan at step"):
        pretrain_base(study, "new", quiet=True)


# --- A policy that collapses ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_that_collapses_ends_its_run(tiny_study, algorithm):
    study = collapsing(tiny_study)
    folder = train_cell(study, cell(algorithm, noise="0"), quiet=True)
    outcome, rows = manifest_of(folder)["outcome"], rows_of(folder)
    assert outcome["kind"] == "collapsed"
    assert outcome["step"] == len(rows) - 1 < 59
    assert [float(row["accuracy"]) for row in rows[-3:]] == [0, 0, 0]
    # the reference that was loaded for the moment leaves no trace
    resident = manifest_of(folder)["resident_parameters"]
    assert resident / manifest_of(folder)["parameters"] < (2.1 if algorithm != "grpo" else 1.1)


# As in the log of what was tried, with a shorter warm start.
LARGER = {
    "study": "larger",
    "task": {"largest": 9, "pretrain_operators": [2], "train_operators": [2], "step_error": 0.2},
    "sizes": {
        "larger": {
            "hidden": 128,
            "layers": 3,
            "heads": 4,
            "kv_heads": 4,
            "pretrain_steps": 250,
            "pretrain_lr": 3e-3,
            "learning_rate": 1e-4,
        }
    },
    "train": {"steps": 60, "prompts_per_step": 16, "group_size": 8, "max_response": 24},
    "algorithms": {"vimpo_strong": {"objective": "vimpo", "beta": 0.02, "actor_coef": 0.1}},
    "grid": {"algorithms": ["vimpo_strong"], "sizes": ["larger"], "noise": [0], "seeds": [1]},
    "runtime": {"threads": 2},
}


def test_a_base_policy_is_borrowed_only_by_a_loss_that_holds_none(make_trainer, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    for algorithm, borrows in (("vimpo", False), ("tbrm", False), ("grpo", True)):
        trainer = make_trainer(algorithm)
        trainer.step(0)
        before = len(trainer.networks())
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "_load_network", broken)
            with pytest.raises(RuntimeError, match="out of memory") if borrows else nullcontext():
                trainer._reference_kl()
        assert math.isfinite(trainer._reference_kl())
        assert len(trainer.networks()) == before
        assert math.isfinite(trainer.step(1)["loss"])


@pytest.mark.slow
def test_an_actor_that_amplifies_itself_collapses_a_larger_model(tmp_path):
    """c_A = 0.1 at beta 0.02: each step's td is an advantage for more of the same."""
    study = load_study(LARGER | {"results": str(tmp_path)})
    run = Cell("vimpo_strong", "larger", "0", 1)
    folder = train_cell(study, run, quiet=True)
    outcome, rows = manifest_of(folder)["outcome"], rows_of(folder)
    assert outcome["kind"] == "collapsed"
    assert float(rows[0]["accuracy"]) > 0.5
    assert len(rows) < study.train.steps
    assert float(rows[-1]["reference_kl"]) > 50


# --- A target of zero ----------------------------------------------------------------------------


def test_a_step_without_a_target_has_no_terminal_residual(tiny_study, monkeypatch):
    """Every response is wrong: nothing to divide by, and nothing else is undefined."""
    monkeypatch.setattr(ChainProblems, "rewards", lambda self, p, r: [0.0] * len(p))
    folder = train_cell(tiny_study(train={"steps": 3}), cell("vimpo", noise="0"), quiet=True)
    for row in rows_of(folder):
        assert row["terminal_residual"] == "nan"
        assert all(math.isfinite(float(row[name])) for name in ("loss", "value_loss", "grad_norm"))
    assert manifest_of(folder)["outcome"]["kind"] == "finished"


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
def test_a_terminal_residual_is_there_as_soon_as_one_group_differs(rewards):
    mask, groups = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
    zero = torch.zeros(4, 2)
    batch = make_batch(rewards, groups, mask).with_(logp=zero + 0.1, ref_logp=zero, token_kl=zero)
    found = Vimpo(VimpoConfig()).metrics(batch)["terminal_residual"]
    assert math.isnan(found) == (rewards[0] == rewards[1])
