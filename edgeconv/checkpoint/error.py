"""The one error of files: what was expected, what was found, and what to do; wrong kinds."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

EXPECTED = "a checkpoint must be a PyTorch, a safetensors or an .npz file"
AGAIN = "download or copy it again"
SAVE = "load it in PyTorch and save `model.state_dict()` with `torch.save`"
UNPACK = "unpack it, and give the path of the checkpoint inside"
ORIGINAL = "give the PyTorch checkpoint that it was made from"
CONFIGURATION = "give the config.yaml that ESPnet wrote beside the checkpoint"
STARTS: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`"),
    (b"\x93NUMPY", "a single array (.npy)", "save weight and bias by name with `numpy.savez`"),
    (bytes(8), "nothing, or zero bytes as an interrupted copy leaves them", AGAIN),
    (b"GGUF", "a GGUF model", ORIGINAL),
    (tuple(bytes([8, version, 0x12]) for version in range(32)), "an ONNX model", ORIGINAL),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "a gzip or similar file", UNPACK),
    (b"\x80\x02\x8a\nl\xfc", "PyTorch's format before 1.6", "load it and `torch.save` it again"),
    (b"\x80", "a plain pickle, which could run any code", SAVE),
    (b"PK", "a zip archive that was cut short", AGAIN),
    (b"<", "a web page", "download the file itself, after logging in if need be"),
    ((b"{", b"["), "a JSON text", AGAIN),
)
INSIDE = (
    ("/constants.pkl", "a TorchScript archive", "save `torch.jit.load(path).state_dict()`"),
    ("/aotinductor/", "a model that AOTInductor compiled (.pt2)", ORIGINAL),
    ("/archive_format", "a torch.export archive", "save `torch.export.load(path).state_dict`"),
    ("/meta.yaml", "a model pack of ESPnet", "unzip it, and give the `.pth` inside"),
)


class CheckpointError(ValueError):
    """A file, or a tensor in it, that cannot be used: one line with the remedy."""

    path: str | os.PathLike[str] | None = None

    def __init__(self, expected: str, found: str = "", remedy: str = "") -> None:
        super().__init__(expected, found, remedy)

    def __str__(self) -> str:
        expected, found, remedy = self.args
        where = f"{printable(os.fspath(self.path))}: " if self.path else ""
        return f"{where}{expected}{found and f', found {found}'}{remedy and f'; {remedy}'}"


class ConfigurationError(CheckpointError):
    """A configuration that asks for what is left out, or does not fit its checkpoint."""


def damaged(expected: str, found: str) -> CheckpointError:
    """Return the error for a file that breaks the rules of its own format."""
    return CheckpointError(expected, found, "the file is damaged: download or export it again")


def require(condition: object, expected: str, found: str = "another") -> None:
    """Refuse a file that breaks the rules of its own format."""
    if not condition:
        raise damaged(expected, found)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a configuration that asks for what is left out."""
    allowed = [*choices]  # a value may have no hash
    if value not in allowed:
        one_of = "one of " * (len(allowed) > 1) + ", ".join(map(str, allowed))
        raise ConfigurationError(f"{name} must be {one_of}: others are left out", shown(value))


def misfit(expected: str, found: object) -> ConfigurationError:
    """Return the error for a configuration that is none, or is another model's."""
    text = repr(found) if isinstance(found, list) else found
    return ConfigurationError(expected, shown(text), CONFIGURATION)


def section(configuration: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping in a configuration, an empty one if there is none."""
    part = configuration.get(name)
    if not isinstance(part, Mapping | None):
        raise misfit(f"{name} must be a mapping", part)
    return part or {}


def listed(configuration: Mapping[str, Any], name: str, of: str) -> Sequence[Any]:
    """Return a list in a configuration, of one thing at least."""
    value = configuration.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise misfit(f"{name} must be a list of {of}", value)
    return value


def counted(options: Mapping[str, Any], name: str, default: int) -> int:
    """Return a positive integer in a configuration."""
    value = options.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise misfit(f"{name} must be a positive integer", value)
    return value


@contextlib.contextmanager
def naming(
    path: str | os.PathLike[str] | None, config: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """
    Let errors raised inside name the file, if they do not yet; so do those of lacking memory.

    Those of a configuration name `config`, if it is a file of its own.
    """
    try:
        yield
    except (CheckpointError, MemoryError, RecursionError) as error:
        if not isinstance(error, CheckpointError):
            expected = "the process must have the memory and the stack to read the file"
            error = CheckpointError(expected, type(error).__name__, "give it more of both")
        origin = config if isinstance(error, ConfigurationError) else None
        error.path = error.path or origin or path
        raise error from None


def shown(value: object) -> str:
    """Show what a file holds on one line, printable and not too long; text is quoted."""
    if isinstance(value, list):
        more = f" and {len(value) - 12} more" if len(value) > 12 else ""
        return ", ".join(map(shown, value[:12])) + more
    text = str(value)
    text = text if len(text) <= 120 else f"{text[:60]}...{text[-60:]}"
    return f"'{printable(text)}'" if isinstance(value, str) else printable(text)


def printable(text: str) -> str:
    """Replace what a terminal would not print as one line by escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def wrong_file(head: bytes) -> CheckpointError:
    """Return the error for a file of another format, given how it begins."""
    for start, *kind in STARTS:
        if (head.lstrip() or bytes(8)).startswith(start):
            return CheckpointError(EXPECTED, *kind)
    found = f"something else, starting {shown(str(head[:16]))}"
    return CheckpointError(EXPECTED, found, "give a checkpoint's path")


def refuse_other(names: Iterable[str]) -> None:
    """Refuse a zip archive of another format, given its records."""
    inside = [f"/{name}" for name in names]
    for part, *kind in INSIDE:
        if any(part in name for name in inside):
            raise CheckpointError(EXPECTED, *kind)
    if not any(name.endswith(("/data.pkl", ".npy")) for name in inside):
        found = f"a zip archive of other files ({shown([name[1:] for name in inside])})"
        raise CheckpointError(EXPECTED, found, UNPACK)
