"""How fast is a convolution? Prints times beside the library's peers.

    pip install '.[bench]'
    python benchmarks/peers.py [--smoke]

Every peer runs in the layout that suits it best, with what it takes to keep the last K - 1 frames
from one call to the next, on one thread. This library runs through its public API, with all its
checks. Before anything is timed, a signal that goes chunk by chunk through each must come out
within the error bound of the exact sums, and this library's with the bits that it has offline. The
contestants take turns in every round; times are medians over the rounds.
"""

import contextlib
import functools
import tempfile
from collections import namedtuple
from pathlib import Path

import numba
import numpy as np
import report

from edgeconv import DepthwiseConvolution

OFFLINE = 1000
WORKS = (1, 16, 64, OFFLINE)  # frames of a call
SIGNALS = (20_000, 60_000)  # frames that threads share
ROUNDING = 2.0**-24
OURS = "edgeconv"

# One way to convolve chunk after chunk: `load` puts a chunk (T, C) where `run`, the timed call,
# finds it, in its own layout; `read` makes what `run` returns (T, C).
Contestant = namedtuple("Contestant", "run load read")


def edgeconv_itself(conv, n_frames):
    """Run this library: a stream for chunks, the module for a whole signal."""
    x = np.empty((n_frames, conv.channels), np.float32)
    out = np.empty_like(x)
    frame, out_frame, signal, stream = x[0], out[0], x[np.newaxis], conv.stream()
    others = {1: lambda: stream.step(frame, out=out_frame), OFFLINE: lambda: conv(signal)[0]}
    run = others.get(n_frames, lambda: stream.process(x, out=out))
    return Contestant(run, lambda chunk: np.copyto(x, chunk), lambda y: y.reshape(x.shape))


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

    return Contestant(run, lambda chunk: np.copyto(x, chunk), lambda y: y)


