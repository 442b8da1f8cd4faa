"""The code of README and documentation runs, and commands print what is shown."""

import io
import pathlib
import re
import shlex
import wave

import pytest

from edgeconv.cli import main

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SOUND_SYSTEM = {"--list-devices", "--microphone"}  # tests/oracle has one


def blocks(language, page=README):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def beside_the_weights(tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_python_runs_from_top_to_bottom(page, beside_the_weights):
    namespace = {}
    for source in blocks("python", page):
        exec(source, namespace)


def commands(page):
    """Return what follows `edgeconv` in the lines that begin with it, or with a pipe into it."""
    lines = [line for block in blocks("sh", page) for line in block.splitlines()]
    found = [re.search(r"^(?:arecord .* \| )?(?:/opt/listen/bin/)?edgeconv (.*)", x) for x in lines]
    return [shlex.split(one[1], comments=True) for one in found if one]


def test_their_commands_run_from_top_to_bottom(beside_the_weights, monkeypatch):
    with wave.open("weights/recordings/cards-003.wav") as file:
        sound = file.readframes(file.getnframes())
    typed = commands(README) + commands(ROOT / "docs" / "on-a-raspberry-pi.md")
    names = "inspect convert verify transcribe transcribe doctor transcribe transcribe transcribe"
    assert [command[0] for command in typed] == names.split()
    for command in typed:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sound)))
        assert SOUND_SYSTEM & set(command) or main(command) == 0


def test_the_demo_prints_what_it_shows_but_for_the_numbers(capsys):
    (shown,) = blocks("text")
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    printed, shown = (re.sub(r"\d[\d.,]*(e-\d+)?", "#", text) for text in (printed, shown))
    lines = iter(re.sub(" +", " ", printed).splitlines())
    for line in re.sub(" +", " ", shown).splitlines():  # some lines of it, in its order
        assert line in lines


def test_the_first_two_lines_about_virtual_environments_are_the_two_commands():
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if "venv" in line]
    last = [re.split("&& |bin/", line.split("  #")[0])[-1] for line in lines]
    assert last[:2] == ["edgeconv demo", "pytest -n 2"]
