"""Good files of every kind, 2,000 times changed at random; tests/attacks/fuzz.py has the rule."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import fuzz

from edgeconv.checkpoint.archive import Archive

COUNT = 2000
SCRIPT = Path(fuzz.__file__)
PATHS = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, PATHS))}


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_a_changed_file_loads_exactly_or_is_refused(name, tmp_path):
    command = [sys.executable, str(SCRIPT), "--format", name, "--count", str(COUNT), "--seed", "1"]
    command += ["--output", str(tmp_path)]
    child = subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, child.stdout
    counts = {kind: int(n) for kind, n in re.findall(r"'(\w+)': (\d+)", child.stdout)}
    assert sum(counts.values()) == COUNT
    assert counts["exact"] > 20
    assert counts.get("unchecked", 0) < COUNT / 20


def test_a_reader_that_verifies_no_checksum_is_found_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(Archive, "_has_checksums", never, raising=False)
    assert fuzz.run("torch", 500, 1)["wrong"]
