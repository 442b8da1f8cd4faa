"""How fast is the library beside its peers? Prints the README's speed table.

    pip install '.[bench]'
    python benchmarks/peers.py [--output DIRECTORY] [--smoke]

Every peer runs in the layout that suits it best, with what it takes to keep the last K - 1 frames
from one call to the next, on one thread. This library runs through its public API, with all its
checks. Before anything is timed, a signal that is pushed chunk by chunk through a peer must agree
with this library's output within the error bounds of both. The contestants take turns in every
round; times are medians over the rounds. Writes `peers.json` and `peers.png`.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import report

from edgeconv import DepthwiseConvolution

SIZES = ((512, 31), (1024, 31), (288, 31), (512, 15), (512, 7))  # (C, K)
OFFLINE = 1000
WORKS = (1, 16, 64, OFFLINE)  # frames of a call
ROUNDING = 2.0**-24
OURS = "edgeconv"


@dataclass
class Contestant:
    """One way to convolve chunk after chunk."""

    run: Callable  # the timed call: convolve the input, keep the state
    load: Callable  # put a chunk (T, C) where `run` finds it, in its own layout
    read: Callable  # return what `run` returned as (T, C)


def edgeconv_itself(conv, n_frames):
    """Run this library: a stream for chunks, the module for a whole signal."""
    shape = (n_frames, conv.channels) if n_frames > 1 else conv.channels
    frame, out_frame = np.empty(shape, np.float32), np.empty(shape, np.float32)
    x, out = np.atleast_2d(frame), np.atleast_2d(out_frame)
    stream = conv.stream()
    signal = x[np.newaxis]

    def run_offline():
        return conv(signal)[0]

    def run_frame():
        return stream.step(frame, out=out_frame)

    def run_chunk():
        return stream.process(x, out=out)

    run = {OFFLINE: run_offline, 1: run_frame}.get(n_frames, run_chunk)
    yield OURS, Contestant(run, lambda chunk: np.copyto(x, chunk), lambda y: y.reshape(x.shape))


def numpy_taps(conv, n_frames):
    """Loop over the taps in NumPy, time-major."""
    K = conv.kernel_size
    taps = np.ascontiguousarray(conv.weight[:, 0].T)
    x = np.empty((n_frames, conv.channels), np.float32)
    y, product = np.empty_like(x), np.empty_like(x)
    state = np.zeros((K - 1, conv.channels), np.float32)

    def run():
        nonlocal state
        window = np.concatenate([state, x])
        y[:] = conv.bias
        for k in range(K):
            np.multiply(window[k : k + n_frames], taps[k], out=product)
            np.add(y, product, out=y)
        if n_frames != OFFLINE:
            state = window[n_frames:]
        return y

    yield "NumPy", Contestant(run, lambda chunk: np.copyto(x, chunk), lambda y: y)


def pytorch(conv, n_frames):
    """Concatenate a cache and convolve in PyTorch: channels-major, and as a view of time-major."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    weight, bias = torch.tensor(conv.weight), torch.tensor(conv.bias)
    context = conv.kernel_size - 1

    def contestant(zeros):
        x, state = zeros(n_frames), zeros(context)

        def run():
            nonlocal state
            window = torch.cat([state, x], dim=2)
            if n_frames != OFFLINE:
                state = window[:, :, n_frames:]
            return torch.nn.functional.conv1d(window, weight, bias, groups=conv.channels)

        return Contestant(
            run, lambda chunk: x.copy_(torch.from_numpy(chunk.T)), lambda y: y[0].numpy().T
        )

    yield "PyTorch", contestant(lambda n: torch.zeros(1, conv.channels, n))
    yield (
        "PyTorch, time-major",
        contestant(lambda n: torch.zeros(1, n, conv.channels).transpose(1, 2)),
    )


