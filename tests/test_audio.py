"""Samples from WAV files and pipes: every way to write them, and what is refused with a remedy."""

import io
import os
import struct
import threading
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeconv.recogniser.audio import open_wav, read_audio

RATE = 16000
SOUND = np.random.default_rng(0).uniform(-1, 1, 5000)  # some blocks, the last one short
WIDTHS = {8: "u1", 16: "<i2", 24: "<i4", 32: "<i4"}


def written(bits, sound=SOUND):
    """Return samples as the bytes of PCM or floats, and what a reader should make of them."""
    if bits in ("f4", "f8"):
        samples = sound.astype(f"<{bits}")
        return samples.tobytes(), samples.astype(np.float32)
    scale = 2 ** (bits - 1)
    integers = np.round(sound * (scale - 1)).astype(np.int64)
    expected = (integers / scale).astype(np.float32)  # float64 holds the quotient exactly
    if bits == 24:
        return integers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), expected
    return (integers + 128 * (bits == 8)).astype(WIDTHS[bits]).tobytes(), expected


def header(data, bits=16, channels=1, rate=RATE, extensible=False, before=b"", size=None):
    """Return a WAV that holds `data`, as programs write it."""
    width, tag = (int(bits[1]) * 8, 3) if isinstance(bits, str) else (bits, 1)
    frame = channels * width // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, width)
    if extensible:
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHI", 22, width, 0) + guid
    size = len(data) if size is None else size
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"LIST" + struct.pack("<I", 3) + b"odd\0" + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + chunks + data


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 24, 32, "f4", "f8"])
def test_every_width_is_exact(bits, extensible, tmp_path):
    data, expected = written(bits)
    path = tmp_path / "a.wav"
    path.write_bytes(header(data, bits, extensible=extensible))
    audio = open_wav(path)
    assert (audio.name, audio.sample_rate, audio.is_live) == (str(path), RATE, False)
    assert audio.seconds == pytest.approx(len(SOUND) / RATE)
    read = audio.samples()
    assert read.dtype == np.float32
    assert np.array_equal(read, expected)


def test_as_the_standard_library_writes(tmp_path):
    path = str(tmp_path / "a.wav")
    data, expected = written(16)
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(data)
    audio = open_wav(path)
    assert audio.sample_rate == 8000
    assert np.array_equal(audio.samples(), expected)


@pytest.mark.parametrize("channels", [2, 3, 6])
@pytest.mark.parametrize("bits", [16, "f4"])
def test_channels_are_averaged(bits, channels):
    interleaved = np.random.default_rng(1).uniform(-1, 1, (4001, channels))
    data, each = written(bits, interleaved)
    read = read_audio(io.BytesIO(header(data, bits, channels)), "a").samples()
    assert np.abs(read - each.reshape(-1, channels).mean(1, dtype=np.float64)).max() < 1e-6
    loud = np.full((100, channels), 0.75)
    data, _ = written("f4", loud)
    same = read_audio(io.BytesIO(header(data, "f4", channels)), "a").samples()
    assert (same == np.float32(0.75)).all()


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_sizes_as_pipes_have_them(size):
    data, expected = written(16)
    audio = read_audio(io.BytesIO(header(data, size=size)), "a")
    assert audio.seconds is None
    assert np.array_equal(audio.samples(), expected)


def test_what_follows_the_samples_is_none_of_them():
    data, expected = written(16)
    audio = read_audio(io.BytesIO(header(data) + b"LIST\4\0\0\0tail"), "a")
    assert np.array_equal(audio.samples(), expected)


def test_a_file_that_was_cut_short_has_what_is_there():
    data, expected = written(16)
    audio = read_audio(io.BytesIO(header(data)[:-301]), "a")
    assert audio.seconds == pytest.approx(len(SOUND) / RATE)  # the header's word
    assert np.array_equal(audio.samples(), expected[:-151])


