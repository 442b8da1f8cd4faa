"""Let atheris look for files that break the readers, guided by the lines that they reach.

    pip install '.[fuzz]'
    python tests/attacks/fuzz_atheris.py FORMAT [--seconds 600] [--corpus DIRECTORY]

FORMAT is one of `fuzz.py`, and so is the rule by which each file is judged; the corpus starts with
the good files of the format. Or it is ``any``: the corpus starts with all of the attacks, and a
file that loads may load as anything. What breaks a reader is kept as `crash-...`, what takes long
as `timeout-...`, in the working directory: the content, which `--case FILE` judges again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[0] = str(Path(__file__).parents[1])

with atheris.instrument_imports(include=["edgeconv.checkpoint", "edgeconv.state"]):
    from attacks import fuzz
    from attacks.every import ATTACKS


def unknown(content):
    """Say that nobody knows what a file means."""
    raise NotImplementedError  # which `fuzz` counts as unchecked


ANY = fuzz.FORMATS["npz"]._replace(plain=unknown)
FORMATS = {**fuzz.FORMATS, "any": ANY}
LARGEST = 2**14  # bytes; what larger files do is not news


def seeds(good, folder):
    """Write what the search starts from."""
    contents = [*good.contents]
    if good is ANY:
        marker = str(folder / "marker")
        made = [attack.make(marker) if attack.live else attack.make() for attack in ATTACKS]
        contents += [content for content in made if isinstance(content, bytes)]
    for index, content in enumerate(contents):
        if len(content) <= LARGEST:
            (folder / f"seed-{index}").write_bytes(content)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", help="where to keep what was found to reach new lines")
    parser.add_argument("--case", help="judge this file alone")
    options = parser.parse_args()
    good = FORMATS[options.format]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "changed")
        expected = list(fuzz.originals(good, path))

        def judge(content):
            fuzz.judge(good, content, expected, path)

        if options.case:
            judge(Path(options.case).read_bytes())
            return
        start = Path(folder, "seeds")
        start.mkdir()
        seeds(good, start)
        corpus = [options.corpus] if options.corpus else []
        limits = [f"-max_total_time={options.seconds}", f"-max_len={LARGEST}", "-timeout=10"]
        atheris.Setup([sys.argv[0], *corpus, str(start), *limits, "-rss_limit_mb=1024"], judge)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
