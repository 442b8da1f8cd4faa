"""
Time of a chunk of a streaming encoder: PyTorch, ONNX Runtime and this library, float32 and 8 bits.

    python benchmarks/encoder.py [--model conformer] [--chunk 4 16 64] [--chunks 40]
    python benchmarks/encoder.py --endless | --threads

All work on the same features with the same weights, in one thread. Their chunks alternate, so that
a busy machine is busy for all of them; medians. ONNX Runtime has a model of its own for each size,
exported with static shapes, and as 8 bits its dynamic quantisation. The others are about this
library alone: `--endless` runs 200,000 feature frames and prints time and memory at
both ends; `--threads` compares one thread with two. Needs PyTorch, ESPnet, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_encoder
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder as Original

import edgeconv
from edgeconv.encoder import Encoder
from edgeconv.layers.parameters import with_8_bits

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
    return original, Encoder(state, conf), Encoder(with_8_bits(state), conf), shared


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


def streamed(encoder, x, chunk_size, threads=1):
    """Yield a chunk of this library's output each time."""
    stream = encoder.stream(chunk_size, LEFT, threads=threads)
    stream.process(x[: 4 * chunk_size - 1])
    yield None
    for start in range(4 * chunk_size - 1, len(x), 4 * chunk_size):
        yield stream.process(x[start : start + 4 * chunk_size])


def endless(encoder, chunk_size=20, n_frames=200_000):
    """Print time of a chunk and memory of the process, at both ends of a long stream."""
    stream = encoder.stream(chunk_size, LEFT)
    x = np.random.default_rng(0).standard_normal((4 * chunk_size, 80), np.float32)
    times, n = [], n_frames // len(x)
    for i in range(n):
        start = time.perf_counter()
        stream.process(x)
        times.append(time.perf_counter() - start)
        if i in (n // 10, n - 1):
            median = np.median(times[-n // 10 :]) * 1e3
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
            print(f"{stream.frames_in:7,} frames: {median:.2f} ms a chunk, ", end="")
            print(f"{resident:.1f} MB resident, {stream.memory / 1e6:.2f} MB the stream's")


def ways_of(models, x, chunk_size, is_threads):
    """Return by name what yields a chunk each time; the first is what others are compared with."""
    original, encoder, small, shared = models
    ours = {"float32": streamed(encoder, x, chunk_size)}
    if is_threads:
        return ours | {"2 threads": streamed(encoder, x, chunk_size, 2)}
    model, ways = onnx_encoder.export(original, LEFT, 4 * chunk_size + shared, 80), {}
    for name, eight_bits in (("ONNX", False), ("ONNX 8 bits", True)):
        run = onnx_encoder.session(model, eight_bits)
        ways[name] = onnx_encoder.streamed(original, run, x, chunk_size, shared, LEFT)
    ours |= {"8 bits": streamed(small, x, chunk_size)}
    return {"PyTorch": espnet(original, x, chunk_size, shared)} | ways | ours


def compare(models, chunk_size, n, is_threads):
    """Print the times of all ways for one size."""
    x = np.random.default_rng(0).standard_normal((4 * chunk_size * (n + 2), 80), np.float32)
    ways = ways_of(models, x, chunk_size, is_threads)
    times = {name: [] for name in ways}
    with torch.inference_mode():
        for i in range(n):
            for name, way in ways.items():
                start = time.perf_counter()
                next(way)
                if i > 2:
                    times[name].append(time.perf_counter() - start)
    medians = {name: np.median(values) * 1e3 for name, values in times.items()}
    print(f"chunk {chunk_size:3d}:", end="")
    for name, values in times.items():
        ratio = medians[next(iter(ways))] / medians[name]
        measured = f"{medians[name]:.2f} ms, least {min(values) * 1e3:.2f}"
        print(f"  {name} {measured} ({ratio:.2f} x)", end="")
    print(flush=True)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="ebranchformer")
    parser.add_argument("--chunk", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--chunks", type=int, default=40)
    for name in ("--endless", "--threads"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a few chunks that claim nothing")
    options = parser.parse_args()
    if options.smoke:
        options.chunk, options.chunks = [4], 4
    torch.set_num_threads(1)
    models = build(options.model)
    encoder = models[1]
    print(f"edgeconv {edgeconv.__version__}, torch {torch.__version__}, {encoder}, one thread")
    if options.endless:
        endless(encoder)
    else:
        for chunk_size in options.chunk:
            compare(models, chunk_size, options.chunks, options.threads)


if __name__ == "__main__":
    main()
