"""
Time of recognition from samples to text: ESPnet's `Speech2Text`, and this library.

    python benchmarks/recogniser.py [--window 640] [--seconds 20] [--smoke]
    python benchmarks/recogniser.py --endless [--hours 2] [--no-endpoint]
    python benchmarks/recogniser.py --last-word [--window 640] [--smoke]

Twelve E-Branchformer blocks of 256, an LSTM, 500 tokens, random weights that say some four tokens a
second; float32 and 8-bit weights; greedy search (ESPnet: `maes` with a beam of 1) and a beam of
5. All hear the same samples, in one thread, window by window in turn, so that a busy machine is
busy for all of them; medians of windows. Then how this library's time is spent. Needs PyTorch,
ESPnet and what `Speech2Text` imports.

With `--endless` the shipped model hears the shipped recordings again and again, with a pause
after each, in which an utterance ends; memory, and the median time of a window in the last minute
beside that of a stream that is new each minute, in turn. This needs neither.

Nor does `--last-word`. Each shipped recording begins at 20 places of a window, and ends with its
last word: where the sound was last within 20 dB of its loudest, or a little earlier. How many lose
or change a word of the whole recording, for each length of silence that follows?
"""

from __future__ import annotations

import argparse
import collections
import itertools
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
from report import ROOT, print_table, verdict

import edgeconv
from edgeconv.layers.parameters import with_8_bits
from edgeconv.machine import resident
from edgeconv.recogniser.audio import open_wav

RATE, BLANK = 16000, 0
PAUSE = 1.5  # seconds, longer than what ends an utterance
GROWTH, SLOWER = 1e6, 1.1  # bytes by which an endless stream may grow, times as slow
TAILS, EARLIER, PLACES = (0, 40, 80, 160, 640), (0, 20, 40), 20  # ms, ms, in a window


def build(folder, n_blocks):
    """Write a model as ESPnet does; return its files."""
    import torch
    from espnet2.tasks.asr_transducer import ASRTransducerTask
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    torch.manual_seed(0)
    sums = {"sum": np.full(80, -7000.0), "sum_square": np.full(80, 7000.0 * 7 + 9000)}
    np.savez(folder / "stats.npz", count=np.float32(1000), **sums)
    block = {"block_type": "ebranchformer", "hidden_size": 256, "linear_size": 1024, "heads": 4}
    fields = ASRTransducerTask.get_default_config() | {
        "token_list": ["<blank>", "<unk>", *(f"▁{n}" for n in range(497)), "<sos/eos>"],
        "token_type": "bpe",
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "stats.npz")},
        "encoder_conf": {
            "main_conf": {"dynamic_chunk_training": True},
            "input_conf": {"conv_size": 256, "subsampling_factor": 4},
            "body_conf": [{**block, "conv_mod_kernel_size": 31, "num_blocks": n_blocks}],
        },
        "decoder": "rnn",
        "decoder_conf": {"embed_size": 256, "hidden_size": 256},
        "joint_network_conf": {"joint_space_size": 256},
    }
    arguments = argparse.Namespace(**fields)
    model = ASRTransducerTask.build_model(arguments).eval()
    with torch.no_grad():
        model.joint_network.lin_out.weight.mul_(12)
        model.joint_network.lin_enc.weight.mul_(4)
        calibrate(model, fields)
    torch.save(model.state_dict(), folder / "model.pth")
    with (folder / "config.yaml").open("w") as file:
        yaml_no_alias_safe_dump(vars(arguments), file, indent=4, sort_keys=False)
    return folder / "config.yaml", folder / "model.pth"


def calibrate(model, configuration):
    """Make blank so likely that the model says at most four tokens a second."""
    audio = signal(5)
    for _ in range(60):
        state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        said = edgeconv.Recogniser(state, configuration).transcribe(RATE, audio).tokens
        if len(said) <= 20:
            return
        model.joint_network.lin_out.bias[BLANK] += 1


