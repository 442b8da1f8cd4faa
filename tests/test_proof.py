"""What `verify` proves, and that each kind of wrong bit makes it fail."""

import contextlib
import ctypes
import hashlib
import json
import platform
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import convolve, fused, same_bits
from strategies import arrays, modules, seeds
from test_readme import blocks

from edgeconv import (
    CheckpointError,
    DepthwiseConvolution,
    VerificationError,
    cli,
    kernels,
    parallel,
    save,
    verify,
)
from edgeconv import digest as digests
from edgeconv.checkpoint import converted
from edgeconv.proof import _fused
from edgeconv.stream import Stream

CAUSAL = DepthwiseConvolution(5, 7, causal=True, rng=0)
CENTRED = DepthwiseConvolution(9, 5, causal=False, rng=0)


@pytest.fixture
def path(tmp_path):
    """Return where to write a file."""
    return tmp_path / "w.npz"


def changed(conv, **arrays):
    """Return a module with another weight or bias."""
    state = {f"conv.{name}": getattr(conv, name) for name in ("weight", "bias")}
    state |= {f"conv.{name}": array for name, array in arrays.items()}
    return DepthwiseConvolution.from_state_dict(state, causal=conv.causal)


def flipped(array, index=0):
    """Return a copy with the lowest bit of one element flipped."""
    copy = array.copy()
    copy.view(np.uint32).flat[index] ^= 1
    return copy


def any_bits(seed):
    """Return (3, 200) float32 of any bits."""
    return np.random.default_rng(seed).integers(2**32, size=(3, 200), dtype=np.uint32).view("f4")


# The specification.


def test_the_input_is_what_the_readme_writes_out():
    (source,) = (block for block in blocks("python") if "def digest_input" in block)
    namespace = {}
    exec(source, {"np": np}, namespace)
    for channels, kernel_size in [(2, 1), (10, 7), (34, 31)]:
        x = namespace["digest_input"](channels, kernel_size)
        assert x.tobytes() == digests.signal(channels, kernel_size).tobytes()


@pytest.mark.parametrize("conv", [CAUSAL, CENTRED], ids=["causal", "centred"])
def test_the_digest_is_that_of_the_definition(conv):
    x = digests.signal(conv.channels, conv.kernel_size)
    tiny = x * np.float32(2.0**-126)
    outputs = b""
    for heard, bias in ((x, conv.bias), (tiny, np.zeros_like(conv.bias))):
        y = convolve(heard, conv.weight, bias, conv.causal)
        assert np.isnan(y).any()
        y.view(np.uint32)[np.isnan(y)] = 0x7FC00000
        outputs += y.astype("<f4").tobytes()
    is_subnormal = (y != 0) & (abs(y) < np.finfo(np.float32).tiny)
    assert is_subnormal.mean() > 0.5
    expected = hashlib.sha256(outputs).hexdigest()
    assert verify(conv) == {"": expected}
    assert digests.of_module(conv) == expected


def test_every_nan_counts_as_the_same():
    bits = np.array([0x3F800000, 0x7FC00000, 0x7F800001, 0xFFC12345], np.uint32)
    y = bits.view(np.float32)
    same = np.where(np.isnan(y), np.float32(np.nan), y)
    assert digests.of_outputs([y]) == digests.of_outputs([same]) != digests.of_outputs([y[:3]])
    infinite = np.array([np.inf, -np.inf, 0, -0.0], np.float32)
    assert len({digests.of_outputs([value[None]]) for value in infinite}) == 4


def test_the_input_passes_the_ring_before_and_after_the_special_frames():
    for kernel_size in (1, 3, 31, 301):
        period = kernel_size - 1 + kernels.PASS
        x = digests.signal(18, kernel_size)
        (special,) = np.nonzero((~np.isfinite(x) | (abs(x) > 2)).any(axis=1))
        assert special[0] > period
        assert len(x) - special[-1] - kernel_size > period
        assert len(special) == 9
        assert len(np.unique(x)) > 0.96 * (x.size - 9 * 18)


# Twice rounded, to float64 and to float32, these sums would be off by one unit in the last place.
NEARLY_TIES = np.array(
    [[1 + 2**-12, 1 + 2**-12, 2**-80], [1 + 2**-12, 1 + 2**-12, -(2**-80)]], np.float32
).T


