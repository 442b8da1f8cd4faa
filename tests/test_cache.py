"""The cache of machine code: whatever is wrong with it, the code that runs is the right one."""

import errno
import importlib.util
import os
import py_compile
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from interrupting import interrupted_at
from reference import same_bits

from edgeconv import DepthwiseConvolution, compiling, files, kernels, vectors

ROOT = Path(__file__).parents[1]
numba, event = compiling.numba, compiling.numba.core.event
ANSWER = """
from edgeconv.compiling import compiled, compiled_for

@compiled
def answer():
    return {}

@compiled_for()
def kernel(x, out, taps, state):
    return answer()
"""


class Compilations(event.Listener):
    """Count what Numba compiles."""

    def __init__(self):
        self.started = 0

    def on_start(self, event):
        self.started += 1

    def on_end(self, event):
        pass


@pytest.fixture
def compilations():
    counter = Compilations()
    with event.install_listener("numba:compile", counter):
        yield counter


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the only directory in which machine code may be."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(compiling, "_directories", lambda: [directory])
    monkeypatch.setattr(compiling, "_warnings", [])
    return directory


@pytest.fixture
def source(tmp_path):
    """Return a file that holds a kernel."""
    path = tmp_path / "answers.py"
    path.write_text(ANSWER.format(3))
    return path


