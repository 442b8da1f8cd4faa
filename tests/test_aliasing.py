"""Arrays of the caller: reused, kept, overlapping. No effect on the outputs, or the error."""

import mmap
import pathlib
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from reference import same_bits

from edgeconv import DepthwiseConvolution

C, T = 6, 4
LAYOUTS = {
    "in order": lambda a, shape: a[: np.prod(shape)].reshape(shape),
    "backwards": lambda a, shape: a[: np.prod(shape)][::-1].reshape(shape),
    "channels backwards": lambda a, shape: a[: np.prod(shape)].reshape(shape)[..., ::-1],
    "transposed": lambda a, shape: a[: np.prod(shape)].reshape(shape[::-1]).T,
    "every other": lambda a, shape: a[: 2 * np.prod(shape) : 2].reshape(shape),
    "one for all": lambda a, shape: np.broadcast_to(a[:1], shape),
}


@pytest.fixture
def conv():
    return DepthwiseConvolution(C // 2, 5, causal=True, rng=0)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(C,), (T, C)])
def test_an_output_over_the_input_is_refused_and_one_beside_it_is_right(conv, shape, layout):
    size = int(np.prod(shape))
    stream = conv.stream()
    call = stream.step if len(shape) == 1 else stream.process
    content = noise(5 * size)
    place = np.arange(len(content), dtype=np.float32)
    outcomes = set()
    for start in range(3 * size):
        memory = content.copy()
        x = LAYOUTS[layout](memory[start:], shape)
        out = memory[2 * size : 3 * size].reshape(shape)
        expected = call(x.copy())
        stream.reset()
        taken = LAYOUTS[layout](place[start:], shape)
        overlaps = bool(((taken >= 2 * size) & (taken < 3 * size)).any())
        outcomes.add(overlaps)
        if overlaps:
            with pytest.raises(ValueError, match="`out` must not overlap"):
                call(x, out=out)
            assert stream.frames_in == 0
            assert memory.tobytes() == content.tobytes()
        else:
            assert call(x, out=out) is out
            assert same_bits(out, expected)
            stream.reset()
    assert outcomes == {True, False}


def mapped(path, flags=mmap.MAP_SHARED):
    """Map a file; return its floats."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, flags), np.float32)


MAPS = {
    "memmap": lambda path: np.memmap(path, np.float32, "r+"),
    "a memmap as an array": lambda path: np.asarray(np.memmap(path, np.float32, "r+")),
    "mmap": mapped,
    "another type": lambda path: mapped(path).view(np.int32).view(np.float32),
}


@pytest.mark.parametrize("order", [1, -1, 2])
@pytest.mark.parametrize("kinds", [*zip(MAPS, MAPS, strict=True), ("memmap", "mmap")])
def test_two_maps_of_one_file_overlap_where_they_hold_the_same_bytes(conv, tmp_path, kinds, order):
    content = noise(50, C)
    path, link = tmp_path / "content", tmp_path / "link"
    link.symlink_to(path)
    content.tofile(path)
    x = MAPS[kinds[0]](path).reshape(50, C)
    out = MAPS[kinds[1]](link).reshape(50, C)[10:20]
    for start in (0, 1, 5, 9, 10, 11, 15, 19, 20, 21, 30):
        place = np.arange(start, start + 10)[::order]
        frames, target = x[start : start + 10][::order], out[: len(place)]
        pairs = [(frames, target), (frames[0], target[0])]
        overlaps = [place.min() < 10 + len(place) and place.max() >= 10, place[0] == 10]
        for (a, b), is_over in zip(pairs, overlaps, strict=True):
            x[:] = content
            expected = conv(np.array(a).reshape(1, -1, C))[0].reshape(a.shape)
            stream = conv.stream()
            call = stream.process if a.ndim == 2 else stream.step
            if is_over:
                with pytest.raises(ValueError, match="`out` must not overlap `"):
                    call(a, out=b)
                assert stream.frames_in == 0
                assert path.read_bytes() == content.tobytes()
            else:
                assert call(a, out=b) is b
                assert same_bits(np.array(b), expected)


def test_shared_memory_that_is_attached_twice(conv):
    content = noise(T, C)
    mine = SharedMemory(create=True, size=4 * content.nbytes)
    other = SharedMemory(mine.name)
    try:
        x = np.ndarray((T, C), np.float32, mine.buf)
        x[:] = content
        with pytest.raises(ValueError, match="`out` must not overlap"):
            conv.stream().process(x, out=np.ndarray((T, C), np.float32, other.buf, 4 * C))
        beside = np.ndarray((T, C), np.float32, other.buf, content.nbytes)
        assert conv.stream().process(x, out=beside) is beside
        assert same_bits(beside, conv(content[None])[0][0])
    finally:
        del x, beside
        mine.close()
        other.close()
        mine.unlink()


def test_what_a_handler_raises_is_no_lack_of_a_table(conv, tmp_path, monkeypatch):
    def interrupted(_):
        raise FileNotFoundError

    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(2 * T, C))
    stream = conv.stream()
    monkeypatch.setattr(pathlib.Path, "read_bytes", interrupted)
    with pytest.raises(FileNotFoundError):
        stream.process(out[:T], out=out[T:])
    assert stream.frames_in == 0


def test_memory_of_other_kinds_is_no_map(conv):
    x, out = (np.frombuffer(bytearray(2**20), np.float32)[: T * C].reshape(T, C) for _ in range(2))
    assert conv.stream().process(x, out=out) is out


def test_a_private_map_shares_nothing(conv, tmp_path):
    noise(T, C).tofile(tmp_path / "x")
    x = mapped(tmp_path / "x").reshape(T, C)
    out = mapped(tmp_path / "x", mmap.MAP_PRIVATE).reshape(T, C)
    assert same_bits(conv.stream().process(x, out=out), conv(x[None])[0][0])
    assert same_bits(np.array(x), noise(T, C))


def test_one_map_is_known_by_its_addresses(conv, tmp_path):
    noise(4 * T, C).tofile(tmp_path / "x")
    memory = mapped(tmp_path / "x").reshape(4 * T, C)
    x, out = memory[:: 3 * T], memory[T : T + 2]  # which lies between the two frames
    expected = conv(np.array(x)[None])[0][0]
    assert same_bits(conv.stream().process(x, out=out), expected)


def test_maps_of_other_files_do_not_overlap(conv, tmp_path):
    path = tmp_path / "x \r\x85\u2028\n0-1"  # the table has all of it, the last as an escape
    x = np.memmap(path, np.float32, "w+", shape=(10, C))
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(10, C))
    assert conv.stream().process(x, out=out) is out
    path.unlink()
    assert conv.stream().process(x, out=out) is out


def test_where_the_kernel_has_no_table_of_maps(conv, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeconv.arrays._HAS_TABLE", False)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(2 * T, C))
    assert conv.stream().process(out[:T], out=out[T:]) is not None
    with pytest.raises(ValueError, match="`out` must not overlap"):
        conv.stream().process(out[:T], out=out[:T])


def test_what_is_passed_can_be_reused_after_the_call(conv):
    x, cache, mask, lengths = noise(2, 9, C), noise(2, C, 4), np.eye(2, 9, dtype=bool), [9, 5]
    arrays = {"x": x, "cache": cache, "mask": mask, "lengths": np.array(lengths)}
    expected = [conv(x, cache=cache, mask=mask), conv(x, lengths=lengths)]
    stream = conv.stream(batch_size=2)

    def calls():
        stream.reset()
        stream.cache = arrays["cache"]
        yield
        yield stream.process(arrays["x"])
        yield stream.step(arrays["x"][:, 0])
        y, _ = stream.process(arrays["x"], lengths=arrays["lengths"])
        yield y
        yield conv(arrays["x"], cache=arrays["cache"], mask=arrays["mask"])
        yield conv(arrays["x"], lengths=arrays["lengths"])

    kept = {name: array.copy() for name, array in arrays.items()}
    undisturbed = list(calls())
    disturbed = []
    for result in calls():
        disturbed.append(result)
        for name, array in arrays.items():
            array[...] = 0  # the caller's own again
            arrays[name] = kept[name].copy()
    for a, b in zip(flat(undisturbed), flat(disturbed), strict=True):
        assert same_bits(a, b)
    assert all(same_bits(a, b) for a, b in zip(flat(expected), flat(disturbed[-2:]), strict=True))


def flat(results):
    """Return the arrays in nested results."""
    if isinstance(results, np.ndarray):
        return [results]
    return [array for result in results or () for array in flat(result)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_is_returned_stays_as_it_was_and_can_be_changed(causal, batch_size):
    conv = DepthwiseConvolution(C // 2, 5, causal=causal, rng=0)
    leading = () if batch_size is None else (batch_size,)
    x = noise(*leading, 9, C)

    def results(spoil):
        stream = conv.stream(batch_size=batch_size)
        kept = []
        for _ in range(3):
            kept += [stream.process(x), stream.step(x[..., 0, :]), stream.cache]
            kept += [np.atleast_1d(counter) for counter in (stream.frames_in, stream.frames_out)]
            state = stream.snapshot()
            kept += [state.frames, state.frames_in, stream.flush(), stream.cache]
            kept += flat(conv(x.reshape(-1, 9, C)))
            for array in kept:
                if spoil and array.flags.writeable:
                    array[...] = 7
        return kept

    alone = [array.tobytes() for array in results(spoil=False)]
    assert alone == [array.tobytes() for array in results(spoil=False)]
    assert alone[: len(alone) // 3] == alone[-len(alone) // 3 :]
    kept = results(spoil=True)
    assert len(kept) == len(alone)
    for number, array in enumerate(kept):
        assert (array == 7).all() or array.tobytes() == alone[number]
        for other in kept[:number]:
            assert not np.shares_memory(array, other)
