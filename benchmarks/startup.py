"""What do start and memory cost? Prints both beside the peers, and the issue's limits.

    pip install '.[bench]'
    python benchmarks/startup.py [--smoke]

Starts each program anew, over and over in turn, and takes the median of the time from the start of
its process to its first output: with an empty cache, with a filled one, and for a program that
only imports Numba and calls one cached empty function. Then it prints how large a module and a
stream are, and how much memory a call takes that is given its `out`.
"""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import report
from peers import SIZES

from edgeconv import DepthwiseConvolution, kernels

CHANNELS, K = SIZES[0]
WARM_TARGET = 1.2  # times the program that imports Numba and calls an empty function
COLD_TARGET = 8  # seconds
MODULE_LIMIT = 2.5  # times the weights

# Each ends with an output that its parent waits for, and its resident set in kB.
PROGRAMS = {
    "edgeconv": """
        import numpy as np
        from edgeconv import DepthwiseConvolution
        stream = DepthwiseConvolution(SIZE, K, causal=True, rng=0).stream()
        stream.step(np.zeros(2 * SIZE, np.float32))
    """,
    "Numba, empty function": """
        import empty
        empty.function()
    """,
    "NumPy": """
        import numpy as np
        np.zeros(1)
    """,
    "PyTorch": """
        import torch
        torch.set_num_threads(1)
        conv = torch.nn.Conv1d(2 * SIZE, 2 * SIZE, K, groups=2 * SIZE)
        with torch.inference_mode():
            conv(torch.zeros(1, 2 * SIZE, K))
    """,
    "ONNX Runtime": """
        import numpy as np, onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession("conv.onnx", options)
        session.run(None, {"x": np.zeros((1, 2 * SIZE, K), np.float32)})
    """,
}
ENDING = """
status = open("/proc/self/status").read()
print("resident", status.split("VmRSS:")[1].split()[0], flush=True)
"""


def write_onnx_model(path):
    """Write a model that convolves one window."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight", "bias"], ["y"], group=CHANNELS)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 1])],
        [
            tensor("weight", TensorProto.FLOAT, [CHANNELS, 1, K], np.ones(CHANNELS * K)),
            tensor("bias", TensorProto.FLOAT, [CHANNELS], np.ones(CHANNELS)),
        ],
    )
    opset = [helper.make_opsetid("", 21)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )


def start(program, directory, cache):
    """Run a program; return seconds to its output and its resident set in MB, None if it fails."""
    text = f"SIZE, K = {CHANNELS // 2}, {K}\n" + textwrap.dedent(program) + ENDING
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), str(directory), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # installed packages have their bytecode
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
    return (seconds, int(line.split()[1]) / 1024) if line.startswith("resident") else None


def compare_starts(rounds, cold_rounds):
    """Print the table of starts; return the medians of cold and warm start and of the yardstick."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "empty.py").write_text(
            "import numba\n\n\n@numba.njit(cache=True)\ndef function():\n    return 1\n"
        )
        try:
            write_onnx_model(directory / "conv.onnx")
        except ImportError:
            print("ONNX Runtime: onnx is absent\n")
        cold = [
            start(PROGRAMS["edgeconv"], directory, directory / f"empty-{i}")
            for i in range(cold_rounds)
        ]
        results = {"edgeconv, empty cache": cold} | {name: [] for name in PROGRAMS}
        warm = directory / "warm"
        installed = {  # which also fills the cache
            name: program for name, program in PROGRAMS.items() if start(program, directory, warm)
        }
        for _ in range(rounds):
            for name, program in installed.items():
                results[name].append(start(program, directory, warm))
    medians, rows = {}, []
    for name, taken in results.items():
        if taken:
            medians[name], resident = np.median(taken, axis=0)
            rows.append([name, f"{medians[name]:.2f}", f"{resident:.0f}"])
        else:
            rows.append([name, "absent", ""])
    report.print_table([f"C = {CHANNELS}, K = {K}", "seconds to first output", "MB resident"], rows)
    return medians["edgeconv, empty cache"], medians["edgeconv"], medians["Numba, empty function"]


def allocated_by(call):
    """Return the largest number of bytes that Python and NumPy hold at once during a call."""
    call()
    tracemalloc.start()
    call()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


def kept_by(make):
    """Return what `make` returns, and the bytes that it keeps."""
    make()
    tracemalloc.start()
    made = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, size


def memory_of(channels, kernel_size):
    """Return bytes: kept by a module and by a stream, taken during `step` and `process`."""

    def module():
        conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
        _ = conv._taps  # packed when first needed
        return conv

    conv, module_bytes = kept_by(module)
    stream, stream_bytes = kept_by(conv.stream)
    x = np.zeros((16, channels), np.float32)
    out = np.empty_like(x)
    step = allocated_by(lambda: stream.step(x[0], out=out[0]))
    return module_bytes, stream_bytes, step, allocated_by(lambda: stream.process(x, out=out))


def compare_memory(sizes):
    """Print memory against the limits; return whether all are met."""
    rows, are_met = [], []
    for channels, kernel_size in sizes:
        module, stream, step, process = memory_of(channels, kernel_size)
        whole = -(-channels // kernels.LANES) * kernels.LANES
        module_share = module / (MODULE_LIMIT * (kernel_size + 1) * whole * 4)  # and biases
        stream_share = stream / ((2.5 * kernel_size + 64) * whole * 4)
        # Less than one frame: what is left are Python's own small objects.
        are_met.append(max(module_share, stream_share) <= 1 and max(step, process) < 4 * channels)
        shares = f"{module_share:.0%}", f"{stream_share:.0%}"
        rows.append([channels, kernel_size, module, shares[0], stream, shares[1], step, process])
    print("\nBytes that Python and NumPy hold, and the share of the limit:\n")
    header = ["C", "K", "module", "", "stream", "", "during `step`", "during `process`"]
    report.print_table(header, rows)
    return all(are_met)


def main():
    """Run and print everything."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts(report.facts("torch", "onnxruntime"))
    cold, warm, yardstick = compare_starts(*((1, 1) if options.smoke else (7, 3)))
    memory_is_met = compare_memory(SIZES[:1] if options.smoke else SIZES)
    if not options.smoke:
        print(f"\nempty cache: {cold:.1f} s of {COLD_TARGET}: {report.verdict(cold < COLD_TARGET)}")
        ratio = warm / yardstick
        print(f"filled cache: {ratio:.2f} times, {WARM_TARGET} allowed: ", end="")
        print(report.verdict(ratio <= WARM_TARGET))
        print(f"memory: {report.verdict(memory_is_met)}")


if __name__ == "__main__":
    main()