def imported(path):
    """Import a file as a new process does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    return module


def called(module):
    """Compile the kernel of a file, or load it; return its answer and the warnings."""
    floats = np.zeros(2, np.float32), np.zeros(2, np.float32)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        answer = module.kernel(1)(*floats, np.zeros((1, 1, 1), "f4"), np.zeros((1, 1), "f4"))
    return answer, [str(warning.message) for warning in seen]


def test_what_one_process_compiled_the_next_one_loads(cache, source, compilations):
    assert called(imported(source)) == (3, [])
    compiled = compilations.started
    assert compiled > 0
    (file,) = cache.iterdir()
    assert file.name.startswith("edgeconv.kernel.")
    module = imported(source)
    assert called(module) == (3, [])
    assert compilations.started == compiled
    assert module.kernel(1).stats.cache_path == str(cache)


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "a byte is missing": lambda content: content[:-1],
    "a byte too many": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "zeros from the middle on": lambda content: content[: len(content) // 2].ljust(
        len(content), b"\0"
    ),
    "a page of zeros": lambda content: content[:4096] + bytes(4096) + content[8192:],
    "another file": lambda content: b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_replaced_after_a_warning(cache, source, damage):
    called(imported(source))
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(DAMAGE[damage](intact))
    answer, (warning,) = called(imported(source))
    assert answer == 3
    assert f"{file} is damaged" in warning
    assert called(imported(source)) == (3, [])


def test_a_flipped_bit_is_never_linked(cache, source, monkeypatch):
    called(imported(source))
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    module = imported(source)
    unused = compiling._Cache(module.kernel.__wrapped__)
    loaded = []
    monkeypatch.setattr(compiling.CompileResult, "_rebuild", lambda *_: loaded.append(1))
    signature = numba.float32, numba.float32  # stands for any
    context = vectors.cpu_target.target_context
    monkeypatch.setattr(unused, "_name", lambda *_: file.name)
    unused.load_overload(signature, context)
    assert loaded == [1]
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for bit in [*range(300), *rng.integers(300, 8 * len(intact), 1000)]:
            damaged = bytearray(intact)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            assert unused.load_overload(signature, context) is None
    assert loaded == [1]


def test_code_of_another_kernel_is_never_linked(cache, source):
    called(imported(source))
    (right,) = cache.iterdir()
    source.write_text(ANSWER.format(4))
    called(imported(source))
    (wrong,) = set(cache.iterdir()) - {right}
    wrong.replace(right)
    source.write_text(ANSWER.format(3))
    answer, (warning,) = called(imported(source))
    assert answer == 3
    assert "is damaged" in warning


@pytest.mark.parametrize("imported_before", [False, True])
def test_an_upgrade_in_place_is_noticed(cache, source, imported_before):
    """Even of a file with the same size and date, and by a process that began before."""
    old = imported(source)
    if not imported_before:
        assert called(old) == (3, [])
    before = source.stat()
    source.write_text(ANSWER.format(4))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    if imported_before:
        assert called(old) == (3, [])
    assert called(imported(source)) == (4, [])
    assert len(list(cache.iterdir())) == 2


def test_an_upgrade_of_the_options_is_noticed(cache, source, tmp_path, monkeypatch):
    called(imported(source))
    other = tmp_path / "compiling.py"
    other.write_text(Path(compiling.__file__).read_text() + "# another version\n")
    spec = importlib.util.spec_from_file_location("edgeconv.compiling", other)
    upgraded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upgraded)
    monkeypatch.setattr(upgraded, "_directories", lambda: [cache])
    monkeypatch.setitem(sys.modules, "edgeconv.compiling", upgraded)
    assert called(imported(source)) == (3, [])
    assert len(list(cache.iterdir())) == 2


def test_an_upgrade_without_sources_is_noticed(cache, source):
    for answer in (3, 4):
        source.write_text(ANSWER.format(answer))
        binary = py_compile.compile(source, source.with_suffix(".pyc"))
        spec = importlib.util.spec_from_file_location("answers", binary)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert called(module) == (answer, [])
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("option", ["OPT", "DEBUGINFO_DEFAULT", "BOUNDSCHECK"])
def test_code_for_debugging_has_files_of_its_own(cache, source, monkeypatch, option):
    called(imported(source))
    monkeypatch.setattr(numba.config, option, 1)
    assert called(imported(source)) == (3, [])
    assert len(list(cache.iterdir())) == 2


def test_what_cannot_be_read_is_a_warning_and_is_replaced(cache, source, monkeypatch):
    called(imported(source))
    (file,) = cache.iterdir()
    file.chmod(0)
    with monkeypatch.context() as patch:

        def unreadable(_):
            raise PermissionError(errno.EACCES, "Permission denied")

        patch.setattr(Path, "read_bytes", unreadable)  # the superuser may read anything
        answer, (warning,) = called(imported(source))
    assert answer == 3
    assert "Permission denied" in warning
    assert file.stat().st_mode & 0o400


def test_an_interrupted_write_leaves_nothing_to_load(cache, source, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            called(imported(source))
    assert list(cache.iterdir()) == []
    assert called(imported(source)) == (3, [])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("raised", [TimeoutError, ValueError])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_signal_handler_raises_is_no_fault_of_the_cache(cache, source, is_there, raised):
    """Wherever it strikes, be it an OSError, it comes out; the same call then succeeds."""
    kernel = imported(source).kernel(1)
    names = {path.name for path in cache.iterdir()}
    (signature,) = kernel.overloads
    context = vectors.cpu_target.target_context

    def call():
        if is_there:
            assert kernel._cache.load_overload(signature, context).entry_point
        else:
            for path in cache.iterdir():
                path.unlink()
            kernel._cache.save_overload(signature, kernel.overloads[signature])

    number = 1
    while interrupted_at(number, call, raised):
        assert {path.name for path in cache.iterdir()} <= names
        number += 1
    assert number > 30
    assert compiling._warnings == []
    call()


@pytest.mark.parametrize(("place", "name"), [(Path, "read_bytes"), (os, "fsync")])
def test_a_timeout_is_no_fault(cache, source, monkeypatch, place, name):
    def late(*_):
        raise TimeoutError

    module = imported(source)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, late)
        with pytest.raises(TimeoutError):
            called(module)
    assert called(imported(source)) == (3, [])


def test_nor_is_it_one_of_the_directory(tmp_path, monkeypatch):
    def late(*_):
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", late)
        with pytest.raises(TimeoutError):
            files._sync_directory(tmp_path)


def test_only_the_owner_can_write_there(cache, source, monkeypatch):
    monkeypatch.setattr(compiling, "_directories", lambda: [cache / "below"])
    umask = os.umask(0)  # as daemons set it
    try:
        called(imported(source))
    finally:
        os.umask(umask)
    made = [cache, *cache.rglob("*")]
    assert len(made) == 3
    assert [path.stat().st_mode & 0o022 for path in made] == [0, 0, 0]


def no_directory(cache):
    cache.write_text("a file in its place")


def full_disk(cache):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))


@pytest.mark.parametrize("obstacle", [no_directory, full_disk])
def test_where_nothing_can_be_kept_there_is_one_warning(cache, source, obstacle):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    obstacle(cache)
    try:
        answer, (warning,) = called(imported(source))
        assert called(imported(source)) == (3, [])  # the second one of this process
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer == 3
    assert "set NUMBA_CACHE_DIR to a directory that can be written to" in warning
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_the_next_directory_serves_where_the_first_one_does_not(cache, source, monkeypatch):
    full = cache.with_name("full")
    full.write_text("a file in its place")
    monkeypatch.setattr(compiling, "_directories", lambda: [full, cache])
    for _ in range(2):
        module = imported(source)
        assert called(module) == (3, [])
        assert module.kernel(1).stats.cache_path == str(cache)


def test_directories(tmp_path, monkeypatch):
    beside = Path(compiling.__file__).with_name("__pycache__")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling._directories() == [beside, tmp_path / "edgeconv"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compiling._directories() == [beside, tmp_path / ".cache/edgeconv"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compiling._directories() == [beside, tmp_path / ".cache/edgeconv"]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody's home
    assert compiling._directories() == [beside]
    monkeypatch.setattr(numba.config, "CACHE_DIR", "chosen")
    assert compiling._directories() == [Path("chosen")]


COLD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import answers
print("ready", flush=True)
sys.stdin.readline()
arrays = np.zeros(2, "f4"), np.zeros(2, "f4"), np.zeros((1, 1, 1), "f4"), np.zeros((1, 1), "f4")
print(answers.kernel(1)(*arrays))
"""


