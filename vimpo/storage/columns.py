"""What tables a study has: names and columns, for the rules and for the code.

Imports nothing, because the workflow reads it before every run. codes.py has the codes that stand
in `method` and `reason_code`, vimpo/analysis/verdicts.py those of claims.
"""

CELL = ["algorithm", "size", "params", "noise", "noise_mode", "noise_level"]
RUN = ["algorithm", "size", "params", "noise", "noise_mode", "seed"]
# Why a number or its interval is missing: a code to decide by, and a text to read.
REASON = ["reason_code", "reason"]
INTERVAL = ["mean", "low", "high", "confidence", "n", "expected", "method", *REASON]
SCORE = ["benchmark", "metric", "value", "stderr", "problems", "samples"]
# How a training run can end (vimpo/training/outcomes.py); in outcome_summary, how many did.
OUTCOMES = ["finished", "not_finite", "collapsed"]
PROBED = ["probe", "predictor", "target", "position", "metric"]
COLUMNS = {
    "accuracy": [*CELL, "seed", *SCORE],
    "curves": [*RUN, "step", "metric", "value"],
    "cost": [*RUN, "metric", "unit", "value"],
    "missing": ["cell", "stage", "reason"],
    "outcomes": [*CELL, "seed", "outcome", "step", "reason"],
    "outcome_summary": [*CELL, *OUTCOMES, *INTERVAL],
    "summary": [*CELL, "benchmark", "metric", *INTERVAL],
    "comparisons": ["rival", *CELL, "metric", *INTERVAL],
    "curves_summary": [*CELL, "step", "window", "metric", *INTERVAL],
    "cost_summary": ["algorithm", "size", "params", "metric", "unit", *INTERVAL],
    "probes": [*CELL, "seed", *PROBED, "value", "stderr", "n", "unit", *REASON],
    "probe_summary": [*CELL, *PROBED, "unit", *INTERVAL],
    "measured_cost": ["kind", "algorithm", "size", "round", "metric", "unit", "value"],
    "measured_summary": ["kind", "algorithm", "size", "params", "metric", "unit", *INTERVAL],
    "memory_projection": [
        *("kind", "algorithm", "size", "parameters", "network", "part", "bytes"),
        *("ratio_to_ppo", "source"),
    ],
    "claims": [
        # which part, how it is said, about whom, and the words of the table itself
        *("part", "claim", "kind", "role", "algorithm", "rival", "statement", "metric"),
        *("unit", "effect", "low", "high", "n", "expected", "counted", "p", "p_holm"),
        *("threshold", "side", "verdict", "per_size", "needed_per_size", *REASON),
    ],
    "capacity": [
        *("algorithm", "size", "params", "responses", "tokens", "surprisal", "stderr"),
        *("right_responses", "right_tokens", "right_surprisal", "right_stderr"),
        *("beta", "capacity"),
    ],
    "sweeps": [
        *("sweep", "objective", "trial", "axis", "at", "settings", "metric"),
        *INTERVAL,
        *("failed", "chosen"),
    ],
    # Share of the distance from `floor` to `ceiling`, and what stands beside it. level: the
    # training accuracy that `steps_to` and `reached` are about.
    "headroom": [*CELL, "floor", "ceiling", "metric", "level", *INTERVAL],
    # At a distance `kl` from the base policy, in nats; with a rival: the difference there.
    "frontier": [*CELL, "rival", "metric", "kl", *INTERVAL],
    "sweeps_curves": [
        *("sweep", "objective", "trial", "axis", "at", "settings", "step", "window", "metric"),
        *INTERVAL,
    ],
    "provenance": ["item", "value", "count"],
    # as accuracy and probes, of the policy after `step` updates (`train.snapshots`)
    "snapshot_accuracy": [*CELL, "seed", "step", *SCORE],
    "snapshot_probes": [*CELL, "seed", "step", *PROBED, "value", "stderr", "n", "unit", *REASON],
}
TABLES = tuple(COLUMNS)
# Of several studies together (vimpo/analysis/law.py), in a folder of their own.
ACROSS_STUDIES = {
    "capacity_law": [
        *("study", "algorithm", "family", "base", "size", "params", "tokens", "capacity"),
        *("prefixes", "seed", "measure", "value"),
    ],
    "capacity_remainder": [
        *("measure", "term", "capacity", "group", "curve", "units", "verdict", *INTERVAL),
    ],
}
# Newer than some committed studies, which are not run again for them: one that was never written
# reads as an empty table (vimpo/storage/tables.py).
OPTIONAL_TABLES = ("headroom", "frontier", "sweeps_curves", "capacity")
# Rows of single steps, seeds and rounds: figures and report read only their summaries.
SNAPSHOTS = ("snapshot_accuracy", "snapshot_probes")
RAW = ("curves", "cost", "probes", "measured_cost", *SNAPSHOTS)
# What figures and report are made from, kept in results/published/<study>/tables.
PUBLISHED_TABLES = tuple(name for name in TABLES if name not in RAW)
# Rows of single runs, kept next to the tables as Parquet at full precision and with every position
# of the probes: all other tables are computed from them. Those of snapshots only if there are any.
ARCHIVED = ("accuracy", "outcomes", "curves", "cost", "probes", "measured_cost")
# What `compare` needs of single runs: a small reference that is not drawn.
CELL_TABLES = ("accuracy", "curves", "cost", "missing", "probes", "provenance")


def curves_of(sweep: str) -> str:
    """The table of learning curves that belongs to a sweep's table, beside it."""
    return sweep.removesuffix(".csv") + "_curves.csv"
