"""Advantages and losses against TRL's own, on one batch that TRL sampled and graded.

    pip install -e '.[peers]'
    pytest -n 0 -m slow tests/objectives/test_against_trl.py

TRL's trainer makes the batch with `_generate_and_score_completions`, which holds its advantages,
and reads it with `_compute_loss`. Ours read the same tokens, rewards and older log-probabilities.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from vimpo.algorithms import Batch, Setup, Share, make_algorithm, make_batch
from vimpo.config import ALGORITHMS, Noise
from vimpo.models.networks import load_policy, load_tokenizer
from vimpo.models.scoring import Reader, Scorer
from vimpo.objectives.grpo import group_advantage
from vimpo.tasks import make_task

pytestmark = pytest.mark.slow

PROMPTS, GROUP, LIMIT = 6, 4, 10
EPSILON = 1e-4  # what TRL adds to a standard deviation; ours, and verl's, is 1e-6
# Our name; TRL's trainer; its settings.
CASES = {
    "grpo": ("GRPO", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    "grpo_naive": ("GRPO", {"loss_type": "grpo", "epsilon": 0.2}),
    "grpo_kl": (
        "GRPO",
        {
            "loss_type": "bnpo",
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.04,
            "use_bias_correction_kl": False,  # the paper's estimate, without a ratio
        },
    ),
    "dr_grpo": ("GRPO", {"loss_type": "dr_grpo", "epsilon": 0.2, "scale_rewards": "none"}),
    "gspo": (
        "GRPO",
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "rloo": ("RLOO", {"epsilon": 0.2, "beta": 0.0}),
}


@dataclass
class Compared:
    """TRL's trainer with one batch, and the same batch for ours, without advantages."""

    trainer: Any
    inputs: dict[str, Tensor]
    batch: Batch
    model: Any


@pytest.fixture
def compared(tiny_study, tmp_path, monkeypatch):
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trl = pytest.importorskip("trl", reason="the extra `peers` is not installed")
    from datasets import Dataset

    study = tiny_study()
    base = study.base_folder("tiny") / "model"
    tokenizer = load_tokenizer(base)
    task = make_task(study.task, tokenizer)
    problems = task.training_problems(1, 0, PROMPTS)

    def make(kind: str, settings: dict) -> Compared:
        rewards: list[float] = []

        def reward(prompts, completions, number, **_):
            rewards[:] = task.rewards([problems[i] for i in number], completions)
            return rewards

        if kind == "GRPO":
            settings = {"delta": 10.0} | settings  # our dual clip; its RLOO has none
        args = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            steps_per_generation=1,
            max_completion_length=LIMIT,
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        )
        rows = [{"prompt": p.prompt, "number": i} for i, p in enumerate(problems)]
        torch.manual_seed(3)
        trainer = getattr(trl, f"{kind}Trainer")(
            model=load_policy(base, study.runtime),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        asked = [row for row in rows for _ in range(GROUP)]
        inputs = trainer._generate_and_score_completions(asked)
        assert 0 < sum(rewards) < len(rewards)
        return Compared(trainer, *shared(trainer, inputs, rewards))

    return make


def shared(trainer, inputs: dict, rewards: list[float]) -> tuple[dict, Batch, Any]:
    """The batch as both read it: log-probabilities by us, and an older policy's near them."""
    model = trainer.model
    mask = inputs["completion_mask"].float()
    logp, _ = scored(model, inputs)
    noise = torch.randn(logp.shape, generator=torch.Generator().manual_seed(7))
    old = (logp - 0.2 * noise).detach() * mask
    inputs["old_per_token_logps"], inputs["old_logps"] = old, (old * mask).sum(1)
    batch = make_batch(rewards, torch.arange(PROMPTS).repeat_interleave(GROUP), mask)
    batch = batch.with_(logp=logp.detach(), old_logp=old)
    if "ref_per_token_logps" in inputs:
        inputs["ref_per_token_logps"] = (logp + 0.3 * noise.flip(0)).detach() * mask
        batch = batch.with_(ref_logp=inputs["ref_per_token_logps"])
    return inputs, batch, model


def scored(model, inputs: dict) -> tuple[Tensor, Reader]:
    """Log-probabilities of the completions, with their graph, as our training loop reads them."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)[:, :-1]
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)[:, :-1]
    scorer = Scorer(model, ALGORITHMS["grpo"], 1.0)
    mask = inputs["completion_mask"]
    logp = scorer(ids, seen, inputs["completion_ids"], mask)[0]
    return logp, scorer


def gradients(model, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_gradients_are_those_of_trl(compared, name):
    case = compared(*CASES[name])
    algorithm = make_algorithm(ALGORITHMS[name], Setup(LIMIT, Noise()))
    # The same advantages for both: those of the batch, which the next test compares.
    advantage = case.inputs["advantages"][:, None] * case.batch.mask
    batch = case.batch.with_(advantage=advantage)
    logp, _ = scored(case.model, case.inputs)
    ours = algorithm.loss(logp, batch, Share(1.0, 1.0))
    theirs = case.trainer._compute_loss(case.model, case.inputs)
    assert float(algorithm.clip_fraction(batch)) > 0  # the clip takes part in the comparison
    assert abs(theirs.item()) > 1e-4
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours, theirs = gradients(case.model, ours), gradients(case.model, theirs)
    assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_advantages_are_those_of_trl(compared, name):
    case = compared(*CASES[name])
    algorithm = make_algorithm(ALGORITHMS[name], Setup(LIMIT, Noise()))
    theirs = case.inputs["advantages"]
    if name == "grpo":
        ours = group_advantage(case.batch.rewards, case.batch.groups, eps=EPSILON)
        plain = algorithm.advantage(case.batch)[:, 0]
        assert float((ours - plain).abs().max()) < 1e-3  # what the other epsilon does
    else:
        ours = algorithm.advantage(case.batch)[:, 0]
    assert theirs.abs().max() > 0.1
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
