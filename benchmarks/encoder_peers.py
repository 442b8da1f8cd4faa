"""An encoder's chunks in PyTorch, and in ONNX Runtime: with static shapes; also with 8 bits."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder
from onnxruntime.quantization import QuantType, quantize_dynamic

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def original(state, configuration):
    """Return ESPnet's own encoder with these weights, and feature frames that its windows share."""
    conf = configuration["encoder_conf"]
    parts = (conf[f"{part}_conf"] for part in ("input", "main"))
    body = [dict(block) for block in conf["body_conf"]]
    encoder = Encoder(configuration["input_size"], body, *map(dict, parts)).eval()
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"ESPnet has other weights: {missing}, {unexpected}")
    return encoder, 15 if conf["input_conf"]["vgg_like"] else 11


def espnet(encoder, x, chunk_size, shared, left):
    """Yield a chunk of PyTorch's output each time."""
    encoder.reset_cache(left, "cpu")
    done, start, end = 0, 0, 4 * chunk_size - 1
    while True:
        window = torch.from_numpy(x[None, start:end])
        sizes, frames = torch.tensor([end - start]), torch.tensor([[done]])
        y = encoder.chunk_forward(window, sizes, frames, left_context=left)[0]
        done += len(y)
        start, end = end - shared, end + 4 * chunk_size
        yield y.numpy()


class Chunk(torch.nn.Module):
    """`chunk_forward` with the blocks' caches as inputs and outputs."""

    def __init__(self, encoder, left):
        super().__init__()
        self.encoder, self.left = encoder, left

    def forward(self, x, is_missing, *caches):
        """Return a chunk's frames and the caches for the next one."""
        encoder = self.encoder
        x = encoder.embed(x, None)[0][:, 1:-1]
        positions = encoder.pos_enc(x, left_context=self.left)
        mask = torch.cat([is_missing, torch.zeros(1, x.size(1), dtype=torch.bool)], dim=1)
        rest, after = iter(caches), []
        for block in encoder.encoders.blocks:
            block.cache = [next(rest) for _ in block.cache]
            x, positions = block.chunk_forward(x, positions, mask, left_context=self.left)
            after += block.cache
        return encoder.encoders.norm_blocks(x), *after


def gathered(x, left_context=0):
    """Do what `rel_shift` does, whose `as_strided` cannot be exported."""
    n, n_keys = x.size(2), x.size(2) + left_context
    index = torch.arange(n - 1, -1, -1)[:, None] + torch.arange(n_keys)
    return x.gather(3, index.expand(*x.shape[:2], n, n_keys))


def caches_of(encoder):
    """Return all caches of all blocks."""
    return [cache.clone() for block in encoder.encoders.blocks for cache in block.cache]


def export(encoder, left, n_frames, n_features):
    """Return the model's bytes."""
    encoder.reset_cache(left, "cpu")
    caches = caches_of(encoder)
    for block in encoder.encoders.blocks:
        block.self_att.rel_shift = gathered
    x, is_missing = torch.zeros(1, n_frames, n_features), torch.ones(1, left, dtype=torch.bool)
    arguments, content = (x, is_missing, *caches), io.BytesIO()
    inputs = ["x", "is_missing", *(f"cache{n}" for n in range(len(caches)))]
    outputs = ["y", *(f"after{n}" for n in range(len(caches)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own future
        torch.onnx.export(
            Chunk(encoder, left).eval(), arguments, content, opset_version=17, dynamo=False,
            input_names=inputs, output_names=outputs,
        )  # fmt: skip
    for block in encoder.encoders.blocks:
        del block.self_att.rel_shift
    return content.getvalue()


def session(model, eight_bits):
    """Load a model for one thread; with 8 bits its products with matrices are quantised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if eight_bits:
        with tempfile.TemporaryDirectory() as directory:
            paths = Path(directory) / "model.onnx", Path(directory) / "small.onnx"
            paths[0].write_bytes(model)
            quantize_dynamic(*paths, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
            model = paths[1].read_bytes()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx(encoder, run, x, chunk_size, shared, left):
    """Yield a chunk each time; PyTorch computes the first one, whose window is shorter."""
    encoder.reset_cache(left, "cpu")
    end = 4 * chunk_size - 1
    window, n_frames = torch.from_numpy(x[None, :end]), torch.tensor([end])
    y = encoder.chunk_forward(window, n_frames, torch.tensor([[0]]), left_context=left)[0].numpy()
    caches, done = [cache.numpy() for cache in caches_of(encoder)], 0
    while True:
        yield y
        done, start, end = done + len(y), end - shared, end + 4 * chunk_size
        inputs = {"x": x[None, start:end], "is_missing": np.arange(left)[None, ::-1] >= done}
        inputs |= {f"cache{n}": cache for n, cache in enumerate(caches)}
        (y,), *caches = run.run(None, inputs)
