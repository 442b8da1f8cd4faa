"""Python programs in processes of their own, and functions in threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
COMMAND = [sys.executable, "-m", "edgeconv"]
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}


def run(*arguments, path=PATHS, **environment):
    """Run Python; return the finished process, with what it said."""
    # A process of several threads that forks is warned by Python 3.12 and later.
    warnings = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(path)} | warnings | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",  # which is on the path before all else
        timeout=600,
    )


def passes(*arguments, **options):
    """Run Python, which must end well and say nothing but what is returned."""
    process = run(*arguments, **options)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def in_threads(*calls):
    """Call functions at the same time, each in a thread."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
