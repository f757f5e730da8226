"""Bad configurations: one clear error of field, value and allowed range."""

from __future__ import annotations

import pytest

from vimpo.config import Cell, ConfigError, Study, load_study

# (what is written, what the message must name: field, value, allowed range)
BAD = {
    "algorithm": ({"grid": {"algorithms": ["trpo"]}}, "algorithms", "'trpo'", "vimpo_value_only"),
    **{
        f"reserved name in {field}": (changes, field, f"'{name}'", "allowed: another name")
        for field, name, changes in (
            ("algorithms", "base", {"algorithms": {"base": {"objective": "grpo"}}}),
            ("sizes", "all", {"sizes": {"all": {"pretrain_steps": 1}}}),
            ("task.benchmarks", "mean", {"task": {"benchmarks": {"mean": {"operators": 2}}}}),
        )
    },
    "size": ({"grid": {"sizes": ["huge"]}}, "sizes", "'huge'", "xs, s, m, l, xl"),
    "benchmark key": (
        {"task": {"benchmarks": {"easy": {"operators": 2, "shots": 4}}}},
        "task.benchmarks.easy.shots",
        "unknown key",
        "allowed",
    ),
    "benchmark too large": (
        {"task": {"largest": 2, "benchmarks": {"easy": {"operators": 2, "problems": 4}}}},
        "task.benchmarks.easy.problems",
        "4",
        "1 to 3",
    ),
    "noise above 1": ({"grid": {"noise": [0.1, 1.5]}}, "noise.1.rate", "1.5", "[0, 1]"),
    "noise below 0": ({"grid": {"noise": [-0.25]}}, "noise.0.rate", "-0.25", "[0, 1]"),
    "noise not a number": ({"grid": {"noise": [float("nan")]}}, "noise.0.rate", "nan", "[0, 1]"),
    "noise of text": ({"grid": {"noise": ["some"]}}, "noise.0.rate", "'some'", "[0, 1]"),
    "noise of two kinds": (
        {"grid": {"noise": [{"mode": "asymmetric", "rate": 0.2}]}},
        "noise.0.rate",
        "0.2",
        "allowed: false_positive and false_negative",
    ),
    "group of 1 with vimpo": (
        {"train": {"group_size": 1}, "grid": {"algorithms": ["ppo", "vimpo"]}},
        "train.group_size",
        "1 gives vimpo",
        ">= 2",
    ),
    "group of 1 with grpo": (
        {"train": {"group_size": 1}, "grid": {"algorithms": ["grpo_naive"]}},
        "train.group_size",
        "1 gives grpo_naive",
        ">= 2",
    ),
    "a snapshot beyond the end": (
        {"train": {"steps": 30, "snapshots": [10, 31]}},
        "train.snapshots.1",
        "31 is beyond the last step",
        "allowed: 1 to steps = 30",
    ),
    "a snapshot twice": (
        {"train": {"snapshots": [5, 5]}},
        "train.snapshots.1",
        "5",
        "each step once",
    ),
    "a snapshot of the base": ({"train": {"snapshots": [0]}}, "snapshots.0", "0", "[1, inf)"),
    "validation at every 0": ({"train": {"validation": {"every": 0}}}, "every", "0", "[1, inf)"),
    "validation without decoders": (
        {"train": {"validation": {"decoders": {}}}},
        "train.validation.decoders",
        "{}",
        "at least 1",
    ),
    "validation on more than is held out": (
        {
            "task": {
                "largest": 4,
                "train_operators": [2],
                "benchmarks": {"easy": {"operators": 2, "problems": 5}},
            },
            "train": {"validation": {"problems": 26}},
        },
        "train.validation.problems",
        "26 is more",
        "allowed: 1 to 25",
    ),
    "validation that cannot be split": (
        {"train": {"validation": {"problems": 5}}, "runtime": {"processes": 2}},
        "train.validation.problems",
        "5 cannot be split",
        "a multiple of it",
    ),
    "a decoder of another meaning": (
        {"evaluation": {"decoders": {"greedy": {"temperature": 1}}}},
        "evaluation.decoders",
        "'greedy'",
        "another name",
    ),
    "a cold decoder": (
        {"evaluation": {"decoders": {"cold": {"temperature": -1}}}},
        "evaluation.decoders.cold.temperature",
        "-1",
        "greater than or equal to 0",
    ),
    "a decoder of nothing": (
        {"evaluation": {"decoders": {"none": {"top_p": 0}}}},
        "evaluation.decoders.none.top_p",
        "0",
        "greater than 0",
    ),
    "pass@k of too few": (
        {"evaluation": {"samples": 4, "pass_at": [2, 8]}},
        "evaluation.pass_at[1]",
        "8 is more than the 4 samples of chain_easy",
        "allowed: 1 to 4, or evaluation.samples: 8",
    ),
    "pass@0": ({"evaluation": {"pass_at": [0]}}, "evaluation.pass_at.0", "0", "[1, inf)"),
    "beta of 0": ({"algorithms": {"vimpo": {"beta": 0}}}, "vimpo.beta", ": 0 ", "greater than 0"),
    "beta below 0": ({"algorithms": {"vimpo": {"beta": -1}}}, "vimpo.beta", "-1", "than 0"),
    "endless beta": ({"algorithms": {"vimpo": {"beta": float("inf")}}}, "beta", "inf", "finite"),
    "capacity of 0": (
        {"algorithms": {"vimpo": {"beta": {"capacity": 0}}}},
        "algorithms.vimpo.beta.capacity",
        ": 0 ",
        "greater than 0",
    ),
    "capacity below 0": (
        {"algorithms": {"tbrm": {"beta": {"capacity": -0.5}}}},
        "algorithms.tbrm.beta.capacity",
        ": -0.5 ",
        "greater than 0",
    ),
    "beta of text": ({"algorithms": {"vimpo": {"beta": "half"}}}, "vimpo.beta", "'half'", "number"),
    "registered by a word": ({"registered": "soon"}, "registered", "'soon'", "boolean"),
    "endless actor coefficient": (
        {"algorithms": {"vimpo": {"actor_coef": float("inf")}}},
        "vimpo.actor_coef",
        "inf",
        "finite",
    ),
    "k1": (
        {"algorithms": {"vimpo": {"kl_estimator": "k1"}}},
        "vimpo.kl_estimator",
        "k1 is refused because it is the log-ratio itself",
        "exact, k2, k3, topk",
    ),
    "values of states without a splitting rule": (
        {
            "task": {"kind": "dataset", "datasets": [{"path": "some/data"}]},
            "sizes": {"real": {"path": "some/model"}},
            "grid": {"algorithms": ["vineppo"], "sizes": ["real"]},
        },
        "algorithms.vineppo.interval",
        "null leaves it without a splitting rule",
        "allowed: a number of tokens",
    ),
    "no continuation": ({"algorithms": {"vineppo": {"k": 0}}}, "vineppo.k", "0", "equal to 1"),
    "interval of 0": (
        {"algorithms": {"vineppo": {"interval": 0}}},
        "vineppo.interval",
        "0",
        "equal to 1",
    ),
    "soft values with an actor": (
        {"algorithms": {"vimpo": {"value": "soft"}}},
        "algorithms.vimpo.value",
        "'soft' has no actor, and actor_coef = 0.005",
        "allowed: raw, or actor_coef: 0",
    ),
    "soft values and several updates": (
        {
            "algorithms": {"vimpo": {"value": "soft", "actor_coef": 0}},
            "train": {"epochs": 2},
            "grid": {"algorithms": ["vimpo"]},
        },
        "train.epochs",
        "2 updates change the KL",
        "allowed: 1",
    ),
    "refresh with lora": (
        {
            "algorithms": {"vimpo": {"refresh_every": 4}},
            "sizes": {"xs": {"lora": {"rank": 2}}},
            "grid": {"algorithms": ["vimpo"]},
        },
        "algorithms.vimpo.refresh_every",
        "without its adapters",
        "allowed: null, or no lora",
    ),
    "refresh every 0 steps": (
        {"algorithms": {"vimpo": {"refresh_every": 0}}},
        "vimpo.refresh_every",
        "0",
        "equal to 1",
    ),
    "adaptive coefficient in chunks": (
        {
            "algorithms": {"vimpo": {"adaptive_coef": 0.025}},
            "runtime": {"logit_chunk": 16},
            "grid": {"algorithms": ["vimpo"]},
        },
        "runtime.logit_chunk",
        "adaptive_coef of vimpo reads all logits",
        "allowed: null",
    ),
    "huber of 0": (
        {"algorithms": {"vimpo": {"huber_delta": 0}}},
        "vimpo.huber_delta",
        "0",
        "greater than 0",
    ),
    "decay of 1": (
        {"algorithms": {"vimpo": {"adaptive_decay": 1}}},
        "vimpo.adaptive_decay",
        "1",
        "less than 1",
    ),
    "statistics of something else": (
        {"train": {"statistics": "rank"}},
        "train.statistics",
        "'rank'",
        "'batch' or 'micro_batch'",
    ),
    "no round of sampling": (
        {"algorithms": {"grpo": {"rounds": 0}}},
        "grpo.rounds",
        "0",
        "equal to 1",
    ),
    "rounds on several processes": (
        {
            "algorithms": {"grpo": {"rounds": 3}},
            "runtime": {"processes": 2},
            "grid": {"algorithms": ["grpo"]},
        },
        "runtime.processes",
        "2 processes keep different numbers of groups",
        "allowed: 1, or rounds: 1",
    ),
    "punished beyond the whole": (
        {"algorithms": {"dapo": {"overlong": 1.5}}},
        "dapo.overlong",
        "1.5",
        "equal to 1",
    ),
    "continuations with weights in parts": (
        {
            "runtime": {"processes": 2, "sharding": "fsdp2"},
            "grid": {"algorithms": ["vineppo"]},
        },
        "runtime.sharding",
        "'fsdp2' gathers weights for each call",
        "allowed: ddp, or sampler: vllm",
    ),
    "KL estimator": (
        {"algorithms": {"vimpo": {"kl_estimator": "k4"}}},
        "vimpo.kl_estimator",
        "'k4'",
        "exact, k2, k3, topk",
    ),
    "no seeds": ({"grid": {"seeds": []}}, "grid.0.seeds", "[]", "at least 1"),
    "seed below 0": ({"grid": {"seeds": [1, -2]}}, "grid.0.seeds.1", "-2", "[0, "),
    "key of a study": ({"grids": []}, "grids", "unknown key", "allowed"),
    "key of a section": ({"train": {"step": 3}}, "train.step", "unknown key", "allowed"),
    "key of an algorithm": (
        {"algorithms": {"vimpo": {"gamma": 1}}},
        "algorithms.vimpo.gamma",
        "unknown key",
        "allowed",
    ),
    "another objective's key": (
        {"algorithms": {"ppo": {"beta": 0.1}}},
        "algorithms.ppo.beta",
        "unknown key",
        "allowed",
    ),
    "replay of no batches": (
        {"algorithms": {"ppo_pretrained": {"critic_replay": 0}}},
        "algorithms.ppo_pretrained.critic_replay",
        "0 is not allowed",
        "greater than or equal to 1",
    ),
    "replay that nothing reads": (
        {"algorithms": {"ppo": {"critic_replay": 4}}},
        "algorithms.ppo.critic_replay",
        "4 batches are never read with critic_updates = 1",
        "allowed: 1, or more updates",
    ),
    "pretraining without updates": (
        {"algorithms": {"ppo": {"critic_pretrain": {"updates": 0}}}},
        "algorithms.ppo.critic_pretrain.updates",
        "0 is not allowed",
        "greater than or equal to 1",
    ),
    "pretraining of no critic": (
        {"algorithms": {"grpo": {"critic_pretrain": {"updates": 9}}}},
        "algorithms.grpo.critic_pretrain",
        "unknown key",
        "allowed",
    ),
    "gate": ({"algorithms": {"ppo": {"gate": "ev"}}}, "algorithms.ppo.gate", "'ev'", "'group'"),
    "group of 1 with a gate to its mean": (
        {
            "train": {"group_size": 1},
            "algorithms": {"ppo": {"gate": "group"}},
            "grid": {"algorithms": ["ppo"]},
        },
        "train.group_size",
        "1 gives ppo",
        ">= 2",
    ),
    "replay over several processes": (
        {"runtime": {"processes": 2}, "grid": {"algorithms": ["ppo_pretrained"]}},
        "algorithms.ppo_pretrained.critic_replay",
        "8 batches are not shared by runtime.processes = 2",
        "allowed: 1",
    ),
    "pretrained critic with adapters": (
        {"sizes": {"xs": {"lora": {}}}, "grid": {"algorithms": ["ppo_pretrained"]}},
        "algorithms.ppo_pretrained.critic_pretrain",
        "adapters",
        "allowed: null with lora",
    ),
    "objective": ({"algorithms": {"new": {"objective": "trpo"}}}, "new", "'trpo'", "'grpo'"),
    "text for a number": ({"train": {"steps": "many"}}, "train.steps", "'many'", "[1, inf)"),
    "micro-batch": ({"train": {"micro_batch": 999}}, "train.micro_batch", "999", "1 to that"),
    "heads": (
        {"sizes": {"xs": {"heads": 5, "hidden": 64}}},
        "sizes.xs.heads",
        "5",
        "divide hidden = 64",
    ),
    "odd heads": (
        {"sizes": {"xs": {"hidden": 66, "heads": 2, "kv_heads": 2}}},
        "sizes.xs.heads",
        "33",
        "even",
    ),
    "untrained size": ({"sizes": {"new": {}}}, "sizes.new.pretrain_steps", "0", ">= 1"),
    "device": ({"runtime": {"device": "tpu"}}, "runtime.device", "'tpu'", "cuda"),
    "study name": ({"study": "../up"}, "study", "'../up'", "pattern"),
    "more prompts than problems": (
        {
            "task": {"largest": 2, "train_operators": [1], "benchmarks": {"a": {"operators": 8}}},
            "train": {"prompts_per_step": 5},
        },
        "train.prompts_per_step",
        "5",
        "1 to 4",
    ),
    "more demonstrations than problems": (
        {
            "task": {
                "largest": 9,
                "symbols": "+",
                "pretrain_operators": [1],
                "benchmarks": {"a": {"operators": 8}},
            },
            "pretrain": {"batch_size": 41},
        },
        "pretrain.batch_size",
        "41",
        "1 to 40",
    ),
    "pairs without steps": (
        {
            "task": {
                "kind": "dataset",
                "datasets": [{"path": "some/hub-name"}],
                "benchmarks": {"test": {"task": "aime25"}},
            },
            "sizes": {"q": {"path": "some/model"}},
            "grid": {"algorithms": ["grpo"], "sizes": ["q"]},
            "probes": {"pairs": 3},
        },
        "probes.pairs",
        "'dataset'",
        "0, or kind: chain",
    ),
    "pairs below 0": ({"probes": {"pairs": -1}}, "probes.pairs", "-1", "[0, inf)"),
    "few rollouts": (
        {"probes": {"baselines": {"rollouts": 10}}},
        "probes.baselines.rollouts",
        "10",
        "[20, inf)",
    ),
    "no updates": (
        {"probes": {"baselines": {"updates": -1}}},
        "probes.baselines.updates",
        "-1",
        "[0, inf)",
    ),
    "order": ({"claims": {"value_order": 1.5}}, "claims.value_order", "1.5", "[-1, 1]"),
    "finer": ({"claims": {"finer_margin": 0.6}}, "claims.finer_margin", "0.6", "[0, 0.5]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_error_of_field_value_and_range(case):
    data, field, value, allowed = BAD[case]
    with pytest.raises(ConfigError) as caught:
        load_study(data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert field in message
    assert value in message
    assert allowed in message


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_study({"train": {"steps": 0, "group_size": -1}, "colour": 1})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "train.steps",
        "train.group_size",
        "colour",
    ]


def test_ppo_alone_may_have_groups_of_one():
    study = load_study({"train": {"group_size": 1}, "grid": {"algorithms": ["ppo"]}})
    assert study.train.group_size == 1
    with pytest.raises(ConfigError, match=r"train\.group_size: 1 gives grpo .* allowed: >= 2"):
        study.cell_config(Cell("grpo", "xs", "0", 1))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("trpo", "xs", "0", 1), "algorithm: 'trpo' is unknown; allowed: vimpo"),
        (Cell("ppo", "huge", "0", 1), "size: 'huge' is unknown; allowed: xs"),
        (Cell("ppo", "xs", "1.5", 1), r"noise.rate: 1.5 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "-0.5", 1), r"noise.rate: -0.5 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "rollout--1", 1), r"noise.rate: -1.0 is not allowed; .*\[0, 1\]"),
        (Cell("ppo", "xs", "loud", 1), r"noise: 'loud' .* allowed: a number in \[0, 1\]"),
        (Cell("ppo", "xs", "asymmetric-0.1", 1), r"noise: 'asymmetric-0.1' .* allowed"),
        (Cell("ppo", "xs", "0", -1), "seed: -1 is not allowed; allowed: an integer in"),
    ],
)
def test_bad_cells_are_refused(cell, message):
    with pytest.raises(ConfigError, match=message):
        Study().cell_config(cell)


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml' is not a file; allowed"):
        load_study(tmp_path / "no.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("grid: [1, 2")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_study(broken)
    broken.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="is not a mapping"):
        load_study(broken)


@pytest.mark.parametrize(
    ("text", "key", "first", "again"),
    [
        ("study: a\ntrain: {steps: 3}\n\nstudy: b\n", "study", 1, 4),
        ("train:\n  steps: 3\n  epochs: 2\n  'steps': 4\n", "steps", 2, 4),
        ("train: {steps: 3, steps: 3}\n", "steps", 1, 1),
        ("grid:\n- {seeds: [1]}\n- seeds: [2]\n  seeds: [3]\n", "seeds", 3, 4),
        ("sizes:\n  xs: {<<: {hidden: 8, hidden: 16}}\n", "hidden", 2, 2),
    ],
)
def test_a_key_that_is_given_twice_is_named_with_its_lines(tmp_path, text, key, first, again):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert str(caught.value) == (
        f"config: '{path}' is not valid YAML: '{key}' on line {first} is repeated on line "
        f"{again}; allowed: each key once"
    )


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_an_error_and_ends_no_process(tmp_path, opening):
    path = tmp_path / "deep.yaml"
    path.write_text(opening * 100_000)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_study(path)


def test_a_merged_mapping_may_have_its_keys_overwritten(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(
        "sizes:\n  a: &a {pretrain_steps: 3, hidden: 32}\n"
        "  b: &b {<<: *a, hidden: 64}\n  c: {<<: *b, hidden: 128}\n"
    )
    sizes = load_study(path).sizes
    assert [sizes[name].hidden for name in "abc"] == [32, 64, 128]
    assert sizes["c"].pretrain_steps == 3