def environment(**others):
    """Return the environment of a process that has no cache but what `others` say."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return kept | nowhere | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | others


def test_four_processes_that_start_cold_at_once(source, tmp_path):
    own = environment(NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    command = [sys.executable, "-W", "error", "-c", COLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=own, text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate() for process in processes] == [("3\n", "")] * 4
    assert [process.returncode for process in processes] == [0] * 4
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".nbc"


# --- The library as a whole ---

WHOLE = """
import sys, warnings
import numpy as np
import numba.core.event as event

compilations = []
listener = type("Listener", (event.Listener,), {
    "on_start": lambda self, event: compilations.append(event), "on_end": lambda self, event: None
})()
counting = event.install_listener("numba:compile", listener)
with warnings.catch_warnings(record=True) as seen, counting:
    warnings.simplefilter("always")
    from edgeconv import DepthwiseConvolution
    stream = DepthwiseConvolution(9, 5, causal=True, rng=0).stream()
    x = np.load(sys.argv[1])
    y = np.concatenate([[stream.step(frame) for frame in x[:9]], stream.process(x[9:])])
np.save(sys.argv[2], y)
print(len(compilations) > 0, len(seen), *{warning.category.__name__ for warning in seen})
"""


def installed(directory, cached):
    """Copy the package; its `__pycache__` holds the machine code, or is no directory."""
    package = directory / "edgeconv"
    for path in sorted((ROOT / "edgeconv").rglob("*.py")):
        copy = package / path.relative_to(ROOT / "edgeconv")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    cache = package / "__pycache__"
    if cached:
        cache.mkdir()
        for kernel in (kernels.step(1), kernels.process(2)):
            for file in Path(kernel.stats.cache_path).glob("edgeconv.*.nbc"):
                (cache / file.name).write_bytes(file.read_bytes())
    else:
        cache.write_text("no directory")
    return package


def outcome(directory):
    """Run the library in a process; return whether it compiled, its warnings, and its output."""
    x = np.random.default_rng(0).standard_normal((20, 18), np.float32)
    np.save(directory / "x.npy", x)
    command = [sys.executable, "-c", WHOLE, directory / "x.npy", directory / "y.npy"]
    own = environment(PYTHONPATH=f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    printed = subprocess.run(
        command, cwd=directory, env=own, check=True, capture_output=True, text=True
    )
    assert printed.stderr == ""
    y = np.load(directory / "y.npy")
    assert same_bits(y, DepthwiseConvolution(9, 5, causal=True, rng=0)(x[None])[0][0])
    return printed.stdout


def test_a_read_only_installation_without_home(tmp_path):
    installed(tmp_path, cached=False)
    assert outcome(tmp_path) == "True 1 RuntimeWarning\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edgeconv", "x.npy", "y.npy"]


def test_an_installation_whose_cache_was_filled_before_it_became_read_only(tmp_path):
    package = installed(tmp_path, cached=True)
    everything = [path for path in package.rglob("*") if path.is_dir()]
    for directory in everything:
        directory.chmod(0o555)
    assert outcome(tmp_path) == "False 0\n"
    for directory in everything:
        directory.chmod(0o755)


@pytest.mark.parametrize("damage", ["truncated", "a page of zeros"])
def test_an_installation_whose_cache_is_damaged(tmp_path, damage):
    package = installed(tmp_path, cached=True)
    for file in package.glob("__pycache__/edgeconv.step.*"):
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert outcome(tmp_path) == "True 1 RuntimeWarning\n"


def test_a_package_that_is_replaced_before_its_kernels_are_imported(tmp_path):
    package = installed(tmp_path, cached=True)
    program = f"""
