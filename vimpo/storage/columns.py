"""What tables a study has: names and columns, for the rules and for the code.

Nothing is imported here, because the workflow reads it before every run.
"""

CELL = ["algorithm", "size", "params", "noise", "noise_mode", "noise_level"]
RUN = ["algorithm", "size", "params", "noise", "noise_mode", "seed"]
INTERVAL = ["mean", "low", "high", "confidence", "n", "expected", "method", "reason"]
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
    "probes": [*CELL, "seed", *PROBED, "value", "stderr", "n", "unit", "reason"],
    "probe_summary": [*CELL, *PROBED, "unit", *INTERVAL],
    "measured_cost": ["kind", "algorithm", "size", "round", "metric", "unit", "value"],
    "measured_summary": ["kind", "algorithm", "size", "params", "metric", "unit", *INTERVAL],
    "memory_projection": [
        *("kind", "algorithm", "size", "parameters", "network", "part", "bytes"),
        *("ratio_to_ppo", "source"),
    ],
    "claims": [
        *("claim", "kind", "statement", "metric", "unit", "effect", "low", "high"),
        *("n", "expected", "counted", "p", "p_holm", "threshold", "side", "verdict"),
        *("per_size", "needed_per_size", "reason"),
    ],
    "sweeps": [
        *("sweep", "objective", "trial", "axis", "at", "settings", "metric"),
        *INTERVAL,
        *("failed", "chosen"),
    ],
    "provenance": ["item", "value", "count"],
}
TABLES = tuple(COLUMNS)
# Rows of single steps, seeds and rounds, of which figures and report read the summaries only.
RAW = ("curves", "cost", "probes", "measured_cost")
# What figures and report are made from: results/published/<study>/tables holds these.
PUBLISHED_TABLES = tuple(name for name in TABLES if name not in RAW)
# Rows of single runs that are kept beside the tables as Parquet, at full precision and with every
# position of the probes: what all other tables were computed from.
ARCHIVED = ("accuracy", "outcomes", "curves", "cost", "probes", "measured_cost")
# What `compare` asks of single runs: a reference that is small and is not drawn.
CELL_TABLES = ("accuracy", "curves", "cost", "missing", "probes", "provenance")
