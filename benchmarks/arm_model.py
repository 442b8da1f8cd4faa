"""How well does the tile suit the Raspberry Pi's processors? Asks LLVM's machine-code analyser.

    apt install llvm-19
    python benchmarks/arm_model.py [--smoke]

Compiles the tile of 8 frames with 8 lanes for aarch64, takes its loop over groups of taps, and has
`llvm-mca` (19 or newer: older versions use one model for all) simulate it with every load hitting
the first-level cache. This is a model, not a measurement. The Raspberry Pi 4 has Cortex-A72 cores.
LLVM has no model of the Raspberry Pi 5's Cortex-A76: Neoverse N1, its server version, is nearest.
"""

import os
import re
import shutil
import subprocess

import report

# A processor without AVX-512 makes the kernels choose 8 lanes, as on aarch64.
os.environ |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": ""}

import llvmlite.binding as llvm
import numba
from numba import int64

from edgeconv import vectors

TRIPLE = "aarch64-unknown-linux-gnu"
# LLVM's models start one fused multiply-add of 4 floats in a cycle, or two of them.
LIMITS = {"cortex-a72": 8, "neoverse-n1": 16}  # flop per cycle
BOARDS = {"cortex-a72": "Raspberry Pi 4", "neoverse-n1": "nearest model to the Raspberry Pi 5"}
TARGET = 0.95
ITERATIONS = 1000


def tile_code():
    """Return the LLVM code of a function that is the tile and nothing else."""

    def sum_of_8_frames(y, stride, taps, ring, K):
        vectors.tile_8_frames(y, stride, taps, taps + vectors.VECTOR, ring, K)

    only = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # these hold code of this CPU
    function = numba.njit((int64,) * 5, **only)(sum_of_8_frames)
    (code,) = function.inspect_llvm().values()
    # The vectors are spelled out in it; only the target differs.
    return re.sub(r"^target .*$", "", code, flags=re.MULTILINE)


def assembly(code, processor):
    """Compile LLVM code for an aarch64 processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(code)
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=processor, opt=3)
    module.triple, module.data_layout = TRIPLE, str(machine.target_data)
    return machine.emit_assembly(module)


def inner_loop(text):
    """Return the instructions from a label to the branch back to it with most multiply-adds."""
    loops = []
    for label in re.findall(r"^(\.L\w+):", text, re.MULTILINE):
        back = rf"^{re.escape(label)}:.*?\bb\.\w+\s+{re.escape(label)}$"
        found = re.search(back, text, re.MULTILINE | re.DOTALL)
        if found and found.group().count("\n.L") == 0:
            loops.append(found.group())
    return max(loops, key=lambda loop: len(re.findall(r"\bfmla\b", loop)))


def cycles(analyser, loop, processor):
    """Return the cycles of one pass through a loop."""
    command = [analyser, f"-mtriple={TRIPLE}", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    output = subprocess.run(command, input=loop, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", output).group(1)) / ITERATIONS


def main():
    """Compile, ask and print."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts(report.facts())
    analyser = shutil.which("llvm-mca-19") or shutil.which("llvm-mca")
    if analyser is None:
        print("llvm-mca is absent: install Debian's llvm-19")
        return
    version = subprocess.run([analyser, "--version"], capture_output=True, text=True, check=True)
    print(f"llvm-mca: {re.search('LLVM version .*', version.stdout).group()}\n")
    code, rows = tile_code(), []
    for processor, limit in LIMITS.items():
        loop = inner_loop(assembly(code, processor))
        multiply_adds = len(re.findall(r"\bfmla\s+v\d+\.4s", loop))
        stack = len(re.findall(r"\[sp\b", loop))
        rate = 8 * multiply_adds / cycles(analyser, loop, processor)
        is_met = None if options.smoke else rate >= TARGET * limit
        share = f"{rate / limit:.1%}", report.verdict(is_met)
        rows.append(
            [processor, BOARDS[processor], multiply_adds, stack, f"{rate:.2f}", limit, *share]
        )
    report.print_table(
        ["model", "", "fmla in the loop", "spills", "flop per cycle", "limit", "share", ""], rows
    )


if __name__ == "__main__":
    main()
