"""Settings of the algorithms, one type each, and the built-in ones by name.

A study names the file of a user-supplied algorithm; its resolved copy adds the file's sha256, so
that digests of cells change with the file. They do not cover what such a file imports.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from vimpo.config.noise import Noise
from vimpo.config.types import Count, Name, Positive, Probability, Strict
from vimpo.errors import ConfigError

NUMBER, BY_SIZE, CAPACITY = "number", "by_size", "capacity"
Scale = Annotated[
    Annotated[Positive, Tag(NUMBER)] | Annotated[dict[Name, Positive], Tag(BY_SIZE)],
    Discriminator(lambda value: BY_SIZE if isinstance(value, dict) else NUMBER),
]


class PolicyUpdate(Strict):
    """Settings of the clipped surrogate, which every algorithm has."""

    lr_scale: Scale = Field(
        1.0,
        description="multiplies the size's learning rate; `{xs: 1, s: 0.5}` for one at each size",
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="ratio is clipped below 1 - clip_low")
    clip_high: Positive = Field(0.28, description="ratio is clipped above 1 + clip_high")
    dual_clip: float = Field(10.0, gt=1, description="bound of the loss where advantage < 0")

    def scale_at(self, size: str) -> float:
        """lr_scale at a size. Raises KeyError for a size that it leaves out."""
        return self.lr_scale[size] if isinstance(self.lr_scale, dict) else self.lr_scale

    @property
    def needs_reference(self) -> bool:
        """Does the loss read log-probabilities of the frozen base policy?"""
        return False

    @property
    def needs_group(self) -> bool:
        """Does the advantage compare responses to the same prompt?"""
        return True

    @property
    def needs_start(self) -> bool:
        """Does the loss read the logits of the first token, before they are normalised?"""
        return False

    @property
    def needs_squares(self) -> bool:
        """Does the loss read the policy's summed squared probabilities at each token?"""
        return False

    @property
    def needs_steps(self) -> bool:
        """Does the advantage read grades of steps? (Own files: `needs_steps` of the class.)"""
        return False

    @property
    def continued(self) -> Continuations | None:
        """How states within responses are continued for their values; None: they are not."""
        return None


class Continuations(Strict):
    """Monte Carlo values of states: `k` continuations of each, by the policy that sampled it."""

    k: Count = Field(9, description="continuations of each state (paper: 9)")
    interval: Count | None = Field(
        None,
        description="a state every so many tokens; default: where the steps of the response "
        "begin, for tasks that have them",
    )


class Capacity(Strict):
    """beta as a share of what rewards ask of it: beta * surprisal of the base / reward range.

    It becomes a number once the base policy is there (vimpo/storage/surprisal.py).
    """

    capacity: Positive = Field(
        description="how far the implied value of a base policy's response can rise, over the "
        "range of rewards"
    )

    def __str__(self) -> str:
        return f"capacity {self.capacity:g}"


Beta = Annotated[
    Annotated[Positive, Tag(NUMBER)] | Annotated[Capacity, Tag(CAPACITY)],
    Discriminator(lambda value: CAPACITY if isinstance(value, dict | Capacity) else NUMBER),
]


KL_ESTIMATORS = ("exact", "k2", "k3", "topk")


def beta_number(beta: Beta) -> float:
    """beta, if it is a number. Raises ConfigError if it is a capacity, which has none yet."""
    if isinstance(beta, Capacity):
        raise ConfigError(
            f"beta: {beta} is no number before the surprisal of the base policy is measured; "
            "allowed: after `python -m vimpo surprisal`, or a number"
        )
    return beta