def onnx_runtime(conv, n_frames):
    """Run ONNX Runtime's operator with a state, and its `Conv` on a concatenation.

    Inputs and outputs are bound once. Two buffers of the state take turns as input and output.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    C, K = conv.channels, conv.kernel_size
    shapes = {"x": (1, C, n_frames), "past": (1, C, K - 1)}
    shapes |= {"y": shapes["x"], "present": shapes["past"]}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    weights = [
        helper.make_tensor("weight", TensorProto.FLOAT, [C, 1, K], conv.weight.ravel()),
        helper.make_tensor("bias", TensorProto.FLOAT, [C], conv.bias),
    ]
    latest = {"start": n_frames, "stop": n_frames + K - 1, "axis": 2}
    latest = [helper.make_tensor(name, TensorProto.INT64, [1], [n]) for name, n in latest.items()]
    operator = helper.make_node(
        "CausalConvWithState",
        ["x", "weight", "bias", "past"],
        ["y", "present"],
        domain="com.microsoft",
    )
    concatenation = [
        helper.make_node("Concat", ["past", "x"], ["window"], axis=2),
        helper.make_node("Conv", ["window", "weight", "bias"], ["y"], group=C),
        helper.make_node("Slice", ["window", *(t.name for t in latest)], ["present"]),
    ]

    def value(*names):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in names]

    def contestant(nodes, constants):
        graph = helper.make_graph(nodes, "g", value("x", "past"), value("y", "present"), constants)
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=10)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

        def zeros(name):
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], np.float32))

        x, y, states = zeros("x"), zeros("y"), [zeros("past"), zeros("past")]
        bindings = []
        for past, present in (states, states[::-1]):
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", x)
            binding.bind_ortvalue_input("past", past)
            binding.bind_ortvalue_output("y", y)
            binding.bind_ortvalue_output("present", present)
            bindings.append(binding)
        if n_frames == OFFLINE:  # the state before a signal stays zero
            del bindings[1]

        def run():
            session.run_with_iobinding(bindings[0])
            bindings.reverse()
            return y

        return Contestant(
            run,
            lambda chunk: x.update_inplace(np.ascontiguousarray(chunk.T[np.newaxis])),
            lambda y: y.numpy()[0].T.copy(),
        )

    yield "ONNX Runtime, state", contestant([operator], weights)
    yield "ONNX Runtime, Conv", contestant(concatenation, weights + latest)


_ncnn_nets = []  # matrices may outlive the call that made them, and need their net's allocator


def ncnn(conv, n_frames):
    """Run ncnn with the state in its graph, and with a window that NumPy moves.

    Its depthwise convolution over time knows no packed layout: packing off is quicker.
    """
    import ncnn

    C, K = conv.channels, conv.kernel_size

    def net(graph):
        net = ncnn.Net()
        _ncnn_nets.append(net)
        net.opt.num_threads = 1
        net.opt.use_packing_layout = net.opt.use_bf16_storage = False
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
        with tempfile.TemporaryDirectory() as directory:
            parameters, weights = (Path(directory, name) for name in ("net.param", "net.bin"))
            blobs = len({name for line in graph for name in line.split() if name[0] == "_"})
            lines = ["7767517", f"{len(graph)} {blobs}", *graph]
            parameters.write_text("\n".join(lines) + "\n")
            weights.write_bytes(bytes(4) + conv.weight.tobytes() + conv.bias.tobytes())
            if net.load_param(str(parameters)) or net.load_model(str(weights)):
                raise RuntimeError("ncnn refuses the network")
        return net

    def convolution(window):
        return f"ConvolutionDepthWise1D conv 1 1 {window} _y 0={C} 1={K} 5=1 6={C * K} 7={C}"

    def matrix(width):
        zeros = np.zeros((C, width), np.float32)  # a Mat does not keep its array alive
        return ncnn.Mat(zeros).clone()

    with_state = net(
        [
            "Input x 0 1 _x",
            "Input past 0 1 _past",
            "Concat window 2 1 _past _x _window 0=1",
            "Split split 1 2 _window _a _b",
            convolution("_a"),
            f"Crop crop 1 1 _b _present 0={n_frames} 3={K - 1} 4=-233",
        ]
    )
    x, state = matrix(n_frames), matrix(K - 1)

    def run_with_state():
        nonlocal state
        extractor = with_state.create_extractor()
        extractor.input("_x", x)
        extractor.input("_past", state)
        _, y = extractor.extract("_y")
        if n_frames != OFFLINE:
            _, state = extractor.extract("_present")
        return y

    def load(chunk):
        np.array(x, copy=False)[:] = chunk.T

    yield "ncnn", Contestant(run_with_state, load, lambda y: np.array(y).T)

    alone = net(["Input x 0 1 _x", convolution("_x")])
    window = np.zeros((C, K - 1 + n_frames), np.float32)
    chunk_t = np.zeros((C, n_frames), np.float32)
    window_matrix = ncnn.Mat(window)

    def run_window():
        if n_frames != OFFLINE:
            window[:, : K - 1] = window[:, n_frames:]
        window[:, K - 1 :] = chunk_t
        extractor = alone.create_extractor()
        extractor.input("_x", window_matrix)
        _, y = extractor.extract("_y")
        return y

    yield (
        "ncnn, window in NumPy",
        Contestant(run_window, lambda chunk: np.copyto(chunk_t, chunk.T), lambda y: np.array(y).T),
    )


PEERS = {"PyTorch": pytorch, "ONNX Runtime": onnx_runtime, "ncnn": ncnn, "NumPy": numpy_taps}


def contestants_of(conv, n_frames):
    """Return all that are installed, {name: Contestant}, this library first."""
    contestants = dict(edgeconv_itself(conv, n_frames))
    for peer in PEERS.values():
        with contextlib.suppress(ImportError):
            contestants |= peer(conv, n_frames)
    return contestants


def check(conv, n_frames, contestants):
    """Compare what the peers compute, several chunks in a row, with this library's output."""
    K = conv.kernel_size
    n_chunks = 1 if n_frames == OFFLINE else 2 + K // n_frames
    signal = np.random.default_rng(1).standard_normal((n_chunks * n_frames, conv.channels))
    signal = signal.astype(np.float32)
    heard = np.pad(abs(signal.astype(np.float64)), ((K - 1, 0), (0, 0)))
    taps = abs(conv.weight[:, 0].astype(np.float64))
    size = abs(conv.bias) + sum(heard[k : k + len(signal)] * taps[:, k] for k in range(K))
    gamma = (K + 1) * ROUNDING / (1 - (K + 1) * ROUNDING)
    expected = conv(signal[np.newaxis])[0][0]
    for name, contestant in contestants.items():
        outputs = []
        for chunk in np.split(signal, n_chunks):
            contestant.load(chunk)
            outputs.append(np.array(contestant.read(contestant.run())))
        error = abs(np.concatenate(outputs) - expected)
        if name == OURS and error.any():
            raise SystemExit(f"{OURS}: {n_frames} frames at a time, the bits differ from offline")
        if not (error <= 2 * gamma * size).all():  # each may be off by half of this
            raise SystemExit(f"{name}: outputs differ by {error.max():.1e}")


