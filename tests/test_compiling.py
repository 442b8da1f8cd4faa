"""Compiled code in the cache: never that of another source, and never needed."""

import shutil
import zipfile

import pytest
from processes import ROOT, passes, run

CONVOLUTION = """
import hashlib, numpy as np, edgeconv
conv = edgeconv.DepthwiseConvolution(20, 5, causal=True, rng=0)
y, _ = conv(np.random.default_rng(0).standard_normal((1, 30, 40)))
print(hashlib.sha256(y).hexdigest())
"""
KERNEL = """
import numpy as np
from edgeconv.kernels import pointwise
x, y = np.array([[1, 2]], np.float32), np.array([[3, 5]], np.float32)
pointwise.kernel(pointwise.add)(x, y, np.float32(10))
print(y)
"""  # one that is compiled in half a second
ADDED = "[[31. 52.]]\n"


@pytest.fixture
def package(tmp_path):
    """Return a directory with a copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__", "shipped")
    shutil.copytree(ROOT / "edgeconv", tmp_path / "site" / "edgeconv", ignore=ignored)
    return tmp_path / "site"


@pytest.fixture(scope="module")
def expected():
    return passes("-c", CONVOLUTION)


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*.nb*")}


def test_what_is_cached_is_used_until_any_file_of_the_kernels_changes(package, tmp_path):
    cache = tmp_path / "cache"
    environment = {"path": package, "NUMBA_CACHE_DIR": str(cache)}
    assert passes("-c", KERNEL, **environment) == ADDED
    compiled = files(cache)
    assert passes("-c", KERNEL, **environment) == ADDED
    assert files(cache) == compiled != {}

    edits = """
import pathlib, edgeconv.kernels as k
versions, sources = [k._version()], sorted(pathlib.Path(k.__file__).parent.glob("*.py"))
for source in sources:
    source.write_text(source.read_text() + "\\n\\nEDITED = True\\n")
    k._version.cache_clear()
    versions.append(k._version())
assert len(set(versions)) == 1 + len(sources)
"""
    passes("-c", edits, path=package)

    source = package / "edgeconv" / "kernels" / "vectors.py"
    text, sum_of_product = source.read_text(), "args[0].type, *args)"
    assert sum_of_product in text
    source.write_text(text.replace(sum_of_product, "args[0].type, *args[::-1])"))
    assert passes("-c", KERNEL, **environment) == "[[13. 20.]]\n"  # y * x + 10


def test_every_start_sees_the_same_version(package):
    """Whatever else the process holds, and wherever the code comes from."""
    names = "import edgeconv.kernels as k; print(k._version())"
    starts = [
        passes(*options, "-c", before + names, path=package, PYTHONDONTWRITEBYTECODE="")
        for before in ("import edgeconv.encoder;", "")
        for options in (["-B"], [], [])  # from the sources, the same and kept, and what was kept
    ]
    assert len(set(starts)) == 1


@pytest.mark.parametrize("seconds", [0.4, 1.2])
def test_ctrl_c_ends_a_process_that_compiles(tmp_path, seconds):
    program = f"""
import signal, edgeconv, edgeconv.stream
conv = edgeconv.DepthwiseConvolution(20, 5, causal=True)
signal.signal(signal.SIGVTALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_VIRTUAL, {seconds})  # of computing, which compiling takes longer for
conv.stream()
print("compiled")
"""
    process = run("-c", program, NUMBA_CACHE_DIR=str(tmp_path))
    assert (process.returncode != 0, process.stdout) == (True, "")
    assert "KeyboardInterrupt" in process.stderr


def test_a_cache_that_cannot_be_written_is_one_warning(package, tmp_path, expected):
    """As in a zip, with no home: Numba has no directory to choose from."""
    with zipfile.ZipFile(tmp_path / "edgeconv.zip", "w") as archive:
        for path in package.rglob("*.py"):
            archive.write(path, path.relative_to(package))
    process = run(
        "-W", "always::RuntimeWarning", "-c", CONVOLUTION, path=tmp_path / "edgeconv.zip",
        HOME="/dev/null", XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="",
    )  # fmt: skip
    assert process.returncode == 0
    assert process.stderr.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in process.stderr
    assert process.stdout == expected


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_truncated_cache_is_one_warning(package, tmp_path, kind):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "path": package}
    passes("-c", KERNEL, **environment)
    for path in (tmp_path / "cache").rglob(f"*.{kind}"):
        path.write_bytes(path.read_bytes()[:100])
    process = run("-W", "always::RuntimeWarning", "-c", KERNEL, **environment)
    assert (process.returncode, process.stdout) == (0, ADDED)
    assert process.stderr.count("RuntimeWarning") == 1


def test_sources_need_not_be_there(package, tmp_path, expected):
    """As in a frozen program: compiled modules alone."""
    compile_all = "import compileall; assert compileall.compile_dir('.', legacy=True, quiet=1)"
    passes("-c", f"import os; os.chdir({str(package)!r}); {compile_all}")
    for path in package.rglob("*.py"):
        path.unlink()
    process = run("-c", CONVOLUTION, path=package, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert process.returncode == 0, process.stderr
    assert process.stdout == expected


def test_a_processor_without_fused_multiply_adds_gives_the_same_bits():
    golden = ROOT / "tests" / "test_golden.py"
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    process = run("-m", "pytest", "-q", "-p", "no:cacheprovider", golden, **environment)
    assert process.returncode == 0, process.stdout


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
        "cli demonstration machine transcribe terminal weights digest recogniser encoder converted "
        "configuration blocks layers convolution stream state_dict arguments kernels checkpoint"
    )
    ranks = {name: i for i, name in enumerate(order.split(" "))}
    program = "import sys, edgeconv, edgeconv.cli, edgeconv.stream; print(*sys.modules)"
    modules = [m for m in passes("-c", program).split() if m.startswith("edgeconv.")]
    assert {m.split(".")[1] for m in modules} <= set(ranks)
    for path in (ROOT / "edgeconv").glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if line.startswith(("from edgeconv", "import edgeconv")) and path.stem in ranks:
                parts = words[1].split(".")
                names = parts[1:2] or [word.strip(",") for word in words[3:]]
                for name in names:
                    assert ranks[path.stem] < ranks.get(name, 99), f"{path.name}: {line}"
