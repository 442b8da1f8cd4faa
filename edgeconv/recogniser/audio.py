"""Where samples come from: WAV files, raw samples in a pipe, other sample rates."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from edgeconv.arguments import as_float32
from edgeconv.checkpoint.error import printable
from edgeconv.layers.layer import Array

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # WAVE_FORMAT_...
RATES = 1_000, 768_000  # samples a second that a recording may have
LOUDEST = 16.0  # floats beyond this are no samples in [-1, 1], but integers that became floats
COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x31: "GSM", 0x55: "MP3"}
STARTS = {
    b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\xff\xfb": "MP3", b"\xff\xf3": "MP3",
    b"RIFX": "big-endian WAV", b"FORM": "AIFF", b".snd": "Sun audio", b"\x1aE\xdf\xa3": "WebM",
    b"#!AMR": "AMR", b"caff": "Core Audio", b"<": "a web page", b"PK": "a zip archive",
}  # fmt: skip
OTHER = "something else"
UNKNOWN = 0x7FFF0000  # a data size from here on, or of 0, is that of a program that wrote to a pipe


class Audio(NamedTuple):
    """Samples as they come: mono, in [-1, 1], in blocks (n,) of a tenth of a second at most."""

    name: str  # what messages call it
    sample_rate: int
    blocks: Iterator[Array]
    close: Callable[[], None]  # ends the recording, or closes the file
    seconds: float | None = None  # how long it is, where that is known
    is_live: bool = False  # whether it may be recorded while it is read

    def samples(self) -> Array:
        """Return all of them, and close."""
        with contextlib.closing(self):
            return np.concatenate([np.empty(0, np.float32), *self.blocks])


class Encoding(NamedTuple):
    """How samples are written: a WAV's format tag, and its numbers."""

    tag: int
    channels: int
    sample_rate: int
    bits: int

    @property
    def frame(self) -> int:
        """Bytes of the samples of all channels at one time."""
        return self.channels * self.bits // 8

    def mono(self, data: bytes) -> Array:
        """Return whole frames as float32 in [-1, 1], channels averaged in their order."""
        if self.tag == FLOAT:
            samples: Array = as_float32(np.frombuffer(data, f"<f{self.bits // 8}"))
            if not np.abs(samples).max(initial=0) <= LOUDEST:  # NaN is not
                raise ValueError("its floats must be within -1 to 1; save it as 16-bit PCM")
        else:  # into the upper bytes of an integer that NumPy has
            width, own = (2 if self.bits <= 16 else 4), self.bits // 8
            integers = np.zeros((len(data) // own, width), np.uint8)
            read = np.frombuffer(data, np.uint8).reshape(-1, own)
            integers[:, width - own :] = read ^ np.uint8(128) if own == 1 else read  # 128 is 0
            scale = np.float32(2.0 ** (8 * width - 1))
            samples = integers.view(f"<i{width}")[:, 0].astype(np.float32) / scale
        if self.channels == 1:
            return samples
        columns = samples.reshape(-1, self.channels).T
        mixed: Array = columns[0].copy()
        for column in columns[1:]:  # in one order, which NumPy's sums have not
            mixed += column
        mixed /= np.float32(self.channels)
        return mixed


def open_wav(path: str | os.PathLike[str]) -> Audio:
    """Open a WAV file: PCM of 8, 16, 24 or 32 bits or floats, any channels, any sample rate."""
    with contextlib.ExitStack() as on_error:
        file = on_error.enter_context(Path(path).open("rb"))
        audio = read_audio(file, printable(os.fspath(path)))
        on_error.pop_all()
    return audio


def read_audio(file: BinaryIO, name: str, raw_rate: int | None = None) -> Audio:
    """
    Read a WAV as its bytes come, without waiting for more than there are.

    With `raw_rate` it may also be raw samples of that rate, 16 bits, little-endian and mono. If it
    is neither, a ValueError says with which command it becomes one.
    """
    start = file.read(12)
    if start[:4] in (b"RIFF", b"RF64") and start[8:] == b"WAVE":
        encoding, size = _header(file, name)
        is_known = 0 < size < UNKNOWN
        seconds = size / encoding.frame / encoding.sample_rate if is_known else None
        blocks = _blocks(file, encoding, b"", size if is_known else 2**63)
        return Audio(name, encoding.sample_rate, blocks, file.close, seconds, raw_rate is not None)
    if raw_rate is None and not start:
        raise ValueError(f"{name}: a recording must have samples, found an empty file")
    magic = next(filter(start.startswith, STARTS), b"")
    if raw_rate is None or len(magic) > 2:  # one or two bytes may be samples
        raise ValueError(_refusal(name, STARTS.get(magic, OTHER), raw_rate))
    encoding = Encoding(PCM, 1, raw_rate, 16)
    blocks = _blocks(file, encoding, start, 2**63)
    return Audio(name, raw_rate, blocks, file.close, None, is_live=True)


def _refusal(name: str, found: str, raw_rate: int | None) -> str:
    """Say what to do with audio that is not read here."""
    if raw_rate is not None:
        remedy = f"put `ffmpeg -i - -f s16le -ac 1 -ar {raw_rate} -` before it in the pipe"
        return f"{name} must be raw 16-bit samples or a WAV, found {found}; {remedy}"
    source, target = shlex.quote(name), shlex.quote(f"{Path(name).stem}.16k.wav")
    remedy = f"convert it: ffmpeg -i {source} -ac 1 -ar 16000 -c:a pcm_s16le {target}"
    if found == OTHER:
        remedy = f"`- < {source}` reads raw 16-bit samples; else {remedy}"
    return f"{name}: a WAV of PCM or floats is read here, found {found}; {remedy}"


def resampler(from_rate: int, to_rate: int) -> Any:
    """
    Return soxr's stream from one rate to another: its ``resample_chunk`` takes samples (n,).

    What comes out is the same for every way of cutting the signal; that it has the same bits on
    every processor is soxr's to say, not this library's.
    """
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"samples at {from_rate} Hz must be resampled to {to_rate} Hz, which needs soxr: "
            "pip install 'edgeconv[audio]'"
        ) from error
    return soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")


def _header(file: BinaryIO, name: str) -> tuple[Encoding, int]:
    """Read up to the samples; return how they are written, and how many bytes they have."""
    encoding = None
    while len(head := file.read(8)) == 8:
        chunk, size = head[:4], int.from_bytes(head[4:], "little")
        if chunk == b"data" and encoding is not None:
            return encoding, size
        padded = size + size % 2
        if chunk == b"fmt ":
            form = file.read(min(padded, 40))
            encoding = _encoding(form, name)
            padded -= len(form)
        while padded > 0 and (skipped := file.read(min(padded, 2**16))):
            padded -= len(skipped)
    missing = "no samples" if encoding else "no format"
    raise ValueError(f"{name}: a WAV must have a format and samples, found {missing}; record again")


def _encoding(form: bytes, name: str) -> Encoding:
    if len(form) < 16:
        raise ValueError(f"{name}: a WAV's format has 16 bytes, found {len(form)}; record again")
    tag, channels, sample_rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if tag == EXTENSIBLE and len(form) >= 26:
        (tag,) = struct.unpack_from("<H", form, 24)
    if bits not in {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}.get(tag, ()):
        known = {PCM: f"PCM of {bits} bits", FLOAT: f"floats of {bits} bits"} | COMPRESSED
        raise ValueError(_refusal(name, known.get(tag, f"format {tag:#x}"), None))
    low, high = RATES
    if not channels or not low <= sample_rate <= high:
        expected = f"channels and a rate from {low} to {high} Hz"
        found = f"{channels} channels at {sample_rate} Hz"
        raise ValueError(f"{name}: a WAV must have {expected}, found {found}; it is damaged")
    return Encoding(tag, channels, sample_rate, bits)


def _blocks(file: Any, encoding: Encoding, first: bytes, size: int) -> Iterator[Array]:
    """Yield what there is as it comes; a frame that the end cuts is dropped."""
    step = encoding.frame * max(encoding.sample_rate // 10, 1)
    rest = b""
    for data in itertools.chain([first], iter(lambda: file.read1(step), b"")):
        data, size = rest + data[:size], size - len(data)
        whole = len(data) - len(data) % encoding.frame
        rest = data[whole:]
        if whole:
            yield encoding.mono(data[:whole])
        if size <= 0:
            return
