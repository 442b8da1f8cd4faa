"""Hypothesis profiles: `ci` and `short` draw the same examples every time, `default` new ones."""

import os
import signal

from hypothesis import HealthCheck, settings

common = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}  # the first calls compile
settings.register_profile("default", **common)
settings.register_profile("ci", derandomize=True, **common)
settings.register_profile("short", derandomize=True, max_examples=20, **common)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)

# Under nohup, and behind a shell's &, it is ignored: here, and in every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
