"""Compiled code in the cache: never that of another source, and never needed."""

import os
import pty
import shutil
import subprocess
import sys
import zipfile

import pytest
from processes import PATHS, ROOT, passes, run

import edgeconv

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


def on_a_terminal(*arguments, **environment):
    """Return the exit status of a command, and what a terminal shows of it."""
    reader, writer = pty.openpty()
    environment = os.environ | {"PYTHONPATH": PATHS, "TERM": "dumb"} | environment
    streams = {"stdin": writer, "stdout": writer, "stderr": writer}
    command = [sys.executable, "-m", "edgeconv", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, **streams) as started:
        os.close(writer)
        shown = b""
        try:
            while data := os.read(reader, 2**16):
                shown += data
        except OSError:  # how a terminal ends
            os.close(reader)
    return started.returncode, shown.decode().replace("\r\n", "\n")


def test_the_first_start_says_that_it_compiles_and_the_second_does_not(tmp_path):
    path = tmp_path / "small.npz"
    edgeconv.save(path, {"": edgeconv.DepthwiseConvolution(4, 5, causal=True, rng=0)})
    for command, is_first in (("verify", True), ("verify", False), ("inspect", False)):
        environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
        status, shown = on_a_terminal(command, path, **environment)
        assert status == 0
        assert ("edgeconv: compiling for this processor, once: " in shown) == is_first
        assert all(line.isprintable() for line in shown.split("\n"))  # no control characters


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
