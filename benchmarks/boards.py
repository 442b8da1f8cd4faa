"""How fast may an encoder be on a Raspberry Pi? An estimate from peak and bandwidth.

    python benchmarks/boards.py [MODEL.npz ...] [--smoke]

It is no measurement: multiply-adds of the dense layers for a window of 640 ms, at 60 % of the peak
of one core (dense tiles reach more on a PC; what is not dense layers takes the rest), plus one pass
of their weights through memory. Python's time is left out; it weighs most in small models.
"""

from pathlib import Path

import numpy as np
import report

from edgeconv import load_encoder
from edgeconv.encoder import Encoder
from edgeconv.layers import parameters

# Gigahertz, flop in a cycle of one core by LLVM's models (arm_model.py), gigabytes a second of one
# core from memory, which differ with the board's revision and its cooling.
BOARDS = {"Raspberry Pi 4": (1.5, 8, 4.0), "Raspberry Pi 5": (2.4, 16, 10.0)}
SHARE = 0.6  # of the peak
CHUNK, WINDOW = 20, 0.64  # encoder frames, and their seconds


def work(encoder):
    """Return multiply-adds and bytes of weights of a window: those of dense layers."""
    counted = []

    def count(self, x, y, added):
        counted.append((y.size * self._work, self._packed.nbytes))
        y[...] = 0

    stream, run = encoder.stream(CHUNK), parameters.Weights._run
    stream.process(np.zeros((4 * CHUNK - 1, encoder.input_size), np.float32))
    parameters.Weights._run = count
    try:
        stream.process(np.zeros((4 * CHUNK, encoder.input_size), np.float32))
    finally:
        parameters.Weights._run = run
    return np.sum(counted, axis=0)


def main():
    """Count and print."""
    parser = report.arguments(__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    options = parser.parse_args()
    report.print_facts()
    encoders = {path.name: load_encoder(path) for path in options.models}
    encoders["12 E-Branchformer of 256, conv2d"] = Encoder(*report.drawn("ebranchformer", 12))
    if not options.smoke:
        encoders["18 Conformer of 256, VGG 6"] = Encoder(
            *report.drawn("conformer", 18, is_vgg=True)
        )
    rows = []
    for name, encoder in encoders.items():
        multiply_adds, n_bytes = work(encoder)
        row = [name, f"{multiply_adds / WINDOW / 1e6:.0f}", f"{n_bytes / 1e6:.1f}"]
        for gigahertz, flop, bandwidth in BOARDS.values():
            seconds = 2e-9 * multiply_adds / (SHARE * gigahertz * flop) + n_bytes / bandwidth / 1e9
            row.append(f"{seconds / WINDOW:.2f}")
        rows.append(row)
    header = ["encoder", "million multiply-adds for a second", "MB of dense weights"]
    report.print_table([*header, *(f"of real time, {board}" for board in BOARDS)], rows)


if __name__ == "__main__":
    main()
