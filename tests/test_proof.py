"""What `verify` proves, and that each kind of wrong bit makes it fail."""

import ctypes
import hashlib
import json
import platform
import re
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from reference import convolve
from strategies import modules
from test_readme import ROOT, blocks

from edgeconv import CheckpointError, DepthwiseConvolution, VerificationError, load, save, verify
from edgeconv.digest import signal
from edgeconv.stream import Stream

CAUSAL = DepthwiseConvolution(5, 7, causal=True, rng=0)
CENTRED = DepthwiseConvolution(9, 5, causal=False, rng=0)


@pytest.fixture
def path(tmp_path):
    """Return where to write a file."""
    return tmp_path / "w.npz"


def test_the_input_is_what_the_documentation_writes_out():
    pages = blocks("python", ROOT / "docs" / "files.md")
    (source,) = (block for block in pages if "def digest_input" in block)
    namespace = {"np": np}
    exec(source, namespace)
    for channels, kernel_size in [(1, 2), (2, 1), (10, 7), (34, 31)]:
        x = namespace["digest_input"](channels, kernel_size)
        assert x.tobytes() == signal(channels, kernel_size).tobytes()


@pytest.mark.parametrize("conv", [CAUSAL, CENTRED], ids=["causal", "centred"])
def test_the_digest_is_that_of_the_definition(conv, path):
    x = signal(conv.channels, conv.kernel_size)
    with np.errstate(all="ignore"):
        tiny = x * np.float32(2.0**-126)
    outputs = b""
    for heard, bias in ((x, conv.bias), (tiny, np.zeros_like(conv.bias))):
        y = convolve(heard, conv.weight, bias, conv.causal)
        assert np.isnan(y).any()
        y.view(np.uint32)[np.isnan(y)] = 0x7FC00000
        outputs += y.astype("<f4").tobytes()
    is_subnormal = (y != 0) & (abs(y) < np.finfo(np.float32).tiny)
    assert is_subnormal.mean() > 0.5
    save(path, {"": conv})
    expected = {"": hashlib.sha256(outputs).hexdigest()}
    assert verify(conv) == verify(path) == verify(path, "", seed=7) == expected


@settings(max_examples=15)
@given(modules())
def test_every_module_computes_the_same_in_all_ways(conv):
    verify(conv)


def fails(call, expected, way):
    """Assert that a verification fails, and that its message tells all."""
    with pytest.raises(VerificationError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("DepthwiseConvolution(")
    assert f"must have the digest {expected}" in text
    assert re.search(rf"got (?!{expected})[0-9a-f]{{64}} {way}; .* `edgeconv doctor`", text)


def flipped(index):
    def flip(array):
        array.view(np.uint32).flat[index] ^= 1
        return array

    return flip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, flipped(index)) for name in ("weight", "bias") for index in (0, -1)),
        ("weight", lambda taps: taps[:, :, ::-1]),
        ("weight", lambda taps: taps[::-1]),
    ],
)
def test_wrong_weights(name, change, path):
    save(path, {"right": CENTRED, "wrong": CAUSAL})
    expected = verify(path)["wrong"]
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays[f"wrong.conv.{name}"] = change(arrays[f"wrong.conv.{name}"])
    np.savez(path, **arrays)
    fails(lambda: verify(path), expected, "offline")
    fails(lambda: verify(path, "wrong"), expected, "offline")
    verify(path, "right")
    verify(load(path, "wrong"))  # of itself it is right


def one_bit_off(function, calls):
    """Return a function that flips one bit of what it returns in one of its calls."""
    count = iter(range(-calls, 1))

    def wrong(*arguments, **options):
        result = function(*arguments, **options)
        y = result[0] if isinstance(result, tuple) else result
        if next(count, None) == 0:
            y.view(np.uint32).flat[-1] ^= 1
        return result

    return wrong


@pytest.mark.parametrize(
    ("owner", "name", "calls", "way"),
    [
        (DepthwiseConvolution, "__call__", 1, "offline"),
        (Stream, "step", 99, "frame by frame"),
        (Stream, "flush", 3, "frame by frame"),
        (Stream, "process", 11, r"in random chunks \(seed 3\)"),
        (Stream, "flush", 5, r"in random chunks \(seed 3\)"),
    ],
)
def test_a_wrong_bit_of_one_way_to_run(owner, name, calls, way, path, monkeypatch):
    save(path, {"": CENTRED})
    expected = verify(path)[""]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, one_bit_off(getattr(owner, name), calls))
        fails(lambda: verify(path, seed=3), expected, way)
    verify(path, seed=3)
    with monkeypatch.context() as patch:  # in memory, ways are compared with the first one
        patch.setattr(owner, name, one_bit_off(getattr(owner, name), calls))
        other = "frame by frame" if way == "offline" else way
        with pytest.raises(VerificationError, match=f"digest .* offline, got .* {other};"):
            verify(CENTRED, seed=3)


def test_a_machine_that_disagrees_with_itself_converts_nothing(path, monkeypatch):
    monkeypatch.setattr(Stream, "step", one_bit_off(Stream.step, 99))
    with pytest.raises(VerificationError, match="frame by frame"):
        save(path, {"": CENTRED})
    assert not path.exists()


def test_a_processor_that_flushes_subnormals(path, monkeypatch):
    save(path, {"": CAUSAL})
    expected = verify(path)[""]
    call = DepthwiseConvolution.__call__

    def flushed(conv, x):
        y, cache = call(conv, x)
        y[abs(y) < np.finfo(np.float32).tiny] = 0
        return y, cache

    monkeypatch.setattr(DepthwiseConvolution, "__call__", flushed)
    fails(lambda: verify(path), expected, "offline")


def test_files_without_digests(path):
    np.savez(path, **CAUSAL.state_dict())
    message = rf"^{path}: a file to verify must record .*, found none; write it with"
    with pytest.raises(CheckpointError, match=message):
        verify(path)
    header = {"format": "edgeconv", "version": 1, "source": None}
    header["modules"] = {"": {"causal": True, "channels": 10, "kernel_size": 7}}
    np.savez(path, edgeconv=json.dumps(header), **CAUSAL.state_dict())
    with pytest.raises(CheckpointError, match=message):
        verify(path)
    save(path, {"a": CAUSAL})
    with pytest.raises(CheckpointError, match=r"'b' must be a depthwise .*; choose from 'a'"):
        verify(path, "b")


@contextmanager
def floating_point(offset, bits):
    """Set bits of the processor's control register, as libraries built with -ffast-math do."""
    libm = ctypes.CDLL("libm.so.6")
    before = (ctypes.c_char * 64)()
    libm.fegetenv(before)
    changed = (ctypes.c_char * 64).from_buffer_copy(before)
    register = ctypes.c_uint32.from_buffer(changed, offset)
    register.value |= bits
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)


# Where glibc keeps the register of a processor, and its bits: flush to zero, round downwards.
OFFSET, *BITS = {"x86_64": (28, 0x8040, 0x2000), "aarch64": (0, 1 << 24, 2 << 22)}[
    platform.machine()
]


@pytest.mark.parametrize("bits", BITS, ids=["flush to zero", "round downwards"])
def test_files_are_right_whatever_the_thread_rounds_like(bits, path):
    conv = DepthwiseConvolution(9, 1, rng=0)  # of weights that keep the smallest subnormal
    expected = verify(conv)
    with floating_point(OFFSET, bits):
        save(path, {"": conv})
        found = verify(path)
    assert found == verify(path) == expected
