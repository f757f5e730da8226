"""Surprisal of a base policy, the bound that follows from it, and beta given by its capacity."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from vimpo.algorithms import make_algorithm
from vimpo.config import Cell, ConfigError, GRPOConfig, load_study
from vimpo.models.networks import load_tokenizer
from vimpo.models.scoring import Scorer
from vimpo.objectives.common import exact_kl
from vimpo.objectives.vimpo import implied_td
from vimpo.planning.capacity import capacity_lines
from vimpo.probes.subject import Subject
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.surprisal import (
    RESPONSES,
    Nats,
    Surprisal,
    known_beta,
    read_surprisal,
    resolved,
    surprisal_file,
)
from vimpo.tasks import make_task
from vimpo.tasks.prompts import encode
from vimpo.training.runs import OUTPUTS, train_cell
from vimpo.training.surprisal import measured_surprisal, summed_logp

CELL = Cell("vimpo", "tiny", "rollout-0.25", 1)
HALF = {"vimpo": {"beta": {"capacity": 0.5}}}


def implied_rise(logits, ref_logits, tokens, beta):
    """Sum of td over the first t tokens, and beta times their surprisal. -> [B, T] each"""
    index = tokens[..., None]
    logp, ref_logp = (x.log_softmax(-1).gather(-1, index)[..., 0] for x in (logits, ref_logits))
    td = implied_td(logp, ref_logp, exact_kl(logits, ref_logits), torch.ones_like(logp), beta)
    return td.cumsum(1), -beta * ref_logp.cumsum(1)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0, 100.0])
def test_the_implied_value_cannot_rise_above_beta_times_the_surprisal(sharpness):
    """On random policies, for every prefix of every response, near certainty too."""
    draw = torch.Generator().manual_seed(int(sharpness * 10))
    for _ in range(20):
        shape, beta = (32, 9, 5), float(torch.rand(1, generator=draw)) + 0.01
        logits, ref_logits = (
            sharpness * torch.randn(shape, generator=draw, dtype=torch.float64) for _ in "ab"
        )
        tokens = torch.randint(5, shape[:2], generator=draw)
        rise, bound = implied_rise(logits, ref_logits, tokens, beta)
        assert (rise <= bound + 1e-9).all()


def test_the_bound_is_reached_where_the_policy_raises_one_unlikely_token():
    """A token of surprisal S made likely with probability p: td = beta (S + log p - KL)."""
    ref_logits = torch.tensor([[[0.0, 20.0]]], dtype=torch.float64)
    logits = torch.tensor([[[-3.0, 0.0]]], dtype=torch.float64)  # rises, at little KL
    rise, bound = implied_rise(logits, ref_logits, torch.tensor([[0]]), beta=1.0)
    assert 0.7 * float(bound) < float(rise) < float(bound)


def test_a_trained_policy_keeps_to_the_bound(tiny_study):
    study = tiny_study(train={"steps": 8}, sizes={"tiny": {"learning_rate": 0.02}}, algorithms=HALF)
    train_cell(study, CELL, quiet=True)
    subject = Subject.load(study, CELL)
    problems = subject.problems(40, 1)
    (rollouts,) = subject.sample([subject.encode(p) for p in problems], "bound")
    reading = subject.read(rollouts)
    scorer = Scorer(subject.reference, GRPOConfig(), study.train.temperature)
    surprisal = -summed_logp(scorer, rollouts)
    rise = reading.td.double().sum(1)
    assert rise.abs().max() > 1e-3  # it has moved
    assert (rise <= subject.beta * surprisal + 1e-6).all()


# --- Measuring -----------------------------------------------------------------------------------


def test_surprisal_is_what_sampling_with_transformers_alone_gives(tiny_study):
    """By other draws, and by a plain loop over the tokens of each response."""
    study = tiny_study()
    found = measured_surprisal(study, "tiny")
    base = study.base_folder("tiny") / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), load_tokenizer(base)
    task = make_task(study.task, tokenizer)
    problems = [p for step in range(16) for p in task.training_problems(5, step, 16)]
    prompts = encode(tokenizer, [p.prompt for p in problems])
    torch.manual_seed(0)
    surprisals, lengths, right = [], [], []
    for start in range(0, len(prompts), 32):
        ids = torch.tensor(prompts[start : start + 32])  # one length: single digits
        kept = {"do_sample": True, "top_k": 0, "max_new_tokens": study.train.max_response}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **kept)
        with torch.no_grad():
            log_probs = model(out).logits.log_softmax(-1)
        for row, (tokens, logs) in enumerate(zip(out.tolist(), log_probs, strict=True)):
            total, place = 0.0, ids.shape[1]
            while place < len(tokens):
                total -= float(logs[place - 1, tokens[place]])
                place += 1
                if tokens[place - 1] == tokenizer.eos_token_id:
                    break
            surprisals.append(total)
            lengths.append(place - ids.shape[1])
            text = tokenizer.decode(tokens[ids.shape[1] : place], skip_special_tokens=True)
            ended = tokens[place - 1] == tokenizer.eos_token_id
            right.append(ended and task.rewards([problems[start + row]], [text])[0] > 0)
    assert found.all.responses == RESPONSES == len(surprisals)
    spread = statistics.stdev(surprisals) / math.sqrt(len(surprisals))
    assert found.all.stderr == pytest.approx(spread, rel=0.3)
    error = math.hypot(spread, found.all.stderr)
    assert found.all.mean == pytest.approx(statistics.mean(surprisals), abs=4 * error)
    assert found.all.tokens == pytest.approx(statistics.mean(lengths), abs=0.7)
    of_right = [s for s, is_right in zip(surprisals, right, strict=True) if is_right]
    assert found.right.mean < found.all.mean  # the surest responses are right more often
    error = statistics.stdev(of_right) / math.sqrt(len(of_right)) + found.right.stderr
    assert found.right.mean == pytest.approx(statistics.mean(of_right), abs=4 * error)


def test_the_mean_is_that_of_a_plain_loop_over_the_same_responses(tiny_study, monkeypatch):
    study, sampled = tiny_study(), []

    def spy(scorer, rollouts):
        sampled.append(rollouts)
        return summed_logp(scorer, rollouts)

    monkeypatch.setattr("vimpo.training.surprisal.summed_logp", spy)
    found = measured_surprisal(study, "tiny")
    model = AutoModelForCausalLM.from_pretrained(study.base_folder("tiny") / "model").double()
    surprisals, lengths = [], []
    for rollouts in sampled:
        rows = zip(rollouts.prompt_ids, rollouts.prompt_mask, rollouts.token_lists(), strict=True)
        for prompt, mask, response in rows:
            tokens = prompt[mask.bool()].tolist()
            with torch.no_grad():
                logits = model(torch.tensor([tokens + response])).logits[0, len(tokens) - 1 :]
            logs = logits.log_softmax(-1)
            surprisals.append(-sum(float(logs[i, token]) for i, token in enumerate(response)))
            lengths.append(len(response))
    assert len(surprisals) == RESPONSES
    assert found.all.mean == pytest.approx(statistics.mean(surprisals), rel=1e-5)
    assert found.all.tokens == statistics.mean(lengths)
    spread = statistics.stdev(surprisals) / math.sqrt(RESPONSES)
    assert found.all.stderr == pytest.approx(spread, rel=1e-4)


def test_it_is_measured_once_and_again_only_for_other_weights(tiny_study):
    study = tiny_study()
    before = (study.base_folder("tiny") / SUMS).read_bytes()
    assert read_surprisal(study, "tiny") is None
    first = measured_surprisal(study, "tiny")
    file = surprisal_file(study, "tiny")
    written = file.stat().st_mtime_ns
    assert measured_surprisal(study, "tiny") == first == read_surprisal(study, "tiny")
    assert file.stat().st_mtime_ns == written
    assert (study.base_folder("tiny") / SUMS).read_bytes() == before
    longer = tiny_study(train={"max_response": 9})
    assert read_surprisal(longer, "tiny") is None
    weights = study.base_folder("tiny") / "model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content + b" ")
    seal(study.base_folder("tiny") / SUMS, OUTPUTS)
    assert read_surprisal(study, "tiny") is None
    weights.write_bytes(content)
    seal(study.base_folder("tiny") / SUMS, OUTPUTS)
    assert read_surprisal(study, "tiny") == first
    file.write_text(file.read_text().replace("256", "255"))
    assert read_surprisal(study, "tiny") is None


def test_mean_and_error_of_nats():
    assert Nats.of([1.0, 2.0, 6.0], [4, 5, 9]) == Nats(3, 6, 3, pytest.approx(math.sqrt(7 / 3)))
    assert Nats.of([2.0], [3]).stderr is None
    with pytest.raises(ValueError, match=r"surprisals \[2\], lengths \[1\]"):
        Nats.of([1.0, 2.0], [1])


# --- beta by capacity ----------------------------------------------------------------------------


def test_beta_is_resolved_before_training_and_written_with_its_capacity(tiny_study):
    study = tiny_study(algorithms=HALF)
    folder = train_cell(study, CELL, quiet=True)
    mean = json.loads(surprisal_file(study, "tiny").read_text())["all"]["mean"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["objective"]["beta"] == pytest.approx(0.5 * 1 / mean)
    assert config["capacity"] == 0.5
    noted = json.loads((folder / "manifest.json").read_text())["capacity"]
    assert noted["capacity"] == pytest.approx(0.5)
    assert noted["beta"] * noted["surprisal"] == pytest.approx(0.5)
    same = tiny_study("fixed", algorithms={"vimpo": {"beta": 0.5 / mean}})
    twin = train_cell(same, CELL, quiet=True)
    assert (twin / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    assert known_beta(study, "tiny", study.readout_beta("grpo")) == config["objective"]["beta"]


def test_digests_cover_the_capacity_and_not_the_measured_number(tiny_study):
    study = tiny_study(algorithms=HALF)
    before = study.cell_digest(CELL), study.probe_digest(CELL), study.base_digest("tiny")
    measured_surprisal(study, "tiny")
    assert (study.cell_digest(CELL), study.probe_digest(CELL), study.base_digest("tiny")) == before
    other = tiny_study(algorithms={"vimpo": {"beta": {"capacity": 0.4}}})
    assert other.cell_digest(CELL) != before[0]
    assert other.probe_digest(Cell("grpo", *("tiny", "rollout-0.25", 1))) != before[1]


def test_whoever_asks_for_beta_too_early_is_told(tiny_study):
    study = tiny_study(algorithms=HALF)
    config = study.cell_config(CELL)
    message = (
        r"^beta: capacity 0\.5 is no number before .*'tiny'.*; allowed: after `python -m vimpo"
    )
    with pytest.raises(ConfigError, match=message):
        resolved(study, config)
    with pytest.raises(ConfigError, match=message):
        known_beta(study, "tiny", study.readout_beta("grpo"))
    for algorithm in ("vimpo", "tbrm"):
        capacity = {algorithm: {"beta": {"capacity": 0.5}}}
        objective = load_study({"algorithms": capacity}).algorithms[algorithm]
        with pytest.raises(ConfigError, match=r"^beta: capacity 0\.5 is no number before"):
            make_algorithm(objective)
    plain = study.cell_config(Cell("grpo", "tiny", "rollout-0.25", 1))
    assert resolved(study, plain) is plain


def test_a_base_that_is_sure_of_everything_has_no_beta():
    sure = Surprisal(Nats(256, 5, 0.0, 0.0), None)
    beta = load_study({"algorithms": HALF}).algorithms["vimpo"].beta
    with pytest.raises(ConfigError, match=r"^beta: capacity 0\.5 cannot be had at size 'xs'"):
        sure.beta(beta, "xs")
    assert sure.beta(0.02, "xs") == 0.02
    assert sure.capacity(0.02) == 0


def test_capacity_is_printed_once_it_is_known(tiny_study):
    study = tiny_study(algorithms=HALF)
    before = list(capacity_lines(study))
    assert before[2].split() == ["tiny", "not", "measured", "yet", "-", "-", "capacity", "0.5"]
    assert "for: tiny;" in before[3]
    found = measured_surprisal(study, "tiny")
    after = list(capacity_lines(study))
    assert len(after) == 3
    assert after[2].split()[1] == f"{found.all.mean:.3g}"
    assert after[2].endswith(f"0.5 (beta {0.5 / found.all.mean:.4g})")
