"""What do start and memory cost? Prints both, beside peers.

    pip install '.[bench]'
    python benchmarks/startup.py [--smoke]

Starts each program anew, over and over in turn, and takes the median of the time from the start of
its process to its first output: with an empty cache, with a filled one, and for a program that
only imports Numba and calls one cached empty function. Beside it are the memory of the process, and
the bytes that one more stream takes. An encoder of 12 E-Branchformer blocks is loaded from a
converted file, after the small one that is shipped: what Numba takes by itself is not in the
seconds and memory of loading. The recogniser is the model that ships, with one of its recordings;
below are the disk that its dependencies take as they are installed here, and Numba's cache of all
that it compiled. A MB is a million bytes.
"""

import contextlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import report

import edgeconv

C, K = report.SIZES[0]
OURS, ENCODER, COLD = "edgeconv", "an encoder", ", empty cache"
RECOGNISER = "a recogniser"
NUMBA = "Numba, empty function"
ROUNDS, COLD_ROUNDS = 7, 3
WEIGHTS = str(report.ROOT / "weights")
LOADING, RISE, BESIDE, COMPILING = 1.0, 1.3, 150, 15  # s, of the weights, MB, s: see `judge`

STREAM = """
    import numpy as np
    from edgeconv import DepthwiseConvolution
    conv = DepthwiseConvolution(SIZE, K, causal=True, rng=0)
    x = np.ones((1, 2 * SIZE), np.float32)
    y = conv.stream().step(x[0])
    assert np.allclose(y, conv.bias + conv.weight[:, 0, -1], atol=1e-6)
"""
MEMORY = """
    import tracemalloc
    tracemalloc.start()
    stream = conv.stream()
    print(tracemalloc.get_traced_memory()[0])
"""
LOAD = """
    import time
    import numpy as np
    from edgeconv import load_encoder
    small = WEIGHTS + "/espnet-streaming-encoder"
    load_encoder(small + ".pth", small + ".yaml").stream()
    before = int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
    start = time.perf_counter()
    encoder = load_encoder("encoder.npz")
    seconds = time.perf_counter() - start
    stream = encoder.stream()
    assert len(stream.process(np.zeros((79, 80), np.float32))) == 17
"""  # Numba and the kernels are there before; pages have 4 KiB
LOADED = """
    print(stream.memory, seconds, before)
"""
TRANSCRIBE = """
    from edgeconv import load_recogniser
    from edgeconv.recogniser.audio import open_wav
    recogniser = load_recogniser(WEIGHTS + "/cards-and-commands.npz")
    samples = open_wav(WEIGHTS + "/recordings/cards-003.wav").samples()
    assert recogniser.transcribe(16_000, samples).text == "seven of clubs"
"""
PROGRAMS = {
    NUMBA: """
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
        shapes = {value.name: value.shape for value in session.get_inputs()}
        session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    """,
}
OUTPUT = """
    status = open("/proc/self/status").read()
    print(*(status.split(name)[1].split()[0] for name in ("VmRSS:", "VmHWM:")), flush=True)
"""  # kB, and the sign for which the parent waits


def prepare(directory, n_blocks):
    """Write what the programs import and load; return parameters and MB of the encoder."""
    empty = "import numba\n\n\n@numba.njit(cache=True)\ndef function():\n    return 1\n"
    (directory / "empty.py").write_text(empty)
    with contextlib.suppress(ImportError):
        from onnx import parser

        model = parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 21]> g (float[1,{C},{K}] x, float[{C},1,{K}] w, '
            f"float[{C}] b) => (float[1,{C},1] y) {{ y = Conv<group={C}>(x, w, b) }}"
        )
        (directory / "conv.onnx").write_bytes(model.SerializeToString())
    state, configuration = report.drawn("ebranchformer", n_blocks)
    np.savez(directory / "state.npz", **state)
    config = directory / "config.yaml"
    config.write_text(json.dumps(configuration))
    edgeconv.convert(directory / "state.npz", directory / "encoder.npz", config=config)
    n_parameters = sum(array.size for array in state.values())
    return n_parameters, 4 * n_parameters / 1e6


