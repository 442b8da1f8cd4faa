"""How well do the kernels suit the Raspberry Pi's processors? Asks LLVM's machine-code analyser.

    apt install llvm-19
    python benchmarks/arm_model.py [--smoke]

Compiles tiles with 8 lanes, and functions of hidden numbers, for aarch64, takes their loops, and
has `llvm-mca` (19 or newer: older versions use one model for all) simulate these with every load
hitting the first-level cache. This is a model, not a measurement. The Raspberry Pi 4 has Cortex-A72
cores. LLVM has no model of the Raspberry Pi 5's Cortex-A76: Neoverse N1, its server version, is
nearest.
"""

import os
import re
import shutil
import subprocess

import report

# With 8 lanes, as on aarch64, whatever this processor has, and optimised for that one alone.
os.environ |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_OPT": "0"}

import llvmlite.binding as llvm
import numba
from numba import float32, int8, int64, types

from edgeconv.kernels import OPTIONS, dense, functions, ring, vectors

vectors.IS_X86 = False

TRIPLE = "aarch64-unknown-linux-gnu"
# LLVM's models start one fused multiply-add of 4 floats in a cycle, or two of them: 8 or 16 flop.
PROCESSORS = {"cortex-a72": ("Raspberry Pi 4", 8), "neoverse-n1": ("nearest to the Pi 5", 16)}
ITERATIONS = 1000


def convolution(tile):
    """Return a function that is a tile of the convolution, and its types."""

    def sums(y, y_stride, taps, rows, rows_stride, K):
        tile(y, y_stride, taps, rows, rows_stride, K)

    return sums, (int64,) * 6


def product(tile, weights):
    """Return a function that is a tile of a dense layer, and its types."""

    def sums(y, start, w, beside, x, count, like):
        tile(y, start, w, beside, x, count, like)

    return sums, (*(types.UniTuple(int64, n) for n in (2, 2, 3, 4, 3, 2)), weights[:])


def of_numbers(function):
    """Return a function that replaces numbers by `function` of them, and its types."""

    def loop(numbers):
        for i in range(len(numbers)):
            numbers[i] = function(numbers[i])

    return loop, (types.Array(float32, 1, "C"),)


FUNCTIONS = {"swish": functions.swish, "gelu": functions.gelu}  # of 2 in 3, 1 in 3 hidden numbers
TILES = {  # with the share of the limit that is wanted; one frame alone waits for its loads
    "convolution, 8 frames": (convolution(ring.tile_8), 0.95),
    "convolution, 1 frame, 4 blocks": (convolution(ring.tile_1_of_4_blocks), None),
    "dense, 6 frames": (product(dense.tile_6, float32), 0.9),
    "dense, 6 frames, 8-bit weights": (product(dense.tile_6, int8), None),
    "dense, 4 frames, 8-bit weights": (product(dense.tile_4, int8), None),
    "dense, 1 frame, 4 blocks": (product(dense.tile_1_of_4_blocks, float32), None),
}


def code_of(function, arguments):
    """Return the LLVM code of a function."""
    only = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # these hold code of this CPU
    (code,) = numba.njit(arguments, **OPTIONS, **only)(function).inspect_llvm().values()
    return re.sub(r"^target .*$", "", code, flags=re.MULTILINE)


def assembly(code, processor):
    """Compile LLVM code for an aarch64 processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(code)
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=processor, opt=3)
    module.triple, module.data_layout = TRIPLE, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return machine.emit_assembly(module)


def inner_loop(text):
    """Return the instructions from a label to the branch back to it with most multiply-adds."""
    loop = re.compile(r"^(\.L\w+):(?:(?!^\.L).)*?\bb\.\w+\s+\1$", re.MULTILINE | re.DOTALL)
    loops = (found.group() for found in loop.finditer(text))
    return max(loops, key=lambda code: code.count("fmla"))


def cycles(analyser, loop, processor):
    """Return the cycles of one pass through a loop."""
    # The model has an address wait for what is stored there, if one instruction does both.
    loop = re.sub(r"(str.*\[(x\d+)\]), (#\d+)", r"\1\n\tadd\t\2, \2, \3", loop)
    command = [analyser, f"-mtriple={TRIPLE}", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    output = subprocess.check_output(command, input=loop, text=True, stderr=subprocess.DEVNULL)
    return int(re.search(r"Total Cycles:\s+(\d+)", output).group(1)) / ITERATIONS


def main():
    """Compile, ask and print."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts()
    analyser = shutil.which("llvm-mca-19") or shutil.which("llvm-mca")
    if analyser is None:
        print("llvm-mca is absent: install Debian's llvm-19")
        return
    print(subprocess.check_output([analyser, "--version"], text=True).split("\n")[0].strip(), "\n")
    rows = []
    for name, (tile, target) in TILES.items():
        code = code_of(*tile)
        for processor, (board, limit) in PROCESSORS.items():
            loop = inner_loop(assembly(code, processor))
            multiply_adds = len(re.findall(r"\bfmla\s+v\d+\.4s", loop))
            rate = 8 * multiply_adds / cycles(analyser, loop, processor)
            is_met = target and rate >= target * limit
            spills = len(re.findall(r"\[sp\b", loop))
            numbers = multiply_adds, spills, f"{rate:.2f}", limit, f"{rate / limit:.1%}"
            rows.append([name, processor, board, *numbers, report.verdict(is_met, options)])
    header = ["tile", "model", "", "fmla in the loop", "spills", "flop per cycle"]
    report.print_table([*header, "limit", "share", ""], rows)
    rows = []
    for name, function in FUNCTIONS.items():
        code = code_of(*of_numbers(function))
        for processor, (board, _) in PROCESSORS.items():
            loop = inner_loop(assembly(code, processor))
            stored = 4 * len(re.findall(r"\bstr\s+q", loop)) + 8 * len(
                re.findall(r"\bstp\s+q", loop)
            )
            rows.append(
                [name, processor, board, f"{cycles(analyser, loop, processor) / stored:.1f}"]
            )
    print()
    report.print_table(["function", "model", "", "cycles for a number"], rows)


if __name__ == "__main__":
    main()
