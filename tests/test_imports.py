"""What imports what: layers, and a compiler only where something is computed."""

from processes import ROOT, passes


def test_what_needs_no_computation_imports_no_numba():
    program = """
import sys, edgeconv
path = edgeconv.__path__[0] + "/../weights/espnet-streaming-encoder.npz"
edgeconv.load_all(path)
list(edgeconv.read_checkpoint(path))
assert "numba" not in sys.modules
"""
    passes("-c", program)


def test_imports_go_one_way():
    """Down this list; what only names types, or runs later, is no import."""
    order = (
        "cli machine transcribe terminal weights digest recogniser encoder converted "
        "configuration blocks layers convolution stream state_dict arguments kernels checkpoint"
    )
    ranks = {name: i for i, name in enumerate(order.split(" "))}
    program = "import sys, edgeconv, edgeconv.cli, edgeconv.stream; print(*sys.modules)"
    modules = [m for m in passes("-c", program).split() if m.startswith("edgeconv.")]
    assert {m.split(".")[1] for m in modules} <= set(ranks)
    for path in (ROOT / "edgeconv").rglob("*.py"):
        own = path.relative_to(ROOT / "edgeconv").with_suffix("").parts[0]
        for line in path.read_text().splitlines():
            words = line.split()
            if line.startswith(("from edgeconv", "import edgeconv")) and own in ranks:
                parts = words[1].split(".")
                names = parts[1:2] or [word.strip(",") for word in words[3:]]
                for name in {*names} - {path.parent.name}:
                    assert ranks[own] < ranks.get(name, 99), f"{path}: {line}"
