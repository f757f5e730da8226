"""The contract with vLLM: what is asked of it, and what is made of its answers.

A stand-in engine implements the calls that are used, on the torch sampler, and refuses what the
released vLLM has no argument for; if vLLM is installed, its own signatures are checked as well.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from vimpo.config import Cell, ConfigError, Runtime, Study, load_study
from vimpo.models.distributed import Alone
from vimpo.probes.subject import Subject
from vimpo.probes.value import continuation_rewards
from vimpo.sampling.rollouts import Sampling, TorchSampler, sample, seed_of
from vimpo.sampling.vllm import VllmSampler
from vimpo.training.runs import train_cell
from vimpo.training.trainer import Trainer

SAMPLING = Sampling(group_size=2, max_response=6, temperature=2.0, ends=(1,), pad=0)
GPU = Runtime(device="cuda", sampler="vllm", vllm_memory=0.4)


def names_in(text):
    return text.split()


VERSION = "0.30.0"  # the release that the following names were read from
# LLM.__init__: vllm/entrypoints/llm.py; its **kwargs go to EngineArgs, vllm/engine/arg_utils.py.
ENGINE = names_in("""
model runner convert tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code
allowed_local_media_path allowed_media_domains tensor_parallel_size dtype quantization revision
tokenizer_revision chat_template seed gpu_memory_utilization cpu_offload_gb offload_group_size
offload_num_in_group offload_prefetch_step offload_params enforce_eager
enable_return_routed_experts return_sampling_mask disable_custom_all_reduce hf_token hf_overrides
mm_processor_kwargs pooler_config structured_outputs_config profiler_config attention_config
kv_cache_memory_bytes compilation_config quantization_config logits_processors spec_method
spec_model spec_tokens""")
ENGINE_ARGS = ["generation_config", "distributed_executor_backend", "disable_log_stats"]
# SamplingParams (vllm/sampling_params.py): every public field, and the defaults of those used.
SAMPLING_FIELDS = names_in("""
n presence_penalty frequency_penalty repetition_penalty temperature watermarking
top_p top_k min_p seed stop stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs
logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
include_stop_str_in_output output_kind stream_interval skip_clone output_text_buffer_length
structured_outputs logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache
thinking_token_budget repetition_detection routed_experts_prompt_start
trace_decode_token_ids""")
DEFAULTS = {
    "n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": None, "max_tokens": 16,
    "stop_token_ids": None, "ignore_eos": False, "detokenize": True,
}  # fmt: skip


def refuse_unknown(given, known, where):
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(f"{where} of vLLM {VERSION} has no argument {', '.join(unknown)}")


class SamplingParams:
    """vLLM's fields by keyword, checked as vLLM does if the sampler depends on it."""

    def __init__(self, **given):
        refuse_unknown(given, SAMPLING_FIELDS, "SamplingParams")
        vars(self).update(DEFAULTS | given)
        assert 0.01 <= self.temperature <= 2  # vLLM raises lower ones to 0.01, and refuses higher
        assert self.seed is None or -(2**63) <= self.seed < 2**63  # it becomes an int64
        assert all(type(i) is int for i in self.stop_token_ids or [])


