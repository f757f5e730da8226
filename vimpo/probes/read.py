"""Implied value and credit of any pair of checkpoints: a base policy, and what became of it.

Reads what the probes read of a run, without a study's runs: log-ratio, exact KL and td of every
token of the policy's own responses (or of given ones), and in summary how they go with the outcome
and with the first wrong step, where the task knows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import Capacity, ChainTask, ConfigError, DatasetTask, Study
from vimpo.config.task import VerifierLimits
from vimpo.models.ends import ends_of
from vimpo.models.networks import (
    check_plain_head,
    load_model_config,
    load_policy,
    load_tokenizer,
    set_up_torch,
)
from vimpo.probes import read_together, sampled_together
from vimpo.probes.credit import credit_rows, grade, joined_chunks, signals_of
from vimpo.probes.measures import cluster_mean, pearson, ranks, row
from vimpo.probes.subject import Reading, Subject, responses
from vimpo.storage.codes import Reason, Why
from vimpo.storage.files import write_atomic
from vimpo.storage.surprisal import known_beta
from vimpo.tasks import Problem, Task, make_task, prompt_room
from vimpo.tasks.prompts import encode, encode_text
from vimpo.tasks.sources import column, read_rows
from vimpo.tasks.steps import step_tokens, token_spans
from vimpo.tasks.verifier import shared_verifier
from vimpo.text import aligned

PURPOSE = 4  # of the problems' seed
OURS = "vimpo"  # whose beta reads values out of every policy
SUFFIXES = (".csv", ".parquet")
CHAIN = re.compile(r"\d+([+\-*]\d+)+=")
NO_RESPONSE = Why(Reason.NO_RESULT, "there is no such response")


@dataclass(frozen=True)
class Given:
    """A problem of a file; response: what is read, None to sample one."""

    id: str
    prompt: str
    answer: str
    response: str | None = None


@dataclass(frozen=True)
class PairReading:
    """tokens: a row for each token of each response; summary: rows as in probes.parquet."""

    tokens: pd.DataFrame
    summary: list[dict]


def read_pair(
    study: Study, base: str, policy: str, count: int, file: str | None = None
) -> PairReading:
    """Read responses of a policy against its base policy, to `count` problems at most.

    base, policy: folders or hub names; file: of prompts, with or without answers and responses, in
    place of the study's problems. Raises ConfigError for models that do not share their tokens.
    """
    set_up_torch(study.runtime)
    given = None if file is None else given_problems(file)[:count]
    subject, old = load_pair(study, base, policy, given)
    problems: Sequence[Problem] = given or subject.problems(count, PURPOSE)
    prompts = _encoded(problems, subject.tokenizer, old)
    written = [problem.response for problem in given or [] if problem.response is not None]
    longest = subject.train.max_response
    if written:
        tokens = [_with_end(subject, text) for text in written]
        longest, finished = max(map(len, tokens)), [True] * len(tokens)
    _check_room(subject.policy, max(map(len, prompts)), longest)
    if written:
        chunks = subject.written(prompts, tokens)
    else:
        chunks = subject.sample(prompts, "read")
        tokens, finished = responses(chunks)
    reading = joined_chunks([subject.read(chunk) for chunk in chunks])
    rewards = None
    if all(problem.answer for problem in problems):
        rewards = np.array(subject.rewards(problems, tokens, finished))
    frame = token_table(subject, problems, tokens, reading, rewards)
    return PairReading(
        frame, [*summary_rows(frame, subject.beta), *_credit(subject, problems, tokens, reading)]
    )


def _credit(
    subject: Subject,
    problems: Sequence[Problem],
    tokens: Sequence[Sequence[int]],
    reading: Reading,
) -> list[dict]:
    """Does td find the first wrong step, and does the token's place? Nothing without an oracle."""
    if subject.task.grade_steps is None:
        return []
    graded, _ = grade(subject, problems, tokens)
    signals = signals_of(reading, torch.zeros(len(tokens)), subject.lam)
    wanted = {name: signals[name] for name in ("implied_td", "position")}
    found = credit_rows(wanted, reading.mask, graded)
    return [row for row in found if row["metric"] == "auc"]


# --- two checkpoints, and problems for them ------------------------------------------------------


def load_pair(
    study: Study, base: str, policy: str, given: Sequence[Given] | None = None
) -> tuple[Subject, PreTrainedTokenizerBase]:
    """The pair as the probes read a run, and the base policy's own tokenizer.

    What tokenizers and problems can tell is checked before weights are read.
    """
    beta = _readout_beta(study, base)
    runtime, paths = study.runtime, {"base": base, "policy": policy}
    _, config = (load_model_config(p, runtime.trust_remote_code, f) for f, p in paths.items())
    old, new = (load_tokenizer(p, runtime.trust_remote_code, f) for f, p in paths.items())
    check_same_tokens(paths, old, new)
    task = _task(study, config, new, given)
    _encoded(given or task.training_problems(PURPOSE, 0, 1), new, old)
    reference, trained = (
        load_policy(path, runtime).eval().requires_grad_(False) for path in paths.values()
    )
    check_same_logits(paths, reference, trained)
    if runtime.logit_chunk:
        check_plain_head(trained)
    subject = Subject(
        policy=trained,
        reference=reference,
        critic=None,
        tokenizer=new,
        task=task,
        train=study.train,
        probes=study.probes,
        beta=beta,
        lam=1.0,
        sample_rows=sampled_together(study),
        read_rows=read_together(study),
        chunk=runtime.logit_chunk,
    )
    return subject, old


