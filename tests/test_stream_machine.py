"""Any interleaving of a stream's calls, rejected ones among them, against the definition."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference import convolve, same_bits
from strategies import arrays, modules

MISTAKES = {
    "a frame of integers": lambda s, frame: s.step(np.zeros(frame.shape, int)),
    "a list": lambda s, frame: s.step(frame.tolist()),
    "a frame with a channel too many": lambda s, frame: s.step(np.append(frame, frame, axis=-1)),
    "a frame as a chunk": lambda s, frame: s.process(frame),
    "a chunk as a frame": lambda s, frame: s.step(frame[..., None, :]),
    "an output over the input": lambda s, frame: s.step(frame, out=frame),
    "an output of float64": lambda s, frame: s.step(frame, out=np.empty(frame.shape)),
    "an output for one frame too many": lambda s, frame: s.process(
        frame[..., None, :], out=np.empty((*frame.shape[:-1], 2, frame.shape[-1]), np.float32)
    ),
    "a cache of another shape": lambda s, frame: setattr(s, "cache", s.cache[..., :0, :]),
    "a cache of integers": lambda s, frame: setattr(s, "cache", np.zeros(s.cache.shape, int)),
}


class StreamMachine(RuleBasedStateMachine):
    """The model is the list of frames since the start, after the K - 1 before it."""

    @initialize(
        conv=modules(sizes=st.sampled_from([1, 2, 9]), kernel_sizes=st.sampled_from([1, 3, 7])),
        batch_size=st.sampled_from([None, 1, 2]),
    )
    def open(self, conv, batch_size):
        self.conv = conv
        self.stream = conv.stream(batch_size=batch_size)
        assert self.stream.latency == (0 if conv.causal else conv.kernel_size // 2)
        self.batched = batch_size is not None
        self.rows = batch_size or 1
        self.start()

    def start(self):
        self.before = np.zeros((self.rows, self.conv.kernel_size - 1, self.conv.channels), "f4")
        self.frames = np.zeros((self.rows, 0, self.conv.channels), "f4")
        self.earlier_frames = 0

    def expected(self, frames):
        """Take frames (B, T, C) into the model; return the outputs that they make final."""
        first = self.before.shape[1] + max(self.stream.latency, self.frames.shape[1])
        self.frames = np.concatenate([self.frames, frames], axis=1)
        heard = np.concatenate([self.before, self.frames], axis=1)
        rows = [convolve(x, self.conv.weight, self.conv.bias, causal=True)[first:] for x in heard]
        return np.stack(rows)

    def shaped(self, array):
        return array if self.batched else array[0]

    @rule(data=st.data(), with_out=st.booleans())
    def step(self, data, with_out):
        frame = data.draw(arrays((self.rows, self.conv.channels)))
        expected = self.expected(frame[:, None])
        out = self.shaped(np.full_like(frame, 5)) if with_out else None
        y = self.stream.step(self.shaped(frame), out=out)
        if expected.shape[1] == 0:
            assert y is None
            assert out is None or (out == 5).all()
        else:
            assert same_bits(y, self.shaped(expected[:, 0]))
            assert out is None or y is out

    @rule(data=st.data(), n_frames=st.integers(0, 9), with_out=st.booleans())
    def process(self, data, n_frames, with_out):
        chunk = data.draw(arrays((self.rows, n_frames, self.conv.channels)))
        expected = self.shaped(self.expected(chunk))
        out = np.empty_like(expected) if with_out else None
        y = self.stream.process(self.shaped(chunk), out=out)
        assert same_bits(y, expected)
        assert out is None or y is out

    @rule()
    def flush(self):
        zeros = np.zeros((self.rows, self.stream.latency, self.conv.channels), np.float32)
        expected = self.expected(zeros)
        assert same_bits(self.stream.flush(), self.shaped(expected))
        self.start()

    @rule()
    def reset(self):
        self.stream.reset()
        self.start()

    @precondition(lambda self: self.conv.causal)
    @rule(data=st.data())
    def assign_cache(self, data):
        cache = data.draw(arrays((self.rows, self.conv.channels, self.conv.lorder)))
        self.stream.cache = cache
        self.earlier_frames += self.frames.shape[1]
        self.before = cache.swapaxes(1, 2)
        self.frames = self.frames[:, :0]

    @rule(data=st.data(), mistake=st.sampled_from(sorted(MISTAKES)))
    def rejected(self, data, mistake):
        frame = self.shaped(data.draw(arrays((self.rows, self.conv.channels))))
        with pytest.raises((TypeError, ValueError)):
            MISTAKES[mistake](self.stream, frame)

    @invariant()
    def cache_is_the_last_frames(self):
        if not hasattr(self, "stream"):
            return
        heard = np.concatenate([self.before, self.frames], axis=1)
        last = heard[:, heard.shape[1] - self.before.shape[1] :]
        assert same_bits(self.stream.cache, last.swapaxes(1, 2).copy())

    @invariant()
    def counters_tell_what_happened(self):
        if not hasattr(self, "stream"):
            return
        n = self.earlier_frames + self.frames.shape[1]
        for counter, value in (
            (self.stream.frames_in, n),
            (self.stream.frames_out, max(0, n - self.stream.latency)),
        ):
            assert counter.tolist() == [value] * self.rows if self.batched else counter == value


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=60, stateful_step_count=20)
