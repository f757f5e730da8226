"""The scale of a loss makes no difference, and batches without signal can be left out."""

import math

import pytest
import torch

from vimpo.config import Cell, load_study
from vimpo.models.optimizer import norm_limit

STEPS = 3


def trained(trainer, factor=1.0):
    """Weights and rows after a few steps with the loss times `factor`."""
    loss = trainer.algorithm.loss
    trainer.algorithm.loss = lambda *arguments: factor * loss(*arguments)
    rows = [trainer.step(step) for step in range(STEPS)]
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]), rows


@pytest.mark.parametrize("name", ["vimpo", "ppo", "grpo", "rloo", "tbrm", "oracle"])
def test_the_scale_of_a_loss_changes_nothing(make_trainer, name):
    settings = {"warmup_steps": 0, "grad_clip": 0.5, "grad_clip_mode": "relative"}
    plain, rows = trained(make_trainer(name, **settings))
    start = torch.cat([p.detach().flatten() for p in make_trainer(name).policy.parameters()])
    scaled, others = trained(make_trainer(name, **settings), 1024.0)
    assert (scaled - plain).norm() < 1e-2 * (plain - start).norm()  # what AdamW's 1e-8 leaves
    clipped = [row["grad_clipped"] for row in rows]
    assert clipped == [row["grad_clipped"] for row in others]
    assert clipped[0] == 0
    assert any(clipped)


def test_by_default_the_scale_decides_whether_a_gradient_is_clipped(make_trainer):
    _, rows = trained(make_trainer("grpo", grad_clip=1e3))
    _, scaled = trained(make_trainer("grpo", grad_clip=1e3), 1e6)
    assert [row["grad_clipped"] for row in rows] == [0.0] * STEPS
    assert 1.0 in [row["grad_clipped"] for row in scaled]


def test_the_running_norm_is_a_geometric_mean():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    found = [norm_limit(optimizer, norm) for norm in (2.0, 0.0, 8.0, math.nan, 4.0, 1.0)]
    assert found[0] == math.inf
    assert found[1:] == pytest.approx([2, 2, 4, 4, 4])
    again = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    again.load_state_dict(optimizer.state_dict())
    assert norm_limit(again, 1.0) == norm_limit(optimizer, 1.0)


@pytest.mark.parametrize("name", ["vimpo", "grpo", "rloo"])
def test_a_batch_without_signal_can_be_left_out(make_trainer, name, monkeypatch):
    for skip in (False, True):
        trainer = make_trainer(name, noise="0", warmup_steps=0, skip_without_signal=skip)
        monkeypatch.setattr(trainer.task, "rewards", lambda problems, _: [0.0] * len(problems))
        before = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
        row = trainer.step(0)
        after = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
        assert row["no_signal"] == 1
        if skip:
            assert torch.equal(before, after)
            assert row["grad_norm"] == 0


def test_a_control_that_reads_no_reward_is_never_left_out(make_trainer, monkeypatch):
    trainer = make_trainer("oracle", noise="0", warmup_steps=0, skip_without_signal=True)
    monkeypatch.setattr(trainer.task, "rewards", lambda problems, _: [0.0] * len(problems))
    row = trainer.step(0)
    assert (row["no_signal"], row["grad_norm"] > 0) == (1, True)


def test_other_digests_stay_as_they_are():
    cell = Cell("grpo", "xs", "0", 1)
    plain = load_study({})
    for setting in ({"grad_clip_mode": "relative"}, {"skip_without_signal": True}):
        assert not set(setting) & set(plain.train.model_dump())
        assert load_study({"train": setting}).cell_digest(cell) != plain.cell_digest(cell)
