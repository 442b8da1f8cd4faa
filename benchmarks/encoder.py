"""
Time of a chunk of a streaming encoder: PyTorch, and this library with float32 and 8-bit weights.

    python benchmarks/encoder.py [--model conformer] [--chunk 4 16 64] [--chunks 40] [--busy]

All work on the same features with the same weights, in one thread. Their chunks alternate, so that
a busy machine is busy for all of them; medians. With `--busy` two Python threads compute beside
this library alone, and the slowest of the chunks is printed beside the median. Needs PyTorch and
ESPnet.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder as Original

import edgeconv
from edgeconv.encoder import Encoder
from edgeconv.layers.parameters import quantised

LEFT = 32
MODELS = {
    "ebranchformer": (12, {"conv_size": 256, "subsampling_factor": 4, "vgg_like": False}, 11),
    "conformer": (18, {"conv_size": (64, 128), "subsampling_factor": 6, "vgg_like": True}, 15),
}


def build(kind):
    """Return ESPnet's encoder, and this library's with float32 and with 8-bit weights."""
    torch.manual_seed(0)
    n_blocks, block_input, shared = MODELS[kind]
    shape = {"hidden_size": 256, "linear_size": 1024, "heads": 4, "conv_mod_kernel_size": 31}
    body = [{"block_type": kind, "num_blocks": n_blocks, **shape}]
    main = {"dynamic_chunk_training": True}
    original = Original(80, [dict(body[0])], dict(block_input), dict(main)).eval()
    state = {name: array.numpy() for name, array in original.state_dict().items()}
    conf = {"encoder_conf": {"body_conf": body, "input_conf": block_input, "main_conf": main}}
    small = dict(state)
    for name, weight in state.items():
        if name.endswith(".weight") and weight.ndim > 1 and weight.shape[1] > 1:
            small[name], small[f"{name}_scale"] = quantised(weight)
    return original, Encoder(state, conf), Encoder(small, conf), shared


def espnet(original, x, chunk_size, shared):
    """Yield a chunk of PyTorch's output each time."""
    original.reset_cache(LEFT, "cpu")
    done, start, end = 0, 0, 4 * chunk_size - 1
    while True:
        window = torch.from_numpy(x[None, start:end])
        sizes, frames = torch.tensor([end - start]), torch.tensor([[done]])
        y = original.chunk_forward(window, sizes, frames, left_context=LEFT)[0]
        done += len(y)
        start, end = end - shared, end + 4 * chunk_size
        yield y.numpy()


def streamed(encoder, x, chunk_size):
    """Yield a chunk of this library's output each time."""
    stream = encoder.stream(chunk_size, LEFT)
    stream.process(x[: 4 * chunk_size - 1])
    yield None
    for start in range(4 * chunk_size - 1, len(x), 4 * chunk_size):
        yield stream.process(x[start : start + 4 * chunk_size])


def busy(encoder, chunk_sizes, n):
    """Print the median and the slowest chunk beside two busy Python threads."""
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            sum(range(1000))

    for thread in [threading.Thread(target=compute) for _ in range(2)]:
        thread.start()
    for chunk_size in chunk_sizes:
        x = np.random.default_rng(0).standard_normal((4 * chunk_size * (n + 2), 80), np.float32)
        way, times = streamed(encoder, x, chunk_size), []
        for _ in range(n):
            start = time.perf_counter()
            next(way)
            times.append(time.perf_counter() - start)
        median, slowest = np.median(times[1:]), max(times[1:])
        ratio = slowest / median
        print(f"chunk {chunk_size:3d}: median {median * 1e3:.1f} ms, slowest {ratio:.1f} x")
    stop.set()


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="ebranchformer")
    parser.add_argument("--chunk", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a few chunks that claim nothing")
    options = parser.parse_args()
    if options.smoke:
        options.chunk, options.chunks = [4], 4
    torch.set_num_threads(1)
    original, encoder, small, shared = build(options.model)
    print(f"edgeconv {edgeconv.__version__}, torch {torch.__version__}, {encoder}, one thread")
    if options.busy:
        busy(encoder, options.chunk, options.chunks)
        return
    for chunk_size in options.chunk:
        n = options.chunks
        x = np.random.default_rng(0).standard_normal((4 * chunk_size * (n + 2), 80), np.float32)
        ways = {
            "PyTorch": espnet(original, x, chunk_size, shared),
            "float32": streamed(encoder, x, chunk_size),
            "8 bits": streamed(small, x, chunk_size),
        }
        times = {name: [] for name in ways}
        with torch.inference_mode():
            for i in range(n):
                for name, way in ways.items():
                    start = time.perf_counter()
                    next(way)
                    if i > 2:
                        times[name].append(time.perf_counter() - start)
        medians = {name: np.median(values) * 1e3 for name, values in times.items()}
        fastest = {name: min(values) * 1e3 for name, values in times.items()}
        print(f"chunk {chunk_size:3d}:", end="")
        for name in ways:
            ratio = medians["PyTorch"] / medians[name]
            measured = f"{medians[name]:.2f} ms, least {fastest[name]:.2f}"
            print(f"  {name} {measured} ({ratio:.2f} x)", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
