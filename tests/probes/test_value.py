"""The value probe, on a policy whose values are known exactly and on a whole run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_policies import LETTERS, LIMIT, toy_subject

from vimpo.config import Cell, ConfigError
from vimpo.probes import COLUMNS
from vimpo.probes.credit import CRITIC_SIGNALS, SIGNALS
from vimpo.probes.measures import Noisy, agreement, metric_rows, resampling
from vimpo.probes.run import probe_run
from vimpo.probes.value import (
    Prefixes,
    measure_prefixes,
    predictions_of,
    prefix_lengths,
    prefix_table,
    truth_of,
    value_rows,
)
from vimpo.training.runs import train_cell


@pytest.mark.parametrize(
    ("length", "expected"), [(20, [5, 10, 18]), (2, [1, 1, 1]), (1, [0, 0, 0]), (3, [1, 2, 2])]
)
def test_prefixes_stop_before_the_last_token(length, expected):
    assert prefix_lengths(length, [0.25, 0.5, 0.9]) == expected


# --- a policy that is solved exactly -------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    subject, values = toy_subject()
    return subject, values, measure_prefixes(subject)


def true_values(subject, values, prefixes: Prefixes) -> tuple[np.ndarray, np.ndarray]:
    """V(s_t) [P, m] and V(s_0) [P] by place and last token: the prefixes are drawn again."""
    prompts = [subject.encode(p) for p in subject.problems(len(prefixes.tokens), 0)]
    (rollouts,) = subject.sample(prompts, "value")
    whole = torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1).numpy()
    last = np.take_along_axis(whole, prefixes.tokens, 1)
    return values[prefixes.tokens, last], values[0, whole[:, 0]]


def test_monte_carlo_finds_the_solved_values(toy):
    subject, values, prefixes = toy
    true, start = true_values(subject, values, prefixes)
    for measured, exact in ((prefixes.outcomes, true), (prefixes.baseline, start)):
        count = measured.shape[-1]
        open_ = (exact > 0.01) & (exact < 0.99)
        error = (measured.mean(-1) - exact)[open_]
        z = error / np.sqrt(exact * (1 - exact) / count)[open_]
        assert abs(z.mean()) < 4 / math.sqrt(z.size)
        assert z.std() == pytest.approx(1, abs=0.15)
    assert true.std() > 0.15  # there is something to predict


def test_implied_value_is_exact_at_the_fixed_point(toy):
    subject, values, prefixes = toy
    true, start = true_values(subject, values, prefixes)
    assert prefixes.implied == pytest.approx(true - start[:, None], abs=1e-5)
    assert prefixes.critic == pytest.approx(true, abs=1e-6)
    assert prefixes.critic_start == pytest.approx(start, abs=1e-6)


def found(rows: list[dict], **labels: str) -> dict:
    (match,) = [r for r in rows if all(r[k] == v for k, v in labels.items())]
    return match


def test_solved_predictors_score_one_in_the_rows(toy):
    rows = value_rows(toy[2], seed=0)
    assert {tuple(r) for r in rows} == {COLUMNS}
    for target in ("value", "change"):
        for predictor in ("implied", "critic"):
            labels = {"predictor": predictor, "target": target, "position": "all"}
            score = found(rows, metric="explained_variance", **labels)
            assert abs(score["value"] - 1) < 3 * score["stderr"] < 0.3
            slope = found(rows, metric="slope", **labels)
            assert abs(slope["value"] - 1) < 3 * slope["stderr"]
            rank = found(rows, metric="spearman", **labels)["value"]
            ceiling = found(rows, metric="spearman_ceiling", **labels | {"predictor": "truth"})[
                "value"
            ]
            # Values of few states are bunched: a perfect order stays below the ceiling.
            assert 0.7 < rank / ceiling < 1.05
    labels = {"predictor": "group_mean", "target": "change", "position": "all"}
    assert found(rows, metric="explained_variance", **labels)["value"] == pytest.approx(0)
    keys = [(r["predictor"], r["target"], r["position"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys))


def test_the_probe_repeats_and_shares_its_luck(toy):
    subject, _, prefixes = toy
    again = measure_prefixes(subject)
    for name in ("tokens", "outcomes", "baseline", "implied"):
        assert np.array_equal(getattr(again, name), getattr(prefixes, name)), name
    other = dataclasses.replace(subject, probes=subject.probes.model_copy(update={"seed": 5}))
    assert not np.array_equal(measure_prefixes(other).outcomes, prefixes.outcomes)


def test_continuations_keep_the_limit_of_the_whole_response():
    """A prefix of all but two tokens leaves two, whatever is sampled alongside."""
    subject, values = toy_subject(problems=60, continuations=200)
    from vimpo.probes.value import continuation_rewards

    problems = subject.problems(len(LETTERS), 0)
    long = [[2] * (LIMIT - 1) if i else [] for i in range(len(LETTERS))]
    rewards = continuation_rewards(subject, problems, long, 2000, "limit").mean(1)
    expected = [values[0, 1], *[values[LIMIT - 1, 2]] * 3]
    assert rewards == pytest.approx(expected, abs=0.05)
    assert values[LIMIT - 1, 2] == 0  # EOS after a `b` earns nothing, and no token is left


# --- what has no value ---------------------------------------------------------------------------


def plain(outcomes: np.ndarray, implied: np.ndarray) -> Prefixes:
    problems, prefixes = implied.shape
    return Prefixes(
        positions=tuple((j + 1) / (prefixes + 1) for j in range(prefixes)),
        tokens=np.ones((problems, prefixes), int),
        outcomes=outcomes,
        baseline=outcomes[:, 0],
        implied=implied,
        prompts=("1+1=",) * problems,
    )


def test_predictors_of_value_and_of_change():
    outcomes = np.zeros((2, 2, 4))
    outcomes[0, 0] = [1, 0, 1, 0]  # V(s_0) of the first problem is a half
    prefixes = dataclasses.replace(
        plain(outcomes, np.array([[0.1, 0.2], [0.3, 0.4]])),
        critic=np.array([[0.5, 0.6], [0.7, 0.8]]),
        critic_start=np.array([0.4, 0.9]),
        more={"linear": (np.array([[0.5, 0.1], [0.2, 0.3]]), np.array([0.25, 0.125]))},
    )
    expected = {
        "value": {
            "implied": [[0.6, 0.7], [0.3, 0.4]],
            "group_mean": [[0.5, 0.5], [0.0, 0.0]],
            "critic": [[0.5, 0.6], [0.7, 0.8]],
            "linear": [[0.5, 0.1], [0.2, 0.3]],
        },
        "change": {
            "implied": [[0.1, 0.2], [0.3, 0.4]],
            "group_mean": [[0.0, 0.0], [0.0, 0.0]],
            "critic": [[0.1, 0.2], [-0.2, -0.1]],
            "linear": [[0.25, -0.15], [0.075, 0.175]],
        },
    }
    for target, predictors in expected.items():
        found_ = predictions_of(prefixes, target)
        assert set(found_) == set(predictors)
        for name, value in predictors.items():
            assert found_[name].value == pytest.approx(np.array(value)), (target, name)
            noisy = target == "value" and name not in ("critic", "linear")  # as V(s_0) is
            assert (found_[name].shared[0, 0] > 0) == noisy


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rollouts_that_are_all_alike_give_reasons(reward):
    rng = np.random.default_rng(0)
    rows = value_rows(plain(np.full((6, 2, 8), reward), rng.normal(size=(6, 2))), seed=0)
    score = found(
        rows, predictor="implied", target="value", position="all", metric="explained_variance"
    )
    assert math.isnan(score["value"])
    assert "spread of the truth" in score["reason"]
    assert all(math.isfinite(r["value"]) == (r["reason"] == "") for r in rows)


def test_predictions_that_are_not_finite_are_counted():
    rng = np.random.default_rng(0)
    implied = rng.normal(size=(6, 2))
    implied[0, 1] = np.inf
    rows = value_rows(plain(rng.integers(0, 2, (6, 2, 8)).astype(float), implied), seed=0)
    bad = [r for r in rows if r["predictor"] == "implied" and r["position"] == "all"]
    assert {r["reason"] for r in bad} == {"1 of 12 predictions are not finite"}
    assert all(math.isnan(r["value"]) for r in bad)
    # The other position, and the other predictors, are as they were.
    labels = {"predictor": "implied", "target": "value", "position": f"{1 / 3:g}"}
    assert math.isfinite(found(rows, metric="mse", **labels)["value"])


def test_prefix_table_says_what_the_figures_need(toy):
    prefixes = toy[2]
    table = prefix_table(prefixes)
    assert len({len(c) for c in table.values()}) == 1
    k = 4 * len(prefixes.positions) + 1  # the second prefix of the fifth problem
    assert table["problem"][k] == 4
    assert table["position"][k] == prefixes.positions[1]
    truth, start = truth_of(prefixes, "value"), predictions_of(prefixes, "value")["group_mean"]
    assert table["value"][k] == truth.value[4, 1]
    assert table["start"][k] == start.value[4, 1]
    assert table["implied"][k] == start.value[4, 1] + prefixes.implied[4, 1]


# --- a whole run ---------------------------------------------------------------------------------

SMALL = {
    "problems": 4,
    "continuations": 4,
    "baseline_continuations": 4,
    "credit_rollouts": 8,
    "positions": [0.5],
}


def test_probe_run_writes_its_tables_and_repeats_them(tiny_study, tmp_path):
    study = tiny_study(train={"steps": 2}, probes=SMALL)
    cell = Cell("ppo", "tiny", "0", 1)
    train_cell(study, cell, quiet=True)
    outputs = [tmp_path / name / "probes.parquet" for name in ("one", "two")]
    for output in outputs:
        probe_run(study, cell, output)
    table = pq.read_table(outputs[0])
    assert tuple(table.column_names) == COLUMNS
    assert table.schema.metadata[b"digest"].decode() == study.probe_digest(cell)
    assert set(table["probe"].to_pylist()) == {"value", "credit", "consistency", "precision"}
    assert "critic_gae" in table["predictor"].to_pylist()
    assert all(math.isfinite(r["value"]) == (r["reason"] == "") for r in table.to_pylist())
    prefixes = outputs[0].with_name("prefixes.parquet")
    assert pq.read_table(prefixes).num_rows == 4
    for name in ("probes.parquet", "prefixes.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    (study.run_folder(cell) / "model/critic/critic.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"critic\.safetensors' is missing"):
        probe_run(study, cell, tmp_path / "three" / "probes.parquet")
    with pytest.raises(ConfigError, match="model"):
        probe_run(study, Cell("grpo", "tiny", "0", 1), tmp_path / "three" / "probes.parquet")
    assert not (tmp_path / "three").exists()


def test_further_probes_add_rows_and_change_none(tiny_study, tmp_path):
    cell, rows = Cell("ppo", "tiny", "0", 1), {}
    asked = {"common": True, "pairs": 12, "baselines": {"rollouts": 40, "updates": 20}}
    for name, more in (("plain", {}), ("more", asked), ("again", asked)):
        study = tiny_study(train={"steps": 2}, probes=SMALL | more)
        if name == "plain":
            train_cell(study, cell, quiet=True)
        output = tmp_path / name / "probes.parquet"
        probe_run(study, cell, output)
        rows[name] = pq.read_table(output).to_pylist()
    files = [[(tmp_path / n / f).read_bytes() for n in ("more", "again")] for f in FILES]
    assert all(one == two for one, two in files)
    plain, more = ({row_key(row): row for row in rows[name]} for name in ("plain", "more"))
    assert len(more) == len(rows["more"])
    assert all(str(more[key]) == str(row) for key, row in plain.items())  # NaN is NaN
    added = {(row["probe"], row["predictor"]) for key, row in more.items() if key not in plain}
    fitted = {"ceiling", "linear", "log_probability"}
    known = {"implied", "critic", *fitted}
    assert added == (
        {("value", name) for name in fitted}
        | {("common", name) for name in known | {"group_mean", "truth"}}
        | {("common", name) for name in (*SIGNALS, *CRITIC_SIGNALS)}
        | {("pairs", name) for name in known | {"truth"}}
        | {("baselines", name) for name in ("ceiling", "linear")}
    )
    assert all(math.isfinite(r["value"]) == (r["reason"] == "") for r in rows["more"])


FILES = ("probes.parquet", "prefixes.parquet")


def row_key(row: dict) -> tuple:
    return tuple(row[name] for name in ("probe", "predictor", "target", "position", "metric"))


def test_metric_rows_pair_estimates_with_errors():
    rng = np.random.default_rng(0)
    truth = Noisy.exact(rng.random((30, 2)))
    index = resampling(30, seed=1)
    rows = metric_rows(
        agreement,
        (truth, truth),
        (truth.resampled(index), truth.resampled(index)),
        {"slope": "1"},
        probe="value",
        predictor="x",
        target="value",
        position="all",
        n=60,
    )
    assert found(rows, metric="slope")["value"] == pytest.approx(1)
    assert found(rows, metric="slope")["unit"] == "1"
    assert found(rows, metric="spread")["stderr"] > 0
    assert found(rows, metric="spread")["unit"] == "reward"
