"""Hypothesis profiles: `ci` draws the same examples every time, `default` new ones."""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=30,
    deadline=None,  # the first calls compile
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)

# Under nohup, and behind a shell's &, it is ignored: here, and in every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