def targets(channels, kernel_size, n_frames):
    """Return how many times faster this library must be, {whom it is compared with: times}."""
    if n_frames == OFFLINE:
        return {"best": 3 if (channels, kernel_size) == (512, 31) else 1}
    if n_frames == 64:
        return {"best": 5}
    if n_frames == 16:
        return {"best": 10 if kernel_size == 31 else 8}
    return {"best": 8 if kernel_size == 7 else 10, "PyTorch": 40}


def compare(channels, kernel_size, n_frames, rounds, seconds):
    """Time one row of the table."""
    conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
    contestants = contestants_of(conv, n_frames)
    check(conv, n_frames, contestants)
    calls = {name: contestant.run for name, contestant in contestants.items()}
    times = report.median_times(calls, rounds, seconds)
    ratios = {}
    for peer in PEERS:
        ways = [time for name, time in times.items() if name.startswith(peer)]
        if ways:
            ratios[peer] = min(ways) / times[OURS]
    ratios["best"] = min(ratios.values())
    goals = targets(channels, kernel_size, n_frames)
    return {
        "channels": channels,
        "kernel_size": kernel_size,
        "frames": n_frames,
        "microseconds": {name: 1e6 * time for name, time in times.items()},
        "times_faster": ratios,
        "targets": goals,
        "met": all(ratios[peer] >= goal for peer, goal in goals.items() if peer in ratios),
    }


def compare_threads(channels, kernel_size, n_frames, rounds, seconds):
    """Time a whole signal with one thread and with all of them."""
    conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((1, n_frames, channels), np.float32)

    def run(threads):
        numba.set_num_threads(threads)
        conv(x)

    threads = min(2, numba.config.NUMBA_NUM_THREADS)
    calls = {"one": lambda: run(1), "more": lambda: run(threads)}
    times = report.median_times(calls, rounds, seconds)
    numba.set_num_threads(1)
    ratio = times["one"] / times["more"]
    target = 1.6 if (channels, kernel_size, n_frames) == (1024, 31, OFFLINE) else 1 / 1.05
    return {
        "channels": channels,
        "kernel_size": kernel_size,
        "frames": n_frames,
        "one_thread_us": 1e6 * times["one"],
        "two_threads_us": 1e6 * times["more"],
        "times_faster": ratio,
        "target": target,
        "met": ratio >= target,
    }


