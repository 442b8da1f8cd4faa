"""Wrong arguments: the error, its text, and nothing changed."""

import pickle

import numpy as np
import pytest
from reference import same_bits

from edgeconv import DepthwiseConvolution, Stream

C, K = 6, 5


@pytest.fixture
def conv():
    return DepthwiseConvolution(C // 2, K, causal=True, rng=0)


@pytest.fixture
def centred():
    return DepthwiseConvolution(C // 2, K, rng=0)


def frames(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kernel_size", [0, -1, 2, 2.5, 3.0, "3", None, True, [3], np.float32(3)])
def test_kernel_size_is_a_positive_odd_integer(kernel_size):
    with pytest.raises(
        ValueError, match="`kernel_size` must be a positive odd integer below 4096, got "
    ):
        DepthwiseConvolution(64, kernel_size)


@pytest.mark.parametrize("size", [0, -4, 2.0, "3", None, False, np.array([2])])
def test_size_is_a_positive_integer(size):
    with pytest.raises(ValueError, match="`size` must be a positive integer, got "):
        DepthwiseConvolution(size, 3)


def test_numpys_integers_are_shown():
    with pytest.raises(ValueError, match=r"positive odd integer below 4096, got (np.int64\()?4"):
        DepthwiseConvolution(64, np.int64(4))


@pytest.mark.parametrize("rng", ["x", 2.5, -1, True, np.random.RandomState(0), [1]])
def test_rng_is_a_generator_or_a_seed(rng):
    with pytest.raises(
        TypeError, match=r"`rng` must be None, a numpy.random.Generator or a non-neg"
    ):
        DepthwiseConvolution(2, 3, rng=rng)


@pytest.mark.parametrize("causal", [1, "yes", None])
def test_causal_is_a_bool(causal):
    with pytest.raises(TypeError, match="`causal` must be a bool, got "):
        DepthwiseConvolution(3, 3, causal=causal)


def test_modules_cannot_be_changed(conv):
    for name in ("size", "channels", "kernel_size", "causal", "lorder", "weight", "bias"):
        with pytest.raises(AttributeError):
            setattr(conv, name, 1)
    for array in (conv.weight, conv.bias, *conv.state_dict().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.setflags(write=True)


def test_weights_are_fixed_at_construction():
    state = {"conv.weight": frames(C, 1, K), "conv.bias": frames(C)}
    conv = DepthwiseConvolution.from_state_dict(state, causal=True)
    x = frames(1, 9, C)
    expected, _ = conv(x)
    for array in state.values():
        array[:] = 0
    assert same_bits(conv(x)[0], expected)
    assert list(conv.state_dict()) == ["conv.weight", "conv.bias"]
    again = DepthwiseConvolution.from_state_dict(conv.state_dict(), causal=True)
    assert same_bits(again(x)[0], expected)


NOT_FLOATS = [
    (np.zeros((1, 9, C), np.int16), "got an array of int16; convert it with the scale"),
    (np.zeros((1, 9, C), bool), "got an array of bool"),
    (np.zeros((1, 9, C), complex), "got an array of complex128"),
    (np.zeros((1, 9, C), object), "got an array of object"),
    (np.zeros((1, 9, C)).tolist(), "got list$"),
    (np.ma.zeros((1, 9, C)), "got a MaskedArray of float64$"),
    (np.zeros((9, C)).view(np.matrix), "got a matrix of float64$"),
    (None, "got None$"),
    (3.5, "got 3.5$"),
]


@pytest.mark.parametrize(("value", "text"), NOT_FLOATS)
def test_inputs_are_arrays_of_floats(conv, value, text):
    stream = conv.stream()
    for name, call in (
        ("x", conv),
        ("frame", stream.step),
        ("chunk", stream.process),
        ("cache", lambda cache: conv(frames(1, 2, C), cache=cache)),
        ("cache", lambda cache: setattr(stream, "cache", cache)),
    ):
        if value is None and call is not conv and name == "cache":
            continue
        with pytest.raises(TypeError, match=f"`{name}` must be a NumPy array of floats, {text}"):
            call(value)
    assert stream.frames_in == 0


def test_a_tensor_of_pytorch_is_named_with_the_remedy(conv):
    class Tensor:
        def numpy(self):
            raise AssertionError("never called")

    with pytest.raises(TypeError, match=r"got Tensor; pass its `.numpy\(\)`"):
        conv(Tensor())


@pytest.mark.parametrize("shape", [(), (C,), (9, C), (1, 9, C + 1), (1, C, 9), (1, 1, 9, C)])
def test_x_has_three_dimensions_and_the_channels(conv, shape):
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, T, 6\), got .*; expected by "):
        conv(frames(*shape))


@pytest.mark.parametrize("shape", [(), (1,), (C + 1,), (1, C), (C, C)])
def test_a_frame_has_the_shape_that_the_stream_was_opened_for(conv, shape):
    stream = conv.stream()
    with pytest.raises(
        ValueError,
        match=r"`frame` must have shape \(6,\), got .*; expected by DepthwiseConvolution\(size=3, "
        r"kernel_size=5, causal=True\), stream opened with batch_size=None",
    ):
        stream.step(frames(*shape))


@pytest.mark.parametrize("shape", [(C,), (3, C), (2, C + 1), (4, C), (2, 1, C)])
def test_a_frame_of_a_batch(conv, shape):
    with pytest.raises(ValueError, match=r"`frame` must have shape \(2, 6\), got .*batch_size=2"):
        conv.stream(batch_size=2).step(frames(*shape))


@pytest.mark.parametrize("shape", [(), (C,), (9, C + 1), (1, 9, C), (0, C - 1)])
def test_a_chunk(conv, shape):
    with pytest.raises(ValueError, match=r"`chunk` must have shape \(T, 6\), got "):
        conv.stream().process(frames(*shape))


@pytest.mark.parametrize("shape", [(9, C), (1, 9, C), (3, 9, C), (2, 9, C + 1), (4, 0, C)])
def test_a_chunk_of_a_batch(conv, shape):
    with pytest.raises(ValueError, match=r"`chunk` must have shape \(2, T, 6\), got "):
        conv.stream(batch_size=2).process(frames(*shape))


def read_only(array):
    array.setflags(write=False)
    return array


def misaligned(*shape):
    size = 4 * int(np.prod(shape))
    return np.zeros(size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


WRONG_OUT = [
    ([0.0] * C, TypeError, "`out` must be a NumPy array of float32, got list"),
    (np.zeros(C), TypeError, "got an array of float64"),
    (np.zeros(C, ">f4"), TypeError, "got an array of >f4"),
    (np.ma.zeros(C, np.float32), TypeError, "got a MaskedArray of float32"),
    (frames(C + 1), ValueError, r"`out` must have shape \(6,\), got \(7,\); expected by Depth"),
    (frames(1, C), ValueError, r"`out` must have shape \(6,\), got \(1, 6\)"),
    (frames(2 * C)[::2], ValueError, "got one that is not C-contiguous"),
    (read_only(frames(C)), ValueError, "got one that is read-only"),
    (misaligned(C), ValueError, "got one that is misaligned"),
]


@pytest.mark.parametrize(("out", "error", "text"), WRONG_OUT)
def test_out_is_what_the_kernels_write(conv, out, error, text):
    stream = conv.stream()
    stream.step(frames(C))
    with pytest.raises(error, match=text):
        stream.step(frames(C), out=out)
    assert stream.frames_in == 1


def test_process_writes_to_no_read_only_array(conv):
    with pytest.raises(ValueError, match="got one that is read-only"):
        conv.stream().process(frames(3, C), out=read_only(frames(3, C)))


@pytest.mark.parametrize("shape", [(4, C), (2, C), (3, C + 1), (3 * C,), (1, 3, C)])
def test_out_of_process_has_a_row_for_every_final_frame(conv, centred, shape):
    for module, n_frames in ((conv, 3), (centred, 5)):
        stream = module.stream()
        with pytest.raises(ValueError, match=r"`out` must have shape \(3, 6\), got "):
            stream.process(frames(n_frames, C), out=np.zeros(shape, np.float32))
        assert stream.frames_in == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_may_not_overlap_the_input(conv, dtype):
    stream = conv.stream()
    memory = np.zeros(100 * C, dtype)
    out = memory.view(np.float32)[: 4 * C].reshape(4, C)
    for chunk in (
        memory[: 4 * C].reshape(4, C),
        memory[C : 5 * C].reshape(4, C),
        memory[: 8 * C].reshape(8, C)[::2],
    ):
        with pytest.raises(ValueError, match="`out` must not overlap `chunk`, got two arrays that"):
            stream.process(chunk, out=out)
    with pytest.raises(ValueError, match="`out` must not overlap `frame`"):
        stream.step(memory[:C], out=out[0])
    assert stream.frames_in == 0
    neighbour = memory[8 * C : 12 * C].reshape(4, C)
    assert stream.process(neighbour, out=out) is out


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_another_mask_than_booleans_is_told_the_polarity(conv, dtype):
    with pytest.raises(
        TypeError, match="`mask` must be a Boolean NumPy array that is True where a frame is to be"
    ):
        conv(frames(2, 9, C), mask=np.ones((2, 9), dtype))


@pytest.mark.parametrize("mask", [[[True] * 9] * 2, True, np.ma.ones((2, 9), bool)])
def test_a_mask_is_an_array(conv, mask):
    with pytest.raises(TypeError, match="`mask` must be a Boolean NumPy array"):
        conv(frames(2, 9, C), mask=mask)


@pytest.mark.parametrize(
    "shape", [(9,), (2,), (2, 8), (3, 9), (9, 2), (2, 1), (2, 9, 1), (2, 9, C)]
)
def test_a_mask_has_a_value_for_every_frame(conv, shape):
    with pytest.raises(ValueError, match=r"`mask` must have shape \(B, T\) = \(2, 9\) or \(1, T\)"):
        conv(frames(2, 9, C), mask=np.zeros(shape, bool))


@pytest.mark.parametrize("shape", [(1, C, K - 1), (2, C, K), (2, K - 1, C), (C, K - 1), (2, C, 0)])
def test_a_cache_has_espnets_shape(conv, shape):
    with pytest.raises(
        ValueError, match=r"`cache` must have shape \(B, C, K - 1\) = \(2, 6, 4\)"
    ) as e:
        conv(frames(2, 9, C), cache=frames(*shape))
    assert "(1, conv_kernel, D_hidden)" in str(e.value)
    stream = conv.stream(batch_size=2)
    with pytest.raises(ValueError, match=r"`cache` must have shape \(B, C, K - 1\) = \(2, 6, 4\)"):
        stream.cache = frames(*shape)


def test_a_centred_module_takes_no_cache(centred):
    with pytest.raises(ValueError, match=r"`cache` must be None .* through `conv.stream\(\)`"):
        centred(frames(1, 9, C), cache=frames(1, C, K - 1))
    with pytest.raises(ValueError, match=r"`cache` cannot be assigned: .* is not causal"):
        centred.stream().cache = frames(1, C, K - 1)


@pytest.mark.parametrize("batch_size", [1.0, "2", True, np.float64(3), [1]])
def test_a_batch_size_is_an_integer(conv, batch_size):
    with pytest.raises(TypeError, match="`batch_size` must be an integer, got "):
        conv.stream(batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_is_positive(conv, batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be positive, got "):
        conv.stream(batch_size=batch_size)
    assert conv.stream(batch_size=np.int8(2)).frames_in.tolist() == [0, 0]


def test_arrays_of_the_caller_are_never_written(conv):
    x, cache, mask = frames(2, 9, C), frames(2, C, K - 1), np.eye(2, 9, dtype=bool)
    before = [array.tobytes() for array in (x, cache, mask)]
    for array in (x, cache, mask):
        array.setflags(write=False)
    conv(x, mask=mask, cache=cache)
    assert [array.tobytes() for array in (x, cache, mask)] == before


def equal_types():
    """Arrays of float32 whose dtype is equal to NumPy's, but another object."""
    x = frames(3, C)
    metadata = np.dtype(np.float32, metadata={"unit": "V"})
    swapped_twice = np.dtype(">f4").newbyteorder("<")
    return [pickle.loads(pickle.dumps(x)), x.astype(metadata), x.astype(swapped_twice)]


@pytest.mark.parametrize("kind", range(3))
def test_a_type_that_is_equal_but_not_identical_is_float32(conv, centred, kind):
    x, out = equal_types()[kind], equal_types()[kind]
    stream = conv.stream()
    assert stream.process(x, out=out) is out
    assert same_bits(np.asarray(out, np.float32), conv(x[None])[0][0])
    assert stream.step(x[0], out=out[0]) is not None
    assert stream.frames_in == 4
    assert centred.stream().step(x[0], out=out[0]) is None


def test_an_empty_output_lies_anywhere(centred):
    stream = centred.stream()
    out = np.ndarray((0, C), np.float32, buffer=bytearray(9), offset=1)
    assert stream.process(frames(2, C), out=out) is out
    assert stream.frames_in == 2


def test_a_kernel_that_refuses_what_was_checked_is_an_error(conv):
    stream = conv.stream()
    stream._step = lambda *_: -1
    with pytest.raises(RuntimeError, match=r"<Stream of .* refuses what was checked: another"):
        stream.step(frames(C))


def test_a_stream_is_of_a_module():
    with pytest.raises(TypeError, match="`conv` must be a DepthwiseConvolution, got 'x'"):
        Stream("x", None)


def test_a_memory_map_is_an_input(conv, tmp_path):
    x = frames(9, C)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = conv(x[None])[0][0]
    assert same_bits(conv(mapped[None])[0][0], expected)
    assert same_bits(conv.stream().process(mapped), expected)
    assert same_bits(conv.stream().step(mapped[0]), expected[0])
