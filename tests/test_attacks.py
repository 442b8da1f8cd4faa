"""Every file in tests/attacks loads exactly or is refused clearly, at a bounded cost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.catalogue import bounded, wrong
from attacks.every import ATTACKS
from attacks.readers import READERS

NAMES = [f"{attack.group}-{attack.name}" for attack in ATTACKS]
LIVE = [(attack, loader) for attack in ATTACKS for loader in attack.live if loader != "torch"]


def opened(attack, path):
    """Return what the reader returned or raised."""
    try:
        with bounded():
            return READERS[attack.read](path)
    except Exception as error:
        return error


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_an_attack(attack, tmp_path):
    path, marker = tmp_path / "file", tmp_path / "marker"
    attack.write(path, str(marker))
    complaint = wrong(opened(attack, path), attack.outcome, path)
    assert complaint is None, complaint
    assert not marker.exists()


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    """Where unsafe loaders left a mark, by attack and loader."""
    folder = tmp_path_factory.mktemp("live")
    marks, jobs = {}, []
    for index, (attack, loader) in enumerate(LIVE):
        path, marks[attack, loader] = folder / f"{index}", folder / f"marker{index}"
        attack.write(path, str(marks[attack, loader]))
        jobs.append((loader, str(path)))
    subprocess.run(
        [sys.executable, "-m", "attacks.unsafe"],
        input=json.dumps(jobs).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=folder,
        timeout=100,
    )
    return marks


@pytest.mark.parametrize(("attack", "loader"), LIVE, ids=[f"{a.name}-{by}" for a, by in LIVE])
def test_the_payload_is_live(attack, loader, markers):
    assert markers[attack, loader].exists()
