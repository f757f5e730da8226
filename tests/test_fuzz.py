"""Random configurations, tensors and texts: a clear error or a sound result, and nothing else."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings

from vimpo.config import ConfigError, check_before_running, digest, load_study
from vimpo.config_task import VerifierLimits
from vimpo.objectives import common, grpo, ppo, vimpo
from vimpo.objectives.chunked import Head, chunked_scores
from vimpo.plan_text import describe
from vimpo.tasks.prompts import fill
from vimpo.tasks.verifier import Verifier, answers, last_boxed

ROOT = Path(__file__).parents[1]
SHIPPED = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "workflow/config").glob("*.yaml"))
}
# With every default written out, so that each field is met.
SHIPPED |= {f"whole {name}": load_study(c).model_dump(mode="json") for name, c in SHIPPED.items()}
QUICKLY = 5.0  # seconds for one configuration; a hundred times what it takes


def profile(examples):
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=quiet
    )


# --- Configurations ------------------------------------------------------------------------------

HUGE = [0, -1, 1, 2, 10**6, 2**31, 2**53, 2**64, 10**400, -(10**400)]
ODD_NUMBERS = [0.0, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, 0.1, 0.5, 1.5]
ODD_TEXTS = [
    "",
    " ",
    "vimpo",
    "xs",
    "../../up",
    "a b",
    "x;touch y",
    "$(id)",
    "'\"",
    "line\nbreak",
    "\0",
    "\ud800",
    "é",
    "模型",
    "a" * 3000,
    "1e5",
    "null",
    "-",
    "0.25",
    "rollout-0.1",
    "~no-such-user/model",
    "./" + "b/" * 3000,
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(HUGE),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=8),
    st.integers(-5, 200),
    st.floats(),
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers(0, 9)), inner, max_size=3),
    ),
    max_leaves=6,
)
# Fields of the schema that the shipped files do not all mention.
FIELDS = sorted(
    set(re.findall(r'"([a-z_]+)": \{', (ROOT / "workflow/schemas/study.schema.json").read_text()))
)


def places(node, path=()):
    """The path of every node below a configuration."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def mutate(draw, config):
    """One change somewhere: removed, repeated, of another type, extreme, unknown, nested."""
    path = draw(st.sampled_from(list(places(config)) or [()]))
    if not path:
        return
    node = config
    for key in path[:-1]:
        node = node[key]
    last, kind = path[-1], draw(st.sampled_from(["delete", "double", "junk", "scalar", "add"]))
    if kind == "delete":
        del node[last]
    elif kind == "double" and isinstance(node, list):
        node.append(copy.deepcopy(node[last]))
    elif kind == "double":
        node[draw(st.sampled_from(FIELDS))] = copy.deepcopy(node[last])
    elif kind == "add" and isinstance(node[last], dict):
        name = draw(st.one_of(st.sampled_from(FIELDS), st.text(max_size=6)))
        node[last][name] = draw(junk)
    else:
        node[last] = draw(scalars if kind == "scalar" else junk)


@st.composite
def configurations(draw):
    config = copy.deepcopy(SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))])
    for _ in range(draw(st.integers(1, 3))):
        mutate(draw, config)
    return config


def plan_everything(study):
    """What planning and the rules ask of a study before anything runs."""
    cells = study.cells()
    for cell in cells[:20]:
        study.cell_digest(cell)
        study.probe_digest(cell)
        study.run_folder(cell)
    for size in study.used_sizes():
        study.base_digest(size)
        study.cost_digest(size)
    digest(study)
    assert describe(study)


def explained(error, config):
    """Does every line of an error say which field is at fault, and what would do?"""
    lines = str(error).splitlines()
    assert lines, config
    for line in lines:
        assert ":" in line, (line, config)


def one_configuration(config):
    started = time.perf_counter()
    try:
        study = load_study(config)
        check_before_running(study)
        plan_everything(study)
    except ConfigError as error:
        explained(error, config)
    assert time.perf_counter() - started < QUICKLY, config


