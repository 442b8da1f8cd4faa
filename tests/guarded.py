"""Run every kernel on arrays that end, or begin, at a page that may not be touched.

`python guarded.py after|before [KIND]`: an access outside the arrays ends the process by SIGSEGV.
The memory of arrays of KIND is an element short (or a vector, where the kernels read vectors).
"""

import contextlib
import ctypes
import itertools
import mmap
import sys
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np

from edgeconv import DepthwiseConvolution, arrays, convolution, kernels, layout, parallel, stream

PAGE = mmap.PAGESIZE
PRIVATE, READ_WRITE, NONE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 3, 0
L, PASS = kernels.LANES, kernels.PASS
CHANNELS = {2, L - 2, L, L + 2, 2 * L - 2, 2 * L, 2 * L + 2, 4 * L - 2, 4 * L, 5 * L, 8 * L + 2}
KERNEL_SIZES = (1, 3, 9, 31)
N_FRAMES = (*range(10), 11, 12, 13, 15, 16, 17, PASS - 1, PASS, PASS + 1, 2 * PASS + 9)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Guarded:
    """Put arrays of some kinds at the edge of their memory, or a little beyond it."""

    def __init__(self, edge, short_kind=None):
        self.edge = edge
        self.short_kind = short_kind

    def place(self, array, kind):
        """Copy an array to the edge; what lies beyond is not copied."""
        missing = 0
        if kind == self.short_kind:
            missing = 4 * L if kind in ("taps", "state") else array.itemsize
        room = -(-max(1, array.nbytes) // PAGE) * PAGE
        start = libc.mmap(None, room + 2 * PAGE, NONE, PRIVATE, -1, 0) + PAGE
        assert libc.mprotect(start, room, READ_WRITE) == 0
        address = start + room - array.nbytes + missing if self.edge == "after" else start - missing
        memory = (ctypes.c_char * array.nbytes).from_address(address)
        weakref.finalize(memory, libc.munmap, start - PAGE, room + 2 * PAGE)
        if array.nbytes > missing:
            skipped = missing if self.edge == "before" else 0
            source = array.ctypes.data + skipped
            ctypes.memmove(address + skipped, source, array.nbytes - missing)
        return np.ndarray(array.shape, array.dtype, memory)

    def numpy(self, kind):
        """Return a NumPy whose new arrays are placed."""

        def empty(*arguments):
            return self.place(np.empty(*arguments), kind)

        return SimpleNamespace(**vars(np) | {"empty": empty})

    def patched(self, kind):
        """Have the library's own arrays placed."""

        def owned(*shape):
            return self.place(np.zeros(shape, np.float32), kind)

        return mock.patch.object(layout, "_zeros", owned)

    def outputs(self, conv, rng):
        """Yield what a module gives in every way: `expected` does the same without guards."""
        C, K = conv.channels, conv.kernel_size

        def frames(*shape):
            return self.place(rng.standard_normal(shape, np.float32), "x")

        def blank(*shape):
            return self.place(np.zeros(shape, np.float32), "out")

        with self.patched("taps"):
            conv._taps  # noqa: B018 - packs them
        with self.patched("state"):
            for batch_size, leading in ((None, ()), (3, (3,))):
                one = conv.stream(batch_size)
                for _ in range(K + 2):
                    out = blank(*leading, C)
                    one.step(frames(*leading, C), out)
                    yield out
                for n_frames in (*N_FRAMES, K - 1, K, K + 1):
                    ready = int(np.max(one.frames_in)) + n_frames - one.latency
                    ready = max(0, ready) - int(np.max(one.frames_out))
                    yield one.process(frames(*leading, n_frames, C), blank(*leading, ready, C))
                    if batch_size:
                        lengths = np.array([n_frames, n_frames // 2, 0])
                        yield one.process(frames(*leading, n_frames, C), lengths=lengths)[0]
                        yield one.flush(rows=[1, 2])
                        yield one.flush()
                yield one.flush()
            for work in (0, 1 << 62):
                with mock.patch.object(parallel, "PARALLEL_WORK", work):
                    for n_frames in (1, K, 2 * PASS + 1):
                        yield conv(frames(2, n_frames, C))[0]
                        yield conv(frames(2, n_frames, C), lengths=[n_frames, n_frames // 3])[0]
                    if conv.causal:
                        yield conv(frames(2, 5, C), cache=frames(2, C, K - 1))[0]


class Unguarded(Guarded):
    """The same arrays, where NumPy puts them."""

    def place(self, array, kind):
        return array

    def patched(self, kind):
        return contextlib.nullcontext()


def main(edge, short_kind=None):
    guarded = Guarded(edge, short_kind)
    check_lengths = stream.check_lengths
    for causal, K, C in itertools.product((True, False), KERNEL_SIZES, sorted(CHANNELS)):
        make = lambda: DepthwiseConvolution(C // 2, K, causal=causal, rng=0)  # noqa: B023, E731 - a word for a line
        expected = list(Unguarded(edge).outputs(make(), np.random.default_rng(0)))
        with (
            mock.patch.object(arrays, "_HAS_TABLE", False),  # it takes most of the time, unguarded
            mock.patch.object(stream, "np", guarded.numpy("out")),
            mock.patch.object(convolution, "np", guarded.numpy("out")),
            mock.patch.object(
                stream,
                "check_lengths",
                lambda *arguments: guarded.place(check_lengths(*arguments), "lengths"),
            ),
        ):
            for y in guarded.outputs(make(), np.random.default_rng(0)):
                assert y.tobytes() == expected.pop(0).tobytes()
        assert not expected
    print("nothing was touched that must not be")


if __name__ == "__main__":
    main(*sys.argv[1:])
