"""What becomes of the files in this directory in other readers? Writes docs/attacks.md.

    pip install '.[oracle]' safetensors
    python tests/attacks/compare.py

Every reader opens the files of its own format, and those that are of no format, in a child process
with a gigabyte of memory and 20 seconds. Nothing is written but the table.
"""

import collections
import datetime
import os
import platform
import resource
import signal
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import safetensors.numpy
import torch

from attacks.catalogue import different
from attacks.damaged import MANY
from attacks.every import ATTACKS
from edgeconv import read_checkpoint

MEMORY = 2**30
SECONDS = 20
OUTCOMES = {
    "exact": "exact",
    "wrong": "wrong names or numbers",
    "loads": "loads all the same",
    "clear": "error that names the file",
    "other": "error that does not",
    "executes": "runs the payload",
    "explodes": "hangs, crashes, out of memory",
}
BAD = ("wrong", "executes", "explodes")
TITLES = {
    "payloads": "pickles that run code",
    "structures": "odd and endless pickles",
    "storages": "tensors beyond their storages",
    "archives": "zip archives that lie",
    "legacy_files": "PyTorch before 1.6",
    "safetensors_files": "safetensors headers that lie",
    "npz_files": "arrays that run code or lie",
    "kinds": "no checkpoints",
    "damaged": "good files, damaged",
    "unusual": "good files, unusual",
}


def flat(value, name=()):
    """Find the tensors that are Boolean, integer or float, by dotted name."""
    if isinstance(value, torch.Tensor):
        wide = value.float() if value.dtype.itemsize < 4 and value.is_floating_point() else value
        wide = value if value.dtype == torch.float16 else wide
        return {} if value.is_complex() else {".".join(name): wide.detach().resolve_neg().numpy()}
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, (list, tuple)) else items
    found = {}
    for key, child in items:
        found |= flat(child, (*name, str(key)))
    return found


def with_torch(path, names):
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return None if names is None else flat(loaded)


def with_safetensors(path, _):
    return safetensors.numpy.load_file(path)


def with_numpy(path, names):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in names or archive}
    return {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}


READERS = {
    "edgeconv": lambda path, _: dict(read_checkpoint(path)),
    "torch": with_torch,
    "safetensors": with_safetensors,
    "NumPy": with_numpy,
}


def peers(path):
    """Name the readers of the format that a file is closest to."""
    content = b""
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(2**23)
    if content.startswith(b"PK\3\4"):
        return ["torch" if b"data.pkl" in content else "NumPy"]
    if content[8:9] == b"{" and not content.startswith(b"{"):
        return ["safetensors"]
    return ["torch"] if content.startswith(b"\x80") else ["torch", "safetensors", "NumPy"]


def outcome(reader, path, right, marker):
    """Open a file in a child process, and say what came of it."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        signal.alarm(SECONDS)
        os.write(send, judged(reader, path, right).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        word = file.read().decode() or "explodes"
    os.waitpid(child, 0)
    return "executes" if marker.exists() else word


def judged(reader, path, right):
    try:
        found = READERS[reader](path, right)
    except MemoryError:
        return "explodes"
    except BaseException as error:
        text = str(error)
        if "allocate" in text:
            return "explodes"
        return "clear" if str(path) in text else "other"
    if right is None:
        return "loads"
    names = sorted(right)
    same = sorted(found) == names
    wrong = not same or different(*({name: one[name] for name in names} for one in (found, right)))
    return "wrong" if wrong else "exact"


def table(rows):
    """Format a table of Markdown."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *body))


def main():
    counts = collections.defaultdict(collections.Counter)
    bad, refused, better = [], [], []
    for attack in ATTACKS:
        if attack.read != "tensors":
            continue
        right = attack.outcome if isinstance(attack.outcome, dict) else None
        right = {"w": MANY} if attack.group == "damaged" else right
        words = {}
        with tempfile.TemporaryDirectory() as folder:
            path, marker = Path(folder, "weights"), Path(folder, "marker")
            attack.write(path, str(marker))
            for reader in ("edgeconv", *peers(path)):
                words[reader] = outcome(reader, path, right, marker)
                counts[attack.group, reader][words[reader]] += 1
                if marker.is_dir():
                    marker.rmdir()
                marker.unlink(missing_ok=True)
        for reader, word in words.items():
            row = (TITLES[attack.group], attack.name, reader, OUTCOMES[word])
            if word in BAD:
                bad.append(row)
            if attack.group == "unusual" and word != "exact":
                refused.append(row[1:3])
            if reader != "edgeconv" and word == "exact" != words["edgeconv"]:
                better.append((*row[:3], OUTCOMES[words["edgeconv"]]))
    rows = [("files", "reader", *OUTCOMES.values())]
    for (group, reader), found in sorted(
        counts.items(), key=lambda item: list(TITLES).index(item[0][0])
    ):
        rows.append((TITLES[group], reader, *(found[word] or "" for word in OUTCOMES)))
    versions = f"edgeconv at the commit of this file, PyTorch {torch.__version__}, "
    versions += f"safetensors {safetensors.__version__}, NumPy {np.__version__}, "
    versions += f"Python {platform.python_version()}, {datetime.date.today()}"
    page = Path(__file__).parents[2] / "docs" / "attacks.md"
    text = page.read_text().partition("<!-- what follows is made by the script -->\n")
    made = [versions, table(rows), "## Wrong tensors, and no answer"]
    made += [
        table([("files", "file", "reader", "outcome"), *bad]),
        "## Good files that are refused",
    ]
    made += [table([("file", "reader"), *refused]), "## Where others do better"]
    made += ["They load exactly what this library refuses or gets wrong:"]
    made += [table([("files", "file", "reader", "edgeconv"), *better])]
    page.write_text(text[0] + text[1] + "\n" + "\n\n".join(made) + "\n")


if __name__ == "__main__":
    main()
