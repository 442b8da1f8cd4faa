"""The code of README and documentation runs, and commands print what is shown."""

import pathlib
import re
import shlex

import pytest

from edgeconv.cli import main

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def beside_the_weights(tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)


def test_its_python_runs_from_top_to_bottom(beside_the_weights):
    sources = blocks("python")
    assert len(sources) >= 3
    namespace = {}
    for source in sources:
        exec(source, namespace)
    assert namespace["y"].shape == (128,)


def test_the_applications_python_runs_from_top_to_bottom(beside_the_weights):
    namespace = {}
    text = (ROOT / "docs" / "application.md").read_text(encoding="utf-8")
    for source in blocks("python", text):
        exec(source, namespace)
    assert len(namespace["results"]) == 50


@pytest.mark.parametrize("block", blocks("console"))
def test_its_commands_print_what_it_shows(block, beside_the_weights, capsys):
    command, shown = block.split("\n", 1)
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "edgeconv"
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown


def test_the_demo_prints_what_it_shows_but_for_the_times(capsys):
    (shown,) = blocks("text")
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out

    def words(text):
        return re.sub(r"[\d.,]*\d(e-\d+)?", "#", text).split()

    assert words(printed) == words(shown)


def test_the_first_two_lines_about_virtual_environments_are_the_two_commands():
    lines = [line for line in README.splitlines() if "venv" in line][:2]
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install ") for line in lines)
    assert [line.rsplit("bin/", 1)[1] for line in lines] == ["edgeconv demo", "python -m pytest"]
