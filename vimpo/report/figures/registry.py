"""Every figure, one entry each: who draws it from which tables, and what the report says of it.

To add a figure, write its function in a module of this package and its entry here; the workflow,
the drawing and both reports follow. The workflow reads this before every run, so nothing that
draws is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sections of the report that show figures. The first figure of a section stands before its tables.
SECTIONS = (
    *("summary", "accuracy", "noise", "value", "credit", "precision", "size", "cost"),
    *("projection", "tuning"),
)


@dataclass(frozen=True)
class FigureEntry:
    """A figure. `title`, `caption` and `alt` are Jinja over the content of the report.

    Raises ValueError for a section that the report does not have.
    """

    draw: str  # module of this package:function, which takes the tables and the algorithms' looks
    tables: tuple[str, ...]
    category: str  # in Snakemake's own report
    section: str
    title: str
    caption: str
    alt: str  # what the figure shows, for those who cannot see it

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise ValueError(f"section: '{self.section}' is not one of {', '.join(SECTIONS)}")

    def drawer(self) -> Callable[..., Figure]:
        module, _, function = self.draw.partition(":")
        return getattr(import_module(f".{module}", __package__), function)


BARS = "Bars: {{ confidence }} % interval over seeds; with few seeds it may reach beyond the panel."

FIGURES: dict[str, FigureEntry] = {
    "headline": FigureEntry(
        draw="headline:headline",
        tables=("summary", "probe_summary", "measured_summary"),
        category="Summary",
        section="summary",
        title="At a glance",
        caption="""
            Left: sampled accuracy, mean of all benchmarks{% if sizes | length > 1 %} and sizes{%
            endif %}, against the share of training rewards that were flipped; grey is the base
            policy. Middle: how much of the change of the true value along a response VIMPO's
            implied value and PPO's critic explain on clean rewards; one is perfect, a constant
            predictor explains nothing. Right: seconds and memory of a training step at the largest
            size, each algorithm measured in a process of its own. Bars: {{ confidence }} %
            interval; with few seeds it may reach beyond the panel.
        """,
        alt="""
            Three panels for VIMPO, PPO and GRPO: accuracy against reward noise, explained variance
            of the implied value and of the critic against parameters at sizes {{ sizes | join(", ")
            }}, and bars of step time and memory. The numbers are in the tables of accuracy, of
            value accuracy and of cost.
        """,
    ),
    "accuracy_vs_size": FigureEntry(
        draw="accuracy:accuracy_vs_size",
        tables=("summary",),
        category="Size",
        section="accuracy",
        title="Accuracy against model size",
        caption="""
            Sampled accuracy, mean of all benchmarks, against the parameters of the policy. Markers
            are shifted sideways where they would cover each other. Bars: {{ confidence }} %
            interval.
        """,
        alt="""
            Line plots of mean sampled accuracy against parameters at sizes {{ sizes | join(", ") }}
            for the base policy and {{ algorithms | join(", ") }}; one panel a noise level. The
            numbers are in the table of accuracy by size.
        """,
    ),
    "accuracy_by_benchmark": FigureEntry(
        draw="accuracy:accuracy_by_benchmark",
        tables=("summary",),
        category="Accuracy",
        section="accuracy",
        title="Accuracy by benchmark",
        caption="""
            Sampled accuracy (avg@{{ study.evaluation.samples }}, temperature {{
            study.evaluation.temperature }}, top-p {{ study.evaluation.top_p }}) on each held-out
            benchmark and their mean. Bars: {{ confidence }} % interval.
        """,
        alt="""
            Dot plots of sampled accuracy on {{ benchmarks | join(", ") }} and their mean for the
            base policy and {{ algorithms | join(", ") }}; one panel for each size and noise level.
            The numbers of the mean are in the table of accuracy by size.
        """,
    ),
    "learning_curves": FigureEntry(
        draw="accuracy:learning_curves",
        tables=("curves_summary",),
        category="Learning",
        section="accuracy",
        title="Learning curves",
        caption="""
            Accuracy of the training rollouts on clean rewards, moving average over {{ window }}
            steps, mean over seeds. Bars: {{ confidence }} % interval over seeds at three times of
            training; with few seeds it may reach beyond the panel.
        """,
        alt="""
            Line plots of training accuracy against step for {{ algorithms | join(", ") }}; one
            panel for each of sizes {{ sizes | join(", ") }} and {{ noises | join(", ") }}.
        """,
    ),
    "accuracy_vs_noise": FigureEntry(
        draw="accuracy:accuracy_vs_noise",
        tables=("summary",),
        category="Noise",
        section="noise",
        title="Accuracy against reward noise",
        caption="""
            Sampled accuracy, mean of {{ benchmarks | join(", ") }}, against the share of training
            rewards that were flipped; evaluation is never noised. Markers are shifted sideways
            where they would cover each other. Grey: the base policy.{% if expected_line %} Dotted,
            for VIMPO, PPO and GRPO: the gain over the base policy at zero noise, times the share of
            the signal that flips leave, one minus twice the rate.{% endif %} Bars and band: {{
            confidence }} % interval.
        """,
        alt="""
            Line plots of mean sampled accuracy at {{ noises | join(", ") }} for {{ algorithms |
            join(", ") }} above a grey line for the base policy; one panel a size. The numbers are
            in the tables of accuracy.
        """,
    ),
    "value_accuracy": FigureEntry(
        draw="probes:value_accuracy",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="value",
        title="Value accuracy against model size",
        caption="""
            How much of the true value each predictor explains, on clean rewards: on the left the
            change of value since the prompt, on the right the value itself, most of which is the
            difficulty of the prompt. Top: explained variance, corrected for the noise of the Monte
            Carlo truth; the dashed line is a perfect predictor, the full line a constant. Bottom:
            Spearman rank correlation, uncorrected. Hollow: the implied value read out of policies
            that were not trained by it.
        """
        + BARS,
        alt="""
            Line plots of explained variance and rank correlation against parameters at sizes {{
            sizes | join(", ") }}, for VIMPO's implied value, PPO's critic, GRPO's group mean, and
            the implied value of PPO's and GRPO's policies. The numbers are in the table of value
            accuracy.
        """,
    ),
    "value_by_position": FigureEntry(
        draw="probes:value_by_position",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="value",
        title="Value accuracy along the response",
        caption="""
            The change of value since the prompt, at prefixes of growing length. Top: explained
            variance; a gap is a position where the truth varies too little to be told from its
            noise. Bottom: root mean square error, in units of reward.
        """
        + BARS,
        alt="""
            Line plots of explained variance and error of the predicted change of value at {{
            study.probes.positions | join(", ") }} of the response, for the same predictors; one
            column of panels a size.
        """,
    ),
    "credit": FigureEntry(
        draw="probes:credit",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="credit",
        title="Credit against model size",
        caption="""
            Area under the ROC of finding the first wrong step of a rollout by its token signals;
            left by single differences of value, right by the sums of them that the policy update
            uses. The line is chance, where GRPO's constant advantage lies; grey is the control,
            what a signal scores that only rises or falls with the token's place. Hollow: signals
            read out of policies that were not trained by them.
        """
        + BARS,
        alt="""
            Line plots of the area under the ROC against parameters at sizes {{ sizes | join(", ")
            }}, for the token signals of VIMPO, PPO and GRPO, around a line of chance. The numbers
            are in the credit table.
        """,
    ),
    "credit_profile": FigureEntry(
        draw="probes:credit_profile",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="credit",
        title="Advantage around the first error",
        caption="""
            Mean signal around the first token of the first wrong step, whitened over all tokens;
            mean over seeds. The wrong digit itself stands where the sum ends, some tokens behind
            the start of its step.
        """,
        alt="""
            Line plots of the mean signal of VIMPO, PPO and GRPO at tokens before and behind the
            start of the first wrong step; one column of panels a size, one row for single
            differences and one for summed advantages.
        """,
    ),
    "precision": FigureEntry(
        draw="probes:precision",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="precision",
        title="Drift of the implied value in fewer bits",
        caption="""
            VIMPO's policy read in fewer bits, against double precision{% if not doubled %} or,
            where single precision has no markers, against that{% endif %}. Top: root mean square
            drift of the summed log-ratio against the number of summed tokens. Bottom: drift of the
            implied value over the spread of its true value between rollouts; at one, rounding says
            as much as the value. The markers of the variants are shifted sideways. Bars: {{
            confidence }} % interval over seeds, cut below.
        """,
        alt="""
            Line plots on logarithmic axes of the drift of the log-ratio and of the implied value
            against summed tokens, for three kinds of arithmetic; one column of panels a size. The
            numbers of whole responses are in the precision table.
        """,
    ),
    "gap_vs_size": FigureEntry(
        draw="accuracy:gap_vs_size",
        tables=("comparisons",),
        category="Size",
        section="size",
        title="VIMPO's gap against model size",
        caption="""
            Sampled accuracy of VIMPO minus that of the other algorithm, over pairs with the same
            seed; above the line VIMPO is ahead.
        """
        + BARS,
        alt="""
            Line plots of the difference in sampled accuracy between VIMPO and each other algorithm
            against parameters at sizes {{ sizes | join(", ") }}; one panel a noise level. The
            numbers are in the table of gaps.
        """,
    ),
    "cost": FigureEntry(
        draw="cost:cost",
        tables=("measured_summary",),
        category="Cost",
        section="cost",
        title="Cost of a training step",
        caption="""
            Measured side by side, each algorithm in a process of its own: median seconds of a step
            by phase, peak memory above what the process held before it loaded a model, trainable
            and resident parameters, and optimiser state. Black lines: {{ confidence }} % interval
            over rounds. Diamonds: what the analytic memory model expects.
        """,
        alt="""
            Bar charts of step time by phase, peak memory, parameters and optimiser state for {{
            algorithms | join(", ") }}; one row of panels a size. The numbers are in the cost table.
        """,
    ),
    "memory_projection": FigureEntry(
        draw="cost:memory_projection",
        tables=("memory_projection",),
        category="Cost",
        section="projection",
        title="Projected memory at published sizes",
        caption="""
            A projection, not a measurement: the memory model, applied to published shapes at the
            paper's lengths. Left: peak of one device without sharding; right: the same over PPO's.
        """,
        alt="""
            Line plots of projected peak memory and of its ratio to PPO's against parameters of
            published models, for VIMPO, PPO and GRPO. The numbers are in the projection table.
        """,
    ),
    "sweeps": FigureEntry(
        draw="sweep:sweeps",
        tables=("sweeps",),
        category="Tuning",
        section="tuning",
        title="Sweeps that decided the settings",
        caption="""
            What every trial of the sweeps scored. A ring marks the best trial of an algorithm in
            its sweep, a cross one with failed runs. Explained variances below minus one may lie
            beyond the panel. Markers of one place are shifted sideways.
        """,
        alt="""
            Line plots of the score of every trial against the setting that was swept; one panel for
            each sweep, algorithm and score. The numbers are in the table of trials.
        """,
    ),
}
