"""Random configurations: a clear error, or a study that can be planned."""

from __future__ import annotations

import copy
import math
import re
import tempfile
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from fuzzing import profile
from hypothesis import example, given
from snakes import snakemake

from vimpo.config import ConfigError, digest, load_study
from vimpo.planning.preflight import check_before_running
from vimpo.planning.text import describe

ROOT = Path(__file__).parents[2]
SHIPPED = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "workflow/config").glob("*.yaml"))
}
# With every default written out, so that each field is met.
SHIPPED |= {f"whole {name}": load_study(c).model_dump(mode="json") for name, c in SHIPPED.items()}
QUICKLY = 50.0  # seconds for one configuration; a thousand times what it takes


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
    """What planning and the rules need from a study before anything runs."""
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
        words = ["-n", "--cores", "1", "--nolock", "--configfile", path, "--quiet", "rules"]
        done = snakemake(*words, cwd=folder)
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
