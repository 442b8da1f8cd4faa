"""A microphone through PortAudio, by the package sounddevice."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeconv.layers.layer import Array
from edgeconv.recogniser.audio import PCM, Audio, Encoding

BLOCK = 0.05  # seconds that the sound system hands over at once
LATENCY = 0.2  # seconds that it holds, while Python's lock is with others
BEHIND = 2.0  # seconds of sound that may wait before something is said of it
GONE = 5.0  # seconds without a block after which a device has disappeared
LIST = "--list-devices shows them all"
NO_DEVICE = "no microphone was found; `arecord -l` lists ALSA's, `groups` must include audio"
NO_DEFAULT = f"no microphone is the system's default; {LIST}: --microphone 2 takes that number"
REMEDIES = {
    -9985: "another program has it: `fuser -v /dev/snd/*` tells which",  # paDeviceUnavailable
    -9996: LIST,  # paInvalidDevice
    -9998: LIST,  # paInvalidChannelCount
}


def open_microphone(
    device: str | int | None, sample_rate: int, warn: Callable[[str], None]
) -> Audio:
    """
    Start to record from a device, by its number or a part of its name; None is the default.

    One that has not got this sample rate records at its own. `warn` is told when samples wait
    because computation is too slow, and when some were lost. The blocks end with a ValueError if
    the device disappears; an ImportError or a ValueError says why it cannot be had.
    """
    sounddevice = _sounddevice()
    if device is None and sounddevice.default.device[0] < 0:
        raise ValueError(NO_DEFAULT if devices() else NO_DEVICE)
    name = "the microphone" if device is None else f"microphone {device}"
    waiting: queue.SimpleQueue[tuple[bytes, bool] | None] = queue.SimpleQueue()

    def copy(samples: Any, frames: int, time: Any, status: Any) -> None:
        waiting.put((bytes(samples), status.input_overflow))

    try:
        with _quiet():
            own = sounddevice.query_devices(device, "input")
            kinds = (1, sample_rate), (1, int(own["default_samplerate"])), (2, sample_rate)
            for channels, rate in (*kinds, (2, int(own["default_samplerate"]))):
                form = {"device": device, "channels": channels, "dtype": "int16"}
                with contextlib.suppress(sounddevice.PortAudioError):
                    sounddevice.check_input_settings(samplerate=rate, **form)
                    break
            stream = sounddevice.RawInputStream(
                samplerate=rate,
                blocksize=round(rate * BLOCK),
                latency=LATENCY,
                callback=copy,
                finished_callback=lambda: waiting.put(None),
                **form,
            )
            stream.start()
    except (sounddevice.PortAudioError, ValueError) as error:
        text, *code = error.args
        remedy = next((REMEDIES[c] for c in code if c in REMEDIES), LIST)
        raise ValueError(f"{name}: {text}; {remedy}") from error
    encoding = Encoding(PCM, channels, rate, 16)
    blocks = _recorded(waiting, encoding, name, warn)

    def close() -> None:
        stream.close()
        missed = (waiting.qsize() - 1) * BLOCK  # but for the None at its end
        if missed >= 1:
            warn(f"{missed:.0f} s that were recorded are not heard: computing was behind")

    return Audio(name, rate, blocks, close, None, is_live=True)


def _recorded(
    waiting: queue.SimpleQueue[tuple[bytes, bool] | None],
    encoding: Encoding,
    name: str,
    warn: Callable[[str], None],
) -> Iterator[Array]:
    """Yield what the callback has copied; never drop any of it."""
    limit = BEHIND
    while True:
        try:
            block = waiting.get(timeout=GONE)
        except queue.Empty:
            block = None
        if block is None:
            raise ValueError("it has disappeared: no sound comes; plug it in and start again")
        data, is_overflow = block
        if is_overflow:
            warn(f"{name}: the sound system lost samples; this machine is too busy")
        behind = waiting.qsize() * BLOCK
        if behind >= limit:
            warn(f"{behind:.0f} s behind: computing takes longer than speaking; nothing is lost")
        limit = max(limit, 2 * behind) if behind > BEHIND / 2 else BEHIND
        yield encoding.mono(data)


def devices() -> list[tuple[int, str, int, int, bool]]:
    """Return number, name, channels, sample rate, and whether it is the default, of microphones."""
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0]
    return [
        (i, own["name"], own["max_input_channels"], int(own["default_samplerate"]), i == default)
        for i, own in enumerate(sounddevice.query_devices())
        if own["max_input_channels"]
    ]


def _sounddevice() -> Any:
    """Import it, or say what to install."""
    try:
        import sounddevice
    except ImportError as error:
        remedy = "pip install 'edgeconv[microphone]', or pipe `arecord` into `-`"
        raise ImportError(f"a microphone needs sounddevice: {remedy}") from error
    except OSError as error:
        remedy = "sudo apt install libportaudio2, or pipe `arecord` into `-`"
        raise ImportError(f"a microphone needs PortAudio: {remedy}") from error
    return sounddevice


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let ALSA and PortAudio, which write to stderr what they try, write to nowhere."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
