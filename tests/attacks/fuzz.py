"""Change good files at random: each must be refused, or load exactly.

    python tests/attacks/fuzz.py [COUNT [SEED]]

Where checksums cover every byte, what loads must be the good file's names, types, shapes and bits,
or those of the other file that it was spliced with. Where nothing covers a byte, nobody can know
what it was: there the arrays must be those that the entries describe. Every error must be one line
that names the file, and every case ends within bounds of memory and time.
"""

import argparse
import collections
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parents[n]) for n in (1, 2)]

import torch_files

from attacks import bounded, different
from edgeconv.checkpoint import CheckpointError, read_checkpoint

EDGES = (0, 1, 2, 47, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63)


def tree(sign, order="little"):
    """Return a state dict with what checkpoints hold beside it."""
    shared = torch_files.storage(np.arange(sign, sign * 13, sign, np.int16), order)
    halves = torch_files.storage(np.int16([0x3F80, 0x4000]), order).raw
    model = {
        "w": torch_files.tensor(np.float32([[1, 2], [3, 4]]) * sign, order),
        "p": torch_files.parameter(np.float32([0.5]), order),
        "t": torch_files.view(shared, 1, (3, 2), (1, 4)),
        "n": torch_files.view(shared, 5, (2,), (3,), {"neg": True}),
        "b": torch_files.view(torch_files.Storage(halves, "BFloat16", 2), 0, (2,), (1,)),
        "u": torch_files.untyped_view(halves, "uint16", 0, (2,), (1,)),
        "f": torch_files.untyped_view(b"\x38\x3c\x40", "float8_e5m2", 0, (3,), (1,)),
    }
    return {"model": model, "step": sign * 1000, "loss": 0.25, "args": argparse.Namespace(lr=0.1)}


def npz(sign, **options):
    arrays = {"w": np.float32([[1, 2], [3, 4]]) * sign, "v": np.arange(3, dtype=">i2")}
    arrays |= {"f": np.asfortranarray(np.float64([[1, 2], [3, 4]])), "edgeconv": np.array("{}")}
    return torch_files.zipped(
        {f"{name}.npy": torch_files.npy(array) for name, array in arrays.items()}, **options
    )


def safetensors(sign):
    w = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    v = {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}
    data = (np.float32([[1, 2], [3, 4]]) * sign).tobytes() + b"\x80\x3f\0\x40\0\xc0"
    return torch_files.safetensors({"__metadata__": {"format": "pt"}, "w": w, "v": v}, data)


def with_pickle(pickle):
    """Return a file with this pickle, and the right checksum."""
    return torch_files.zipped({**torch_files.records(tree(1)), "archive/data.pkl": pickle})


def with_array(content):
    return torch_files.zipped({"w.npy": content})


# Two contents, which are changed and spliced; whether checksums cover them; the file of a content.
SIGNS = (1, -1)
FORMATS = {
    "torch": ([torch_files.saved(tree(s)) for s in SIGNS], True, bytes),
    "torch, deflated": ([torch_files.saved(tree(s), deflated=True) for s in SIGNS], True, bytes),
    "torch, big-endian": (
        [torch_files.saved(tree(s, "big"), byte_order="big") for s in SIGNS],
        True,
        bytes,
    ),
    "torch, without checksums": (
        [torch_files.with_checksums(torch_files.saved(tree(s)), 0) for s in SIGNS],
        False,
        bytes,
    ),
    "pickle": ([torch_files.pickled(tree(1), p)[0] for p in (2, 4)], False, with_pickle),
    "safetensors": ([safetensors(s) for s in SIGNS], False, bytes),
    "npz": ([npz(s) for s in SIGNS], True, bytes),
    "npz, deflated": ([npz(s, deflated=True) for s in SIGNS], True, bytes),
    "npy": (
        [torch_files.npy(np.float32([1, 2, 3])), torch_files.npy(np.int16([[1, 2]]).T)],
        False,
        with_array,
    ),
}


def part(rng, data):
    """Choose a part of a few bytes, seldom of many."""
    start = rng.randrange(len(data))
    return start, start + rng.randrange(1, rng.choice((3, 9, 65, 1025)))


def number(rng, data):
    """Change a number of 1, 2, 4 or 8 bytes."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = rng.randrange(len(data))
    now = int.from_bytes(data[at : at + size], order)
    new = rng.choice((rng.choice(EDGES), -rng.choice(EDGES), now + 1, now - 1, now * 2, len(data)))
    data[at : at + size] = (new % 256**size).to_bytes(size, order)


def digits(rng, data):
    """Change a number in a text."""
    if places := [i for i, byte in enumerate(data) if 48 <= byte < 58]:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice(
            (b"", b"-1", b"0", b"1.0", b"true", b"9" * rng.randrange(30))
        )


def change(rng, data, other):
    """Change a file in one of many ways."""
    (start, stop), at = part(rng, data), rng.randrange(len(data))
    match rng.randrange(12):
        case 0 | 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at] = rng.randrange(256)
        case 3:
            del data[at:]
        case 4:
            del data[start:stop]
        case 5:
            data[at:at] = data[start:stop]
        case 6:
            data[at : at + stop - start] = data[start:stop]
        case 7:
            data[start:stop] = bytes(stop - start)
        case 8:
            data[at:] = other[rng.choice((at, rng.randrange(len(other)))) :]
        case 9:
            digits(rng, data)
        case _:
            number(rng, data)


def judge(path, expected):
    """Say what became of a changed file, or raise what is wrong; `expected` is None if unknown."""
    try:
        checkpoint = read_checkpoint(path)
        found = dict(checkpoint)
    except CheckpointError as error:
        line = str(error)
        is_line = line.startswith(f"{path}: ") and line.isprintable() and "MemoryError" not in line
        assert is_line, line
        return "refused"
    if expected is None:
        for name, array in found.items():
            assert array.shape == checkpoint.entries[name].shape, name
        return "loaded"
    complaints = [different(found, one) for one in expected]
    assert not all(complaints), complaints[0]
    return "exact"


def run(form, count, seed, folder):
    """Judge so many changed files; return how many became what, and the first that is wrong."""
    contents, has_checksums, file_of = FORMATS[form]
    path, outcomes, expected = Path(folder) / "changed", collections.Counter(), []
    for content in contents:
        path.write_bytes(file_of(content))
        expected.append(dict(read_checkpoint(path)))
    with bounded(seconds=60 + count / 20):
        for case in range(count):
            rng = random.Random(f"{form} {seed} {case}")
            data = bytearray(contents[case % 2])
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                if data:
                    change(rng, data, contents[1 - case % 2])
            path.write_bytes(file_of(bytes(data)))
            try:
                outcomes[judge(path, expected if has_checksums else None)] += 1
            except Exception as error:
                return outcomes, f"{form}, seed {seed}, case {case}: {error!r}, in {path}"
    return outcomes, None


if __name__ == "__main__":
    count, seed = [*map(int, sys.argv[1:]), *(20_000, random.randrange(10**6))[len(sys.argv) - 1 :]]
    results = [run(form, count, seed, tempfile.mkdtemp()) for form in FORMATS]
    for form, (outcomes, finding) in zip(FORMATS, results, strict=True):
        print(finding or f"{form}, seed {seed}: {dict(outcomes)}")
    sys.exit(any(finding for _, finding in results))