import os
from edgeconv import DepthwiseConvolution
os.utime({str(package / "kernels.py")!r}, ns=(1, 1))
for _ in range(2):
    try:
        DepthwiseConvolution(1, 1).stream()
    except RuntimeError as error:
        print(error)
"""
    own = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=tmp_path, env=own, check=True, capture_output=True, text=True
    )
    text = "edgeconv was replaced after this process began: start it again\n"
    assert (result.stdout, result.stderr) == (2 * text, "")


def test_nor_is_it_used_in_this_process(monkeypatch):
    monkeypatch.setattr("edgeconv.stream._IMPORTED", [])
    DepthwiseConvolution(1, 1).stream()  # whose kernels are of the version that was imported
    monkeypatch.delitem(sys.modules, "edgeconv.kernels")
    with pytest.raises(RuntimeError, match="edgeconv was replaced after this process began"):
        DepthwiseConvolution(1, 1).stream()


def test_numba_told_not_to_compile(tmp_path):
    program = "from edgeconv import DepthwiseConvolution; DepthwiseConvolution(1, 1).stream()"
    command = [sys.executable, "-c", program]
    failed = subprocess.run(
        command, env=environment(NUMBA_DISABLE_JIT="1"), capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.endswith(
        "\nRuntimeError: unset NUMBA_DISABLE_JIT: nothing here runs uncompiled\n"
    )


# --- Live frames ---


def arrivals(*shape):
    """Frames of every type and layout that a caller may have."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    frozen = x.copy()
    frozen.setflags(write=False)
    raw = bytearray(4 * x.size + 1)
    misaligned = np.ndarray(shape, np.float32, raw, offset=1)
    misaligned[...] = x
    wide = np.zeros((*shape[:-1], 2 * shape[-1]), np.float32)
    yield from (x, frozen, misaligned, wide[..., ::2], x[..., ::-1], np.asfortranarray(x))
    yield np.frombuffer(x.tobytes(), np.float32).reshape(shape)
    yield np.broadcast_to(x[..., :1], shape)
    yield from (x.astype(dtype) for dtype in ("f2", "f8", "g", ">f2", ">f4", ">f8"))
    yield x.view(type("Subclass", (np.ndarray,), {}))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_nothing_compiles_on_a_live_frame(compilations, causal, batch_size):
    conv = DepthwiseConvolution(9, 5, causal=causal, rng=0)
    stream = conv.stream(batch_size=batch_size)
    leading = () if batch_size is None else (batch_size,)
    opened = compilations.started
    for x in arrivals(*leading, 7, 18):
        stream.process(x)
        stream.process(x, out=np.empty((*leading, 7, 18), np.float32)[..., : x.shape[-2], :])
        if batch_size is not None:
            stream.process(x, lengths=[7, 3])
            stream.flush(rows=[0, 1])
        for t in range(7):
            stream.step(x[..., t, :], out=np.empty((*leading, 18), np.float32))
            stream.step(x[..., t, :])
        stream.restore(stream.snapshot())
        if causal:
            stream.cache = stream.cache
        stream.flush()
        stream.reset()
    for wrong in (np.zeros((*leading, 18), int), [0.0] * 18, None, np.zeros(3, "f4")):
        with pytest.raises((TypeError, ValueError)):
            stream.step(wrong)
        with pytest.raises((TypeError, ValueError)):
            stream.process(wrong)
    assert compilations.started == opened


def test_the_counter_of_compilations_counts(compilations):
    numba.njit(lambda a: a)(1)
    assert compilations.started > 0
