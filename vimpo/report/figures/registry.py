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
    *("summary", "headroom", "accuracy", "training", "noise", "frontier"),
    *("value", "credit", "precision", "size", "cost", "projection", "tuning"),
)


@dataclass(frozen=True)
class FigureEntry:
    """A figure. `title`, `caption` and `alt` are Jinja over the content of the report; their line
    breaks count as spaces.

    Raises ValueError for a section that the report does not have.
    """

    draw: str  # module of this package:function, which takes the tables and the algorithms' looks
    tables: tuple[str, ...]
    category: str  # in Snakemake's own report
    section: str
    title: str
    caption: str
    alt: str  # what the figure shows, for those who cannot see it
    # the report's content without which the figure has nothing to show, and is left out
    when: str = ""

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
        tables=(
            *("summary", "probe_summary", "measured_summary"),
            *("headroom", "frontier", "capacity"),
        ),
        category="Summary",
        section="summary",
        title="At a glance",
        caption="""
            {% if seen.standing == "captured" %}Headroom: where each algorithm stands between
            {{ floor }} (zero) and the {{ ceiling }} (one), by areas under the learning curve, on
            clean rewards at one size; controls last.{% elif seen.standing %}Speed of learning: the
            area under each learning curve (mean clean accuracy along training), on clean rewards
            at one size; controls last.{% if seen.refused %} There is no headroom, so nobody has a
            share of it: the {{ ceiling }} does not clearly beat {{ floor }}.{% endif %}{% endif %}
            {% if seen.moved == "distance" %}Distance: accuracy of the training rollouts where the
            KL of a response to the base policy first reaches a distance; a line ends, with a
            marker, where the first of its runs does.{% elif seen.moved %}Accuracy: sampled,
            averaged over all benchmarks{% if seen.over_sizes %} and sizes{% endif %}, against
            the share of training rewards that were flipped; grey is the base policy.{% endif %}
            {% if seen.value == "capacity" %}Implied value: how well it orders and explains the
            change in true value along a response{% if seen.common %} of the base policy{% endif %},
            against its capacity, on clean rewards; one is perfect, and a constant explains nothing.
            A triangle marks a value below the panel.{% elif seen.value %}Implied value and critic:
            how much of the change in true value along a response they explain, on clean rewards;
            one is perfect, and a constant explains nothing.{% endif %}
            {% if seen.cost %}Cost: time and memory of a training step at one size, with each
            algorithm in its own process.{% endif %} Bars: {{ confidence }} % interval; with few
            seeds it may reach beyond the panel.
        """,
        alt="""
            {% if seen.standing == "captured" %}Dots of the share of the headroom that each
            algorithm captures. {% elif seen.standing %}Dots of the area under each algorithm's
            learning curve. {% endif %}{% if seen.moved == "distance" %}Lines of training accuracy
            against KL to the base policy. {% elif seen.moved %}Lines of accuracy against reward
            noise. {% endif %}{% if seen.value == "capacity" %}Lines of the implied value's rank
            correlation and explained variance against capacity. {% elif seen.value %}Lines of the
            explained variance of the implied value and of the critic against parameters at sizes
            {{ sizes | join(", ") }}. {% endif %}{% if seen.cost %}Bars of step time and memory.
            {% endif %}The numbers are in the tables of the report.
        """,
    ),
    "headroom": FigureEntry(
        draw="yardstick:headroom",
        tables=("headroom",),
        category="Headroom",
        section="headroom",
        title="Headroom captured",
        caption="""
            Where each algorithm stands between {{ floor }} (zero) and the {{ ceiling }} (one),
            whose credit is perfect: areas under the learning curve, over pairs of runs with the
            same seed. “No headroom”: the {{ ceiling }} does not clearly beat {{ floor }} there, so
            nobody has a share of it, and the panel has the areas themselves. Bars:
            {{ confidence }} % interval over seeds; with few seeds it may reach beyond the panel.
        """,
        alt="""
            Dot plots of the share of the headroom that each algorithm captures, or of its area
            under the learning curve where there is none, with lines for {{ floor }} and the
            {{ ceiling }}; one panel per size and noise level. The numbers are in the headroom
            table.
        """,
        when="headroom_rows",
    ),
    "accuracy_vs_size": FigureEntry(
        draw="accuracy:accuracy_vs_size",
        tables=("summary",),
        category="Size",
        section="accuracy",
        title="Accuracy against model size",
        caption="""
            Sampled accuracy, averaged over all benchmarks, against the number of parameters of the
            policy. Markers that would overlap are shifted sideways. Bars: {{ confidence }} %
            interval.
        """,
        alt="""
            Line plots of mean sampled accuracy against parameters at sizes {{ sizes | join(", ") }}
            for the base policy and {{ algorithms | join(", ") }}; one panel per noise level. The
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
            Sampled accuracy (avg@{{ study.evaluation.samples }}, temperature
            {{ study.evaluation.temperature }}, top-p {{ study.evaluation.top_p }}) on each held-out
            benchmark, and the mean over them. Bars: {{ confidence }} % interval.
        """,
        alt="""
            Dot plots of sampled accuracy on {{ benchmarks | join(", ") }} and their mean for the
            base policy and {{ algorithms | join(", ") }}; one panel per size and noise level. The
            means are in the table of accuracy by size.
        """,
    ),
    "learning_curves": FigureEntry(
        draw="accuracy:learning_curves",
        tables=("curves_summary",),
        category="Learning",
        section="accuracy",
        title="Learning curves",
        caption="""
            Accuracy of the training rollouts on clean rewards: a moving average over {{ window }}
            steps, averaged over seeds.{% if crowded %} A panel for each algorithm, with the others
            in grey; bands: {{ confidence }} % interval over seeds.{% else %} Bars:
            {{ confidence }} % interval over seeds at three points in training.{% endif %} With few
            seeds it may reach beyond the panel.
        """,
        alt="""
            Line plots of training accuracy against step for {{ algorithms | join(", ") }}; one
            panel per{% if crowded %} algorithm,{% endif %} size ({{ sizes | join(", ") }}) and
            noise level ({{ noises | join(", ") }}).
        """,
    ),
    "training_curves": FigureEntry(
        draw="training:training_curves",
        tables=("curves_summary",),
        category="Learning",
        section="training",
        title="Training on the paper's axes",
        caption="""
            By training step, at one size: accuracy of the training rollouts on clean rewards and,
            where it was measured during training, on held-out problems; length of responses;
            entropy; and KL to the base policy. One column per noise level. Moving averages over
            {{ window }} steps, averaged over seeds; bands: {{ confidence }} % interval, which may
            reach beyond the panel.{% if crowded %} Grey: the other algorithms, of which the
            learning curves have a panel each.{% endif %}
        """,
        alt="""
            Line plots against training step of accuracy, response length, entropy and KL to the
            base policy for {{ algorithms | join(", ") }}; one column of panels per noise level
            ({{ noises | join(", ") }}).
        """,
        when="training_recorded",
    ),
    "accuracy_vs_noise": FigureEntry(
        draw="accuracy:accuracy_vs_noise",
        tables=("summary",),
        category="Noise",
        section="noise",
        title="Accuracy against reward noise",
        caption="""
            Sampled accuracy, averaged over {{ benchmarks | join(", ") }}, against the share of
            training rewards that were flipped; evaluation is never noisy. Grey: the base
            policy.{% if expected_line %} Dotted, for VIMPO, PPO and GRPO: the gain over the base
            policy at zero noise, times the share of the signal that survives the flips, one minus
            twice the rate.{% endif %} Markers that would overlap are shifted sideways. Bars and
            band: {{ confidence }} % interval.
        """,
        alt="""
            Line plots of mean sampled accuracy at {{ noises | join(", ") }} for
            {{ algorithms | join(", ") }}, with a grey line for the base policy; one panel per size.
            The numbers are in the tables of accuracy.
        """,
    ),
    "frontier": FigureEntry(
        draw="yardstick:frontier",
        tables=("frontier",),
        category="Noise",
        section="frontier",
        title="Accuracy against distance from the base policy",
        caption="""
            Accuracy of the training rollouts on clean rewards where the KL of a response to the
            base policy first reaches a distance. A line ends, with a marker, at the largest
            distance that all runs of the algorithm reach. Higher at the same distance is a better
            use of it; farther along the same line is only faster. Bands: {{ confidence }} %
            interval over seeds, which may reach beyond the panel.{% if crowded %} Lines in grey
            are told apart by their markers.{% endif %}
        """,
        alt="""
            Line plots of training accuracy against the KL to the base policy for
            {{ measured_distance | join(", ") }}; one panel per size and noise level. The
            comparison at matched distance is in the table.
        """,
        when="frontier_rows",
    ),
    "value_accuracy": FigureEntry(
        draw="probes:value_accuracy",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="value",
        title="Value accuracy against model size",
        caption="""
            How much of the true value each predictor explains, on clean rewards. Left: the change
            in value since the prompt. Right: the value itself, most of which is the difficulty of
            the prompt. Top: explained variance, corrected for the noise of the Monte Carlo truth;
            the dashed line is a perfect predictor, the solid line a constant. Bottom: Spearman rank
            correlation, uncorrected. Hollow markers: the implied value read out of policies that
            were not trained on it.
        """
        + BARS,
        alt="""
            Line plots of explained variance and rank correlation against parameters at sizes
            {{ sizes | join(", ") }}, for VIMPO's implied value, PPO's critic, GRPO's group mean,
            and the implied value of PPO's and GRPO's policies. The numbers are in the table of
            value accuracy.
        """,
    ),
    "value_by_position": FigureEntry(
        draw="probes:value_by_position",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="value",
        title="Value accuracy along the response",
        caption="""
            The change in value since the prompt, at prefixes of increasing length. Top: explained
            variance; gaps mark positions where the truth varies too little to be distinguished from
            its noise. Bottom: root mean square error, in units of reward.
        """
        + BARS,
        alt="""
            Line plots of explained variance and error of the predicted change in value at
            {{ study.probes.positions | join(", ") }} of the response, for the same predictors; one
            column of panels per size.
        """,
    ),
    "credit": FigureEntry(
        draw="probes:credit",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="credit",
        title="Credit against model size",
        caption="""
            How well token signals locate the first wrong step of a rollout, as area under the ROC
            curve. Left: single differences of value. Right: the sums of them that the policy update
            uses. The line is chance, where GRPO's constant advantage lies; grey is the control, the
            score of a signal that only rises or falls along the response. Hollow markers: signals
            read out of policies that were not trained on them.
        """
        + BARS,
        alt="""
            Line plots of the area under the ROC curve against parameters at sizes
            {{ sizes | join(", ") }}, for the token signals of VIMPO, PPO and GRPO, around a line of
            chance. The numbers are in the credit table.
        """,
    ),
    "credit_profile": FigureEntry(
        draw="probes:credit_profile",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="credit",
        title="Advantage around the first error",
        caption="""
            Mean signal around the first token of the first wrong step, standardised over all tokens
            and averaged over seeds. The wrong digit itself stands where the sum ends, a few tokens
            after the start of its step.
        """,
        alt="""
            Line plots of the mean signal of VIMPO, PPO and GRPO at tokens before and after the
            start of the first wrong step; one column of panels per size, one row for single
            differences and one for summed advantages.
        """,
    ),
    "precision": FigureEntry(
        draw="probes:precision",
        tables=("probe_summary",),
        category="Scaling caveat",
        section="precision",
        title="Drift of the implied value at lower precision",
        caption="""
            VIMPO's policy evaluated at lower precision, against double
            precision{% if not doubled %} or, where single precision has no markers, against single
            precision{% endif %}. Top: root mean square drift of the summed log-ratio against the
            number of tokens summed. Bottom: drift of the implied value relative to the spread of
            its true value between rollouts; at one, rounding error is as large as the value.
            Markers are shifted sideways. Bars: {{ confidence }} % interval over seeds, cut off
            below.
        """,
        alt="""
            Line plots on logarithmic axes of the drift of the log-ratio and of the implied value
            against the number of tokens summed, for three kinds of arithmetic; one column of panels
            per size. The numbers for whole responses are in the precision table.
        """,
    ),
    "gap_vs_size": FigureEntry(
        draw="accuracy:gap_vs_size",
        tables=("comparisons",),
        category="Size",
        section="size",
        title="VIMPO's gap against model size",
        caption="""
            Sampled accuracy of VIMPO minus that of the other algorithm, over pairs of runs with the
            same seed; above the line VIMPO is ahead.
        """
        + BARS,
        alt="""
            Line plots of the difference in sampled accuracy between VIMPO and each other algorithm
            against parameters at sizes {{ sizes | join(", ") }}; one panel per noise level. The
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
            Time, memory and state of a training step, measured side by side with each algorithm in
            its own process: median seconds per step by phase, peak memory above what the process
            held before it loaded a model, trainable and resident parameters, and optimiser state.
            Black lines: {{ confidence }} % interval over rounds. Diamonds: prediction of the
            analytic memory model.
        """,
        alt="""
            Bar charts of step time by phase, peak memory, parameters and optimiser state for
            {{ algorithms | join(", ") }}; one row of panels per size. The numbers are in the cost
            table.
        """,
    ),
    "memory_projection": FigureEntry(
        draw="cost:memory_projection",
        tables=("memory_projection",),
        category="Cost",
        section="projection",
        title="Projected memory at published sizes",
        caption="""
            A projection, not a measurement: the memory model applied to published model shapes at
            the paper's sequence lengths. Left: peak memory on one device without sharding. Right:
            the same relative to PPO.
        """,
        alt="""
            Line plots of projected peak memory and its ratio to PPO's against the parameters of
            published models, for VIMPO, PPO and GRPO. The numbers are in the projection table.
        """,
    ),
    "sweeps": FigureEntry(
        draw="sweep:sweeps",
        tables=("sweeps",),
        category="Tuning",
        section="tuning",
        title="Sweeps behind the settings",
        caption="""
            The score of every trial of the sweeps. A ring marks an algorithm's best trial in its
            sweep, a cross a trial with failed runs. Explained variances below minus one may lie
            beyond the panel. Markers at the same setting are shifted sideways.
        """,
        alt="""
            Line plots of the score of every trial against the setting that was swept; one panel per
            sweep, algorithm and score. The numbers are in the table of trials.
        """,
    ),
    "sweeps_curves": FigureEntry(
        draw="sweep:sweeps_curves",
        tables=("sweeps_curves",),
        category="Tuning",
        section="tuning",
        title="Learning curves of the sweeps",
        caption="""
            Accuracy of the training rollouts on clean rewards, and KL to the base policy where it
            was measured, by training step; one curve per setting of the sweep. Bands:
            {{ confidence }} % interval over seeds, which may reach beyond the panel.
        """,
        alt="""
            Line plots of training accuracy and of KL to the base policy against training step, one
            line per trial of a sweep; one panel per value of the first setting that was swept.
        """,
        when="sweeps_curves_recorded",
    ),
}