@profile(150)
@given(configurations())
def test_a_changed_configuration_is_read_or_explained(config):
    one_configuration(config)


@pytest.mark.slow
@profile(1000)
@given(configurations())
def test_a_thousand_changed_configurations_are_read_or_explained(config):
    one_configuration(config)


@pytest.mark.slow
@profile(12)
@given(configurations())
def test_the_workflow_plans_a_changed_configuration_or_explains_it(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "-n"]
        command += ["--cores", "1", "--nolock", "--configfile", str(path), "--quiet", "rules"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert done.returncode == 0 or "error: " in said, said


def leaves(config):
    return [p for p in places(config) if not isinstance(at(config, p), dict | list)]


def at(config, path):
    for key in path:
        config = config[key]
    return config


# What the fuzzing found, one field of each kind; the slow test below tries them all.
@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (("train", "steps"), 10**6000, "train.steps: is too large a number"),
        (("cluster", "minutes", "train"), 2**64, "cluster.minutes.train: is too large"),
        (("sizes", "nano", "hidden"), 10**400, "sizes.nano.hidden: is too large a number"),
        (("sizes", "nano", "path"), "a" * 3000, "sizes.nano.path: 'aaaa.* cannot be a path"),
        (("sizes", "nano", "path"), "~no-such-user/x", "'~no-such-user/x' cannot be a path here"),
        (("study",), "a" * 101, "study: .* at most 100 characters"),
        (("results",), "r/" + "a" * 101, "results: 'a+...' has 101 characters; allowed: 100"),
        (("results",), "./" + "b/" * 3000, "results: .* at most 1000 characters"),
        (("grid", "line\nbreak"), 1, r"grid\.0\.'line\\nbreak': unknown key"),
    ],
    ids=lambda value: "number" if isinstance(value, int) else str(value)[:30],
)
def test_what_fuzzing_found_is_an_error_that_names_the_field(place, value, error):
    config = copy.deepcopy(SHIPPED["tiny"]) | {"cluster": {"minutes": {}}}
    at(config, place[:-1])[place[-1]] = value
    with pytest.raises(ConfigError, match=error):
        check_before_running(load_study(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole tiny", "whole paper"])
def test_every_field_at_every_extreme_is_read_or_explained(name):
    for path in leaves(SHIPPED[name]):
        for value in [*HUGE, 10**6000, *ODD_NUMBERS, *ODD_TEXTS, None, True, [], {}]:
            config = copy.deepcopy(SHIPPED[name])
            at(config, path[:-1])[path[-1]] = value
            one_configuration(config)


@profile(60)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
@example("study: [")
@example("a: &a [*a]")
@example("? {a: b}")
@example("!!python/object/apply:os.system [id]")
@example("2026-13-45")
@example("study: 2026-01-01")
@example(b"\xff\xfe")
@example("\0")
def test_any_file_is_read_or_explained(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            load_study(path)
        except ConfigError as error:
            explained(error, text)


# --- Objectives ----------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """A right-padded batch with groups, in float64: mask, groups, rewards and log-probabilities."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    rows, width = groups * size, draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([0.0, 0.1, 3.0, 200.0]))

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rewards = draw(
        st.sampled_from([torch.zeros(rows), torch.ones(rows), (noise(rows) > 0).float()])
    ).double()
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).double()
    groups = torch.arange(groups).repeat_interleave(size)
    names = ("logp", "old_logp", "ref_logp")
    return {name: -1 + scale * noise(rows, width) for name in names} | {
        "token_kl": (scale * noise(rows, width)).abs(),
        "values": noise(rows, width),
        "mask": mask,
        "rewards": rewards,
        "groups": groups,
    }


def vimpo_loss(b, logp):
    baseline = common.group_mean(b["rewards"], b["groups"])
    middle = (b["old_logp"], b["ref_logp"], b["token_kl"], b["rewards"], baseline, b["mask"])
    return vimpo.vimpo_loss(logp, *middle, 0.02, 0.005, 0.9, 0.2, 0.28)


def grpo_loss(b, logp, reduction="token-mean"):
    advantage = grpo.group_advantage(b["rewards"], b["groups"])[:, None] * b["mask"]
    clip = (0.2, 0.28, 10.0)
    policy = common.clipped_surrogate(
        logp, b["old_logp"], advantage, b["mask"], *clip, reduction=reduction
    )
    penalty = common.reduce_tokens(common.k3_kl(logp, b["ref_logp"]), b["mask"], reduction)
    return policy + 0.1 * penalty


def grpo_naive_loss(b, logp):
    return grpo_loss(b, logp, "seq-mean")


def ppo_loss(b, logp):
    advantage, _ = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    return common.clipped_surrogate(logp, b["old_logp"], advantage, b["mask"], 0.2, 0.28)


def ppo_critic_loss(b, logp):
    _, returns = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    return ppo.critic_loss(0.1 * logp, returns, b["values"], b["mask"], 0.2)


LOSSES = [vimpo_loss, grpo_loss, grpo_naive_loss, ppo_loss, ppo_critic_loss]
TOKENS = ("logp", "old_logp", "ref_logp", "token_kl", "values")


def with_gradient(loss, batch):
    logp = batch["logp"].clone().requires_grad_()
    value = loss(batch, logp)
    value.backward()
    return value.detach(), logp.grad


@pytest.mark.parametrize("loss", LOSSES)
# Padding is what a network says behind the end: any number, but a finite one.
@profile(40)
@given(batches(), st.sampled_from([1e3, -1e3, 1e30]))
def test_a_loss_is_finite_and_padding_never_leaks(loss, batch, filler):
    value, gradient = with_gradient(loss, batch)
    assert value.isfinite()
    assert gradient.isfinite().all()
    off = batch["mask"] == 0
    assert (gradient[off] == 0).all()
    filled = batch | {n: batch[n].masked_fill(off, filler) for n in TOKENS}
    other, moved = with_gradient(loss, filled)
    assert torch.equal(other, value)
    assert torch.equal(moved, gradient)


@pytest.mark.parametrize("loss", LOSSES)
@profile(25)
@given(batches(), st.randoms(use_true_random=False))
def test_a_loss_does_not_depend_on_the_order_of_rows(loss, batch, random):
    order = list(range(len(batch["mask"])))
    random.shuffle(order)
    value, gradient = with_gradient(loss, batch)
    other, moved = with_gradient(loss, {n: x[order] for n, x in batch.items()})
    scale = float(value.abs()) + float(gradient.abs().max()) + 1e-12
    assert float((other - value).abs()) <= 1e-9 * scale
    assert float((moved - gradient[order]).abs().max()) <= 1e-9 * scale


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["logp", "mask", "rewards"])
@profile(8)
@given(batches())
def test_another_shape_is_an_error_that_names_both(loss, name, batch):
    tensor = batch[name]
    wrong = torch.cat([tensor, tensor], dim=tensor.ndim - 1)
    changed = batch | {name: wrong}
    with pytest.raises(ValueError, match="match") as caught:
        loss(changed, changed["logp"])
    assert len(re.findall(r"\(\d+(?:, ?\d*)*\)", str(caught.value))) == 2


@profile(60)
@given(batches())
def test_parts_of_the_objectives_are_finite_and_zero_off_mask(batch):
    b, off = batch, batch["mask"] == 0
    baseline = common.group_mean(b["rewards"], b["groups"])
    td = vimpo.implied_td(b["logp"], b["ref_logp"], b["token_kl"], b["mask"], 0.02)
    advantage, returns = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    for x in (td, common.gae(td, b["mask"], 0.9), common.whiten(td, b["mask"]), advantage, returns):
        assert x.isfinite().all()
        assert (x[off] == 0).all()
    assert vimpo.implied_values(td, baseline, b["mask"]).isfinite().all()
    found = common.clip_fraction(b["logp"], b["old_logp"], advantage, b["mask"], 0.2, 0.28)
    assert 0 <= float(found) <= 1
    variance = ppo.explained_variance(b["values"], returns, b["mask"])
    varies = float((returns - common.masked_mean(returns, b["mask"]))[~off].abs().sum()) > 0
    assert bool(variance.isfinite()) == varies
    equal = b["rewards"].unique().numel() == 1
    assert not equal or (grpo.group_advantage(b["rewards"], b["groups"]) == 0).all()


@profile(40)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 30.0, 3000.0]), st.integers(1, 5))
def test_divergences_are_finite_and_not_negative(seed, scale, chunk):
    generator = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in "pq")
    exact = common.exact_kl(p, q)
    assert exact.isfinite().all()
    assert (exact > -1e-9).all()
    for k in (1, 3, 7, 9):
        merged = common.top_k_kl(p, q, k)
        assert merged.isfinite().all()
        assert (merged <= exact + 1e-6 * (1 + exact.abs())).all()
    for estimate in (common.k2_kl, common.k3_kl):
        assert estimate(p, q).isfinite().all()
        assert (estimate(p, q) >= 0).all()
    eye = torch.eye(7, dtype=torch.float64)
    scores = chunked_scores(Head(p, eye), torch.arange(4), Head(q, eye), chunk=chunk)
    assert torch.allclose(scores.kl, exact, rtol=1e-9, atol=1e-9)


