"""What a file is that is not a checkpoint, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

from edgeconv.checkpoint.error import CheckpointError, shown

__all__ = ["HEAD_BYTES", "wrong_archive", "wrong_file"]

HEAD_BYTES = 512
EXPECTED = "a checkpoint must be a PyTorch, a safetensors or an .npz file"
AGAIN = "download or copy it again"
RESAVE = "load it in PyTorch and save `model.state_dict()` with `torch.save`"
UNPACK = "unpack it, and give the path of the checkpoint inside"
ORIGINAL = "give the PyTorch checkpoint that it was made from"

_STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`"),
    (b"sys_info\0", "a tar archive of PyTorch's first releases", RESAVE),
    (b"\x93NUMPY", "a single array (.npy)", "save weight and bias by name with `numpy.savez`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its arrays by name with `numpy.savez`"),
    (b"GGUF", "a GGUF model", ORIGINAL),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    *((bytes([0x80, n]), "a plain pickle, which could run any code", RESAVE) for n in range(6)),
)


def wrong_file(head: bytes) -> CheckpointError:
    """Return the error for a file of another format, given its first `HEAD_BYTES` bytes."""
    return CheckpointError(EXPECTED, *_recognised(head))


def _recognised(head: bytes) -> tuple[str, str]:
    """Say what a file is, and the remedy."""
    for start, found, remedy in _STARTS:
        if head.startswith(start):
            return found, remedy
    if not head:
        return "an empty file", AGAIN
    if not head.strip(b"\0"):
        return "zero bytes, as an interrupted copy leaves them", AGAIN
    if head[257:262] == b"ustar":
        return "a tar archive, such as .nemo", UNPACK
    # Protocol buffers have no signature: ONNX starts with its version and its producer's name.
    if head[0] == 8 and head[1:2] < b"\x20" and head[2:3] == b"\x12":
        return "an ONNX model", ORIGINAL
    text = head.decode(errors="ignore").strip()
    if text.lower().startswith(("<!doctype", "<html", "<?xml")):
        return "a web page", "download the file itself, after logging in if need be"
    if text.isprintable() or all(line.isprintable() for line in text.splitlines()):
        return ("a JSON text" if text.startswith(("{", "[")) else "a text file"), AGAIN
    return (
        f"other data, starting with the bytes {head[:8].hex(' ')}",
        "give the path of a checkpoint",
    )


def wrong_archive(names: Iterable[str]) -> CheckpointError | None:
    """Return the error for a zip archive of another format, None for one that may be read."""
    inside = ["/" + name for name in names]
    for part, found in (
        ("/constants.pkl", "a TorchScript archive"),
        ("/models/model.json", "a torch.export archive"),
        ("/.data/extern_modules", "a torch.package archive"),
    ):
        if any(name.endswith(part) for name in inside):
            return CheckpointError(EXPECTED, found, RESAVE)
    if any(name.endswith(("/data.pkl", ".npy")) for name in inside):
        return None
    found = (
        f"a zip archive of other files, such as {shown(inside[0][1:])}"
        if inside
        else "an empty zip archive"
    )
    return CheckpointError(EXPECTED, found, UNPACK)