@given(arrays((3, 200), special=st.just(True)) | seeds.map(any_bits) | st.just(NEARLY_TIES))
def test_numpys_multiply_add_is_that_of_the_c_library(abc):
    expected = np.array([fused(*terms) for terms in abc.T])
    assert same_bits(_fused(*abc), expected)


@given(modules())
@settings(max_examples=20)
def test_every_module_computes_the_definition(conv):
    verify(conv)


# What is verified.


def test_a_file_is_verified_with_what_it_records(path):
    save(path, {"a": CAUSAL, "b.c": CENTRED})
    found = verify(path)
    assert list(found) == ["a", "b.c"]
    with np.load(path) as archive:
        header = json.loads(str(archive["edgeconv"]))
    assert found == {name: module["digest"] for name, module in header["modules"].items()}
    assert found["a"] == verify(CAUSAL)[""]
    assert verify(path, "b.c", seed=7) == {"b.c": found["b.c"]}
    CENTRED.save(path)
    assert verify(path) == verify(path, "") == verify(CENTRED)


def test_files_without_digests(path):
    np.savez(path, **CAUSAL.state_dict())
    message = f"^{path}: NumPy npz: a file to verify must record .*, found none; write it with"
    with pytest.raises(CheckpointError, match=message):
        verify(path)
    header = {"format": "edgeconv", "version": 1, "source": None}
    header["modules"] = {"": {"causal": True, "channels": 10, "kernel_size": 7}}
    np.savez(path, edgeconv=json.dumps(header), **CAUSAL.state_dict())
    with pytest.raises(CheckpointError, match=message):
        verify(path)


def test_wrong_arguments(path):
    CAUSAL.save(path)
    with pytest.raises(ValueError, match="`prefix` must be None for a module in memory, got 'a'"):
        verify(CAUSAL, "a")
    with pytest.raises(CheckpointError, match="prefix 'a' must have the key"):
        verify(path, "a")
    with pytest.raises(TypeError, match="`prefix` must be a str or None"):
        verify(path, 3)
    with pytest.raises(TypeError, match="`path` must be a str or path-like, got dict"):
        verify({"a": CAUSAL})


# Negative controls.


def fails(call, conv, expected, way):
    """Assert that a verification fails, and that its message tells all."""
    with pytest.raises(VerificationError) as caught:
        call()
    pattern = (
        rf"{re.escape(str(conv))}.*: the outputs must have the digest {expected} .*, "
        rf"got (?!{expected})[0-9a-f]{{64}} {way}; .* this with what `edgeconv doctor` prints"
    )
    assert re.fullmatch(pattern, str(caught.value))


@pytest.mark.parametrize(
    "wrong",
    [
        changed(CAUSAL, weight=flipped(CAUSAL.weight)),
        changed(CAUSAL, weight=flipped(CAUSAL.weight, CAUSAL.weight.size - 1)),
        changed(CAUSAL, bias=flipped(CAUSAL.bias, 3)),
        changed(CAUSAL, weight=CAUSAL.weight[:, :, ::-1]),
        changed(CAUSAL, weight=CAUSAL.weight[::-1]),
    ],
    ids=["first weight", "last weight", "bias", "taps reversed", "channels reversed"],
)
def test_a_wrong_weight(wrong, path):
    expected = digests.of_module(CAUSAL)
    converted.write(path, {"right": CENTRED, "wrong": wrong}, {
        "right": digests.of_module(CENTRED), "wrong": expected})  # fmt: skip
    fails(lambda: verify(path), wrong, expected, "offline")
    fails(lambda: verify(path, "wrong"), wrong, expected, "offline")
    verify(path, "right")


def test_an_altered_digest(path):
    first, rest = digests.of_module(CAUSAL)[0], digests.of_module(CAUSAL)[1:]
    altered = f"{15 - int(first, 16):x}{rest}"
    converted.write(path, {"": CAUSAL}, {"": altered})
    fails(lambda: verify(path), CAUSAL, altered, "offline")


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
        (DepthwiseConvolution, "__call__", 0, "offline"),
        (DepthwiseConvolution, "__call__", 1, "offline"),
        (Stream, "step", 99, "frame by frame"),
        (Stream, "flush", 0, "frame by frame"),
        (Stream, "process", 3, r"in random chunks \(seed 3\)"),
        (Stream, "flush", 2, r"in random chunks \(seed 3\)"),
        (Stream, "flush", 5, "in a batch whose rows differ"),
    ],
)
def test_a_wrong_bit_of_one_way_to_run(owner, name, calls, way, path, monkeypatch):
    CENTRED.save(path)
    expected = digests.of_module(CENTRED)
    for target in (path, CENTRED):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, one_bit_off(getattr(owner, name), calls))
            fails(lambda target=target: verify(target, seed=3), CENTRED, expected, way)
        verify(target, seed=3)