class VimpoConfig(PolicyUpdate):
    """VIMPO (arXiv 2606.20008): terminal-anchor value loss, and an actor that uses its td."""

    objective: Literal["vimpo"] = "vimpo"
    beta: Beta = Field(
        0.02,
        description="scale of the log-ratio (paper: 5e-4 at thousands of tokens; it must grow as "
        "responses carry less surprisal, because the summed log-ratio has to reach "
        "(R - mean) / beta: vimpo/planning/beta.py); or `{capacity: 0.5}`, from which the number "
        "follows once the base policy is there",
    )
    actor_coef: float = Field(
        0.005, ge=0, allow_inf_nan=False, description="c_A (paper: 5e-3); 0 is value-only"
    )
    lam: Probability = Field(1.0, description="lambda of GAE over td (paper: 1)")
    kl_estimator: str = Field("exact", description="exact, k2, k3 or topk")
    kl_top_k: Count = Field(8, description="tokens kept by the topk estimator")
    # Switches of the official code, off there too. Left out where they are not set, so that older
    # digests stay valid.
    value: Literal["raw", "soft"] = Field(
        "raw",
        exclude_if=lambda value: value == "raw",
        description="soft: the KL is part of the start's value instead of the residual, and there "
        "is no actor",
    )
    huber_delta: Positive | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="residuals beyond this count linearly (official code: .005, off)",
    )
    cap_v0: float | None = Field(
        None,
        allow_inf_nan=False,
        exclude_if=lambda value: value is None,
        description="largest value of a start, in units of reward",
    )
    adaptive_coef: Positive | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="instead of a fixed c_A, one that keeps the actor's gradient at this share of "
        "the value loss's (official code: .025, off)",
    )
    adaptive_decay: float = Field(
        0.9,
        ge=0,
        lt=1,
        exclude_if=lambda value: value == 0.9,
        description="of the running means of adaptive_coef (official code: .9)",
    )
    refresh_every: Count | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="steps after which the reference becomes the policy; default: never",
    )

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_squares(self) -> bool:
        return self.adaptive_coef is not None

    @model_validator(mode="after")
    def _switches_fit(self) -> VimpoConfig:
        if self.value == "soft" and (self.actor_coef or self.adaptive_coef):
            raise ValueError(
                f"value: 'soft' has no actor, and actor_coef = {self.actor_coef:g} or "
                "adaptive_coef asks for one; allowed: raw, or actor_coef: 0 without adaptive_coef"
            )
        return self

    @field_validator("kl_estimator")
    @classmethod
    def _no_k1(cls, value: str) -> str:
        if value == "k1":
            raise ValueError(
                "k1 is refused because it is the log-ratio itself, so rho - kappa would vanish; "
                f"allowed: {', '.join(KL_ESTIMATORS)}"
            )
        if value not in KL_ESTIMATORS:
            raise ValueError(f"{value!r} is unknown; allowed: {', '.join(KL_ESTIMATORS)}")
        return value


class CriticPretraining(Strict):
    """Fits the critic to rollouts of the base policy before the first step (training/critic.py)."""

    updates: Count = Field(
        1200, description="most updates, over which the rate falls in a straight line"
    )
    least: Count = Field(400, description="updates before it may end early")
    patience: Count = Field(
        300,
        description="ends once the held-out explained variance of the change has not risen for "
        "this many updates; the best critic is kept",
    )
    check_every: Count = Field(20, description="updates from one measurement to the next")
    rollouts: Count = Field(
        64,
        description="fresh rollouts of the base policy per update, of different problems if there "
        "are as many",
    )
    held_out: Count = Field(
        64,
        description="problems that are measured, with 8 rollouts of each; as many more as make a "
        "multiple of `rollouts`",
    )
    learning_rate: Positive = Field(
        1.5e-3, description="first rate of the critic, whatever the size's rate"
    )