@dataclass
class CompletionOutput:
    token_ids: tuple[int, ...]
    finish_reason: str | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    """An engine that samples by torch, and keeps what it was asked."""

    def __init__(self, model, **settings):
        refuse_unknown(settings, ENGINE + ENGINE_ARGS, "LLM")
        self.settings = settings | {"model": model}
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.requests, self.calls = [], []

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert method == "reload_weights"
        names = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in kwargs["weights_iterator"]:
                names.pop(name).copy_(tensor)
        assert not names
        self.calls.append("weights")
        return [None]

    def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        self.calls.append("forget")
        return True

    def generate(
        self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None,
        tokenization_kwargs=None, mm_processor_kwargs=None,
    ):  # fmt: skip
        self.calls.append("generate")
        self.requests.append((prompts, sampling_params))
        return [
            RequestOutput([self._answer(prompt["prompt_token_ids"], params)])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _answer(self, prompt, params):
        found = sample(
            self.model,
            [prompt],
            group_size=params.n,
            max_response=params.max_tokens,
            temperature=params.temperature,
            ends=params.stop_token_ids,
            pad=0,
            generator=torch.Generator().manual_seed(params.seed),
        )
        ended = bool(found.finished[0])
        tokens = found.response_ids[0, : int(found.mask[0].sum())].tolist()
        return CompletionOutput(tuple(tokens), "stop" if ended else "length")


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, as the module that is imported."""
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def sampler(vllm, tiny_base):
    return VllmSampler(tiny_base / "model", SAMPLING, GPU, Alone("cpu"))


PROMPTS = [[3, 12, 4, 15], [5, 15], [2, 13, 6, 15]]


def test_the_engine_starts_on_the_base_policy_with_the_configured_share(sampler, tiny_base):
    settings = sampler._engine.settings
    assert settings["model"] == str(tiny_base / "model")
    assert settings["gpu_memory_utilization"] == 0.4
    assert settings["dtype"] == "float32"
    assert settings["trust_remote_code"] is False
    assert settings["skip_tokenizer_init"] is True
    assert settings["generation_config"] == "vllm"
    assert settings["distributed_executor_backend"] is None


def test_of_several_processes_each_is_an_engine(vllm, tiny_base):
    world = Alone("cpu")
    world.size = 4
    sampler = VllmSampler(tiny_base / "model", SAMPLING, GPU, world)
    assert sampler._engine.settings["distributed_executor_backend"] == "external_launcher"


def test_every_response_is_a_request_with_its_own_seed_over_the_whole_distribution(sampler):
    sampler.rollouts(PROMPTS, seed=7)
    ((prompts, settings),) = sampler._engine.requests
    assert [p["prompt_token_ids"] for p in prompts] == [p for p in PROMPTS for _ in range(2)]
    assert len({s.seed for s in settings}) == 6
    for s in settings:
        assert (s.n, s.temperature, s.top_p, s.top_k) == (1, 2.0, 1.0, 0)
        assert (s.max_tokens, s.stop_token_ids, s.detokenize) == (6, [1], False)
        assert s.ignore_eos  # stops at the tokenizer's EOS and at no other token


def test_each_prompt_may_have_its_own_limit(sampler):
    sampler.rollouts(PROMPTS, seed=7, limits=[1, 6, 3])
    ((_, settings),) = sampler._engine.requests
    assert [s.max_tokens for s in settings] == [1, 1, 6, 6, 3, 3]


def test_other_settings_share_the_engine(sampler):
    other = sampler.with_(dataclasses.replace(SAMPLING, group_size=3, max_response=2))
    assert other._engine is sampler._engine
    assert len(other.rollouts(PROMPTS, seed=7).mask) == 9
    assert len(sampler.rollouts(PROMPTS, seed=7).mask) == 6


def test_probes_sample_by_the_engine_as_training_does(vllm, tiny_study, monkeypatch):
    """One engine on the trained policy; all continuations are one request, each with its limit."""
    study = tiny_study(train={"steps": 1}, probes={"problems": 3, "continuations": 4})
    cell = Cell("grpo", "tiny", "0", 1)
    train_cell(study, cell, quiet=True)
    config = study.cell_config(cell)
    runtime = config.runtime.model_copy(update={"sampler": "vllm"})  # not refused for its CPU
    config = config.model_copy(update={"runtime": runtime})
    monkeypatch.setattr(Study, "cell_config", lambda *_: config)
    subject = Subject.load(study, cell)
    engine = subject.sampler._engine
    assert engine.settings["model"] == str(study.run_folder(cell) / "model")
    problems, prefixes = subject.problems(3, 0), [[3, 4], [5], []]
    found = continuation_rewards(subject, problems, prefixes, 4, "test")
    assert found.shape == (3, 4)
    ((prompts, settings),) = engine.requests
    assert [s.max_tokens for s in settings] == [8] * 4 + [9] * 4 + [10] * 4
    assert prompts[0]["prompt_token_ids"][-2:] == [3, 4]


def test_luck_belongs_to_the_row_and_not_to_the_process(sampler):
    whole = sampler.rollouts(PROMPTS, seed=7)
    again = sampler.rollouts(PROMPTS, seed=7)
    assert torch.equal(again.response_ids, whole.response_ids)
    part = sampler.rollouts(PROMPTS[1:], seed=7, first=1, total=3)
    part = part.widened(whole.width, 0)
    assert torch.equal(part.response_ids, whole.response_ids[2:])
    other = sampler.rollouts(PROMPTS, seed=8)
    assert other.response_ids.tolist() != whole.response_ids.tolist()
    seeds = {seed_of(s, r) for s in range(30) for r in range(30)}
    assert len(seeds) == 900
    assert all(0 <= s < 2**63 for s in seeds)


def test_answers_become_padded_rollouts(sampler, monkeypatch):
    answers = [
        ((5, 6, 1), "stop"),
        ((5, 1), "stop"),
        ((7, 8, 9, 10, 11, 12), "length"),
        ((1,), "stop"),
        ((4, 1), "stop"),
        ((4, 4, 1), "stop"),
    ]
    outputs = [RequestOutput([CompletionOutput(*a)]) for a in answers]
    monkeypatch.setattr(sampler._engine, "generate", lambda *a, **k: outputs)
    found = sampler.rollouts(PROMPTS, seed=0)
    assert found.response_ids.tolist() == [
        [5, 6, 1, 0, 0, 0],
        [5, 1, 0, 0, 0, 0],
        [7, 8, 9, 10, 11, 12],
        [1, 0, 0, 0, 0, 0],
        [4, 1, 0, 0, 0, 0],
        [4, 4, 1, 0, 0, 0],
    ]
    assert found.mask.sum(1).tolist() == [3, 2, 6, 1, 2, 3]
    assert found.finished.tolist() == [True, True, False, True, True, True]
    assert found.prompt_ids[2].tolist() == [0, 0, 5, 15]
    assert found.prompt_mask[2].tolist() == [0, 0, 1, 1]
    assert found.logp.isnan().all()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([((5,), "abort")] * 6, "ended by 'abort'"),
        ([((5, 1), "stop")], "1 answers to 6 requests"),
        ([((5, 7), "stop")] * 6, r"stopped at \[7\], not at an end \[1\]"),
    ],
)
def test_answers_that_are_missing_or_broken_off_are_refused(sampler, monkeypatch, answers, message):
    outputs = [RequestOutput([CompletionOutput(*a)]) for a in answers]
    monkeypatch.setattr(sampler._engine, "generate", lambda *a, **k: outputs)
    with pytest.raises(RuntimeError, match=message):
        sampler.rollouts(PROMPTS, seed=0)


@pytest.mark.parametrize("algorithm", ["vimpo", "ppo", "grpo"])
def test_training_gives_the_engine_its_weights_before_every_step(
    vllm, tiny_study, monkeypatch, algorithm
):
    study = tiny_study(train={"warmup_steps": 0})
    config = study.cell_config(Cell(algorithm, "tiny", "rollout-0.25", 1))
    runtime = config.runtime.model_copy(update={"sampler": "vllm"})  # not refused for its CPU
    config = config.model_copy(update={"runtime": runtime})
    trainer = Trainer(config, study.base_folder("tiny") / "model")
    engine = trainer.collector.sampler._engine
    for step in range(3):
        before = [p.detach().clone() for p in trainer.policy.parameters()]
        row = trainer.step(step)
        for ours, theirs in zip(before, engine.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert row["grad_norm"] > 0
        assert row["approx_kl"] == 0  # old log-probabilities are the trainer's, not the engine's
    assert engine.calls == ["weights", "forget", "generate"] * 3
    moved = zip(engine.model.parameters(), trainer.policy.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in moved) > 1e-4


def test_both_samplers_have_the_same_interface():
    for name in ("sync", "rollouts", "with_"):
        ours, theirs = (inspect.signature(getattr(c, name)) for c in (VllmSampler, TorchSampler))
        assert ours == theirs


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch, tiny_base):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"'vllm' cannot be imported .*\.\[vllm\]"):
        VllmSampler(tiny_base / "model", SAMPLING, GPU)


def test_a_cache_of_older_weights_that_stays_is_refused(sampler, monkeypatch):
    monkeypatch.setattr(sampler._engine, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="older weights"):
        sampler.sync(lambda: sampler._engine.model.named_parameters())


def test_the_stand_in_refuses_what_vllm_has_no_argument_for(tiny_base):
    with pytest.raises(TypeError, match=r"SamplingParams of vLLM 0\.30\.0 has no argument best_of"):
        SamplingParams(best_of=2)
    with pytest.raises(TypeError, match=r"LLM of vLLM 0\.30\.0 has no argument swap_space"):
        LLM(str(tiny_base / "model"), swap_space=4)


def test_the_signatures_are_those_of_the_release_that_the_extra_installs():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["vllm"] == [f"vllm=={VERSION}"]


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_temperatures_that_vllm_changes_or_refuses_are_one_clear_error(temperature):
    message = rf"train\.temperature: {temperature} is outside vLLM's .* allowed: 0.01 to 2, or run"
    with pytest.raises(ConfigError, match=message):
        load_study(
            {
                "runtime": {"sampler": "vllm", "device": "cuda"},
                "train": {"temperature": temperature},
            }
        )


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_vllm_is_refused_where_it_would_not_share_the_gpu(device):
    with pytest.raises(ConfigError, match=r"sampler: 'vllm' needs a GPU; allowed: torch, or dev"):
        load_study({"runtime": {"sampler": "vllm", "device": device}})


def test_the_installed_vllm_has_the_calls_that_are_used():
    vllm = pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu_worker import Worker

    used = {
        vllm.LLM.__init__: set(ENGINE),
        EngineArgs: set(ENGINE_ARGS),
        vllm.LLM.generate: set(inspect.signature(LLM.generate).parameters),
        vllm.LLM.collective_rpc: set(inspect.signature(LLM.collective_rpc).parameters),
        vllm.LLM.reset_prefix_cache: set(),
        vllm.SamplingParams: set(SAMPLING_FIELDS),
        Worker.reload_weights: {"args", "kwargs"},
    }
    for function, names in used.items():
        assert names <= set(inspect.signature(function).parameters), function
