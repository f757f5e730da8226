"""What a run measures of itself on a GPU, with a stand-in for the device."""

from __future__ import annotations

import pytest
import torch

from vimpo.config import Runtime
from vimpo.models import distributed
from vimpo.models.distributed import Together
from vimpo.probes.cost import resident_bytes
from vimpo.training.telemetry import Stopwatch, hardware, peak_bytes

GPU = "cuda:1"


@pytest.fixture
def asked(monkeypatch):
    """What torch.cuda was asked, in order."""
    calls = []

    def stand_in(name, answer):
        monkeypatch.setattr(torch.cuda, name, lambda *a: calls.append((name, *a)) or answer)

    stand_in("synchronize", None)
    stand_in("max_memory_allocated", 3 * 2**30)
    stand_in("memory_allocated", 2**30)
    stand_in("get_device_name", "H100")
    stand_in("set_device", None)
    return calls


def test_a_phase_ends_when_the_device_has_finished_its_work(asked):
    clock = Stopwatch(GPU)
    with clock("update"), clock("reference"):
        assert asked == [("synchronize", GPU)] * 2
    assert asked == [("synchronize", GPU)] * 4
    assert set(clock.seconds) == {"update", "reference"}


def test_memory_and_name_are_those_of_the_device(asked):
    assert (peak_bytes(GPU), resident_bytes(GPU)) == (3 * 2**30, 2**30)
    assert hardware(GPU)["gpu"] == "H100"
    assert {device for _, device in asked} == {GPU}


def test_nothing_is_asked_of_a_device_that_is_not_used(asked):
    with Stopwatch()("update"):
        assert peak_bytes("cpu") > 0
    assert resident_bytes("cpu") > 0
    assert hardware("cpu")["gpu"] is None
    assert asked == []


def test_each_process_takes_the_gpu_of_its_rank_and_nccl(asked, monkeypatch):
    import torch.distributed as dist

    backends = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "check_devices", lambda runtime: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", backends.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    world = Together(Runtime(device="cuda", processes=2))
    assert (world.device, world.rank, world.main) == (GPU, 1, False)
    assert asked == [("set_device", 1)]
    assert backends == ["nccl"]