def _readout_beta(study: Study, base: str) -> float:
    """beta of the study; a capacity becomes the number that it is for one of its base policies.

    Raises ConfigError for a capacity with another base policy, or one that was not measured.
    """
    beta = study.readout_beta(OURS)
    if not isinstance(beta, Capacity):
        return beta
    for size in study.used_sizes():
        own = study.base_folder(size) / "model"
        if own.resolve() == Path(base).resolve():
            return known_beta(study, size, beta)
    raise ConfigError(
        f"beta: {beta} is a number for base policies of the study '{study.study}' alone, and "
        f"'{base}' is none; allowed: such as '{own}', or a number (`algorithms.vimpo.beta`)"
    )


def check_same_tokens(
    paths: Mapping[str, str], old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase
) -> None:
    """Raise ConfigError unless every token has the same number in both tokenizers."""
    ours, theirs = new.get_vocab(), old.get_vocab()
    if ours == theirs:
        return
    text, number = min(ours.items() ^ theirs.items(), key=lambda item: item[::-1])
    raise ConfigError(
        f"policy: the tokenizer of '{paths['policy']}' has {len(ours)} tokens and that of base "
        f"'{paths['base']}' {len(theirs)}, and {text!r:.40} is token {number} of only one of them; "
        "allowed: two checkpoints of one tokenizer"
    )


def check_same_logits(paths: Mapping[str, str], old: PreTrainedModel, new: PreTrainedModel) -> None:
    """Raise ConfigError unless both models give a logit to as many tokens."""
    ours, theirs = (len(model.get_output_embeddings().weight) for model in (new, old))
    if ours != theirs:
        raise ConfigError(
            f"policy: '{paths['policy']}' has {ours} logits and base '{paths['base']}' {theirs}; "
            "allowed: two checkpoints of one vocabulary"
        )


def given_problems(file: str) -> list[Given]:
    """The rows of a .jsonl or .parquet file: `prompt`, and `answer` and `response` if it has them.

    Raises ConfigError for a file without prompts, and for responses that only some rows have.
    """
    field, found = "problems", []
    for number, cells in enumerate(read_rows(file, field), 1):
        prompt = column(cells, "prompt", field, file)
        answer, response = cells.get("answer"), cells.get("response")
        for name, value in (("prompt", prompt), ("response", response)):
            if (name == "prompt" or value is not None) and not (isinstance(value, str) and value):
                raise ConfigError(
                    f"{field}: column '{name}' of row {number} of '{file}' is {value!r:.40}; "
                    "allowed: a text"
                )
        found.append(Given(f"{number}", prompt, "" if answer is None else str(answer), response))
    without = [problem.id for problem in found if problem.response is None]
    if 0 < len(without) < len(found):
        raise ConfigError(
            f"{field}: row {without[0]} of '{file}' has no response, and others have; allowed: "
            "responses of all, or of none to sample them"
        )
    return found


class _Judged:
    """What is read of a task where its problems come from a file: answers are judged, no steps."""

    grade_steps = fork = None

    def __init__(
        self, limits: VerifierLimits, boxed_only: bool, evaluated_only: bool = False
    ) -> None:
        self.verifier, self.how = shared_verifier(limits), (boxed_only, evaluated_only)

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        golds = [problem.answer for problem in problems]
        return [float(mark) for mark in self.verifier.grade(golds, texts, *self.how)]


def _task(
    study: Study,
    policy: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    given: Sequence[Given] | None,
) -> Task:
    """The study's; of a file's problems, chains are graded as chains and others by the verifier."""
    task = study.task
    if given is None or all(CHAIN.fullmatch(problem.prompt) for problem in given):
        chains = task if given is None or isinstance(task, ChainTask) else ChainTask()
        room = prompt_room(policy, study.train.max_response)
        return make_task(chains, tokenizer, room=room)
    if isinstance(task, DatasetTask):
        return cast(Task, _Judged(task.verifier, task.boxed_only, task.evaluated_only))
    return cast(Task, _Judged(VerifierLimits(), boxed_only=False))