def signal(seconds):
    """Return noise as loud as speech, now and then."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0, 0.3, int(seconds * 10)) ** 2, RATE // 10)
    return (rng.standard_normal(len(loudness)) * loudness).clip(-1, 1).astype(np.float32)


def espnet(files, window_ms, beam_size):
    """Return a function that hears a window of samples with PyTorch."""
    from espnet2.bin.asr_transducer_inference import Speech2Text

    search = {"search_type": "maes"}
    options = {"streaming": True, "decoding_window": window_ms, "left_context": 32}
    model = Speech2Text(*map(str, files), search, beam_size=beam_size, **options)
    return lambda samples: model.streaming_decode(samples, is_final=False)


def timed(listeners, windows):
    """Return the median milliseconds of a window for each listener."""
    times = {name: [] for name in listeners}
    for window in windows:
        for name, listen in listeners.items():
            start = time.perf_counter()
            listen(window)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(each[2:])) for name, each in times.items()}


class Clock:
    """A part of a stream whose methods are timed."""

    def __init__(self, part, names):
        self._part, self._names, self.seconds = part, names, 0.0

    def __getattr__(self, name):
        value = getattr(self._part, name)
        if name not in self._names:
            return value

        def call(*arguments):
            start = time.perf_counter()
            result = value(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return call


def shares(stream, windows):
    """Return the seconds that features, encoder and search take."""
    parts = {
        "features": Clock(stream._features, ("process",)),
        "encoder": Clock(stream._encoder, ("process",)),
        "search": Clock(stream._search, ("advance", "found")),
    }
    for name, clock in parts.items():
        setattr(stream, f"_{name}", clock)
    for window in windows:
        stream.accept_waveform(RATE, window)
    return {name: clock.seconds for name, clock in parts.items()}


def endless(given):
    """Print memory and time of a window, after the first minute and at eight later times."""
    recogniser = edgeconv.load_recogniser(ROOT / "weights" / "cards-and-commands.npz")
    old, new = (recogniser.stream(given.window, endpoint=given.endpoint) for _ in range(2))
    pause = np.zeros(int(PAUSE * RATE), np.float32)
    paths = sorted((ROOT / "weights" / "recordings").glob("*.wav"))
    sound = np.concatenate([part for path in paths for part in (open_wav(path).samples(), pause)])
    size, minute = given.window * RATE // 1000, 60_000 // given.window
    windows = itertools.cycle(np.split(sound, range(size, len(sound), size)))
    times = {stream: collections.deque(maxlen=minute) for stream in (old, new)}
    n, memory, n_ended = int(given.hours * 3_600_000 / given.window), [], 0
    for i in range(1, n + 1):
        window = next(windows)
        for stream, own in times.items():
            start = time.perf_counter()
            result = stream.accept_waveform(RATE, window)
            own.append(time.perf_counter() - start)
        n_ended += result.is_final
        if i == minute or (i > minute and i % (n // 8) == 0):
            memory.append(resident())
            taken, fresh = (1000 * np.median(own) for own in times.values())
            print(
                f"{i / minute:6.1f} min, {n_ended} utterances ended: {taken:.2f} ms a window, ",
                end="",
            )
            print(f"{fresh:.2f} of a new stream, {memory[-1] / 1e6:.2f} MB", flush=True)
        if i % minute == 0:
            new.reset()
    grown = max(memory) - memory[0]
    print(f"grown by {grown / 1e6:.2f} MB: {verdict(grown < GROWTH, given)}")
    print(
        f"{taken / fresh:.2f} times a new stream's time: {verdict(taken < SLOWER * fresh, given)}"
    )


def last_word(given):
    """Print how many recordings that end with their last word lose or change a word."""
    recogniser = edgeconv.load_recogniser(ROOT / "weights" / "cards-and-commands.npz")
    streams = {tail: recogniser.stream(given.window, tail_padding_ms=tail) for tail in TAILS}

    def heard(samples, tail):
        streams[tail].accept_waveform(RATE, samples)
        return streams[tail].input_finished().tokens

    paths = sorted((ROOT / "weights" / "recordings").glob("*.wav"))[: 1 if given.smoke else None]
    before = range(0, given.window, max(1, given.window // (1 if given.smoke else PLACES)))
    lost, n_cuts, frame = dict.fromkeys(TAILS, 0), 0, RATE // 100
    for path, silence in itertools.product(paths, before):
        samples = np.pad(open_wav(path).samples(), (silence * RATE // 1000, 0))
        said = heard(samples, max(TAILS))
        frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
        power = np.mean(frames**2, axis=1)
        end = frame * (1 + np.flatnonzero(power >= 0.01 * power.max())[-1])
        for earlier in EARLIER:
            cut = samples[: end - earlier * RATE // 1000]
            n_cuts += 1
            for tail in TAILS:
                lost[tail] += heard(cut, tail) != said
    print_table(["ms of silence", f"of {n_cuts} lose or change a word"], lost.items())


def main():
    """Print two tables, what becomes of an endless stream, or of last words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--window", type=int, default=640, help="milliseconds")
    parser.add_argument("--seconds", type=float, default=20, help="of audio")
    parser.add_argument("--smoke", action="store_true", help="a small model, 5 s: does it run?")
    parser.add_argument("--endless", action="store_true", help="a stream that goes on and on")
    parser.add_argument("--last-word", action="store_true", help="recordings that end with it")
    parser.add_argument("--hours", type=float, default=2, help="of an endless stream")
    parser.add_argument("--endpoint", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    if given.endless:
        endless(given)
    elif not given.last_word:
        compare(given)
    if given.last_word or given.smoke:
        last_word(given)


def compare(given):
    """Print two tables."""
    import torch
    import yaml

    # Speech2Text imports it, and does not use it here.
    sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))
    torch.set_num_threads(1)
    seconds = 5 if given.smoke else given.seconds
    samples = signal(seconds)
    size = given.window * RATE // 1000
    windows = [samples[i : i + size] for i in range(0, len(samples) - size, size)]
    with tempfile.TemporaryDirectory() as folder:
        files = build(Path(folder), 2 if given.smoke else 12)
        configuration = yaml.safe_load(files[0].read_text())
        state = edgeconv.read_checkpoint(files[1])
        models = {
            "float32": edgeconv.Recogniser(state, configuration),
            "int8": edgeconv.Recogniser(with_8_bits(state), configuration),
        }
        print(f"ms for a window of {given.window} ms, and how many times as fast as ESPnet\n")
        for beam_size in (1, 5):
            listeners = {"ESPnet": espnet(files, given.window, beam_size)}
            for name, model in models.items():
                stream = model.stream(given.window, beam_size=beam_size)
                listeners[name] = lambda x, stream=stream: stream.accept_waveform(RATE, x)
            with torch.no_grad():
                times = timed(listeners, windows)
            said = len(stream.accept_waveform(RATE, samples[:0]).tokens)
            for name, each in times.items():
                ratio = times["ESPnet"] / each
                print(f"beam {beam_size}  {name:8}{each:8.2f}{ratio:7.2f} x")
            print(f"        ({said} tokens in {seconds:g} s)")
    print("\nshare of the encoder's time, float32")
    for beam_size in (1, 5):
        spent = shares(models["float32"].stream(given.window, beam_size=beam_size), windows)
        for name in ("features", "search"):
            print(f"beam {beam_size}  {name:10}{spent[name] / spent['encoder']:7.1%}")


if __name__ == "__main__":
    main()
