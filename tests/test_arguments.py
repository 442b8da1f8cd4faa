"""Wrong arguments: the error, the words that help, and nothing changed."""

import numpy as np
import pytest
from reference import same_bits

from edgeconv import CheckpointError, DepthwiseConvolution

C, K = 6, 5
CONV = DepthwiseConvolution(C // 2, K, causal=True, rng=0)
CENTRED = DepthwiseConvolution(C // 2, K, rng=0)


def frames(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kernel_size", [0, -1, 2, 2.5, 3.0, "3", None, True, [3], np.int64(4)])
def test_kernel_size_is_a_positive_odd_integer(kernel_size):
    with pytest.raises(ValueError, match="`kernel_size` must be a positive odd integer, got "):
        DepthwiseConvolution(64, kernel_size)


@pytest.mark.parametrize("size", [0, -4, 2.0, "3", None, False, np.array([2])])
def test_size_is_a_positive_integer(size):
    with pytest.raises(ValueError, match="`size` must be a positive integer, got "):
        DepthwiseConvolution(size, 3)


@pytest.mark.parametrize("causal", [1, "yes", None])
def test_causal_is_a_bool(causal):
    with pytest.raises(TypeError, match="`causal` must be a bool, got "):
        DepthwiseConvolution(3, 3, causal=causal)


def test_an_even_number_of_taps_needs_a_causal_module():
    state = {"weight": frames(4, 1, 8), "bias": frames(4)}
    assert DepthwiseConvolution.from_state_dict(state, causal=True).lorder == 7
    with pytest.raises(CheckpointError, match=r"odd number of taps, found 8.*causal=True"):
        DepthwiseConvolution.from_state_dict(state, causal=False)


def test_modules_cannot_be_changed():
    for name in ("size", "channels", "kernel_size", "causal", "lorder", "weight", "bias"):
        with pytest.raises(AttributeError):
            setattr(CONV, name, 1)
    for array in (CONV.weight, CONV.bias, *CONV.state_dict().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_weights_are_fixed_at_construction():
    state = {"conv.weight": frames(C, 1, K), "conv.bias": frames(C)}
    conv = DepthwiseConvolution.from_state_dict(state, causal=True)
    x = frames(1, 9, C)
    expected, _ = conv(x)
    for array in state.values():
        array[:] = 0
    assert same_bits(conv(x)[0], expected)
    again = DepthwiseConvolution.from_state_dict(conv.state_dict(), causal=True)
    assert same_bits(again(x)[0], expected)


class Tensor:
    def numpy(self):
        raise AssertionError("never called")


NOT_FLOATS = [
    (np.zeros((1, 9, C), np.int16), r"int16; features and activations are floats"),
    (np.zeros((1, 9, C), bool), r"bool; pass `\w+.astype\(np.float32\)`"),
    (np.zeros((1, 9, C), complex), r"complex128; pass `abs\(\w+\)`"),
    (np.zeros((1, 9, C), object), r"object; pass `\w+.astype"),
    (np.zeros((1, 9, C)).tolist(), r"list.*np.asarray"),
    (np.ma.zeros((1, 9, C)), r"MaskedArray.*filled"),
    (np.zeros((9, C)).view(np.matrix), r"matrix of float64; pass `np.asarray\(\w+"),
    (3.5, "3.5"),
    (Tensor(), r"Tensor; pass `\w+.numpy\(\)`"),
]


@pytest.mark.parametrize(("value", "text"), NOT_FLOATS)
def test_inputs_are_arrays_of_floats(value, text):
    stream = CONV.stream()
    for name, call in (
        ("x", CONV),
        ("frame", stream.step),
        ("chunk", stream.process),
        ("cache", lambda cache: CONV(frames(1, 2, C), cache=cache)),
        ("cache", lambda cache: setattr(stream, "cache", cache)),
    ):
        with pytest.raises(TypeError, match=f"`{name}` must be .* floats, got .*{text}"):
            call(value)
    assert stream.frames_in == 0


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((), ""),
        ((C,), ""),
        ((9, C), r"; pass `x\[None\]`"),
        ((1, 9, C + 1), ""),
        ((1, C, 9), r"; transpose it: `x.swapaxes\(-1, -2\)`"),
        ((1, 1, 9, C), r"; pass `x\[0\]`"),
    ],
)
def test_x_has_three_dimensions_and_the_channels(shape, remedy):
    text = r"`x` must have shape \(B, T, 6\), got .*; expected by Depth[^;]*"
    with pytest.raises(ValueError, match=f"{text}{remedy}$"):
        CONV(frames(*shape))


@pytest.mark.parametrize(
    ("batch_size", "name", "wanted", "shapes"),
    [
        (None, "frame", r"\(6,\)", [(), (1,), (C + 1,), (1, C), (C, C)]),
        (2, "frame", r"\(2, 6\)", [(C,), (3, C), (2, C + 1), (4, C), (2, 1, C)]),
        (None, "chunk", r"\(T, 6\)", [(), (C,), (9, C + 1), (1, 9, C), (0, C - 1)]),
        (2, "chunk", r"\(2, T, 6\)", [(9, C), (1, 9, C), (3, 9, C), (2, 9, C + 1), (4, 0, C)]),
    ],
)
def test_frames_and_chunks_have_the_shape_that_the_stream_was_opened_for(
    batch_size, name, wanted, shapes
):
    stream = CONV.stream(batch_size)
    for shape in shapes:
        call = stream.step if name == "frame" else stream.process
        with pytest.raises(ValueError, match=f"`{name}` must have shape {wanted}, got "):
            call(frames(*shape))
    assert np.all(stream.frames_in == 0)


def read_only(array):
    array.setflags(write=False)
    return array


def misaligned(*shape):
    size = 4 * int(np.prod(shape))
    return np.zeros(size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        ([0.0] * C, TypeError, "list"),
        (np.zeros(C), TypeError, "float64"),
        (np.zeros(C, ">f4"), TypeError, ">f4"),
        (np.ma.zeros(C, np.float32), TypeError, "MaskedArray"),
        (frames(C + 1), ValueError, r"shape \(6,\), got \(7,\)"),
        (frames(1, C), ValueError, r"shape \(6,\), got \(1, 6\)"),
        (frames(2 * C)[::2], ValueError, "C_CONTIGUOUS : False"),
        (read_only(frames(C)), ValueError, "WRITEABLE : False"),
        (misaligned(C), ValueError, "ALIGNED : False"),
    ],
)
def test_out_is_what_the_kernels_write(out, error, text):
    stream = CONV.stream()
    stream.step(frames(C))
    with pytest.raises(error, match="`out` must .*(\n.*)*" + text):
        stream.step(frames(C), out=out)
    chunk_out = out[None] if isinstance(out, np.ndarray) else out
    with pytest.raises(error, match="`out` must "):
        stream.process(frames(1, C), out=chunk_out)
    assert stream.frames_in == 1


@pytest.mark.parametrize("shape", [(4, C), (2, C), (3, C + 1), (3 * C,), (1, 3, C)])
def test_out_of_process_has_a_row_for_every_final_frame(shape):
    for module, n_frames in ((CONV, 3), (CENTRED, 5)):
        stream = module.stream()
        with pytest.raises(ValueError, match=r"`out` must have shape \(3, 6\), got "):
            stream.process(frames(n_frames, C), out=frames(*shape))
        assert stream.frames_in == 0


@pytest.mark.parametrize("channels", [4, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_may_not_overlap_the_input(dtype, channels):
    conv = DepthwiseConvolution(channels // 2, K, causal=True, rng=0)
    stream = conv.stream()
    memory = np.zeros(20 * channels, np.float64).view(dtype)
    x = memory[: 9 * channels].reshape(9, channels)
    over = memory.view(np.float32)
    for start in (0, channels, 8 * channels):
        out = over[start : start + 9 * channels].reshape(9, channels)
        with pytest.raises(ValueError, match="`out` must not overlap the input"):
            stream.process(x, out=out)
        with pytest.raises(ValueError, match="`out` must not overlap the input"):
            stream.step(x[0], out=over[:channels])
    assert stream.frames_in == 0
    beside = np.zeros((2, 9, channels), np.float32)
    assert stream.process(beside[0], out=beside[1]) is not None


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_another_mask_than_booleans_is_told_the_polarity(dtype):
    for mask in (np.ones((2, 9), dtype), [[True] * 9] * 2, np.ma.ones((2, 9), bool)):
        with pytest.raises(TypeError, match=r"Boolean .* True where a frame is to be ignored"):
            CONV(frames(2, 9, C), mask=mask)


@pytest.mark.parametrize("shape", [(9,), (2, 8), (3, 9), (2, 9, 1), (2, 1)])
def test_a_mask_has_a_value_for_every_frame(shape):
    with pytest.raises(ValueError, match=r"`mask` must have shape \(B, T\) = \(2, 9\) or \(1, T\)"):
        CONV(frames(2, 9, C), mask=np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(1, C, K - 1), (2, C, K), (2, K - 1, C), (C, K - 1), (2, C, 0)])
def test_a_cache_has_espnets_shape(shape):
    with pytest.raises(ValueError, match=r"`cache` must have shape \(2, 6, 4\), got "):
        CONV(frames(2, 9, C), cache=frames(*shape))
    stream = CONV.stream(batch_size=2)
    with pytest.raises(ValueError, match=r"`cache` must have shape \(2, 6, 4\), got "):
        stream.cache = frames(*shape)


def test_a_centred_module_takes_no_cache():
    with pytest.raises(ValueError, match=r"`cache` must be None .*stream\(\)"):
        CENTRED(frames(2, 9, C), cache=frames(2, C, K - 1))
    with pytest.raises(ValueError, match="`cache` cannot be assigned"):
        CENTRED.stream().cache = frames(1, C, K - 1)


@pytest.mark.parametrize("batch_size", [1.0, "2", True, np.float64(3), [1.0], 0, -1])
def test_a_batch_size_is_a_positive_integer(batch_size):
    with pytest.raises((TypeError, ValueError), match="`batch_size` must be "):
        CONV.stream(batch_size=batch_size)


def test_arrays_of_the_caller_are_never_written():
    x, cache = frames(2, 9, C), frames(2, C, K - 1)
    mask = np.random.default_rng(0).random((2, 9)) < 0.5
    kept = [array.copy() for array in (x, cache, mask)]
    for array in (x, cache, mask):
        array.setflags(write=False)
    CONV(x, mask=mask, cache=cache)
    CONV(x, lengths=[3, 9])
    stream = CONV.stream(batch_size=2)
    stream.process(x)
    stream.step(x[:, 0])
    stream.cache = cache
    for array, before in zip((x, cache, mask), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_a_float32_that_is_not_numpys_own_object_is_float32():
    dtype = np.dtype(np.float32, metadata={"unit": "dB"})
    x = frames(9, C).astype(dtype)
    stream = CONV.stream()
    out = np.empty((9, C), dtype)
    assert stream.process(x, out=out) is out
    assert same_bits(np.asarray(out, np.float32), CONV(frames(1, 9, C))[0][0])


def test_memory_maps_are_inputs_and_outputs(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(5, C))
    x[:] = frames(5, C)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(5, C))
    assert CONV.stream().process(x, out=out) is out
    assert same_bits(np.asarray(out), CONV(np.asarray(x)[None])[0][0])
