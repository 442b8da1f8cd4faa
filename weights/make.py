"""Make the untrained encoder; `README.md` beside this file says what each file is.

    python weights/make.py [--output DIR]

It writes the checkpoint and the converted file, and needs PyTorch and ESPnet:

    pip install '.[oracle]' && pip install --no-deps espnet==202511

On the same machine and with the same versions it writes the same bytes every time. Those that ship
were made on Linux x86-64 (AVX-512) by Python 3.11 with torch 2.13.0 (the CPU build), ESPnet 202511,
typeguard 4.6.0 and NumPy 2.4.6. On another kind of CPU the last bit of a weight may differ, by
2^-24 at most, for which the tests allow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from espnet2.asr_transducer.encoder.encoder import Encoder

import edgeconv

NAME = "espnet-streaming-encoder"
HERE = Path(__file__).parent
MELS, SEED = 80, 0
BLOCK = {
    "block_type": "ebranchformer",
    "hidden_size": 64,
    "linear_size": 64,
    "conv_mod_kernel_size": 31,
    "num_blocks": 2,
}


def build_encoder() -> Encoder:
    """Build the streaming encoder with seeded initial weights, ready for decoding."""
    torch.manual_seed(SEED)
    encoder = Encoder(
        MELS,
        [BLOCK],
        input_conf={"conv_size": 8, "subsampling_factor": 4},
        # This alone makes the convolutions causal.
        main_conf={"dynamic_chunk_training": True},
    )
    return encoder.eval()


def main() -> None:
    """Write the checkpoint and its converted file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.output / f"{NAME}.pth"
    torch.save(build_encoder().state_dict(), checkpoint)
    config = HERE / f"{NAME}.yaml"
    edgeconv.convert(checkpoint, checkpoint.with_suffix(".npz"), config=config)


if __name__ == "__main__":
    main()
