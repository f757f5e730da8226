"""Settings of the algorithms, one type each, and the built-in ones by name.

A study names the file of a user-supplied algorithm; its resolved copy adds the file's sha256, so
that digests of cells change with the file. They do not cover what such a file imports.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from vimpo.config.types import Count, Name, Positive, Probability, Strict
from vimpo.errors import ConfigError


class PolicyUpdate(Strict):
    """Settings of the clipped surrogate, which every algorithm has."""

    lr_scale: Positive = Field(1.0, description="multiplies the size's learning rate")
    clip_low: float = Field(0.2, gt=0, lt=1, description="ratio is clipped below 1 - clip_low")
    clip_high: Positive = Field(0.28, description="ratio is clipped above 1 + clip_high")
    dual_clip: float = Field(10.0, gt=1, description="bound of the loss where advantage < 0")

    @property
    def needs_reference(self) -> bool:
        """Does the loss read log-probabilities of the frozen base policy?"""
        return False


KL_ESTIMATORS = ("exact", "k2", "k3", "topk")


class VimpoConfig(PolicyUpdate):
    """VIMPO (arXiv 2606.20008): terminal-anchor value loss, and an actor that uses its td."""

    objective: Literal["vimpo"] = "vimpo"
    beta: Positive = Field(
        0.02,
        description="scale of the log-ratio (paper: 5e-4 at thousands of tokens; it must grow as "
        "responses get shorter, because the summed log-ratio has to reach (R - mean) / beta: "
        "vimpo/planning/beta.py)",
    )
    actor_coef: float = Field(
        0.005, ge=0, allow_inf_nan=False, description="c_A (paper: 5e-3); 0 is value-only"
    )
    lam: Probability = Field(1.0, description="lambda of GAE over td (paper: 1)")
    kl_estimator: str = Field("exact", description="exact, k2, k3 or topk")
    kl_top_k: Count = Field(8, description="tokens kept by the topk estimator")

    @property
    def needs_reference(self) -> bool:
        return True

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


class PPOConfig(PolicyUpdate):
    """PPO (arXiv 1707.06347) with a separate critic network, optimiser and learning rate."""

    objective: Literal["ppo"] = "ppo"
    lam: Probability = Field(1.0, description="lambda of GAE")
    value_clip: Positive = Field(0.2, description="clip range of the value loss")
    critic_lr_scale: Positive = Field(3.0, description="critic rate over the size's rate")
    critic_warmup: int = Field(0, ge=0, description="first steps, which train only the critic")


class GRPOConfig(PolicyUpdate):
    """GRPO (arXiv 2402.03300) with token-mean loss and asymmetric clip, the stronger baseline."""

    objective: Literal["grpo"] = "grpo"
    normalize_std: bool = Field(True, description="divide by the group's standard deviation")
    reduction: Literal["token-mean", "seq-mean"] = "token-mean"
    kl_coef: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a k3 penalty to the reference"
    )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0


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

    @property
    def needs_reference(self) -> bool:
        return self.reference

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
    | Annotated[OwnConfig, Tag(OWN)],
    Discriminator(_objective),
]

ALGORITHMS: dict[str, VimpoConfig | PPOConfig | GRPOConfig] = {
    "vimpo": VimpoConfig(),
    "vimpo_value_only": VimpoConfig(actor_coef=0.0),
    "ppo": PPOConfig(),
    "grpo": GRPOConfig(),
    "grpo_naive": GRPOConfig(reduction="seq-mean", clip_high=0.2),
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
