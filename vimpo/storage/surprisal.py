"""How surprised a base policy is by its own responses, and how far that lets a value rise.

    S(y)     = -log pi_ref(y | x)               nats, at the temperature of training
    capacity = beta * mean S / D                 D: the range of rewards

KL >= 0 and log pi <= 0 give sum_t td_t <= beta * S(y): the implied value of a response cannot rise
above its start by more than that. Far below a capacity of one, the value loss cannot be fitted.

S is measured once per base policy (vimpo/training/surprisal.py) and kept beside it. A beta given as
`{capacity: c}` becomes the number c * D / S here. No torch: plans and reports read this too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vimpo.config import Beta, Capacity, CellConfig, ConfigError, Study, digest
from vimpo.storage.integrity import SUMS, beside, fault_of, read_sums

FILE = "surprisal.json"
REWARD_RANGE = 1.0  # D: rewards are 0 or 1
RESPONSES = 256  # one to each prompt
SEED = 1_913_370_417  # of prompts and draws; far from those of training and probes


@dataclass(frozen=True)
class Nats:
    """Surprisal of some responses, in nats. tokens: their mean length; stderr: None for one."""

    responses: int
    tokens: float
    mean: float
    stderr: float | None

    @classmethod
    def of(cls, surprisals: Sequence[float], lengths: Sequence[int]) -> Nats:
        """Of independent responses: surprisals [N] in nats, lengths [N] in tokens, N >= 1."""
        count = len(surprisals)
        if count != len(lengths) or not count:
            raise ValueError(f"surprisals [{count}], lengths [{len(lengths)}]; allowed: as many")
        mean = math.fsum(surprisals) / count
        spread = math.fsum((s - mean) ** 2 for s in surprisals)
        stderr = math.sqrt(spread / (count - 1) / count) if count > 1 else None
        return cls(count, sum(lengths) / count, mean, stderr)


@dataclass(frozen=True)
class Surprisal:
    """Of all responses of a base policy, and of the right ones among them, if there were any."""

    all: Nats
    right: Nats | None

    @classmethod
    def from_json(cls, found: dict) -> Surprisal:
        right = found["right"]
        return cls(Nats(**found["all"]), Nats(**right) if right else None)

    def to_json(self) -> dict:
        return asdict(self)

    def columns(self) -> dict:
        """As columns of the table `capacity`."""
        right = asdict(self.right) if self.right else {"responses": 0}
        whole = {"surprisal" if k == "mean" else k: v for k, v in asdict(self.all).items()}
        parts = {"right_surprisal" if k == "mean" else f"right_{k}": v for k, v in right.items()}
        return whole | parts

    def capacity(self, beta: float) -> float:
        """beta * S / D"""
        return beta * self.all.mean / REWARD_RANGE

    def beta(self, beta: Beta, size: str) -> float:
        """beta as a number: c * D / S for a capacity c.

        Raises ConfigError for a base policy that is sure of every response.
        """
        if not isinstance(beta, Capacity):
            return beta
        if self.all.mean <= 0:
            raise ConfigError(
                f"beta: {beta} cannot be had at size '{size}', whose base policy is sure of every "
                "response (surprisal 0); allowed: a number, or another base policy"
            )
        return beta.capacity * REWARD_RANGE / self.all.mean


def surprisal_file(study: Study, size: str) -> Path:
    return study.base_folder(size) / FILE


def settings_digest(study: Study, size: str) -> str:
    """Of the settings of a measurement: the base policy's and those of sampling."""
    sampling = [study.train.temperature, study.train.max_response, RESPONSES, SEED]
    return digest([study.base_digest(size), sampling])


def surprisal_digest(study: Study, size: str) -> str:
    """Of what a measurement depends on: its settings and the very weights of the base policy."""
    sums = read_sums(study.base_folder(size) / SUMS)
    weights = {name: value for name, value in sums.items() if name.startswith("model/")}
    return digest([settings_digest(study, size), weights])


def read_surprisal(study: Study, size: str) -> Surprisal | None:
    """What was measured of this base policy; None if nothing was, or is not what was written."""
    path = surprisal_file(study, size)
    if fault_of(path, beside(path)):
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Surprisal.from_json(found) if found["digest"] == surprisal_digest(study, size) else None


# --- From capacity to beta -----------------------------------------------------------------------


def known_beta(study: Study, size: str, beta: Beta) -> float:
    """beta as a number. Raises ConfigError for a capacity of a base that has not been measured."""
    if not isinstance(beta, Capacity):
        return beta
    found = read_surprisal(study, size)
    if found is None:
        raise ConfigError(
            f"beta: {beta} is no number before the surprisal of the base policy of size '{size}' "
            f"is measured; allowed: after `python -m vimpo surprisal --size {size}`, or a number"
        )
    return found.beta(beta, size)


def resolved(study: Study, config: CellConfig) -> CellConfig:
    """A cell's configuration with beta as a number and, beside it, the capacity it came from."""
    beta = getattr(config.objective, "beta", None)
    if not isinstance(beta, Capacity):
        return config
    number = known_beta(study, config.size, beta)
    objective = config.objective.model_copy(update={"beta": number})
    return config.model_copy(update={"objective": objective, "capacity": beta.capacity})


def betas_at(study: Study, size: str) -> dict[str, Beta]:
    """The grid's algorithms at a size that have a beta of their own."""
    names = study.algorithms_at(size)
    betas = {name: getattr(study.algorithms[name], "beta", None) for name in names}
    return {name: beta for name, beta in betas.items() if beta is not None}


def capacity_note(study: Study, size: str, beta: float | None) -> dict:
    """What the manifest of a run says of its capacity; empty where nothing is known yet."""
    found = None if beta is None else read_surprisal(study, size)
    if beta is None or found is None:
        return {}
    surprisal = {"surprisal": found.all.mean, "surprisal_stderr": found.all.stderr}
    return {"capacity": {"beta": beta, "capacity": found.capacity(beta)} | surprisal}


def needs_surprisal(*betas: Beta | None) -> bool:
    """Does any of them wait for a measurement?"""
    return any(isinstance(beta, Capacity) for beta in betas)
