"""Change good files at random, and see that what still loads is exact.

    python tests/attacks/fuzz.py [--format F ...] [--count 100000] [--seed S] [--output DIRECTORY]

Every change follows from the format, the seed and the number of the case, all of which are printed
with a finding; the changed file is kept in the directory. Each format runs in a process of its own
under limits of memory and processor time. A changed file must be

- refused by a `CheckpointError` of one line that names the file, or
- loaded exactly.

What exactly means depends on what the format records:

- Where checksums cover every byte that matters, exactly the names, order, types, shapes and bits
  of the good file: damage is noticed or harmless. A file that was spliced from two good ones may
  load as either.
- Where nothing covers a byte (safetensors, the format before PyTorch 1.6, archives without
  checksums), and where the change was made before the checksums were computed, nobody can know
  what the byte was. There a file that loads must load as the straightforward reader in `plain.py`
  says that its bytes mean. (If that reader fails, for Python's unpickler hashes keys that this
  library does not, the case is counted as ``unchecked``.)
"""

import argparse
import collections
import io
import json
import os
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch_files
from torch_files import Call, named

from attacks import converted_files, npz_files, plain, safetensors_files
from attacks.catalogue import bounded, different
from attacks.every import ATTACKS
from attacks.readers import READERS
from edgeconv.checkpoint import CheckpointError

MEMORY = 2**29  # bytes beyond what the process starts with
SECONDS = 10  # of processor time for a file
EDGES = (0, 1, 2, 47, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63)


class Good(NamedTuple):
    """Files of one kind that load, and how to judge what becomes of them."""

    contents: list
    """They are changed in turn, and spliced with the next."""
    read: str = "tensors"
    plain: Callable | None = None
    """Returns what changed content means; None if checksums cover all of it."""
    file: Callable = bytes
    """Makes the file of the content."""


def tree(sign, byte_order="little"):
    """Return a state dict with what checkpoints hold beside it."""
    shared = torch_files.storage(np.arange(sign, sign * 13, sign, np.int16), byte_order)
    halves = torch_files.storage(np.int16([0x3F80, 0x4000]), byte_order).raw
    eighths = torch_files.untyped_view(b"\x38\x3c\x40", "float8_e5m2", 0, (3,), (1,))
    typed = (eighths.function, named("torch.nn.parameter", "Parameter"), eighths.arguments, {})
    stated = (torch_files.tensor(np.int8([sign])), True, {}, {"init": 1})
    model = {
        "w": torch_files.tensor(np.float32([[1, 2], [3, 4]]) * sign, byte_order),
        "p": torch_files.parameter(np.float32([0.5]), byte_order),
        "s": Call(named("torch._utils", "_rebuild_parameter_with_state"), stated),
        "t": torch_files.view(shared, 1, (3, 2), (1, 4)),
        "n": torch_files.view(shared, 5, (2,), (3,), {"neg": True}),
        "b": torch_files.view(torch_files.Storage(halves, "BFloat16", 2), 0, (2,), (1,)),
        "u": torch_files.untyped_view(halves, "uint16", 0, (2,), (1,)),
        "f": Call(named("torch._tensor", "_rebuild_from_type_v2"), typed),
    }
    return {"model": model, "step": sign * 1000, "loss": 0.25, "args": argparse.Namespace(lr=0.1)}


def torch_zip(sign):
    return torch_files.saved(tree(sign))


def with_pickle(pickle):
    """Return a file with this pickle, and the right checksum."""
    return torch_files.zipped({**torch_files.records(tree(1)), "archive/data.pkl": pickle})


def numpy(sign, save=np.savez):
    arrays = {"w": np.float32([[1, 2], [3, 4]]) * sign, "v": np.arange(3, dtype=">i2")}
    return npz_files.in_memory(save, **arrays, f=np.asfortranarray(np.float64([[1, 2], [3, 4]])))


def safetensors(sign):
    w = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    v = {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}
    header = {"__metadata__": {"format": "pt"}, "w": w, "v": v}
    data = (np.float32([[1, 2], [3, 4]]) * sign).tobytes() + b"\x80\x3f\0\x40\0\xc0"
    return safetensors_files.file(header, data)


def stated(content):
    """Return the text of a header and what it holds, however it was changed."""
    text = content.decode(errors="replace")
    return text, json.loads(text)


def modules(content):
    _, header = stated(content)
    arrays = {"m.weight": converted_files.WEIGHT, "m.bias": converted_files.BIAS}
    return {**arrays, "m.causal": np.array(header["modules"]["m"]["causal"])}


