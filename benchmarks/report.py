"""What the benchmarks share: fair timing, and what machine and versions a result belongs to."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import random
import time
from pathlib import Path

import numpy as np


def arguments(description):
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one short round that claims nothing")
    return parser


def facts(*packages):
    """Return what a result belongs to: machine, versions and date."""
    return {
        "processor": _processor(),
        "processors": f"{len(os.sched_getaffinity(0))} for this process",
        "load": f"{os.getloadavg()[0]:.1f} on average over the minute before",
        "platform": platform.platform(),
        "Python": platform.python_version(),
        **{package: _version(package) for package in ("numpy", "numba", "llvmlite", *packages)},
        "date": datetime.date.today().isoformat(),
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor():
    """Return the name that Linux knows the processor by, and its numbers where it is nameless."""
    known = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    numbers = "cpu family", "model", "CPU implementer", "CPU part"
    return ", ".join(
        [known.get("model name", platform.machine())]
        + [f"{number} {known[number]}" for number in numbers if number in known]
    )


def print_facts(facts):
    """Print what `facts` returned, one line each."""
    for name, value in facts.items():
        print(f"{name:<14} {value}")
    print()


def median_times(calls, rounds, seconds):
    """Return the median time of each call, {name: seconds}.

    In every round each contestant runs for about `seconds`, in random order: what the machine does
    besides hits all of them alike.
    """
    counts = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(seconds / (time.perf_counter() - start)))
    times = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            call, repetitions = calls[name], range(counts[name])
            call()  # brings its own operands into the cache
            start = time.perf_counter()
            for _ in repetitions:
                call()
            times[name].append((time.perf_counter() - start) / len(repetitions))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def verdict(is_met):
    """Say whether a target is met; None where there is none."""
    return {None: "", True: "met", False: "MISSED"}[is_met]


def print_table(header, rows):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