# --- Answers -------------------------------------------------------------------------------------

PIECES = [
    *("\\boxed{", "\\fbox{", "}", "{", "\\frac", "\\sqrt", "\\left(", "\\right)", "^", "_", "$"),
    *("$$", "\\[", "\\]", "\\text{", "answer is", "#### ", "\n\n", ",", " and ", "**", "/", "\\%"),
    *("1", "0", "-", ".", "x", "\\pi", "\\infty", "=", "\\\\", "\\begin{matrix}", "&", "!", "10^{"),
    *("\0", "\ud800", "\u202e", "½", "٣", "999999999999999999999999", "1e999", "^{9^{9^9}}"),
]
soup = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
texts = st.one_of(soup, st.text(max_size=40), soup.map(lambda s: f"so \\boxed{{{s}}}"))


@profile(400)
@given(texts)
def test_answers_are_found_in_any_text(text):
    for boxed_only in (True, False):
        assert all(isinstance(answer, str) for answer in answers(text, boxed_only))
    assert last_boxed(text) is None or "\\" in text
    assert fill("{problem}\\boxed{}", text) == text + "\\boxed{}"


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(VerifierLimits(workers=1, seconds=2))
    verifier.readable(["x"])  # the worker has started
    yield verifier
    verifier.close()


def judge_in_time(verifier, gold, text):
    started = time.perf_counter()
    verdict = verifier.grade([gold], [text], boxed_only=False)
    assert verdict[0] in (True, False)
    # an answer may be said in several forms, and a worker may have to be started again
    assert time.perf_counter() - started < 60
    assert verifier.readable([gold])[0] in (True, False)


@profile(40)
@given(texts, texts)
@example("\ud800", "\\boxed{\ud800}")
@example("\0", "\\boxed{\0}")
@example("10^{10^{10}}", "\\boxed{9^{9^{9^9}}}")
@example("1" * 900, "\\boxed{" + "1" * 5000 + "}")
@example("٣", "\\boxed{3}")
def test_any_answer_gets_a_verdict(verifier, gold, text):
    judge_in_time(verifier, gold, text)


@pytest.mark.slow
@profile(400)
@given(texts, texts)
def test_many_answers_get_a_verdict(verifier, gold, text):
    judge_in_time(verifier, gold, text)
