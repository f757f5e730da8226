"""How a study is judged: evaluation, probes, intervals and claim thresholds."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from vimpo.config.decoders import MoreDecoders
from vimpo.config.types import Count, Positive, Seed, Strict


class Evaluation(Strict):
    """lm-eval: avg@k by sampling with the paper's settings, greedy, and by other decoders."""

    samples: Count = Field(2, description="k of avg@k")
    temperature: Positive = Field(1.0, description="paper: 1.0")
    top_p: float = Field(0.7, gt=0, le=1, description="paper: 0.7")
    greedy: bool = True
    # The next two are left out where they are empty, so that older digests stay valid.
    decoders: MoreDecoders = Field(
        {},
        exclude_if=lambda value: not value,
        description="further ones, each a metric of its name, with k samples like `sampled`; "
        "`{training: {}}` answers as training does",
    )
    pass_at: list[Count] = Field(
        [],
        exclude_if=lambda value: not value,
        description="k of pass@k, of the same samples: at most as many as there are",
    )
    truncated: Literal["graded", "as_training"] = Field(
        "graded",
        exclude_if=lambda value: value == "graded",
        description="responses that reach the limit: graded as the others, as lm-eval does; or by "
        "the rule of train.truncated, so that training and evaluation agree",
    )
    batch_size: Count = Field(
        200,
        description="fixed because lm-eval's scores depend on it; with train.micro_batch set, it "
        "also limits how many sequences probes sample at once",
    )
    seed: Seed = 1234


def _unset(value: object) -> bool:
    """Left out of resolved files and digests, so that studies older than the field stay valid."""
    return not value


class Baselines(Strict):
    """Predictors of value fitted to fresh rollouts of the same policy: a floor and a ceiling."""

    rollouts: int = Field(8192, ge=20, description="one each of as many prompts; a fifth held out")
    updates: int = Field(
        600, ge=0, description="at most, of the critic that is the ceiling; 0: no ceiling"
    )
    batch_size: Count = Field(64, description="rollouts of an update")
    learning_rate: Positive = 1e-3
    patience: Count = Field(
        5, description="looks at the held-out error, one every 20 updates, that may bring nothing"
    )


class Probes(Strict):
    """The scaling caveat, measured on saved checkpoints with the same problems for every run."""

    problems: int = Field(32, ge=2, description="prompts, each with one fresh rollout")
    positions: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5, 0.75, 0.9], min_length=1, description="prefixes, as shares of the response"
    )
    continuations: int = Field(16, ge=4, description="Monte Carlo continuations per prefix")
    baseline_continuations: int = Field(64, ge=4, description="continuations of the bare prompt")
    credit_rollouts: int = Field(128, ge=2, description="fresh rollouts graded step by step")
    common: bool = Field(
        False,
        exclude_if=_unset,
        description="value and credit also on what the base policy wrote, the same for every "
        "algorithm; as many continuations and rollouts again",
    )
    pairs: int = Field(
        0,
        ge=0,
        exclude_if=_unset,
        description="prompts whose right response is continued by the right and by a wrong digit; "
        "needs a task that knows them: chain",
    )
    baselines: Baselines | None = Field(
        None,
        exclude_if=_unset,
        description="also judge log-probability, a linear probe and a critic fitted offline",
    )
    cost_rounds: Count = Field(2, description="measurements per algorithm, taking turns")
    seed: Seed = 777


class Statistics(Strict):
    """How intervals are computed."""

    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(5000, ge=100, description="bootstrap resamples")
    seed: Seed = 0


ClaimName = Literal["C1", "C2", "C3", "C4", "C5", "C6"]
CLAIM_NAMES: list[ClaimName] = list(get_args(ClaimName))


class Claims(Strict):
    """Thresholds of the verdicts on claims C1 to C6, to be fixed before a study runs."""

    tested: list[ClaimName] = Field(
        CLAIM_NAMES,
        # Left out where all are tested, so that studies older than this field resolve as before.
        exclude_if=lambda value: value == CLAIM_NAMES,
        description="which of them this study tests; every test makes the others harder to pass",
    )
    accuracy_margin: float = Field(
        0.02, ge=0, le=1, description="C1, C2: VIMPO may be worse by this much and still match"
    )
    time_ratio: Positive = Field(1.0, description="C3: seconds per step, VIMPO / PPO, below this")
    noise_margin: float = Field(
        0.0, ge=0, description="C4: accuracy lost per unit of noise, less than others by this"
    )
    value_accuracy: float = Field(
        0.25, le=1, description="C5: explained variance of the implied change of value, above this"
    )
    value_order: float = Field(
        0.5,
        ge=-1,
        le=1,
        exclude_if=lambda value: value == 0.5,
        description="C5: its rank correlation, above this: by default the root of value_accuracy, "
        "as of a value that is right but for its scale",
    )
    value_slope: float = Field(
        -0.1, description="C5: its change per tenfold of parameters, above this"
    )
    critic_margin: float = Field(
        0.1, ge=0, description="C5: behind PPO's critic by less than this explained variance"
    )
    credit_margin: float = Field(
        0.05, ge=0, le=0.5, description="C6: AUC of finding the first wrong step, above 0.5 by this"
    )
    place_margin: float = Field(
        0.0, ge=0, le=0.5, description="C6: and above that of the token's position alone by this"
    )
    finer_margin: float = Field(
        0.0,
        ge=0,
        le=0.5,
        exclude_if=_unset,
        description="C6: and above the AUC of the same td read out of a rival's policy by this",
    )
    power: float = Field(0.8, gt=0, lt=1, description="for the estimated number of seeds needed")
