"""The command line: its words, its errors and its exit statuses."""

import argparse
import errno
import io
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeconv import __version__, machine, weights
from edgeconv.blocks.description import describe
from edgeconv.blocks.overview import overview
from edgeconv.checkpoint.error import naming, printable
from edgeconv.converted import FORMAT, configuration_of, opened
from edgeconv.digest import VerificationError
from edgeconv.recogniser.recogniser import PADDING
from edgeconv.state_dict import parents_of, unusable
from edgeconv.terminal import CommandError, compiling, table
from edgeconv.transcribe import check_model, device_name, list_devices, transcribe

DESCRIPTION = """\
Run ESPnet's streaming speech recognisers, or parts of them, without PyTorch.

  edgeconv inspect valid.loss.best.pth                                  says what is in it
  edgeconv convert valid.loss.best.pth model.npz --config config.yaml   copies it to one file
  edgeconv verify model.npz                              proves that this machine runs it right
  edgeconv transcribe model.npz --microphone             prints what is said

No checkpoint at hand? `edgeconv demo` goes the whole way on one that ships.
"""
CAUSAL = "with ESPnet's `dynamic_chunk_training: true` --causal, else --no-causal"
ASSUMED = """\
Assumed, as a file does not tell: stride 1, dilation 1, as many groups as channels. A
Conv1d(1, 64, 25) looks alike. In ESPnet's blocks they are conv_mod.depthwise_conv of a Conformer,
conv_mod.conv of a Branchformer, conv_mod.conv and depthwise_conv_mod.conv of an E-Branchformer.
"""
NEXT = """\
next: edgeconv convert {} {}.converted.npz --causal
      (or --config config.yaml, or --no-causal without dynamic_chunk_training: true)"""
NEXT_OF_MODEL = "next: edgeconv convert {} {}.converted.npz --config {}"
TRANSCRIBE = """\
transcribe small.npz speech.wav
  edgeconv transcribe small.npz --microphone
  arecord -f S16_LE -r 16000 -c 1 -t raw | edgeconv transcribe small.npz -"""
