"""How many examples the fuzz tests try: few by default, QUINTET_FUZZ=100 times as many for a long local run."""

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("QUINTET_FUZZ", "1"))


def few(examples: int) -> settings:
    """Settings of a fuzz test whose examples share a temporary folder and take as long as they take."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples * TIMES, deadline=None, suppress_health_check=quiet)