def _encoded(
    problems: Sequence[Problem], new: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The prompts in tokens. Raises ConfigError if the base policy would read others."""
    texts = [problem.prompt for problem in problems]
    prompts, expected = encode(new, texts), encode(old, texts)
    for text, ours, theirs in zip(texts, prompts, expected, strict=True):
        if ours != theirs:
            raise ConfigError(
                f"policy: its tokenizer reads {text!r:.40} as {len(ours)} tokens, other than the "
                f"{len(theirs)} of base; allowed: two checkpoints of one tokenizer"
            )
    return prompts


def _with_end(subject: Subject, response: str) -> list[int]:
    """A given response in tokens, with the end that it must have had."""
    tokens = encode_text(subject.tokenizer, response)
    ends = ends_of(subject.policy, subject.tokenizer)
    return tokens if tokens[-1] in ends else [*tokens, ends[0]]


def _check_room(policy: PreTrainedModel, prompt: int, response: int) -> None:
    room = prompt_room(policy.config, response)
    if room is not None and prompt > room:
        raise ConfigError(
            f"problems: a prompt of {prompt} tokens and a response of {response} are more than the "
            f"policy's {room + response} positions; allowed: shorter ones, or a smaller "
            "train.max_response"
        )


# --- what is read --------------------------------------------------------------------------------


def token_table(
    subject: Subject,
    problems: Sequence[Problem],
    tokens: Sequence[Sequence[int]],
    reading: Reading,
    rewards: np.ndarray | None,
) -> pd.DataFrame:
    """A row for each token: what it says, and how the implied value changes up to and with it.

    step, right: of the graded step that holds it, if the task grades steps.
    """
    assert reading.logp is not None
    frames = []
    for i, (problem, ids) in enumerate(zip(problems, tokens, strict=True)):
        spans = token_spans(subject.tokenizer, ids)
        text, n = subject.tokenizer.decode(list(ids), skip_special_tokens=True), len(ids)
        frame = pd.DataFrame(
            {
                "response": i,
                "problem": problem.id,
                "place": np.arange(n),
                "token": [text[start:end] for start, end in spans],
                "logp": reading.logp[i, :n].double(),
                "log_ratio": reading.log_ratio[i, :n].double(),
                "kl": reading.token_kl[i, :n].double(),
                "td": reading.td[i, :n].double(),
            }
        )
        frame["change"] = frame["td"].cumsum()
        frame["step"], frame["right"] = pd.NA, pd.NA
        if subject.task.grade_steps is not None:
            steps = subject.task.grade_steps(problem, subject.text(ids))
            for k, places in enumerate(step_tokens(steps, spans)):
                frame.loc[places, ["step", "right"]] = [k, int(steps[k].right)]
        frame["reward"] = np.nan if rewards is None else rewards[i]
        frames.append(frame.astype({"step": "Int64", "right": "Int64"}))
    return pd.concat(frames, ignore_index=True)


def summary_rows(tokens: pd.DataFrame, beta: float) -> list[dict]:
    """What whole responses say. tokens: of :func:`token_table`; a problem is a cluster."""
    sums = tokens.groupby("response").agg(
        problem=("problem", "first"),
        tokens=("token", "size"),
        log_ratio=("log_ratio", "sum"),
        kl=("kl", "sum"),
        logp=("logp", "sum"),
        change=("td", "sum"),
        reward=("reward", "first"),
    )
    surprisal = sums["log_ratio"] - sums["logp"]
    numbers = {
        "tokens": (sums["tokens"], "1"),
        "log_ratio": (sums["log_ratio"], "nats"),
        "kl": (sums["kl"], "nats"),
        "base_surprisal": (surprisal, "nats"),
        "highest_change": (beta * surprisal, "reward"),
        "change": (sums["change"], "reward"),
    }
    known = sums["reward"].notna()
    if known.all():
        numbers["reward"] = (sums["reward"], "reward")
        for name, value in (("change_of_right", 1.0), ("change_of_wrong", 0.0)):
            numbers[name] = (sums["change"][sums["reward"] == value], "reward")
    rows = []
    for name, (values, unit) in numbers.items():
        found = values.to_numpy(float)
        clusters = sums["problem"][values.index].to_numpy()
        labels = ("read", "implied", "response", "all", name)
        rows.append(row(*labels, *cluster_mean(found, clusters), len(found), unit, NO_RESPONSE))
    if known.all() and len(sums) > 1:
        ordered = [ranks(sums[name].to_numpy(float)[:, None]) for name in ("change", "reward")]
        labels = ("read", "implied", "response", "all", "spearman")
        rows.append(row(*labels, pearson(*ordered), np.nan, len(sums), "1"))
    return rows


def described(summary: Sequence[dict]) -> str:
    """The summary as a small table."""
    head = ["of", "metric", "value", "stderr", "n", "unit"]
    lines = [
        [
            row["target"] if row["probe"] == "read" else row["predictor"],
            row["metric"],
            f"{row['value']:.4g}" if np.isfinite(row["value"]) else "n/a",
            f"{row['stderr']:.2g}" if np.isfinite(row["stderr"]) else "",
            str(row["n"]),
            row["reason"] or row["unit"],
        ]
        for row in summary
    ]
    return "\n".join(aligned([head, *lines], 2))


def check_output(path: Path) -> None:
    """Raise ConfigError for a name that ends in neither .csv nor .parquet."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"output: '{path}' is not allowed; allowed: a name in .csv or .parquet")


def write_tokens(tokens: pd.DataFrame, path: Path) -> None:
    """Whole or not at all, as CSV or Parquet by the suffix."""
    if path.suffix == ".csv":
        write_atomic(path, tokens.to_csv(index=False, lineterminator="\n"))
    else:
        write_atomic(path, tokens.to_parquet(index=False))
