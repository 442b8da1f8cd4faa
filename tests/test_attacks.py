"""Every file in tests/attacks loads exactly or is refused clearly, at a bounded cost."""

import json
import subprocess
import sys

import pytest
from attacks import bounded, payloads, wrong
from attacks.bombs import BOMBS
from attacks.lies import LIES
from attacks.payloads import PAYLOADS

from edgeconv.checkpoint import CheckpointError, read_checkpoint

FILES = {**BOMBS, **LIES}
LIVE = [name for name, (_, _, loader) in PAYLOADS.items() if loader != "torch"]


def opened(path):
    try:
        with bounded():
            return dict(read_checkpoint(path))
    except (CheckpointError, Exception) as error:
        return error


@pytest.mark.parametrize("name", FILES)
def test_an_attack(name, tmp_path):
    make, outcome = FILES[name]
    path = tmp_path / "file"
    path.write_bytes(make() if callable(make) else make)
    assert wrong(opened(path), outcome, path) is None


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_never_runs(name, tmp_path):
    make, outcome, _ = PAYLOADS[name]
    path, marker = tmp_path / "file", tmp_path / "marker"
    path.write_bytes(make(str(marker)))
    assert wrong(opened(path), outcome, path) is None
    assert not marker.exists()


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    """Where unsafe loaders left a mark, by the payload's name."""
    folder = tmp_path_factory.mktemp("live")
    marks, jobs = {}, []
    for index, name in enumerate(LIVE):
        make, _, loader = PAYLOADS[name]
        path, marks[name] = folder / f"{index}", folder / f"marker{index}"
        path.write_bytes(make(str(marks[name])))
        jobs.append((loader, str(path)))
    command = [sys.executable, payloads.__file__]
    subprocess.run(
        command, input=json.dumps(jobs).encode(), capture_output=True, cwd=folder, timeout=100
    )
    return marks


@pytest.mark.parametrize("name", LIVE)
def test_the_payload_is_live(name, markers):
    assert markers[name].exists()