def test_another_order_of_the_taps(monkeypatch):
    """Any order gives sums within the error bound; verification tells them apart."""

    def descending(conv, x):
        padded = np.pad(x[0], ((conv.lorder, 0), (0, 0)))
        y = conv.bias
        for k in reversed(range(conv.kernel_size)):
            y = _fused(conv.weight[:, 0, k], padded[k : k + x.shape[1]], y)
        return y[None], None

    expected = digests.of_module(CAUSAL)
    monkeypatch.setattr(DepthwiseConvolution, "__call__", descending)
    fails(lambda: verify(CAUSAL), CAUSAL, expected, "offline")


def test_a_processor_that_flushes_subnormals(path, monkeypatch):
    CAUSAL.save(path)
    expected = digests.of_module(CAUSAL)
    call = DepthwiseConvolution.__call__

    def flushed(conv, x):
        y, cache = call(conv, x)
        y[abs(y) < np.finfo(np.float32).tiny] = 0
        return y, cache

    monkeypatch.setattr(DepthwiseConvolution, "__call__", flushed)
    fails(lambda: verify(path), CAUSAL, expected, "offline")


@contextlib.contextmanager
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
REGISTER = {"x86_64": (28, 0x8040, 0x2000), "aarch64": (0, 1 << 24, 2 << 22)}[platform.machine()]


@pytest.mark.parametrize("bits", REGISTER[1:])
def test_a_process_that_rounds_in_another_way_proves_nothing(bits, path, monkeypatch, capsys):
    CAUSAL.save(path)
    content = path.read_bytes()
    text = "this process must round to nearest and keep subnormal numbers"
    for call in (lambda: verify(CAUSAL), lambda: verify(path), lambda: CAUSAL.save(path)):
        with floating_point(REGISTER[0], bits), pytest.raises(FloatingPointError, match=text):
            call()
    for command in (["verify", str(path)], ["convert", str(path), f"{path}.new"], ["doctor"]):
        with floating_point(REGISTER[0], bits):
            assert cli.main(command) == 1
        assert text in capsys.readouterr().err
    assert path.read_bytes() == content
    verify(path)


def test_the_parallel_kernel_is_verified(path, monkeypatch):
    CENTRED.save(path)
    process = parallel.process

    def wrong(arguments, work):
        n_outputs = process(arguments, work)
        arguments[1].view(np.uint32).flat[-1] ^= work >= parallel.PARALLEL_WORK
        return n_outputs

    monkeypatch.setattr(parallel, "process", wrong)
    fails(lambda: verify(path), CENTRED, recorded(path), "on all threads")


def recorded(path):
    """Return the digest that a file of one module records."""
    with np.load(path) as archive:
        return json.loads(str(archive["edgeconv"]))["modules"][""]["digest"]


def test_a_machine_that_disagrees_with_itself_converts_nothing(path, monkeypatch):
    monkeypatch.setattr(Stream, "step", one_bit_off(Stream.step, 99))
    with pytest.raises(FloatingPointError, match=r"must give the same outputs however it is run"):
        CENTRED.save(path)
    assert not path.exists()


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None, True])
def test_a_seed_is_a_number(seed):
    with pytest.raises(ValueError, match="`seed` must be a non-negative integer, got "):
        verify(CAUSAL, seed=seed)


def test_seeds_cut_differently(monkeypatch):
    lengths = []
    process = Stream.process

    def counted(stream, chunk, *arguments, **options):
        lengths[-1].append(len(chunk))
        return process(stream, chunk, *arguments, **options)

    monkeypatch.setattr(Stream, "process", counted)
    for seed in (1, 2):
        lengths.append([])
        verify(CAUSAL, seed=seed)
    assert lengths[0] != lengths[1]
