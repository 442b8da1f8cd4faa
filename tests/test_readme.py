"""The code of README and documentation runs, and commands print what is shown."""

import pathlib
import re
import shlex

import pytest

from edgeconv.cli import main

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


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


def test_its_commands_run_from_top_to_bottom(beside_the_weights):
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("edgeconv ")]
    assert [command[1] for command in commands] == ["inspect", "convert", "verify", "transcribe"]
    for _, *arguments in commands:
        assert main(arguments) == 0


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
    commands = ["edgeconv demo", "pytest -n 2"]
    assert [line.rsplit("bin/", 1)[1] for line in lines[:2]] == commands