def state(content):
    _, header = stated(content)
    fields = {"frames": converted_files.FRAMES, "frames_in": np.int64([5])}
    for field in ("batch_size", "channels", "kernel_size", "causal", "weights"):
        if header["states"][""][field] is not None:
            fields[field] = np.array(header["states"][""][field])
    return {f".{field}": value for field, value in fields.items()}


def header_of(file):
    """Return the text in a converted checkpoint or a state."""
    return str(np.load(io.BytesIO(file))["edgeconv"]).encode()


def with_module(text):
    arrays = {"m.conv.weight": converted_files.WEIGHT, "m.conv.bias": converted_files.BIAS}
    return converted_files.npz(text.decode(errors="replace"), **arrays)


def with_frames(text):
    arrays = {"frames": converted_files.FRAMES, "frames_in": np.int64([5])}
    return converted_files.npz(text.decode(errors="replace"), **arrays)


def without_checksums(sign):
    return torch_files.with_checksums(torch_zip(sign), 0)


def legacy(sign):
    return b"".join(torch_files.legacy(tree(sign)))


def python_2():
    """Return a file with the byte strings and dictionaries of Python 2."""
    pairs = [[name, value] for name, value in tree(1)["model"].items()]
    model = Call(named("collections", "OrderedDict"), (pairs,))
    parts = torch_files.legacy({"model": model})
    parts[:5] = [re.sub(rb"X(.)\0\0\0", rb"U\1", part, flags=re.DOTALL) for part in parts[:5]]
    return b"".join(parts)


def unusual():
    """Return the small archives among the attacks that load: with checksums, and without."""
    loading = [attack for attack in ATTACKS if isinstance(attack.outcome, dict)]
    contents = [
        attack.make()
        for attack in loading
        if attack.group in ("unusual", "storages", "archives")
        and all(np.size(array) < 100 for array in attack.outcome.values())
    ]
    whole, bare = [], []
    for content in contents:
        if content.startswith(b"PK") and len(content) < 2**12:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                records = archive.infolist()
            if any(record.CRC for record in records):
                whole.append(content)
            if b"data.pkl" in content and not any(record.compress_type for record in records):
                bare.append(torch_files.with_checksums(content, 0))
    return whole, bare


SIGNS = (1, -1)
CAUSAL = [{**converted_files.MODULE, "causal": causal} for causal in (True, False)]
CONVERTED = [converted_files.converted(module) for module in CAUSAL]
STATES = [converted_files.state(frames_in=(n,)) for n in (5, 6)]
UNUSUAL, UNUSUAL_BARE = unusual()
FORMATS = {
    "torch": Good([torch_zip(s) for s in SIGNS]),
    "torch-deflated": Good([torch_files.saved(tree(s), deflated=True) for s in SIGNS]),
    "torch-big-endian": Good([torch_files.saved(tree(s, "big"), byte_order="big") for s in SIGNS]),
    "torch-without-checksums": Good([without_checksums(s) for s in SIGNS], plain=plain.torch_zip),
    "torch-pickle": Good(
        [torch_files.pickled(tree(s), p)[0] for s, p in ((1, 2), (-1, 4), (1, 5))],
        plain=lambda data: plain.torch_records(data, RECORDS),
        file=with_pickle,
    ),
    "torch-legacy": Good([*map(legacy, SIGNS), python_2()], plain=plain.torch_legacy),
    "unusual": Good(UNUSUAL),
    "unusual-without-checksums": Good(UNUSUAL_BARE, plain=plain.torch_zip),
    "safetensors": Good([safetensors(s) for s in SIGNS], plain=plain.safetensors),
    "npz": Good([numpy(s) for s in SIGNS]),
    "npz-deflated": Good([numpy(s, np.savez_compressed) for s in SIGNS]),
    "npy": Good(
        [npz_files.array(), npz_files.array("'>i2'", "True", "(2, 3)")],
        plain=lambda content: {"w": plain.npy(content)},
        file=npz_files.file,
    ),
    "converted": Good(CONVERTED, read="modules"),
    "converted-header": Good(
        [*map(header_of, CONVERTED)], read="modules", plain=modules, file=with_module
    ),
    "state": Good(STATES, read="states"),
    "state-header": Good([*map(header_of, STATES)], read="states", plain=state, file=with_frames),
}
RECORDS = {k.removeprefix("archive/"): v for k, v in torch_files.records(tree(1)).items()}


def flip(rng, data, other):
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)


def put(rng, data, other):
    data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), rng.choice(EDGES) & 255))


def truncate(rng, data, other):
    del data[rng.randrange(len(data)) :]


def delete(rng, data, other):
    start, stop = part(rng, data)
    del data[start:stop]


def duplicate(rng, data, other):
    start, stop = part(rng, data)
    position = rng.choice((start, rng.randrange(len(data))))
    data[position:position] = data[start:stop]