def print_rows(rows, claims):
    """Print the table of all rows: times of every contestant, ratios to each peer's best way."""
    names = list(dict.fromkeys(name for row in rows for name in row["microseconds"]))
    print("Microseconds for a call:\n")
    report.print_table(
        ["frames", "C", "K", *names],
        [
            [row["frames"], row["channels"], row["kernel_size"]]
            + [f"{row['microseconds'][name]:.1f}" for name in names]
            for row in rows
        ],
    )
    peers = list(rows[0]["times_faster"])
    print(f"\nHow many times faster {OURS} is than the best way of each peer:\n")
    report.print_table(
        ["frames", "C", "K", *peers, "target", ""],
        [
            [row["frames"], row["channels"], row["kernel_size"]]
            + [f"{row['times_faster'][peer]:.1f}" for peer in peers]
            + [", ".join(f"{peer} {n}" for peer, n in row["targets"].items())]
            + [report.verdict(row["met"]) if claims else "-"]
            for row in rows
        ],
    )


def draw(rows, path):
    """Draw microseconds per frame of every contestant, one panel for each kind of work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    works = list(dict.fromkeys(row["frames"] for row in rows))
    figure, panels = plt.subplots(
        1, len(works), figsize=(11, 4), sharey=True, layout="constrained", squeeze=False
    )
    for panel, work in zip(panels[0], works, strict=True):
        shown = [row for row in rows if row["frames"] == work]
        labels = [f"{row['channels']}\n{row['kernel_size']}" for row in shown]
        peers = [peer for peer in shown[0]["times_faster"] if peer != "best"]
        for peer in (*peers, OURS):
            best = [
                min(t for name, t in row["microseconds"].items() if name.startswith(peer)) / work
                for row in shown
            ]
            emphasis = {"color": "black", "linewidth": 2, "markersize": 7} if peer == OURS else {}
            panel.plot(labels, best, marker="o", label=peer, **emphasis)
        panel.set_yscale("log")
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        calls = "1 frame" if work == 1 else f"{work} frames"
        panel.set_title(f"{calls}, offline" if work == OFFLINE else f"{calls} a call")
        panel.set_xlabel("channels\ntaps")
    panels[0][0].set_ylabel("µs per frame, one thread")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False
    )
    figure.savefig(path, dpi=120)


def main():
    """Run, print and write everything."""
    parser = report.arguments(__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        help="directory for peers.json and peers.png, which --smoke does not write (%(default)s)",
    )
    options = parser.parse_args()
    sizes, works, rounds, seconds = SIZES, WORKS, 15, 0.01
    if options.smoke:
        sizes, works, rounds, seconds = SIZES[-1:], (1, 16, OFFLINE), 1, 0.0
    facts = report.facts("torch", "onnxruntime", "onnx", "ncnn", "matplotlib")
    report.print_facts(facts)
    # First, as the peers bring thread pools of their own.
    print("Whole signals, two threads allowed against one:\n")
    lengths = (64, 250, 500, OFFLINE, 3000)
    threads = [
        compare_threads(*size, length, rounds, 2 * seconds)
        for size in sizes
        for length in (lengths if not options.smoke else (OFFLINE,))
    ]
    report.print_table(
        ["frames", "C", "K", "one thread, µs", "two, µs", "times faster", "target", ""],
        [
            [row["frames"], row["channels"], row["kernel_size"]]
            + [f"{row[key]:.0f}" for key in ("one_thread_us", "two_threads_us")]
            + [f"{row['times_faster']:.2f}", f"{row['target']:.2f}"]
            + [report.verdict(row["met"]) if not options.smoke else "-"]
            for row in threads
        ],
    )
    print()
    numba.set_num_threads(1)
    rows = [compare(*size, work, rounds, seconds) for work in works for size in sizes]
    print_rows(rows, claims=not options.smoke)
    with contextlib.ExitStack() as stack:
        directory = options.output
        if options.smoke:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        written = {"facts": facts, "peers": rows, "threads": threads}
        (directory / "peers.json").write_text(json.dumps(written, indent=1) + "\n")
        try:
            draw(rows, directory / "peers.png")
        except ImportError:
            print("\nno chart: matplotlib is absent")


if __name__ == "__main__":
    main()
