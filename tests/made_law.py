"""Points of the capacity law with remainders that are known."""

import itertools
import math

import numpy as np
import pandas as pd

from vimpo.analysis.law import ACCURACY, ORDER, SCALE

CAPACITIES = (0.02, 0.1, 0.5, 2.0)
SIZES = {"xs": 1e5, "s": 4e5, "m": 1.6e6}
LENGTHS = (25, 60, 240)


def made_points(
    a=0.0, b=0.0, *, sizes=SIZES, lengths=LENGTHS, capacities=CAPACITIES, seed=0, noise=0.1
):
    """y = c / (1 + c) + a log10(params) + b log10(tokens) + of the base + of the seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for (size, params), tokens in itertools.product(sizes.items(), lengths):
        base = f"length{tokens}/{size}"
        own = noise * rng.normal()
        shared = {"study": f"length{tokens}", "family": "vimpo", "base": base}
        shared |= {"size": size, "params": params, "tokens": tokens * (1 + 0.02 * rng.normal())}
        for capacity, run in itertools.product(capacities, range(3)):
            y = capacity / (1 + capacity) + a * math.log10(params) + b * math.log10(tokens) + own
            where = {
                "algorithm": f"vimpo_{capacity:g}",
                "capacity": capacity,
                "prefixes": "common",
                "seed": run,
            }
            value = y + 0.1 * rng.normal()
            rows += [shared | where | {"measure": ORDER, "value": value}]
            rows += [shared | where | {"measure": ACCURACY, "value": value}]
            rows += [shared | where | {"measure": SCALE, "value": capacity * (0.8 + own)}]
    return pd.DataFrame(rows)
