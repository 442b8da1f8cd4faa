"""What the benchmarks share: fair timing, other versions, and what a result belongs to."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import random
import re
import sys
import time
from pathlib import Path

import numpy as np

SIZES = ((512, 31), (1024, 31), (288, 31), (512, 15), (512, 7))  # (C, K)
ROOT = Path(__file__).resolve().parent.parent


def arguments(description):
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one short round that claims nothing")
    return parser


def effort(options):
    """Return how many rounds, and seconds of each contestant in one: less than a time slice."""
    return (1, 0.0) if options.smoke else (101, 0.001)


def environment(**others):
    """Return the environment of a process that imports the library from this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | others


def drawn(kind, n_blocks, is_vgg=False):
    """Return state and configuration of an encoder of 256, linear 1024, 31 taps, of noise."""
    sys.path.append(str(ROOT / "tests"))
    from encoder_states import Numbers

    shape = {"block_type": kind, "hidden_size": 256, "linear_size": 1024, "heads": 4}
    block, state = shape | {"conv_mod_kernel_size": 31}, Numbers()
    channels = (64, 128) if is_vgg else (0, 256)
    state.input("embed", 256, channels, 19, is_vgg)
    for n in range(n_blocks):
        state.block(f"encoders.blocks.{n}", block)
    state.norm("encoders.norm_blocks", 256)
    block_input = {"vgg_like": is_vgg, "subsampling_factor": 6 if is_vgg else 4}
    block_input["conv_size"] = list(channels) if is_vgg else channels[1]
    conf = {
        "input_conf": block_input,
        "main_conf": {"dynamic_chunk_training": True},
        "body_conf": [block | {"num_blocks": n_blocks}],
    }
    return state, {"input_size": 80, "encoder_conf": conf}


def print_facts(*packages):
    """Print what a result belongs to: machine, versions and date."""
    names = "model name|cpu family|model|CPU implementer|CPU part"
    first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
    processor = [" ".join(pair) for pair in re.findall(rf"^({names})\s*:\s*(.*)$", first, re.M)]
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    facts = {
        "processor": ", ".join([platform.machine(), *sorted(processor)]),
        "processors": f"{len(os.sched_getaffinity(0))} for this process",
        "load": f"{os.getloadavg()[0]:.1f} on average over the minute before",
        "platform": platform.platform(),
        "Python": platform.python_version(),
        **{name: installed.get(name, "absent") for name in ("numpy", "numba", *packages)},
        "date": datetime.date.today().isoformat(),
    }
    for name, value in facts.items():
        print(f"{name:<14} {value}")
    print(flush=True)


def timer(call):
    """Return a function that calls again and again, and returns the seconds."""

    def run(repetitions):
        call()  # brings its own operands into the cache
        start = time.perf_counter()
        for _ in range(repetitions):
            call()
        return time.perf_counter() - start

    return run


def median_times(timers, rounds, seconds):
    """Return the median seconds of a call, {name: seconds}.

    In every round each contestant runs for about `seconds`, in random order: what the machine does
    besides hits all of them alike.
    """
    counts = {name: max(1, int(seconds / run(1))) for name, run in timers.items()}
    times = {name: [] for name in timers}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(timers), len(timers)):
            times[name].append(timers[name](counts[name]) / counts[name])
    return {name: float(np.median(taken)) for name, taken in times.items()}


def verdict(is_met, options):
    """Say whether a target is met; nothing where there is none, or where nothing is claimed."""
    return "" if is_met is None or options.smoke else "met" if is_met else "MISSED"


def print_table(header, rows):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