class PPOConfig(PolicyUpdate):
    """PPO (arXiv 1707.06347) with a separate critic network, optimiser and learning rate."""

    objective: Literal["ppo"] = "ppo"
    lam: Probability = Field(1.0, description="lambda of GAE")
    value_clip: Positive | None = Field(
        0.2, description="clip range of the value loss; null: no clip"
    )
    critic_lr_scale: Positive = Field(3.0, description="critic rate over the size's rate")
    critic_warmup: int = Field(0, ge=0, description="first steps, which train only the critic")
    critic_pretrain: CriticPretraining | None = Field(
        None, description="fit the critic to the base policy first; null: it starts at zero"
    )
    critic_lr: Positive | None = Field(
        None, description="critic rate itself; default: critic_lr_scale times the size's rate"
    )
    critic_lam: Probability | None = Field(
        None, description="lambda of the critic's targets (VC-PPO, arXiv 2503.01491); default: lam"
    )
    critic_updates: Count = Field(
        1,
        description="updates of the critic per update of the policy: the first on the step's "
        "batch, the others on the latest batches in turn",
    )
    critic_replay: Count = Field(
        1, description="batches kept for these updates, the step's own too"
    )
    gate: Literal["off", "batch", "group"] = Field(
        "off",
        description="where the critic explains none of a batch's outcomes, compare them with the "
        "mean of the batch or of the group instead (EVPO, arXiv 2604.19485)",
    )

    @property
    def needs_group(self) -> bool:
        return self.gate == "group"

    @model_validator(mode="after")
    def _replay_is_read(self) -> PPOConfig:
        if self.critic_replay > 1 and self.critic_updates == 1:
            raise ValueError(
                f"critic_replay: {self.critic_replay} batches are never read with "
                "critic_updates = 1; allowed: 1, or more updates"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_settings(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out settings that came later where all are off, so that older digests stay valid.

        Not where all of them were given: `ppo_pretrained` with everything switched off must not be
        read back with its defaults.
        """
        content = dump(self)
        fields = type(self).model_fields
        off = all(getattr(self, name) == fields[name].default for name in LATER_PPO_SETTINGS)
        if off and not self.model_fields_set >= LATER_PPO_SETTINGS:
            return {k: v for k, v in content.items() if k not in LATER_PPO_SETTINGS}
        return content


LATER_PPO_SETTINGS = {
    "critic_pretrain",
    "critic_lr",
    "critic_lam",
    "critic_updates",
    "critic_replay",
    "gate",
}


class GRPOConfig(PolicyUpdate):
    """GRPO (arXiv 2402.03300) with token-mean loss and asymmetric clip, the stronger baseline."""

    objective: Literal["grpo"] = "grpo"
    normalize_std: bool = Field(True, description="divide by the group's standard deviation")
    reduction: Literal["token-mean", "seq-mean"] = "token-mean"
    kl_coef: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a k3 penalty to the reference"
    )
    # DAPO's parts. Left out where they are not set, so that older digests stay valid.
    rounds: Count = Field(
        1,
        exclude_if=lambda value: value == 1,
        description="of sampling, at most, until the rewards of every group differ (DAPO: 10)",
    )
    overlong: float | None = Field(
        None,
        gt=0,
        le=1,
        exclude_if=lambda value: value is None,
        description="last share of train.max_response in which the reward of a response falls by "
        "up to 1 (DAPO: 4096 of 20480 tokens)",
    )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0


class RLOOConfig(PolicyUpdate):
    """RLOO (arXiv 2402.14740): REINFORCE with the mean of the other rewards as baseline."""

    objective: Literal["rloo"] = "rloo"
    clip_high: Positive = Field(
        0.2, description="ratio of a response is clipped above 1 + clip_high"
    )


class DrGRPOConfig(PolicyUpdate):
    """Dr. GRPO (arXiv 2503.20783): no standard deviation, sums over train.max_response."""

    objective: Literal["dr_grpo"] = "dr_grpo"
    clip_high: Positive = Field(0.2, description="ratio is clipped above 1 + clip_high")


class ReinforceConfig(PolicyUpdate):
    """REINFORCE++ (arXiv 2501.03262): rewards normalised over the whole batch."""

    objective: Literal["reinforce_pp"] = "reinforce_pp"
    clip_high: Positive = Field(0.2, description="ratio is clipped above 1 + clip_high")
    group_baseline: bool = Field(
        False, description="subtract the group's mean first: the paper's variant for groups"
    )

    @property
    def needs_group(self) -> bool:
        return self.group_baseline


class GSPOConfig(PolicyUpdate):
    """GSPO (arXiv 2507.18071): the clipped ratio is that of a whole response, per token."""

    objective: Literal["gspo"] = "gspo"
    clip_low: float = Field(3e-4, gt=0, lt=1, description="below 1, of the response's ratio")
    clip_high: Positive = Field(4e-4, description="above 1, of the response's ratio")


class TBRMConfig(PolicyUpdate):
    """TBRM (arXiv 2505.15311): logits are action values, with one residual per response."""

    objective: Literal["tbrm"] = "tbrm"
    beta: Beta = Field(0.02, description="scale of the KL regulariser, as VIMPO's")

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_group(self) -> bool:
        return False

    @property
    def needs_start(self) -> bool:
        return True


class CorrectedGRPOConfig(PolicyUpdate):
    """GRPO corrected for label noise (arXiv 2510.18924)."""

    objective: Literal["grpo_corrected"] = "grpo_corrected"
    false_positive: float | None = Field(
        None, ge=0, lt=1, description="assumed rate wrong -> right; default: the cell's noise"
    )
    false_negative: float | None = Field(
        None, ge=0, lt=1, description="assumed rate right -> wrong; default: the cell's noise"
    )

    def rates(self, noise: Noise) -> tuple[float, float]:
        """False positives and negatives. Raises ConfigError if rewards would say nothing."""
        both = noise.mode == "asymmetric"
        positive = noise.false_positive if both else noise.rate
        negative = noise.false_negative if both else noise.rate
        if self.false_positive is not None:
            positive = self.false_positive
        if self.false_negative is not None:
            negative = self.false_negative
        if positive + negative >= 1:
            raise ConfigError(
                f"algorithms: {self.objective} cannot correct false_positive = {positive:g} with "
                f"false_negative = {negative:g}, where rewards say nothing; allowed: a sum below 1"
            )
        return positive, negative


class VinePPOConfig(PolicyUpdate, Continuations):
    """VinePPO (arXiv 2410.01679): PPO with Monte Carlo values at the ends of steps."""

    objective: Literal["vineppo"] = "vineppo"
    clip_high: Positive = Field(0.2, description="ratio is clipped above 1 + clip_high")

    @property
    def needs_group(self) -> bool:
        return False

    @property
    def continued(self) -> Continuations:
        return self


class OracleConfig(PolicyUpdate):
    """Control: credit from the grades of steps, which only the task's oracle knows."""

    objective: Literal["oracle"] = "oracle"
    negative: float = Field(
        0.3,
        ge=0,
        le=1,
        description="weight of wrong steps beside that of right ones: pushing down what was "
        "sampled spreads over all that was not, and is rough at high rates; without it, ends of "
        "responses drift",
    )
    shuffled: bool = Field(
        False, description="the same numbers on random tokens of the same response"
    )

    @property
    def needs_group(self) -> bool:
        return False

    @property
    def needs_steps(self) -> bool:
        return True


class EntropyConfig(PolicyUpdate):
    """Control: minimises the entropy of tokens (arXiv 2505.15134) and reads no reward."""

    objective: Literal["entropy"] = "entropy"

    @property
    def needs_group(self) -> bool:
        return False


class OwnConfig(PolicyUpdate):
    """A user-supplied algorithm: a Python file, which is run and can do anything that you can."""

    objective: str = Field(pattern=r"\.py$", description="the file, as in examples/rloo.py")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of the file; filled in, so that a changed file trains its cells again",
    )
    reference: bool = Field(False, description="give its loss ref_logp, from a frozen base policy")
    settings: dict[Name, bool | int | float | str] = Field(
        {}, description="keyword arguments of its class"
    )
    continuations: Continuations | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="give it values of states within responses, from continuations",
    )

    @property
    def needs_reference(self) -> bool:
        return self.reference

    @property
    def continued(self) -> Continuations | None:
        return self.continuations

    @field_validator("sha256")
    @classmethod
    def _of_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A given digest is kept, so a resolved study can be loaded without the file."""
        return value or (file_digest(info.data["objective"]) if "objective" in info.data else None)


OWN = "FILE.py"


def _objective(value: Any) -> Any:
    """The tag of the type that an entry of `algorithms` has."""
    found = value.get("objective") if isinstance(value, dict) else getattr(value, "objective", None)
    return OWN if isinstance(found, str) and found.endswith(".py") else found


AlgorithmConfig = Annotated[
    Annotated[VimpoConfig, Tag("vimpo")]
    | Annotated[PPOConfig, Tag("ppo")]
    | Annotated[GRPOConfig, Tag("grpo")]
    | Annotated[RLOOConfig, Tag("rloo")]
    | Annotated[DrGRPOConfig, Tag("dr_grpo")]
    | Annotated[ReinforceConfig, Tag("reinforce_pp")]
    | Annotated[GSPOConfig, Tag("gspo")]
    | Annotated[TBRMConfig, Tag("tbrm")]
    | Annotated[CorrectedGRPOConfig, Tag("grpo_corrected")]
    | Annotated[VinePPOConfig, Tag("vineppo")]
    | Annotated[OracleConfig, Tag("oracle")]
    | Annotated[EntropyConfig, Tag("entropy")]
    | Annotated[OwnConfig, Tag(OWN)],
    Discriminator(_objective),
]

ALGORITHMS: dict[str, AlgorithmConfig] = {
    "vimpo": VimpoConfig(),
    "vimpo_value_only": VimpoConfig(actor_coef=0.0),
    "ppo": PPOConfig(),
    "ppo_pretrained": PPOConfig(
        value_clip=None,
        critic_pretrain=CriticPretraining(),
        critic_lr=3e-4,
        critic_updates=8,
        critic_replay=8,
    ),
    "grpo": GRPOConfig(),
    "grpo_naive": GRPOConfig(reduction="seq-mean", clip_high=0.2),
    "grpo_kl": GRPOConfig(kl_coef=0.04),
    "dapo": GRPOConfig(rounds=10, overlong=0.2),
    "grpo_corrected": CorrectedGRPOConfig(),
    "dr_grpo": DrGRPOConfig(),
    "gspo": GSPOConfig(),
    "rloo": RLOOConfig(),
    "reinforce_pp": ReinforceConfig(),
    "tbrm": TBRMConfig(),
    "vineppo": VinePPOConfig(),
    "oracle": OracleConfig(),
    "oracle_shuffled": OracleConfig(shuffled=True),
    "entropy": EntropyConfig(),
}


def file_digest(path: str) -> str:
    """sha256 of the file. Raises ConfigError if there is no file."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def read_own_file(path: str, sha256: str | None) -> bytes:
    """The file's content. Raises ConfigError if it is not what the study was resolved with.

    The same bytes are compared and run, so a file that changes while a study runs trains nothing
    under the digest of its older version.
    """
    content = _bytes(path)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            f"algorithms: '{path}' has changed since this study was resolved (sha256 is not "
            f"{sha256[:12]}...); allowed: the same file, or a study without `sha256`"
        )
    return content


def _bytes(path: str) -> bytes:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"algorithms: '{path}' is not a file; allowed: a Python file, relative to the folder "
            "where the command is started"
        )
    return file.read_bytes()