@pytest.mark.parametrize("length", [0, 1, 2, 11, 12, 13, 4999, 10000])
def test_raw_samples(length):
    data, expected = written(16)
    audio = read_audio(io.BytesIO(data[:length]), "-", raw_rate=8000)
    assert (audio.sample_rate, audio.seconds, audio.is_live) == (8000, None, True)
    assert np.array_equal(audio.samples(), expected[: length // 2])  # half a sample is none


@pytest.mark.parametrize("is_wav", [False, True])
@given(st.lists(st.integers(1, 9999), max_size=9), st.sampled_from([16, 24]))
def test_a_pipe_gives_what_is_there_at_once(is_wav, cuts, bits):
    data, expected = written(bits if is_wav else 16)
    data = header(data, bits) if is_wav else data
    reader, writer = os.pipe()
    pieces = np.split(np.frombuffer(data, np.uint8), sorted(min(cut, len(data)) for cut in cuts))

    def write():
        with os.fdopen(writer, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece.tobytes())

    thread = threading.Thread(target=write)
    thread.start()
    read = read_audio(os.fdopen(reader, "rb"), "-", RATE).samples()
    thread.join()
    assert np.array_equal(read, expected)


def test_a_block_does_not_wait_for_more_samples():
    reader, writer = os.pipe()
    os.write(writer, bytes(12) + b"\1\0\2\0\3")
    audio = read_audio(os.fdopen(reader, "rb"), "-", RATE)
    blocks = audio.blocks
    first = np.concatenate([next(blocks), next(blocks)])
    assert np.array_equal(first * 32768, [0, 0, 0, 0, 0, 0, 1, 2])
    os.write(writer, b"\0\4\0")
    assert np.array_equal(next(blocks) * 32768, [3, 4])
    os.close(writer)
    assert list(blocks) == []
    audio.close()


FORM = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)


def with_format(**fields):
    names = ["tag", "channels", "rate", "bytes_per_second", "frame", "bits"]
    values = dict(zip(names, struct.unpack("<HHIIHH", FORM), strict=True)) | fields
    form = struct.pack("<HHIIHH", *values.values())
    return b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + form + b"data\4\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must have samples, found an empty file"),
        (b"fLaC\0\0\0\x22", "found FLAC; convert it: ffmpeg -i '?.*it.wav'? .* it.16k.wav"),
        (b"OggS\0\2", "found Ogg; convert it"),
        (b"ID3\4\0", "found MP3; convert it"),
        (b"\xff\xfb\x90\0" + bytes(99), "found MP3; convert it"),
        (b"RIFX\0\0\0\0WAVE", "found big-endian WAV"),
        (b"RIFF\0\0\0\0AVI LIST", "found something else"),
        (b"<!DOCTYPE html>", "found a web page"),
        (np.random.default_rng(0).bytes(999), "found something else"),
        (with_format(tag=2, bits=4), "found ADPCM; convert it"),
        (with_format(tag=7, bits=8), "found mu-law; convert it"),
        (with_format(tag=0x55, bits=0), "found MP3; convert it"),
        (with_format(tag=0x1234), "found format 0x1234"),
        (with_format(bits=12), "found PCM of 12 bits"),
        (with_format(tag=3, bits=16), "found floats of 16 bits"),
        (with_format(channels=0), "found 0 channels at 16000 Hz; it is damaged"),
        (with_format(rate=0), "a rate from 1000 to 768000 Hz, found 1 channels at 0 Hz; it is dam"),
        (with_format(rate=1), "a rate from 1000 to 768000 Hz, found 1 channels at 1 Hz"),
        (with_format(rate=10**9), "found 1 channels at 1000000000 Hz; it is damaged"),
        (header(b"")[:12], "found no format; record again"),
        (header(b"")[:30], "has 16 bytes, found 10"),
        (header(b"")[:-8], "found no samples; record again"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0\0\0\0\0", "found no format"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff" + FORM + bytes(99), "found no samples"),
    ],
)  # fmt: skip
def test_what_is_no_wav_is_refused_in_one_line_with_the_remedy(content, words, tmp_path):
    path = tmp_path / "it.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        open_wav(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_compressed_audio_in_a_pipe_is_refused_and_samples_are_not():
    for start in (b"OggS", b"fLaC", b"ID3\4"):
        with pytest.raises(ValueError, match=r"ffmpeg -i - -f s16le -ac 1 -ar 8000 -"):
            read_audio(io.BytesIO(start + bytes(99)), "standard input", raw_rate=8000)
    data = np.array([-1025, -3073, 60], "<i2").tobytes()  # as MP3 begins, and a page: quiet noise
    assert len(read_audio(io.BytesIO(data), "-", raw_rate=8000).samples()) == 3


def test_memory_does_not_grow_with_the_file():
    """A block is a tenth of a second, whatever there is to read."""
    data = header(bytes(100_000), channels=2)
    blocks = read_audio(io.BytesIO(data), "a").blocks
    assert {len(block) for block in blocks} <= {RATE // 10, 100_000 // 4 % (RATE // 10)}
