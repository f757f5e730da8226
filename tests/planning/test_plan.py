"""The plan of a study, made only from shapes and stated assumptions."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from real_data import byte_model

from vimpo.config import ConfigError, ModelSpec, load_study
from vimpo.models.memory import active_count, parameter_count
from vimpo.planning.inputs import benchmark_responses, load_device, shape_of
from vimpo.planning.jobs import CELL, cell_request, job_request, launcher
from vimpo.planning.plan import Planner, critic_passes, forward_flops, policy_passes
from vimpo.planning.text import describe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "workflow/config").glob("*.yaml"))
NO_TORCH = """
import sys
from vimpo.cli import main
for path in sys.argv[1:]:
    assert main(["plan", path]) == 0
assert not {"torch", "transformers", "snakemake"} & set(sys.modules), "a slow import"
"""


def shipped(name):
    return load_study(ROOT / f"workflow/config/{name}.yaml")


def test_every_shipped_study_is_planned_in_seconds_without_torch():
    command = [sys.executable, "-c", NO_TORCH, *map(str, CONFIGS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for study in map(load_study, CONFIGS):
        assert f"Study {study.study}: {len(study.cells())} cells" in done.stdout
    assert done.stdout.count("Assumptions") == len(CONFIGS)


def test_jobs_are_those_of_the_grid():
    study = shipped("quick")
    jobs = Planner(study).jobs()
    counts = {}
    for job in jobs:
        counts[job.rule] = counts.get(job.rule, 0) + job.count
    once = {"pretrain": 1, "critic": 1, "cost": 1}
    assert counts == once | {"train": 42, "evaluate": 43, "probe": 42}


def test_what_comes_with_the_suite_takes_no_time():
    taken, made = shipped("quick"), changed("quick", pretrain={"shipped": False})
    hours = {
        study.pretrain.shipped: {job.rule: job.hours for job in Planner(study).jobs()}
        for study in (taken, made)
    }
    for rule in ("pretrain", "critic"):
        assert hours[True][rule] == taken.plan.startup_seconds / 3600 < hours[False][rule] / 5
    assert hours[True]["train"] == hours[False]["train"]


def test_what_is_looked_at_along_training_is_planned():
    study = shipped("quick")
    looked_at = {"validation": {"every": 10, "problems": 64, "samples": 2}, "snapshots": [8, 16]}
    train = study.train.model_dump(mode="json") | looked_at
    watched = load_study(study.model_dump(mode="json") | {"train": train})
    before, after = Planner(study), Planner(watched)
    counts = {}
    for job in after.jobs():
        counts[job.rule] = counts.get(job.rule, 0) + job.count
    once = {"pretrain": 1, "critic": 1, "cost": 1}
    assert counts == once | {"train": 42, "evaluate": 1 + 3 * 42, "probe": 3 * 42}
    shape, grpo = before.left["xs"], study.algorithms["grpo"]
    # steps 0, 10, ..., 60, and 64 problems x (2 + 2 + 1) responses, 16 at once
    more = after.train_s(shape, grpo) - before.train_s(shape, grpo)
    assert more == pytest.approx(7 * 320 / 16 * before.rollout_s(shape))
    assert after.disk()[0] > 2.5 * before.disk()[0]


def test_the_forward_pass_of_a_known_shape():
    # 128 x 3 without its look-up: counted by hand.
    study = load_study(
        {"sizes": {"f": {"hidden": 128, "layers": 3, "heads": 4, "pretrain_steps": 1}}}
    )
    shape = replace(shape_of("f", study.sizes["f"]), kv_heads=4, vocabulary=18)
    layer = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128 + 2 * 32
    weights = 18 * 128 + 3 * layer + 128
    assert parameter_count(shape) == weights
    assert forward_flops(shape, 10) == 2 * weights + 4 * 3 * 128 * 10
    untied = replace(shape, tied=False)  # a look-up and an output matrix: only the latter computes
    assert forward_flops(untied, 10) == forward_flops(shape, 10)
    critic = forward_flops(shape, 0, critic=True)
    assert critic == 2 * (weights - 18 * 128 + 128 + 1)


@pytest.mark.parametrize(
    ("name", "split", "passes"),
    [
        ("grpo", False, 3),
        ("grpo", True, 3),
        ("ppo", True, 3),
        ("vimpo", False, 4),  # and the reference
        ("vimpo", True, 6),  # and a first look at policy and reference
    ],
)
def test_passes_of_an_update(name, split, passes):
    objective = load_study().algorithms[name]
    assert policy_passes(objective, split, 1, False) == passes
    assert policy_passes(objective, split, 2, False) == 2 * passes
    assert policy_passes(objective, split, 1, True) == passes + 1


def test_passes_of_a_critic():
    assert critic_passes(False, 1, False) == 3
    assert critic_passes(True, 1, False) == 4
    assert critic_passes(True, 2, True) == 9
    assert critic_passes(True, 2, True, updates=5) == 41


def test_a_pretrained_critic_is_one_job_for_its_seeds_and_noise_levels_apart():
    grid = {"algorithms": ["ppo", "ppo_pretrained"], "sizes": ["xs"], "noise": [0, 0.25]}
    study = load_study({"grid": grid | {"seeds": [1, 2, 3]}, "plan": {"startup_seconds": 0}})
    planner = Planner(study)
    jobs = {(job.rule, job.algorithm): job for job in planner.jobs()}
    assert sum(job.count for job in planner.jobs() if job.rule == "critic") == 2
    assert jobs["train", "ppo_pretrained"].count == 6
    objective, shape = study.algorithms["ppo_pretrained"], planner.shapes["xs"]
    settings = objective.critic_pretrain
    fewer = settings.model_copy(update={"updates": settings.updates // 2})
    half = planner.critic_s(shape, objective.model_copy(update={"critic_pretrain": fewer}))
    held_out = 512  # rollouts, sampled once
    sampled = settings.updates * settings.rollouts
    assert 0.5 < half / planner.critic_s(shape, objective) < 0.5 + held_out / sampled
    # Eight updates of a critic and one of the policy, against one of each.
    ppo = study.algorithms["ppo"]
    one, eight = (planner.step_s(shape, o) - planner.rollout_s(shape) for o in (ppo, objective))
    assert eight / one == pytest.approx((8 + 1) / 2, rel=0.05)
    weights = 4 * parameter_count(shape, critic=True)
    plain = Planner(load_study({"grid": grid | {"algorithms": ["ppo"], "seeds": [1, 2, 3]}}))
    runs = 6 * plain.kept_bytes(shape, ppo)
    assert planner.disk()[0] - plain.disk()[0] == runs + 2 * weights


def test_estimates_are_near_what_was_measured():
    """80 steps of 32 x 8 on a 128 x 3 model took 128 (GRPO), 155 (VIMPO) and 209 s (PPO)."""
    study = load_study(
        {
            "task": {
                "largest": 20,
                "pretrain_operators": [3],
                "train_operators": [3],
                "benchmarks": {"held_out": {"operators": 3}},
            },
            "sizes": {
                "f": {"hidden": 128, "layers": 3, "heads": 4, "kv_heads": 4, "pretrain_steps": 800}
            },
            "train": {"steps": 80, "prompts_per_step": 32},
            "pretrain": {"batch_size": 128},
            "runtime": {"threads": 2},
            "grid": {"sizes": ["f"]},
        }
    )
    planner = Planner(study)
    shape = planner.shapes["f"]
    for name, measured in (("grpo", 128), ("vimpo", 155), ("ppo", 209)):
        estimate = 80 * planner.step_s(shape, study.algorithms[name])
        assert measured / 2 < estimate < measured * 2, name
    assert 250 / 2 < planner.pretrain_s("f", shape) < 440 * 2


def test_published_and_local_shapes(tmp_path):
    sizes = shipped("paper").sizes
    counts = {
        name: parameter_count(shape_of(name, sizes[name]))
        for name in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b")
    }
    # Counted by transformers for the published config.json of each, a tied matrix once.
    assert counts == {
        "qwen3-0.6b": 596_049_920,
        "qwen3-1.7b": 1_720_574_976,
        "qwen3-4b": 4_022_468_096,
        "qwen3-8b": 8_190_735_360,
    }
    config = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = sizes["qwen3-0.6b"].model_copy(update={"path": str(tmp_path)})
    assert parameter_count(shape_of("local", spec)) == counts["qwen3-0.6b"]


# Shapes of published models -> all of their parameters, and those that one token uses.
PUBLISHED = {
    "Pythia-6.9b: biases, no gate, another vocabulary": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "vocab_size": 50432,
            "tie_word_embeddings": False,
        },
        (6_857_302_016, 6_857_302_016),
    ),
    "Qwen3-30B-A3B: 8 of 128 experts": (
        {
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_hidden_layers": 48,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "tie_word_embeddings": False,
        },
        (30_532_122_624, 3_353_032_704),
    ),
    "Mixtral-8x7B: 2 of 8 experts": (
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
        (46_702_792_704, 12_879_925_248),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_local_models_are_counted_by_their_own_code_once(model, tmp_path, monkeypatch):
    config, counts = PUBLISHED[model]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of("local", ModelSpec(path=str(tmp_path)))
    assert (parameter_count(shape), active_count(shape)) == counts
    with monkeypatch.context() as patched:
        patched.setattr("vimpo.models.counting.count_parameters", None)
        assert shape_of("local", ModelSpec(path=str(tmp_path))) == shape
    assert forward_flops(shape, 0) == 2 * (counts[1] - config["vocab_size"] * config["hidden_size"])
    without_output = counts[0] - (config["vocab_size"] - 1) * config["hidden_size"] + 1
    assert parameter_count(shape, critic=True) == without_output


def test_prompts_of_local_data_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"problem": "x" * n, "answer": "1"} for n in (4, 5, 5, 16, 40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "dataset", "datasets": [{"path": str(tmp_path / "rows.jsonl")}]}
    study = {
        "task": task
        | {"prompt": "{problem}", "max_prompt": 20, "benchmarks": {"aime": {"task": "aime25"}}},
        "sizes": {"bytes": {"path": str(byte_model(tmp_path / "model"))}},
        "train": {"max_response": 7},
        "grid": {"sizes": ["bytes"]},
    }
    lengths = Planner(load_study(study)).lengths
    # One token per byte; the prompt of 40 is left out of training.
    assert (lengths.prompt, lengths.longest_prompt) == (8, 16)
    monkeypatch.setattr("vimpo.planning.inputs._read_prompts", lambda *_: pytest.fail("again"))
    assert Planner(load_study(study)).lengths == lengths
    said = describe(load_study(study))
    assert "prompts of 8 tokens (longest 16), responses of 7 (longest 7)" in said


def test_a_model_of_unknown_shape_is_named_and_not_counted():
    study = load_study(
        {
            "sizes": {"other": {"path": "someone/unheard-of"}},
            "grid": {"sizes": ["other", "xs"]},
        }
    )
    assert {job.size for job in Planner(study).jobs()} == {"xs"}
    assert "sizes.other.path: the shape of 'someone/unheard-of' is unknown" in describe(study)


def changed(name, **sections):
    """A shipped study with some fields of its sections replaced."""
    data = yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text())
    return load_study(data | {key: data.get(key, {}) | new for key, new in sections.items()})


def test_the_paper_fits_on_eight_gpus():
    planner = Planner(shipped("paper"))
    assert planner.warnings() == []
    held = {(job.rule, job.devices) for job in planner.jobs()}
    assert held == {("pretrain", 1), ("cost", 8), ("train", 8), ("evaluate", 1), ("probe", 1)}


def test_every_round_of_the_cost_measurement_is_planned():
    no_start = {"startup_seconds": 0}
    two, six = (Planner(changed("quick", probes={"cost_rounds": n}, plan=no_start)) for n in (2, 6))
    shape = two.shapes["xs"]
    assert six.cost_s("xs", shape) == pytest.approx(3 * two.cost_s("xs", shape))


def test_cost_is_planned_on_one_node_of_several():
    one, two = shipped("paper"), changed("paper", runtime={"processes": 16, "nodes": 2})
    request = job_request(two, "cost", "qwen3-8b")
    assert (request.processes, request.gpus, request.nodes, request.threads) == (8, 8, 1, 64)
    shape = Planner(one).shapes["qwen3-8b"]
    assert Planner(two).cost_s("qwen3-8b", shape) == Planner(one).cost_s("qwen3-8b", shape)
    alone = Planner(changed("paper", runtime={"processes": 1})).cost_s("qwen3-8b", shape)
    assert 5 < alone / Planner(one).cost_s("qwen3-8b", shape) < 8
    # Training has room on two GPUs of two nodes, and one of them has not.
    small = Planner(changed("paper", runtime={"processes": 4, "nodes": 4}, plan={"device": "h200"}))
    assert any(
        "qwen3-8b: cost is measured on one node, whose 1 processes" in w for w in small.warnings()
    )


def test_probes_are_planned_with_the_studys_sampler():
    paper = shipped("paper")
    shape = Planner(paper).shapes["qwen3-4b"]
    objective = paper.algorithms["grpo"]
    torch = changed("paper", runtime={"sampler": "torch"})
    fewer = changed("paper", runtime={"sampler": "torch"}, evaluation={"batch_size": 8})
    times = [Planner(s).probe_s(shape, objective) for s in (torch, fewer)]
    assert times[1] > 5 * times[0]  # at most as many at once as lm-eval
    quick = shipped("quick")
    more = quick.model_copy(
        update={"evaluation": quick.evaluation.model_copy(update={"batch_size": 8})}
    )
    shape = Planner(quick).shapes["xs"]
    assert Planner(quick).probe_s(shape, objective) == Planner(more).probe_s(shape, objective)


@pytest.mark.parametrize(
    "asked", [{"common": True}, {"pairs": 64}, {"baselines": {}}, {"baselines": {"updates": 900}}]
)
def test_every_further_probe_is_planned(asked):
    base = {"baselines": {}} if asked == {"baselines": {"updates": 900}} else {}
    plain, more = (changed("yardstick", probes=probes) for probes in (base, asked))
    shape, objective = Planner(plain).shapes["xs"], plain.algorithms["vimpo"]
    assert Planner(more).probe_s(shape, objective) > Planner(plain).probe_s(shape, objective)


def test_a_cell_that_cannot_fit_is_warned_of():
    text = describe(changed("paper", runtime={"processes": 1}))
    assert "qwen3-8b: cells of vimpo, ppo" in text
    assert "cannot fit" in text
    assert "qwen3-0.6b: cells" not in text
    small = load_study({"sizes": {"xs": {"memory_mb": 400}}, "train": {"prompts_per_step": 1000}})
    assert "sizes.xs.memory_mb gives 0.4" in describe(small)


def test_memory_follows_what_the_runtime_says():
    def needs(**runtime):
        planner = Planner(changed("paper", runtime=runtime))
        return planner.memory_gib(planner.shapes["qwen3-4b"], planner.study.algorithms["vimpo"])

    whole = needs()
    copies = 4_022_468_096 * (2 + 6 + 8 + 4 + 2) / 2**30  # policy in training, and a reference
    assert needs(sharding="ddp") - whole == pytest.approx(copies * 7 / 8, rel=1e-6)
    assert needs(gradient_checkpointing=False) > whole
    assert needs(vllm_memory=0.4) - whole == pytest.approx(8.0, rel=1e-6)
    # Eight float32 arrays of [tokens, vocabulary] for VIMPO's exact KL (vimpo/models/memory.py).
    logits = 8 * 151936 * 4 / 2**30
    assert needs(logit_chunk=2048) - whole == pytest.approx(1024 * logits, rel=1e-6)


def test_an_engine_that_does_not_hold_the_weights_is_warned_of():
    lines = Planner(changed("paper", runtime={"vllm_memory": 0.1})).warnings()
    assert any(line.startswith("qwen3-8b: runtime.vllm_memory: 0.1") for line in lines)


def test_responses_of_an_evaluation():
    # The paper's k, and a greedy response of each problem.
    assert benchmark_responses(shipped("paper")) == 2 * (500 + 675) + 33 * (30 + 30)
    assert benchmark_responses(load_study()) == 4 * 200 * 3


def test_problems_of_a_file_are_counted_once_and_a_limit_is_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "mine.jsonl"
    row = json.dumps({"problem": "What is 1 plus 1?", "answer": "2"})

    def responses(**changes):
        benchmarks = {"mine": {"task": "aime25", "path": str(file), "samples": 5} | changes}
        source = {"path": "somebody/something"}
        task = {"kind": "dataset", "datasets": [source], "benchmarks": benchmarks}
        sizes = {"q": {"path": "Qwen/Qwen3-0.6B"}}
        study = {"task": task, "sizes": sizes, "grid": {"sizes": ["q"]}}
        return benchmark_responses(load_study(study))

    file.write_text(f"{row}\n" * 70)  # published are 30
    assert responses() == 70 * (5 + 1)
    with monkeypatch.context() as patched:
        patched.setattr("vimpo.tasks.sources.read_rows", lambda *_: pytest.fail("again"))
        assert responses() == 70 * (5 + 1)
    assert responses(limit=40) == 40 * (5 + 1)
    assert responses(path="somebody/else", limit=40) == 40 * (5 + 1)
    assert responses(path="somebody/else") == 30 * (5 + 1)
    file.write_text("{")
    assert responses() == 30 * (5 + 1)


def test_the_ladder_to_a_billion_parameters_takes_less_than_a_day():
    planner = Planner(shipped("gpu"))
    assert max(parameter_count(s) for s in planner.shapes.values()) > 1e9
    assert sum(job.device_hours for job in planner.jobs()) < 24
    assert planner.warnings() == []


def test_a_job_longer_than_its_minutes_is_warned_of():
    study = load_study({"train": {"steps": 10**6}, "cluster": {"minutes": {"train": 5}}})
    assert any("xs: train takes up to" in line for line in Planner(study).warnings())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"device": "abacus"}, "plan.device: 'abacus' is unknown; allowed: cpu-core"),
        ({"device": "h100"}, "plan.device: 'h100' does not go with runtime.device: cpu"),
        ({"train_utilisation": 1.5}, "plan.train_utilisation: 1.5 is not allowed"),
    ],
)
def test_wrong_assumptions_are_one_clear_error(plan, message):
    with pytest.raises(ConfigError) as error:
        describe(load_study({"plan": plan}))
    assert message in str(error.value)


def test_assumptions_of_the_study_replace_those_of_the_table():
    assert load_device(load_study()).train_utilisation != 0.5
    assert load_device(load_study({"plan": {"train_utilisation": 0.5}})).train_utilisation == 0.5


# --- what jobs ask a scheduler for ---------------------------------------------------------------


def test_minutes_and_partitions_by_size_and_stage():
    study = load_study(
        {
            "cluster": {
                "partition": "gpu",
                "minutes": {"train": 100},
                "sizes": {"s": {"partition": "large", "minutes": {"train": 300}}},
            }
        }
    )
    assert job_request(study, "train", "xs").partition == "gpu"
    assert job_request(study, "train", "xs").minutes == 100
    assert job_request(study, "train", "s").partition == "large"
    assert job_request(study, "train", "s").minutes == 300
    assert job_request(study, "probe", "s").minutes == 120
    assert cell_request(study, "s").minutes == sum(
        job_request(study, stage, "s").minutes for stage in CELL
    )
    assert job_request(study, "train", "s").gpus == 0


def test_a_gpu_is_asked_for_where_the_device_is_one():
    study = load_study({"runtime": {"device": "cuda"}})
    assert job_request(study, "evaluate", "xs").gpus == 1


def test_training_on_several_nodes_is_started_once_on_each():
    assert launcher(load_study()) == ""
    study = changed("paper", runtime={"processes": 16, "nodes": 2, "threads": 3})
    request = job_request(study, "train", "qwen3-4b")
    assert (request.gpus, request.nodes, request.threads) == (16, 2, 48)
    assert launcher(study).startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 ")
    assert "--cpus-per-task=24 " in launcher(study)
    assert job_request(study, "evaluate", "qwen3-4b").gpus == 1


def test_what_a_scheduler_is_asked_for_runs_nothing_again():
    plain = load_study()
    other = load_study({"cluster": {"partition": "gpu"}, "sizes": {"xs": {"memory_mb": 9000}}})
    cell = plain.cells()[0]
    assert plain.base_digest("xs") == other.base_digest("xs")
    assert plain.cell_digest(cell) == other.cell_digest(cell)
    assert plain.cost_digest("xs") == other.cost_digest("xs")


def test_an_unknown_size_in_the_cluster_section_is_refused():
    with pytest.raises(ConfigError, match=r"cluster.sizes: 'huge' is unknown; allowed: xs"):
        load_study({"cluster": {"sizes": {"huge": {"partition": "gpu"}}}})


@pytest.mark.parametrize(
    ("train", "runtime", "processes", "read"),
    [
        ({}, {}, 1, 4),
        ({"micro_batch": 6}, {}, 1, 12),  # ceil(16 / 6) micro-batches with rows of 4 prompts each
        ({"micro_batch": 2}, {}, 1, 16),
        ({}, {"gradient_checkpointing": True}, 1, 16),
        ({}, {}, 2, 16),
    ],
)
def test_a_prompt_is_counted_once_where_its_rows_share_it(train, runtime, processes, read):
    train = {"prompts_per_step": 4, "group_size": 4} | train
    planner = Planner(load_study({"train": train, "runtime": runtime}))
    assert planner._prompts_read(processes) == read
