"""Run a convolution's kernels on arrays that end, or begin, at a page that may not be touched.

`python guarded.py after|before`: an access outside the arrays ends the process by SIGSEGV. To show
that it would, child processes then have memory for arrays of one kind that is an element short (or
a vector, where the kernels read vectors).
"""

import ctypes
import itertools
import mmap
import os
import signal
import sys
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np

from edgeconv import DepthwiseConvolution, stream
from edgeconv.kernels import ring

PAGE = mmap.PAGESIZE
PRIVATE, READ_WRITE, NONE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 3, 0
L, PASS = ring.LANES, ring.PASS
CHANNELS = (2, L, L + 2, 4 * L - 2, 4 * L, 5 * L, 8 * L + 2)
KERNEL_SIZES = (1, 3, 9)
N_FRAMES = (*range(10), 12, 13, 16, 17, PASS - 1, PASS, PASS + 1, 2 * PASS + 9)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def place(array, kind, edge, short_kind):
    """Copy an array to the edge of its memory, or a little beyond if it is of `short_kind`."""
    if edge is None:
        return array
    missing = 0
    if kind == short_kind:
        missing = 4 * L if kind == "own" else array.itemsize
    room = -(-max(1, array.nbytes) // PAGE) * PAGE
    start = libc.mmap(None, room + 2 * PAGE, NONE, PRIVATE, -1, 0) + PAGE
    assert libc.mprotect(start, room, READ_WRITE) == 0
    address = start + room - array.nbytes + missing if edge == "after" else start - missing
    memory = (ctypes.c_char * array.nbytes).from_address(address)
    weakref.finalize(memory, libc.munmap, start - PAGE, room + 2 * PAGE)
    if array.nbytes > missing:
        skipped = missing if edge == "before" else 0
        ctypes.memmove(address + skipped, array.ctypes.data + skipped, array.nbytes - missing)
    return np.ndarray(array.shape, array.dtype, memory)


def outputs(conv, edge, short_kind):
    """Yield what a module gives in every way."""
    C, K, rng = conv.channels, conv.kernel_size, np.random.default_rng(0)

    def placed(array, kind):
        return place(array, kind, edge, short_kind)

    def frames(*shape):
        return placed(rng.standard_normal(shape, np.float32), "x")

    def blank(*shape, dtype=np.float32):
        return placed(np.zeros(shape, dtype), "out")

    patched = SimpleNamespace(**vars(np) | {"zeros": lambda shape, _: blank(*shape)})
    zeros = ring.zeros
    own = mock.patch.object(ring, "zeros", lambda *shape: placed(zeros(*shape), "own"))
    with own, mock.patch.object(stream, "np", patched):
        for batch_size, leading in ((None, ()), (3, (3,))):
            one = conv.stream(batch_size)
            for _ in range(K + 2):
                out = blank(*leading, C)
                one.step(frames(*leading, C), out)
                yield out
            for n_frames in (*N_FRAMES, K - 1, K, K + 1):
                ready = max(0, int(np.max(one.frames_in)) + n_frames - one.latency)
                out = blank(*leading, ready - int(np.max(one.frames_out)), C)
                yield one.process(frames(*leading, n_frames, C), out)
                if batch_size:
                    lengths = np.array([n_frames, n_frames // 2, 0])
                    yield one.process(frames(*leading, n_frames, C), lengths=lengths)[0]
                    yield one.flush(rows=[1, 2])
                    yield one.flush()
            yield one.flush()
        for least in (stream.SHARED, 0):  # multiply-adds for threads
            with mock.patch.object(stream, "SHARED", least):
                for n_frames in (1, K, 2 * PASS + 1):
                    yield conv(frames(2, n_frames, C))[0]
                    yield conv(frames(2, n_frames, C), lengths=[n_frames, n_frames // 3])[0]
                if conv.causal:
                    yield conv(frames(2, 5, C), cache=frames(2, C, K - 1))[0]


def main(edge, short_kind=None):
    for causal, K, C in itertools.product((True, False), KERNEL_SIZES, CHANNELS):
        weight = np.random.default_rng(1).standard_normal((C, 1, K), np.float32)
        state = {"weight": weight, "bias": weight[:, 0, 0]}
        convs = [DepthwiseConvolution.from_state_dict(state, causal=causal) for _ in range(2)]
        expected = [y.tobytes() for y in outputs(convs[0], None, None)]
        for y in outputs(convs[1], edge, short_kind):
            assert y.tobytes() == expected.pop(0)
        assert not expected


def ending(edge, short_kind):
    """Return the signal that ends a process whose arrays of one kind are too short."""
    if (child := os.fork()) == 0:
        main(edge, short_kind)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(sys.argv[1])
    print("nothing was touched that must not be")
    assert [ending(sys.argv[1], kind) for kind in ("x", "out", "own")] == [signal.SIGSEGV] * 3
