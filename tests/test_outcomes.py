"""Runs that fail: noticed at their step, kept as they were, evaluated, probed and counted."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from fake_results import small_study, write_figures, write_results
from safetensors.torch import load_file, save_file

from vimpo.aggregate import aggregate
from vimpo.algorithms import Grpo, Ppo, Vimpo
from vimpo.claim_parts import CONTROL
from vimpo.config import Cell, Collapse, ConfigError, cell_digest
from vimpo.evaluate import evaluate_checkpoint
from vimpo.outcomes import Watch, outcome_of, steps_without_reward
from vimpo.plots import draw
from vimpo.probes import probe_run
from vimpo.reading import read_probes
from vimpo.report import write_report
from vimpo.runs import pretrain_base, train_cell
from vimpo.stats import mean_interval
from vimpo.tables import read_table
from vimpo.trainer import Trainer

ALGORITHMS = {"vimpo": Vimpo, "ppo": Ppo, "grpo": Grpo}
BAD_STEP = 3
NAN = float("nan")


def cell(algorithm, **changes):
    fields = {"size": "tiny", "noise": "rollout-0.25", "seed": 1} | changes
    return Cell(algorithm, **fields)


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


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
    assert judged(dead, 51) == (("collapsed", 5), 1)
    assert judged(dead, 50) == (None, 1)
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
    plain, same = tiny_study("a"), tiny_study("b", train={"collapse": {"steps": 5, "kl": 50}})
    other = tiny_study("c", train={"collapse": {"steps": 4}})
    digests = [s.cell_digest(cell("vimpo")) for s in (plain, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len({s.cost_digest("tiny") for s in (plain, other)}) == 1


def test_runs_made_before_there_were_limits_stay_valid():
    from vimpo.config import load_study

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

    def score(self, rollouts):
        found = own(self, rollouts)
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

# The actor of VIMPO amplifies its own log-ratios where c_A is large.
UNSTABLE = {"vimpo": {"objective": "vimpo", "beta": 0.02, "actor_coef": 1.0}}


def collapsing(tiny_study, **changes):
    train = {"steps": 60, "warmup_steps": 0, "collapse": {"steps": 3, "kl": 5}}
    sizes = {"tiny": {"learning_rate": 0.05}}
    return tiny_study(train=train, sizes=sizes, algorithms=UNSTABLE, **changes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_that_collapses_ends_its_run(tiny_study, algorithm):
    study = collapsing(tiny_study)
    folder = train_cell(study, cell(algorithm, noise="0"), quiet=True)
    outcome, rows = manifest_of(folder)["outcome"], rows_of(folder)
    print(outcome)
    assert outcome["kind"] == "collapsed"
    assert outcome["step"] == len(rows) - 1 < 59
    assert [float(row["accuracy"]) for row in rows[-3:]] == [0, 0, 0]
    # the reference that was loaded for the moment leaves no trace
    resident = manifest_of(folder)["resident_parameters"]
    assert resident / manifest_of(folder)["parameters"] < (2.1 if algorithm != "grpo" else 1.1)
