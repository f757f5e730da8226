"""Codes that stand in columns of tables. Programs compare these; the texts next to them are prose.

A reworded text therefore changes no number, no table and no verdict.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Method(StrEnum):
    """How an interval was made (column `method`): proper names, and so their own labels."""

    STUDENT = "Student t"
    WELCH = "Welch-Satterthwaite t"
    BOOTSTRAP = "bootstrap-SE t"
    NORMAL = "normal over problems"
    PROBLEMS = "t, error over problems"
    NEWCOMBE = "Newcombe score"
    CHI_SQUARE = "chi-square"
    CLOPPER_PEARSON = "Clopper-Pearson"
    CR2 = "CR2 by base policy, Satterthwaite t"
    NOT_AVAILABLE = "not available"


class Reason(StrEnum):
    """Why a value or its interval is not available (column `reason_code`)."""

    NONE = ""
    # too little to go by
    NO_VALUES = "no_values"
    NO_RESULT = "no_result"  # of a size that the grid has
    NO_PAIR = "no_pair"
    ONE_SEED = "one_seed"
    STRATUM_ONE_SEED = "stratum_one_seed"
    ONE_SIZE = "one_size"
    ONE_LENGTH = "one_length"
    TOO_FEW_BASES = "too_few_bases"  # base policies
    CONFOUNDED = "confounded"  # two axes vary together
    NOT_IN_GRID = "not_in_grid"
    NO_PARAMETERS = "no_parameters"
    # values that allow no interval
    NOT_FINITE = "not_finite"
    ALL_EQUAL = "all_equal"
    NO_VARIATION = "no_variation"
    NO_ERROR = "no_error"  # a standard error of 0
    # no interval is wanted, or it would not help
    DESIGN = "design"
    COMPUTED = "computed"
    PROBLEMS_LIMIT = "problems_limit"
    # of hypotheses
    NOT_MEASURED = "not_measured"  # the runs are there, without this number
    NO_HEADROOM = "no_headroom"
    CENSORED = "censored"  # no run reached it
    # of probes
    NO_ORACLE = "no_oracle"
    IS_THE_TRUTH = "is_the_truth"
    BELOW_NOISE = "below_noise"
    UNRELIABLE = "unreliable"
    NO_WRONG_STEP = "no_wrong_step"
    SEVERAL = "several"  # runs of one group that differ in this


class Why(NamedTuple):
    """A reason as code and as text; both are empty if there is nothing to explain."""

    code: Reason
    text: str

    def columns(self) -> dict[str, str]:
        return {"reason_code": str(self.code), "reason": self.text}


NO_REASON = Why(Reason.NONE, "")
