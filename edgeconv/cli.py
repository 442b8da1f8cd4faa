"""The command line: its words, its errors and its exit statuses."""

from __future__ import annotations

import argparse
import errno
import io
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import edgeconv
from edgeconv import listing, machine
from edgeconv.checkpoint import CheckpointError, read_checkpoint
from edgeconv.checkpoint.converted import causality
from edgeconv.checkpoint.tensors import weight_and_bias
from edgeconv.demo import demo
from edgeconv.proof import VerificationError, verify
from edgeconv.run import CHUNK, run
from edgeconv.terminal import CommandError, explaining_compilation, printable, table
from edgeconv.weights import convert, load

INTERRUPTED = 130  # 128 + SIGINT, as shells count
DESCRIPTION = """\
Run the depthwise convolutions of streaming speech recognisers without PyTorch.

From an ESPnet checkpoint to frames, in three steps:

  edgeconv inspect valid.loss.best.pth
      lists its convolutions, such as
      encoder.encoders.blocks.0.depthwise_conv_mod
  edgeconv convert valid.loss.best.pth small.npz --causal
      copies them to a small file that also says that they are causal
  edgeconv run small.npz features.npy -o output.npy \\
      --prefix encoder.encoders.blocks.0.depthwise_conv_mod
      streams a recording, float frames (T, C), through one of them

No checkpoint at hand? `edgeconv demo` goes the whole way on one that ships.
"""
RUN_EXAMPLE = DESCRIPTION[DESCRIPTION.index("run small") : DESCRIPTION.index("\n      streams")]
CAUSAL = (
    "whether the convolutions are causal, which a PyTorch file does not say. ESPnet's "
    "configuration does: --causal with `dynamic_chunk_training: true`, else --no-causal"
)
CHECKPOINT = "a .pth, .safetensors or .npz file"
REMEDIES = {
    errno.ENOENT: "check the path; its directory must exist",
    errno.EISDIR: "give the path of a file",
    errno.EACCES: "check its permissions",
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EFBIG: "raise the limit on file sizes, or write to another disk",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status: 0, 1 after an error, 130 after Ctrl-C.

    A wrong command line, `--help` and `--version` end in argparse's `SystemExit` instead.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal can write µ
    try:
        try:
            options = _parser().parse_args(arguments)
            options.command(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `edgeconv inspect FILE | head -1`: the reader has what it wanted
        _discard_output()
    except OSError as error:
        if error.filename is None:
            _discard_output()
        remedy = REMEDIES.get(error.errno or 0, "check the path and the disk")
        name = "output" if error.filename is None else error.filename or "''"
        return _fail(f"{name}: {error.strerror or error}; {remedy}")
    except (CommandError, CheckpointError, VerificationError, FloatingPointError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    """Say in one line what went wrong; return the exit status."""
    print(f"edgeconv: error: {printable(message)}", file=sys.stderr)
    return 1


def _discard_output() -> None:
    """Drop what cannot be written: Python would try again, and complain, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("edgeconv", description=DESCRIPTION, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"edgeconv {edgeconv.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        function: Callable[[argparse.Namespace], object], example: str, summary: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            example.split()[0],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  edgeconv {example}",
            formatter_class=layout,
        )
        added.set_defaults(command=function, parser=added)
        return added

    command = add(
        lambda options: listing.inspect(options.file, options.tensors),
        "inspect valid.loss.best.pth",
        "list the depthwise convolutions in a checkpoint, and what to do next",
    )
    command.add_argument("file", metavar="FILE", help=CHECKPOINT)
    command.add_argument("--tensors", action="store_true", help="list every tensor as well")

    command = add(
        _convert,
        "convert valid.loss.best.pth small.npz --causal",
        "copy convolutions to a small file that any NumPy can read",
    )
    command.add_argument("file", metavar="SRC", help=CHECKPOINT)
    command.add_argument("target", metavar="DST", help="the .npz file to write")
    help_ = "a convolution to copy; may be given several times (default: all)"
    command.add_argument("--prefix", action="append", metavar="P", help=help_)
    command.add_argument("--causal", action=argparse.BooleanOptionalAction, help=CAUSAL)
    help_ = "the config.yaml of ESPnet that states it, and kernel sizes to check (needs PyYAML)"
    command.add_argument("--config", metavar="YAML", help=help_)

    command = add(
        _verify,
        "verify small.npz",
        "check that this machine computes the same bits as the one that converted a file",
    )
    command.add_argument("file", metavar="FILE", help="an .npz file that `convert` wrote")
    command.add_argument("--prefix", metavar="P", help="only this convolution")
    help_ = "decides where signals are cut into chunks (default: a random number)"
    command.add_argument("--seed", type=_natural, metavar="N", help=help_)

    command = add(_run, RUN_EXAMPLE, "stream a recording of any length through a convolution")
    command.add_argument("file", metavar="WEIGHTS", help=CHECKPOINT)
    help_ = "float frames (T, C), or (B, T, C) for B signals"
    command.add_argument("input", metavar="INPUT.npy", help=help_)
    help_ = "float32 frames of the same shape"
    command.add_argument("-o", "--output", metavar="OUTPUT.npy", required=True, help=help_)
    help_ = "frames at a time, with the same result for any (default: %(default)s)"
    command.add_argument("--chunk", type=_positive, default=CHUNK, metavar="N", help=help_)
    help_ = "which convolution, if WEIGHTS holds several"
    command.add_argument("--prefix", metavar="P", help=help_)
    command.add_argument("--causal", action=argparse.BooleanOptionalAction, help=CAUSAL)

    add(lambda _: demo(), "demo", "go the whole way on a checkpoint and a recording that ship")
    command = add(
        lambda options: machine.bench(options.json),
        "bench --json",
        "measure the time per frame on this machine",
    )
    command.add_argument("--json", action="store_true", help="print it for a program to read")
    add(lambda _: machine.doctor(), "doctor", "check that this machine can run convolutions")
    return parser


def _positive(text: str) -> int:
    """Parse a number of frames."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number of frames, got {text!r}")
    return number


def _natural(text: str) -> int:
    """Parse a seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive number, got {text!r}")
    return int(text)


def _convert(options: argparse.Namespace) -> None:
    """Write a converted checkpoint."""
    causal = _causal(options) if options.config is None else options.causal
    try:
        with explaining_compilation():
            written = convert(
                options.file,
                options.target,
                prefixes=options.prefix,
                causal=causal,
                config=options.config,
            )
    except (ValueError, ImportError) as error:  # a prefix given twice, PyYAML is missing, ...
        raise CommandError(str(error)) from error
    rows = [(prefix or "''", channels, taps) for prefix, channels, taps in written]
    print(table([("convolution", "channels", "kernel size"), *rows]))
    print(f"\nwritten to {printable(options.target)}")


def _verify(options: argparse.Namespace) -> None:
    """Compare digests."""
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with explaining_compilation():
        digests = verify(options.file, options.prefix, seed=seed)
    rows = [(prefix or "''", digest) for prefix, digest in digests.items()]
    print(table([("convolution", "digest of its outputs, as recorded"), *rows]))
    print(f"\nThe same bits here, offline and streamed in all ways (--seed {seed}).")


def _run(options: argparse.Namespace) -> None:
    """Stream a file through a convolution."""
    for source in (options.file, options.input):
        if Path(options.output).exists() and Path(options.output).samefile(source):
            raise CommandError(f"{options.output}: is also an input; write to another file")
    conv = load(options.file, options.prefix, _causal(options))
    shape = run(conv, options.input, options.output, options.chunk)
    print(f"{printable(options.output)}: float32 {shape}")


def _causal(options: argparse.Namespace) -> bool | None:
    """Return what the command line states, which it must unless the file does."""
    causal: bool | None = options.causal
    if causal is None:
        checkpoint = read_checkpoint(options.file)
        if not causality(checkpoint):
            wanted = [options.prefix] if isinstance(options.prefix, str) else options.prefix
            for prefix in wanted or ():
                weight_and_bias(checkpoint, prefix)  # that there is none is the better thing to say
            file = printable(options.file)
            config = "--config config.yaml, " if "config" in options else ""
            options.parser.error(f"{file} does not say: give {config}--causal or --no-causal")
    return causal