def start(program, cache):
    """Run a program; return seconds to its output, MB then and at most, and what it says then."""
    parts = program, OUTPUT, {STREAM: MEMORY, LOAD: LOADED}.get(program, "")
    names = f"SIZE, K, WEIGHTS = {C // 2}, {K}, {WEIGHTS!r}\n"
    text = names + "".join(map(textwrap.dedent, parts))
    # Installed packages have their bytecode, and the libraries may write theirs.
    others = {"NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": ""}
    environment = report.environment(**others)
    command, to_here = [sys.executable, "-c", text], {"stdout": subprocess.PIPE, "text": True}
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=cache.parent, env=environment, **to_here) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        others = [float(number) for number in process.stdout.read().split()]
    return (seconds, *(int(n) * 1024 / 1e6 for n in line.split()), *others) if line else None


def megabytes(paths):
    """Return what files take on a disk."""
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def print_disk(cached):
    """Print what the dependencies take, with the bytecode that pip writes, and Numba's cache."""
    sizes = {  # NumPy's files are its own libraries as well
        name: megabytes(file.locate() for file in importlib.metadata.files(name))
        for name in ("numpy", "numba", "llvmlite")
    }
    each = ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
    print(f"\nMB of disk: {sum(sizes.values()):.0f} ({each}); a recogniser's cache {cached:.1f}.")


def judge(medians, weights, options):
    """Print what loading an encoder costs beside what it may cost, and its compiling."""
    seconds, then, most, _, loading, before = medians[ENCODER]
    numba = medians[NUMBA][1]
    compiling, rise = medians[ENCODER + COLD][0] - seconds, (most - before) / weights
    for what, value, target in (
        ("seconds of loading", loading, LOADING),
        ("memory that loading takes at most, in weights", rise, RISE),
        (f"MB beside the weights, {numba:.0f} of them Numba's", then - weights, BESIDE),
        ("seconds of compiling, all that an encoder needs", compiling, COMPILING),
    ):
        is_met = report.verdict(value <= target, options)
        print(f"{what}: {value:.2f}, {target} allowed: {is_met}")


def main():
    """Start everything, and print."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts("torch", "onnxruntime")
    rounds, cold_rounds = (1, 1) if options.smoke else (ROUNDS, COLD_ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        n_parameters, weights = prepare(directory, 1 if options.smoke else 12)
        cold = {OURS: STREAM, ENCODER: LOAD, RECOGNISER: TRANSCRIBE}
        programs = cold | PROGRAMS
        results = {f"{name}{COLD}": [] for name in cold} | {name: [] for name in programs}
        for i in range(cold_rounds):
            for name, program in cold.items():
                results[name + COLD].append(start(program, directory / f"empty-{name}-{i}"))
        cached = megabytes((directory / f"empty-{RECOGNISER}-0").rglob("*"))
        for i in range(1 + rounds):  # the first one fills the cache
            for name, program in programs.items():
                if (taken := start(program, directory / "warm")) and i:
                    results[name].append(taken)
    medians = {name: np.median(taken, axis=0) for name, taken in results.items() if taken}
    header = [f"C = {C}, K = {K}", "seconds to output", "MB then", "at most", "bytes of a stream"]
    rows = [
        [name, f"{seconds:.2f}", f"{resident:.0f}", f"{most:.0f}", int(others[0]) if others else ""]
        for name, (seconds, resident, most, *others) in medians.items()
    ]
    report.print_table(header, rows)
    print_disk(cached)
    print(f"The encoder has {n_parameters / 1e6:.1f} million parameters, {weights:.0f} MB.")
    judge(medians, weights, options)


if __name__ == "__main__":
    main()
