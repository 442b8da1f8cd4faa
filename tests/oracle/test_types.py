"""Type checkers accept what README and documentation tell users to write."""

import re
import subprocess
import sys

import pytest
from test_readme import PAGES, ROOT, blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_passes_the_strict_type_checker(page, tmp_path):
    snippets = tmp_path / "snippets.py"
    snippets.write_text("\n".join(blocks("python", page)))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-version=3.10"]
    done = subprocess.run(
        [*command, "--cache-dir", tmp_path, snippets],
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith(str(snippets))]
    assert errors == []
    assert re.search("^(Success|Found)", done.stdout, re.MULTILINE), done.stderr