def pytorch(conv, n_frames):
    """Concatenate a cache and convolve in PyTorch, channels-major: time-major is no faster."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    weight, bias = torch.tensor(conv.weight), torch.tensor(conv.bias)
    x, state = (torch.zeros(1, conv.channels, n) for n in (n_frames, conv.kernel_size - 1))

    def run():
        nonlocal state
        window = torch.cat([state, x], dim=2)
        if n_frames != OFFLINE:
            state = window[:, :, n_frames:]
        return torch.nn.functional.conv1d(window, weight, bias, groups=conv.channels)

    return Contestant(run, lambda new: x.copy_(torch.from_numpy(new.T)), lambda y: y[0].numpy().T)


def onnx_runtime(conv, n_frames):
    """Run ONNX Runtime's operator with a state; `Conv` on a concatenation, which is faster from 64.

    Inputs and outputs are bound once. Two buffers of the state take turns as input and output.
    """
    import onnxruntime
    from onnx import numpy_helper, parser

    C, K = conv.channels, conv.kernel_size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    shape, past = f"float[1,{C},{n_frames}]", f"float[1,{C},{K - 1}]"
    constants = {"weight": conv.weight, "bias": conv.bias}
    nodes = "y, present = com.microsoft.CausalConvWithState(x, weight, bias, past)"
    if n_frames >= 64:
        nodes = f"window = Concat<axis=2>(past, x)  y = Conv<group={C}>(window, weight, bias)"
        nodes += "present = Slice(window, start, stop, axis)"
        constants |= {"start": [n_frames], "stop": [n_frames + K - 1], "axis": [2]}
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
        f"g ({shape} x, {past} past) => ({shape} y, {past} present) {{ {nodes} }}"
    )
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)

    def zeros(n):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, C, n), np.float32))

    x, y, states = zeros(n_frames), zeros(n_frames), [zeros(K - 1), zeros(K - 1)]
    bindings = []
    for before, after in (states, states[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_input("past", before)
        binding.bind_ortvalue_output("y", y)
        binding.bind_ortvalue_output("present", after)
        bindings.append(binding)
    if n_frames == OFFLINE:  # the state before a signal stays zero
        del bindings[1]

    def run():
        session.run_with_iobinding(bindings[0])
        bindings.reverse()

    def load(chunk):
        x.update_inplace(np.ascontiguousarray(chunk.T[np.newaxis]))

    return Contestant(run, load, lambda _: y.numpy()[0].T.copy())


_ncnn_nets = []  # matrices may outlive the call that made them, and need their net's allocator


def ncnn(conv, n_frames):
    """Run ncnn on a window that NumPy moves; with the state in its graph it is no faster.

    Its depthwise convolution over time knows no packed layout: packing off is quicker.
    """
    import ncnn

    C, K = conv.channels, conv.kernel_size
    net = ncnn.Net()
    _ncnn_nets.append(net)
    net.opt.num_threads = 1
    net.opt.use_packing_layout = net.opt.use_bf16_storage = False
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    with tempfile.TemporaryDirectory() as directory:
        parameters, weights = (Path(directory, name) for name in ("net.param", "net.bin"))
        layers = "7767517\n2 2\nInput x 0 1 x\n"
        layers += f"ConvolutionDepthWise1D conv 1 1 x y 0={C} 1={K} 5=1 6={C * K} 7={C}\n"
        parameters.write_text(layers)
        weights.write_bytes(bytes(4) + conv.weight.tobytes() + conv.bias.tobytes())
        if net.load_param(str(parameters)) or net.load_model(str(weights)):
            raise RuntimeError("ncnn refuses the network")
    window = np.zeros((C, K - 1 + n_frames), np.float32)
    chunk_t = np.zeros((C, n_frames), np.float32)
    matrix = ncnn.Mat(window)

    def run():
        if n_frames != OFFLINE:
            window[:, : K - 1] = window[:, n_frames:]
            window[:, K - 1 :] = chunk_t
        extractor = net.create_extractor()
        extractor.input("x", matrix)
        _, y = extractor.extract("y")
        return y

    place = window[:, K - 1 :] if n_frames == OFFLINE else chunk_t
    return Contestant(run, lambda chunk: np.copyto(place, chunk.T), lambda y: np.array(y).T)


LIBRARIES = {OURS: edgeconv_itself, "PyTorch": pytorch, "ONNX Runtime": onnx_runtime}
LIBRARIES |= {"ncnn": ncnn, "NumPy": numpy_taps}


def prepare(channels, kernel_size, n_frames):
    """Return what is installed, {name: Contestant}, once its outputs are right."""
    conv, K = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0), kernel_size
    contestants = {}
    for name, contestant in LIBRARIES.items():
        with contextlib.suppress(ImportError):
            contestants[name] = contestant(conv, n_frames)
    n_chunks = 1 if n_frames == OFFLINE else 2 + K // n_frames
    shape = n_chunks * n_frames, channels
    signal = np.random.default_rng(1).standard_normal(shape, np.float32)
    heard = np.pad(signal.astype(np.float64), ((K - 1, 0), (0, 0)))
    terms = [heard[k : k + len(signal)] * conv.weight[:, 0, k] for k in range(K)]
    exact, size = conv.bias + sum(terms), abs(conv.bias) + sum(map(abs, terms))
    bound = (K + 1) * ROUNDING / (1 - (K + 1) * ROUNDING) * size
    for name, (run, load, read) in contestants.items():
        outputs = []
        for chunk in np.split(signal, n_chunks):
            load(chunk)
            outputs.append(np.array(read(run())))
        y = np.concatenate(outputs)
        if not (abs(y - exact) <= bound).all():
            raise SystemExit(f"{name}: outputs differ by {abs(y - exact).max():.1e}")
        if name == OURS and (y != conv(signal[np.newaxis])[0][0]).any():
            raise SystemExit(f"{OURS}: {n_frames} frames at a time, the bits differ from offline")
    return contestants


def compare(size, effort):
    """Return the seconds of a call of each contestant, {name: seconds}."""
    timers = {name: report.timer(one.run) for name, one in prepare(*size).items()}
    return report.median_times(timers, *effort)


def compare_threads(channels, kernel_size, n_frames, effort):
    """Return the seconds of a whole signal with one thread and with two."""
    conv = DepthwiseConvolution(channels // 2, kernel_size, causal=True, rng=0)
    x = np.random.default_rng(0).standard_normal((1, n_frames, channels), np.float32)

    def run(threads):
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        return conv(x)[0]

    if (run(1) != run(2)).any():
        raise SystemExit(f"{n_frames} frames: the bits with two threads differ")
    timers = {threads: report.timer(functools.partial(run, threads)) for threads in (1, 2)}
    return report.median_times(timers, min(9, effort[0]), 0).values()


def row(size, times, options):
    """Return a row of the table."""
    channels, kernel_size, n_frames = size
    peers = [times[name] for name in LIBRARIES if name in times and name != OURS]
    best, goal = min(peers) / times[OURS], 1 if n_frames > 1 else 5 if kernel_size == 7 else 6
    cells = [n_frames, channels, kernel_size, f"{1e6 * times[OURS]:.2f}"]
    cells += [*(f"{1e6 * peer:.0f}" for peer in peers), f"{best:.1f} times"]
    cells.append(report.verdict(best >= goal, options))
    return cells


def main():
    """Run and print everything."""
    options = report.arguments(__doc__).parse_args()
    report.print_facts("torch", "onnxruntime", "ncnn")
    effort, smoke = report.effort(options), options.smoke
    # First, as the peers bring thread pools of their own.
    print("Whole signals, two threads allowed against one:\n")
    rows = []
    for size in report.SIZES[: 1 if smoke else 2]:
        for n_frames in SIGNALS[: 1 if smoke else 2]:
            one, two = compare_threads(*size, n_frames, effort)
            numbers = f"{1e3 * one:.1f}", f"{1e3 * two:.1f}", f"{one / two:.2f}"
            rows.append([n_frames, *size, *numbers])
    report.print_table(["frames", "C", "K", "one, ms", "two, ms", "times faster"], rows)
    numba.set_num_threads(1)
    print("\nOne thread, microseconds for a call:\n")
    works, sizes = ((1, 16, OFFLINE), report.SIZES[-1:]) if smoke else (WORKS, report.SIZES)
    results = {(*size, n): compare((*size, n), effort) for n in works for size in sizes}
    peers = [name for name in next(iter(results.values())) if name in LIBRARIES and name != OURS]
    header = ["frames", "C", "K", OURS, *peers, "faster than the best", ""]
    report.print_table(header, [row(*result, options) for result in results.items()])


if __name__ == "__main__":
    main()