def overwrite(rng, data, other):
    start, stop = part(rng, data)
    position = rng.randrange(len(data))
    data[position : position + stop - start] = data[start:stop]


def zero(rng, data, other):
    start, stop = part(rng, data)
    data[start:stop] = bytes(stop - start)


def splice(rng, data, other):
    """Go on with another file, from the same place or from anywhere."""
    position = rng.randrange(len(data))
    data[position:] = other[rng.choice((position, rng.randrange(len(other)))) :]


def insert(rng, data, other):
    start, stop = part(rng, other)
    position = rng.randrange(len(data))
    data[position:position] = other[start:stop]


def number(rng, data, other):
    """Change a number of 1, 2, 4 or 8 bytes."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    position = rng.randrange(len(data))
    now = int.from_bytes(data[position : position + size], order)
    new = rng.choice((rng.choice(EDGES), -rng.choice(EDGES), now + 1, now - 1, now * 2, len(data)))
    data[position : position + size] = (new % 256**size).to_bytes(size, order)


def digits(rng, data, other):
    """Change a number in a text."""
    places = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if places:
        position = rng.choice(places)
        new = rng.choice((b"", b"-1", b"0", b"1", b"1.0", b"true", b"9" * rng.randrange(1, 30)))
        data[position : position + 1] = new


CHANGES = (flip, flip, put, put, truncate, delete, duplicate, overwrite, zero, splice, insert)
CHANGES += (number, number, digits)


def part(rng, data):
    """Choose a part of a few bytes, seldom of many."""
    start = rng.randrange(len(data))
    return start, start + rng.randrange(1, rng.choice((3, 9, 65, 1025)))


def changed(good, name, seed, case):
    """Return the content of a case."""
    rng = random.Random(f"{name} {seed} {case}")
    content, other = pair(good.contents, case)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if data:
            rng.choice(CHANGES)(rng, data, other)
    return bytes(data)


def pair(values, case):
    """Choose what belongs to the good file of a case, and to the one that it is spliced with."""
    return [values[number % len(values)] for number in (case, case + 1)]


def originals(good, path):
    """Return what the good files hold."""
    for content in good.contents:
        path.write_bytes(good.file(content))
        yield READERS[good.read](path)


def judge(good, content, expected, path):
    """Open a changed file: say what became of it, or raise what is wrong."""
    path.write_bytes(good.file(content))
    try:
        found = READERS[good.read](path)
    except CheckpointError as error:
        text = str(error)
        if not (text.startswith(f"{path}: ") and text.isprintable() and len(text) < 1000):
            raise AssertionError(f"an error that is not one line about the file: {text}") from error
        if error.found in ("MemoryError", "RecursionError"):
            raise
        return "refused"
    if good.plain is None:
        complaints = [different(found, one) for one in expected]
        if all(complaints):
            raise AssertionError(complaints[0])
        return "exact"
    try:
        meant = good.plain(content)
    except Exception:
        return "unchecked"
    if complaint := different(found, meant):
        raise AssertionError(complaint)
    return "exact"


def run(name, count, seed):
    """Judge so many changed files; return how many became what."""
    good, path = FORMATS[name], Path("changed")
    expected = list(originals(good, path))
    outcomes = collections.Counter()
    with bounded(MEMORY, SECONDS):
        for case in range(count):
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            content = changed(good, name, seed, case)
            try:
                outcomes[judge(good, content, pair(expected, case), path)] += 1
            except Exception as error:
                kept = f"{name}-{seed}-{case}"
                path.rename(kept)
                print(f"{kept}: {type(error).__name__}: {error}"[:2000], flush=True)
                outcomes["wrong"] += 1
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--count", type=int, default=100_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--output", default="fuzz-findings", help="where wrong files are kept")
    parser.add_argument("--here", action="store_true", help="in this process, without limits on it")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    Path(options.output).mkdir(exist_ok=True)
    failed = False
    for name in options.format:
        if options.here:
            os.chdir(options.output)
            seconds = 60 + options.count // 20
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            print(f"{name}, seed {seed}: {dict(run(name, options.count, seed))}", flush=True)
            return
        command = [sys.executable, __file__, "--here", "--format", name, "--seed", str(seed)]
        command += ["--count", str(options.count), "--output", options.output]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(child.stdout, end="", flush=True)
        if child.returncode:  # the last file that was written is the one
            kept = f"{options.output}/changed"
            print(f"{name}, seed {seed}: ended with {child.returncode}, left {kept}")
        failed |= child.returncode != 0 or "'wrong'" in child.stdout
    sys.exit(failed)


if __name__ == "__main__":
    main()