CHECKPOINT, NO_PREFIX = "a .pth, .safetensors or .npz file", "''"
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EBUSY: "or write to another path",
}
OWN = "prefix", "config", "seed", "weights", "window_ms", "left_context", "tail_padding_ms"
WORDS = {f"`{name}`": f"--{name.replace('_', '-')}" for name in (*OWN, "threads")}
WORDS |= {"`causal=True`": "--causal", "`causal=False`": "--no-causal", "`prefixes`": "--prefix"}
WORDS |= {"`causal`": "--causal or --no-causal", "`source`": "SRC", "`target`": "DST"}
WORDS |= {"`beam_size`": "--beam", "use `transcribe`": "transcribe a WAV file"}
# The library's words, and what they are called here.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status: 0, 1, 2 for wrong usage, 130 after Ctrl-C."""
    for name in ("stdin", "stdout", "stderr"):  # in this order they take the numbers 0, 1 and 2
        if getattr(sys, name) is None:  # as cron and systemd may have it
            setattr(sys, name, Path(os.devnull).open("r+"))  # noqa: SIM115 - it stays open for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal can write µ
    try:
        try:
            options = _options(arguments)
            options.command(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells count
    except OSError as error:
        if error.filename is None:  # Python would try again to write, and complain, when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # `edgeconv inspect FILE | head -1`: the reader has what it wanted
        name = "output" if error.filename is None else error.filename or "''"
        remedy = REMEDIES.get(error.errno or 0, "check the path, its permissions and the disk")
        return _fail(f"{name}: {error.strerror or error}; {remedy}")
    except (CommandError, ValueError, ImportError, VerificationError) as error:
        return _fail(str(error), getattr(error, "status", 1))
    return 0


def _fail(message: str, status: int = 1) -> int:
    """Say in one line what went wrong; return the exit status."""
    for word, own in WORDS.items():
        message = message.replace(word, own)
    print(f"edgeconv: error: {printable(message)}", file=sys.stderr)
    return status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; files may stand after options, which argparse does not see."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "audio") and all(not text.startswith("-") or text == "-" for text in rest):
        options.audio, rest = options.audio + rest, []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("edgeconv", description=DESCRIPTION, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"edgeconv {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(function: Callable[[argparse.Namespace], None], example: str, summary: str) -> Any:
        name, epilog = example.split()[0], f"example:\n  edgeconv {example}"
        if name == "convert":
            epilog = f"{epilog}\n\n{ASSUMED}"
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=layout
        )
        command.set_defaults(command=function)

        def argument(words: str, text: str, default: Any = None, **options: Any) -> None:
            """Add an argument, such as "--beam N"."""
            flag, *metavar = words.split()
            if metavar:
                options["metavar"] = metavar[0]
            if default is not None:
                options |= {"default": default, "type": type(default)}
            command.add_argument(flag, help=text, **options)

        return argument

    flag: dict[str, Any] = {"action": "store_true"}
    either: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    kinds: dict[str, Any] = {"choices": ("float32", "int8"), "default": "float32"}

    summary = "say what is in a checkpoint: its encoder and convolutions"
    argument = add(_inspect, "inspect valid.loss.best.pth", summary)
    argument("file FILE", CHECKPOINT)
    argument("--tensors", "list every tensor as well", **flag)
    argument("--config YAML", "ESPnet's config.yaml: what tensors do not tell (needs PyYAML)")

    example = "convert valid.loss.best.pth model.npz --config config.yaml --weights int8"
    argument = add(_convert, example, "copy a model, or convolutions, to a file for any NumPy")
    argument("source SRC", CHECKPOINT)
    argument("target DST", "the .npz file to write")
    argument("--prefix P", "a convolution to copy, of several (default: all)", action="append")
    argument("--causal", CAUSAL, **either)
    argument("--config YAML", "ESPnet's config.yaml: copy the whole model (needs PyYAML)")
    argument("--weights", "of its dense layers: int8 takes a quarter of the memory", **kinds)
    text = "copy convolutions alone; --config then states whether they are causal"
    argument("--only-convolutions", text, **flag)

    summary = "check that this machine computes the bits of the one that converted a file"
    argument = add(_verify, "verify small.npz", summary)
    argument("file FILE", "an .npz file that `convert` wrote")
    argument("--prefix P", "only this convolution")
    argument("--seed N", "decides where signals are cut into chunks", secrets.randbelow(2**32))

    argument = add(transcribe, TRANSCRIBE, "print what is said in files, a pipe or a microphone")
    argument("model MODEL", "what `convert` wrote, or a .pth file with --config")
    text = "WAV files, or - for raw 16-bit mono at the model's rate, or a WAV, on standard input"
    argument("audio AUDIO", text, nargs="*")
    text = "a device's number or a part of its name (default: the system's; needs sounddevice)"
    argument("--microphone DEVICE", text, nargs="?", const="", type=device_name)
    argument("--list-devices", "list the microphones and end", nargs=0, action=_ListDevices)
    _add_listening(argument)
    argument("--endpoint", "start a new line after a silence (default: not in files)", **either)
    text = f"milliseconds of silence after the end, for the last word (default: {PADDING:g})"
    argument("--tail-padding-ms MS", text, PADDING)
    argument("--json", "print every result as a line of JSON", **flag)

    argument = add(
        lambda options: machine.demo(options.live), "demo", "transcribe recordings that ship"
    )
    argument("--live", "at the speed at which they were spoken", **flag)
    summary = "measure how fast a recogniser is on this machine"
    argument = add(_bench, "bench small.npz speech.wav --json", summary)
    argument("model MODEL", "a recogniser (default: the one that ships)", nargs="?")
    argument("audio AUDIO", "WAV files (default: some that ship)", nargs="*")
    _add_listening(argument)
    argument("--json", "print it for a program to read", **flag)
    add(lambda _: machine.doctor(), "doctor", "check that this machine can run models")
    return parser


def _add_listening(argument: Callable[..., None]) -> None:
    """Add the arguments of what loads a recogniser and listens."""
    argument("--config YAML", "ESPnet's config.yaml, for a .pth file (needs PyYAML)")
    argument("--window-ms MS", "milliseconds that are encoded together (default: 640)", 640.0)
    argument("--left-context N", "encoder frames before a window that it sees (default: 32)", 32)
    argument("--beam N", "hypotheses to keep (default: 1, which is the greedy search)", 1)
    argument("--threads N", "how many share large layers, on idle cores (default: 1)", 1)


class _ListDevices(argparse.Action):
    """`--list-devices`, which like `--help` needs no further arguments."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        list_devices()
        parser.exit()


def _inspect(options: argparse.Namespace) -> None:
    """Print the convolutions in a file, all tensors if wanted, and the next command."""
    opened_file = opened(options.file)
    checkpoint, found, stated, configuration, _ = opened_file
    if options.config is not None:
        configuration = configuration_of(opened_file, options.config)
    with naming(options.file, options.config):
        known = None if configuration is None else describe(configuration).causal
    entries, size, file = checkpoint.entries, checkpoint.size, printable(options.file)
    print(f"{file}: {checkpoint.format}, {len(checkpoint)} tensors, {size / 1e6:.2f} MB\n")
    if options.tensors:
        specs = [(name, entry.dtype, entry.shape) for name, entry in entries.items()]
        print(table([("tensor", "dtype", "shape"), *specs]), end="\n\n")
    others = {name: e for name, e in entries.items() if e.read is None and name != FORMAT}
    if others:
        share = sum(entry.n_bytes for entry in others.values()) / size
        some = ", ".join(f"{name} ({entry.dtype})" for name, entry in [*others.items()][:3])
        some += ", ... (--tensors lists all)" * (len(others) > 3)
        text = f"not read: {len(others)} of other types, {share:.0%} of the file: {some}"
        print(printable(text), end="\n\n")
    shapes = {name: entry.shape for name, entry in entries.items() if entry.read}
    with naming(options.file, options.config):
        lines = [printable(f"{title:<12}{x}") for title, x in overview(shapes, configuration)]
    if lines:
        print(*lines, sep="\n", end="\n\n")
    rows: list[tuple[object, ...]] = []
    for prefix, channels, kernel_size in found.values():
        (parent,) = parents_of(checkpoint, prefix)
        dtype = entries[f"{parent}weight"].dtype
        bias = "yes" if f"{parent}bias" in entries else "zeros"
        causal = {True: "yes", False: "no", None: "?"}[stated.get(prefix, {}).get("causal", known)]
        rows += [(prefix or NO_PREFIX, channels, kernel_size, dtype, bias, causal)]
    if rows:
        titles = "convolution", "channels", "kernel size", "dtype", "bias", "causal"
        print(table([titles, *rows]), end="\n\n")
    if reasons := unusable(checkpoint):
        texts = [f"  {prefix or NO_PREFIX}: {reason}" for prefix, reason in reasons.items()]
        print("left out:", *map(printable, texts), sep="\n", end="\n\n")
    if not found:
        raise CommandError(f"{options.file}: {weights.NONE}, found none")
    print(ASSUMED)
    file, stem = (printable(shlex.quote(x)) for x in (options.file, Path(options.file).stem))
    config = printable(shlex.quote(options.config or "config.yaml"))
    following = (NEXT_OF_MODEL if lines else NEXT).format(file, stem, config)
    print(f"next: edgeconv verify {file}" if stated else following)


def _convert(options: argparse.Namespace) -> None:
    """Write a converted checkpoint."""
    names = "causal", "config", "weights", "only_convolutions"
    how = {name: getattr(options, name) for name in names}
    with compiling():
        written = weights.convert(options.source, options.target, prefixes=options.prefix, **how)
    for prefix, reason in written.left_out.items():
        print(printable(f"edgeconv: left out {prefix or NO_PREFIX}: {reason}"), file=sys.stderr)
    if written.models:
        print(*written.models[::-1], sep="\n", end="\n\n")
    else:
        rows = [(prefix or NO_PREFIX, *geometry) for prefix, *geometry in written]
        print(table([("convolution", "channels", "kernel size"), *rows]), end="\n\n")
        is_part = any("encoders.blocks." in prefix for prefix, *_ in written)
        if is_part and not options.only_convolutions:
            print("These are its convolutions; with --config config.yaml it is the whole model.")
    size = Path(options.target).stat().st_size
    print(f"written to {printable(options.target)}, {size / 1e6:.2f} MB")


def _bench(options: argparse.Namespace) -> None:
    """Measure a recogniser."""
    recordings = sorted(machine.shipped().glob("recordings/*.wav"))
    audio = options.audio or [str(path) for path in recordings]
    listening = {"window_ms": options.window_ms, "left_context": options.left_context}
    listening |= {"beam_size": options.beam, "threads": options.threads}
    model = options.model or str(machine.shipped() / f"{machine.MODEL}.npz")
    check_model(model, "bench")
    machine.bench(model, options.config, audio, options.json, **listening)


def _verify(options: argparse.Namespace) -> None:
    """Compare digests."""
    with compiling():
        digests = weights.verify(options.file, options.prefix, seed=options.seed)
    rows = [(prefix or NO_PREFIX, digest) for prefix, digest in digests.items()]
    print(table([("module", "digest of its outputs, as recorded"), *rows]))
    print(f"\nThe same bits here, offline and streamed in all ways (--seed {options.seed}).")
