"""What runs on a device other than the CPU (tests/elsewhere.py): nothing is left behind here."""

from __future__ import annotations

import math
import shutil
from dataclasses import fields

import pandas as pd
import pytest
import torch
from elsewhere import DEVICE, Remote, elsewhere

from vimpo.config import ALGORITHMS, Cell, Study
from vimpo.probes.run import probe_run
from vimpo.sampling import decoding
from vimpo.sampling.rollouts import Rollouts, sample
from vimpo.storage.tables import read_csv
from vimpo.training import pieces
from vimpo.training.runs import train_cell
from vimpo.training.trainer import Trainer

STEPS = 2
# Of the built-in algorithms, those that take ways of their own.
FAST = ("vimpo", "ppo", "grpo", "dapo", "vineppo")
CASES = {
    "several updates of micro-batches": ("vimpo", {"epochs": 2, "micro_batch": 8}, {}),
    "critic, several updates of micro-batches": ("ppo", {"epochs": 2, "micro_batch": 8}, {}),
    "checkpointed layers": ("vimpo", {}, {"gradient_checkpointing": True}),
    "logits in chunks": ("vimpo", {}, {"logit_chunk": 16}),
}
CASES |= {name: (name, {}, {}) for name in ALGORITHMS}
SLOW = set(ALGORITHMS) - set(FAST)
PROBES = {"problems": 4, "continuations": 4, "baseline_continuations": 4, "credit_rollouts": 8}
PROBES |= {"common": True, "pairs": 6, "baselines": {"rollouts": 40, "updates": 20}}
# Precision is about rounding, and the linear predictor's penalty is chosen among a few.
KNOWN = "probe != 'precision' and predictor != 'linear'"


@pytest.fixture
def device(monkeypatch):
    """The device, and a driver that answers."""
    monkeypatch.setitem(pieces.LAYER_FLOPS, DEVICE, pieces.LAYER_FLOPS["cpu"])
    for name, answer in (("synchronize", None), ("max_memory_allocated", 2**20)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def moved(config):
    """The configuration of a run on the device, whose name no study may have."""
    runtime = config.runtime.model_copy(update={"device": DEVICE})
    return config.model_copy(update={"runtime": runtime})


def differing(a: dict, b: dict, rel: float = 1e-3) -> dict:
    """Numbers that are not equal to rounding, and what else is not equal."""
    assert a.keys() == b.keys()
    return {k: (a[k], b[k]) for k in a if not same(a[k], b[k], rel)}


def same(a, b, rel: float) -> bool:
    if isinstance(a, float) and not math.isnan(a):
        return math.isclose(a, b, rel_tol=rel, abs_tol=1e-5)
    return a == b or (a != a and b != b)


def test_tensors_in_two_places_do_not_meet():
    with elsewhere():
        there = torch.ones(2, 3, device=DEVICE)
        assert type(there) is type(there.mT @ there) is Remote
        assert float((there + torch.tensor(1.0)).sum()) == 12
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.rand(2, device=DEVICE, generator=torch.Generator())


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_steps_are_those_of_the_cpu(tiny_study, device, case):
    algorithm, train, runtime = CASES[case]
    study = tiny_study(train=train, runtime=runtime)
    config = study.cell_config(Cell(algorithm, "tiny", "rollout-0.25", 1))
    base = study.base_folder("tiny") / "model"
    here = Trainer(config, base)
    expected = [here.step(step) for step in range(STEPS)]
    with elsewhere():
        there = Trainer(moved(config), base)
        assert {type(p.data) for p in there.policy.parameters()} == {Remote}
        found = [there.step(step) for step in range(STEPS)]
    assert [differing(*rows) for rows in zip(expected, found, strict=True)] == [{}] * STEPS


@pytest.mark.parametrize("plain", [False, True], ids=["cache", "plain"])
def test_rollouts_are_those_of_the_cpu(make_trainer, monkeypatch, plain):
    policy = make_trainer().policy
    monkeypatch.setattr(decoding, "is_plain", lambda model: plain)

    def draw() -> Rollouts:
        return sample(
            policy,
            [[3, 12, 4, 15], [5, 15]],
            group_size=6,
            max_response=8,
            temperature=1.0,
            ends=(1,),
            pad=0,
            generator=torch.Generator().manual_seed(3),
            decoders=((1.0, 1.0), (0.7, 0.9), (0.0, 1.0)) * 2,
            limits=[8, 3],
        )

    expected = draw()
    with elsewhere():
        policy.to(DEVICE)
        found = draw()
        for name in (f.name for f in fields(Rollouts)):
            tensor = getattr(found, name)
            assert type(tensor) is Remote, name
            assert torch.allclose(tensor.cpu(), getattr(expected, name), atol=1e-5), name


@pytest.mark.slow  # 20 s
def test_a_run_and_its_probes_are_those_of_the_cpu(tiny_study, device, kill, tmp_path):
    """A base policy, a run that is killed and resumed, and its probes.

    Not evaluation: lm-eval asks torch for a device's autocast, and `meta` has none.
    """
    cell = Cell("ppo", "tiny", "rollout-0.25", 1)
    here, there = tiny_study("here", probes=PROBES), moved(tiny_study("there", probes=PROBES))
    shutil.rmtree(there.base_folder("tiny"))  # it was made on the CPU

    def outcome(study: Study) -> tuple[list[dict], list[dict]]:
        """The rows of the run, and those of its probes without what rounding decides."""
        folder, path = train_cell(study, cell, quiet=True), tmp_path / "probes.parquet"
        probe_run(study, cell, path)
        steps = read_csv(folder / "metrics.csv").astype(float).to_dict("records")
        rows = pd.read_parquet(path).query(KNOWN).to_dict("records")
        return steps, rows

    with elsewhere():
        assert kill(Trainer, 5, lambda: train_cell(there, cell, quiet=True)) == [0, 1, 2, 3, 4]
        found = outcome(there)
    expected = outcome(here)
    for a, b in zip(expected, found, strict=True):
        # Six steps of AdamW amplify rounding.
        assert [differing(*rows, rel=0.02) for rows in zip(a, b, strict=True)] == [{}] * len(a)
