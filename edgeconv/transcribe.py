"""`edgeconv transcribe`: what is said in files, a pipe or a microphone, line by line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from edgeconv.checkpoint.error import printable
from edgeconv.recogniser import RecogniserStream, Result, load_recogniser
from edgeconv.recogniser.audio import Audio, open_wav, read_audio
from edgeconv.recogniser.microphone import NO_DEVICE, devices, open_microphone
from edgeconv.terminal import CommandError, compiling, table

STDIN = "-"
EITHER = "after MODEL must come either AUDIO, which may be -, or --microphone"
SILENT = "no samples came; if a program records them, see what it says"
TYPED = "standard input is a terminal; pipe samples into it: arecord -f S16_LE -r {} -c 1 -t raw |"
WHOLE = "the model is not causal and hears a file at once; leave out window, left context, threads "
WHOLE += "and endpoints"
WINDOW, LEFT = 640, 32  # the defaults
SWAPPED = "{} is a WAV; MODEL comes first: edgeconv {} MODEL {}"
TWICE = "- must be given once: standard input can be heard only once"
SWALLOWED = "it takes the name of a device, got that of a model; MODEL comes first: "
SWALLOWED += "edgeconv transcribe {} --microphone"


def transcribe(options: argparse.Namespace) -> None:
    """Run the command."""
    check_model(options.model, "transcribe")
    if options.audio.count(STDIN) > 1:
        raise CommandError(TWICE, 2)
    if bool(options.audio) == (options.microphone is not None):
        raise CommandError(EITHER, 2)
    files = [path for path in options.audio if path != STDIN]
    for path in files:
        if not Path(path).is_fifo():  # what is wrong is said before hours of computing
            open_wav(path).close()
    is_live = STDIN in options.audio or options.microphone is not None
    printer = Printer(options.json, len(options.audio) > 1)
    with compiling():
        recogniser = load_recogniser(options.model, options.config)
        if is_live or recogniser.causal:
            stream = recogniser.stream(
                options.window_ms,
                options.left_context,
                options.beam,
                is_live if options.endpoint is None else options.endpoint,
                options.tail_padding_ms,
                threads=options.threads,
            )
    own = options.window_ms, options.left_context, options.threads, bool(options.endpoint)
    if not recogniser.causal and own != (WINDOW, LEFT, 1, False):
        raise CommandError(f"{options.model}: {WHOLE}")
    for audio in sources(options, recogniser.sample_rate, printer):
        printer.begin(audio)
        with contextlib.closing(audio), naming(audio):
            if recogniser.causal:
                listen(stream, audio, printer)
            else:
                whole = partial(recogniser.transcribe, beam_size=options.beam)
                samples = audio.samples()
                printer.hear(len(samples), whole, audio.sample_rate, samples)
            printer.end()
    if files:
        ratio = printer.computing / printer.heard
        text = f"{printer.heard:.2f} s of audio in {printer.computing:.2f} s of computing"
        printer.note(f"{text}: {ratio:.4f} of real time")


def check_model(path: str, command: str) -> None:
    """Refuse a WAV where a model should be."""
    if Path(path).is_file():
        with Path(path).open("rb") as file:
            if file.read(4) == b"RIFF":
                raise CommandError(SWAPPED.format(path, command, shlex.quote(path)), 2)


def device_name(text: str) -> str:
    """Return what `--microphone` is given if it may be a device."""
    if Path(text).suffix in (".npz", ".pth", ".safetensors"):
        raise argparse.ArgumentTypeError(SWALLOWED.format(shlex.quote(text)))
    return text


def sources(options: argparse.Namespace, sample_rate: int, printer: Printer) -> Iterator[Audio]:
    """Open what is to be heard, one after the other."""
    if options.microphone is not None:
        device: str | int | None = options.microphone or None
        if options.microphone.isdigit():
            device = int(options.microphone)
        audio = open_microphone(device, sample_rate, printer.note)
        printer.note(f"listening to {audio.name} at {audio.sample_rate} Hz; Ctrl-C ends")
        yield audio
    for path in options.audio:
        if path != STDIN:
            yield open_wav(path)
        elif sys.stdin.isatty():
            raise CommandError(TYPED.format(sample_rate))
        else:
            yield read_audio(sys.stdin.buffer, "standard input", sample_rate)


def list_devices() -> None:
    """Print the microphones."""
    rows = [
        (f"{name}{' (default)' * is_default}", i, *own) for i, name, *own, is_default in devices()
    ]
    if not rows:
        raise CommandError(NO_DEVICE)
    print(table([("microphone", "number", "channels", "sample rate"), *rows]))


def listen(stream: RecogniserStream, audio: Audio, printer: Printer) -> None:
    """Take audio through a stream and print what it says, whatever ends it."""
    try:
        for block in audio.blocks:
            with uninterrupted():
                printer.hear(len(block), stream.accept_waveform, audio.sample_rate, block)
    finally:
        with uninterrupted():
            printer.hear(0, stream.input_finished)


@contextlib.contextmanager
def naming(audio: Audio) -> Iterator[None]:
    """Let errors say which audio it was."""
    try:
        yield
    except ValueError as error:
        raise CommandError(f"{audio.name}: {error}") from error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: a call ends, and what it returned is printed."""
    own = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is not own:  # it is ignored, or an application's own
        yield
        return
    waiting: list[object] = []
    signal.signal(signal.SIGINT, lambda *_: waiting.append(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
    if waiting:
        raise KeyboardInterrupt


class Printer:
    """
    Prints results and counts seconds.

    All that is new is a line of JSON, or a final result is a line of text, which may begin with the
    file's name, and a terminal shows what is not final yet.
    """

    def __init__(self, as_json: bool, has_names: bool) -> None:
        self.heard = self.computing = 0.0  # seconds, of all audio
        self._as_json, self._has_names = as_json, has_names
        self._shows_text = not as_json and is_terminal(sys.stdout)
        self._line = GrowingLine(sys.stdout if self._shows_text else sys.stderr)

    def begin(self, audio: Audio) -> None:
        """Start with what comes from one source."""
        self._audio, self._frames, self._start = audio, 0, time.perf_counter()
        self._latest: Result | None = None

    def hear(self, frames: int, call: Callable[..., Result], *arguments: Any) -> None:
        """Print the result of a call that hears so many frames; count its time."""
        start = time.perf_counter()
        result = call(*arguments)
        self._frames += frames
        self.heard += frames / self._audio.sample_rate
        self.computing += time.perf_counter() - start
        self.show(result)

    def show(self, result: Result) -> None:
        """Print a result if it is final, else show it if there is a terminal."""
        text = f"{self._audio.name}: {result.text}" if self._has_names else result.text
        if self._as_json:
            if result is not self._latest:
                self._line.clear()
                fields = {"file": self._audio.name, "heard": self._seconds}
                fields |= dataclasses.asdict(result)
                fields["timestamps"] = [round(seconds, 3) for seconds in result.timestamps]
                print(json.dumps(fields), flush=True)
        elif result.is_final and self._frames and (result.text or not self._audio.is_live):
            self._line.clear()
            print(printable(text), flush=True)
        else:
            text = "" if result.is_final or not self._shows_text else result.text
            self._line.show(self._progress() + text)
        self._latest = result

    def note(self, text: str) -> None:
        """Say on stderr what is no result."""
        self._line.clear()
        print(f"edgeconv: {printable(text)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Complain of what is missing."""
        self._line.clear()
        if not self._frames:
            raise ValueError(SILENT)
        promised = self._audio.seconds
        if promised and self._frames < round(promised * self._audio.sample_rate):
            text = f"ends after {self._seconds} s; its header promises {promised:.2f} s"
            self.note(f"{self._audio.name}: {text}")

    @property
    def _seconds(self) -> float:
        return round(self._frames / self._audio.sample_rate, 3)

    def _progress(self) -> str:
        """Return how much of a file was heard, if it takes longer than a second."""
        if self._audio.is_live or time.perf_counter() - self._start < 1:
            return ""
        if self._audio.seconds is None:
            return f"{self._seconds:5.0f} s "
        return f"{self._seconds / self._audio.seconds:4.0%} "


class GrowingLine:
    """A line that is written again and again in its place, if there is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if is_terminal(stream) else None
        self._shown = ""

    def show(self, text: str) -> None:
        """Replace what is shown; of what is too long, the end is."""
        columns = shutil.get_terminal_size().columns or 80  # a serial line tells none
        text = ending(printable(text), columns - 1)
        if self._stream is not None and text != self._shown:
            self._shown = text  # before Ctrl-C can come between
            print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        """Leave an empty line for what is printed next."""
        self.show("")


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal where a line can be replaced."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def ending(text: str, columns: int) -> str:
    """Return the end of a text that fits into so many columns, after "…" if it is not all."""
    if sum(map(_columns, text)) <= columns:
        return text
    taken, start = 1, len(text)
    while start and taken + _columns(text[start - 1]) <= columns:
        start -= 1
        taken += _columns(text[start])
    return f"…{text[start:]}"


def _columns(character: str) -> int:
    """Return the columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
