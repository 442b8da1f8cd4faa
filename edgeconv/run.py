"""`edgeconv run`: signals of any length from one file to another, in constant memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeconv.convolution import DepthwiseConvolution
from edgeconv.files import replacing
from edgeconv.terminal import CommandError, explaining_compilation, progress

# Frames per call: from 16 to 4096 the time per frame is the same, and this is soon interrupted.
CHUNK = 256


def run(conv: DepthwiseConvolution, source: str, target: str, chunk: int) -> tuple[int, ...]:
    """
    Stream the signals of one `.npy` file into another.

    Parameters
    ----------
    conv : DepthwiseConvolution
        What they go through.
    source : str
        Floats (T, C), or (B, T, C): B signals, each from its own start. The file is mapped.
    target : str
        Float32 of the same shape, the bits of ``conv(x)``. It appears whole or not at all.
    chunk : int
        Frames per call.

    Returns
    -------
    tuple of int
        The shape of both.

    Raises
    ------
    CommandError, OSError
        If `source` is not as described, or if a file cannot be read or written.
    """
    x = _mapped(source, conv)
    signals = x if x.ndim == 3 else x[np.newaxis]
    n_signals, n_frames, _ = signals.shape
    header = {"descr": "<f4", "fortran_order": False, "shape": x.shape}
    with explaining_compilation():
        stream = conv.stream()
    # A write through a memory map dies of SIGBUS on a full disk: these are ordinary writes.
    with replacing(target) as file, progress("run", n_signals * n_frames) as show:
        np.lib.format.write_array_header_1_0(file, header)
        for number, signal in enumerate(signals):
            for start in range(0, n_frames, chunk):
                file.write(stream.process(signal[start : start + chunk]).data)
                show(number * n_frames + start)
            file.write(stream.flush().data)
    return x.shape


def _mapped(path: str, conv: DepthwiseConvolution) -> NDArray[np.floating[Any]]:
    """Map a `.npy` file, and check that it holds signals for `conv`."""
    if Path(path).exists() and not Path(path).is_file():
        raise CommandError(
            f"{path}: must be a file, found a directory or a device; give a .npy file"
        )
    try:
        x: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy's parser fails in many ways on what is not its own
        found = "an .npz archive" if zipfile.is_zipfile(path) else str(error)
        raise CommandError(
            f"{path}: must be a .npy file of floats, found {found}; write it with `numpy.save`"
        ) from error
    if x.dtype.kind != "f":
        raise CommandError(
            f"{path}: must hold floats, found {x.dtype}; convert it with the scale that your "
            "features have"
        )
    if x.ndim not in (2, 3) or x.shape[-1] != conv.channels:
        raise CommandError(
            f"{path}: must have shape (T, {conv.channels}) or (B, T, {conv.channels}), found "
            f"{x.shape}; expected by {conv}"
        )
    return np.asarray(x)  # the kernels take no subclass
