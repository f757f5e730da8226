"""How many examples a test of random input draws; the same ones every time."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def profile(examples):
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=quiet
    )
