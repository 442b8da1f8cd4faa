"""Good files of every kind, changed at random; tests/attacks/fuzz.py has the rule."""

import pytest
from attacks import fuzz

COUNT = 600


@pytest.mark.parametrize("form", fuzz.FORMATS)
def test_a_changed_file_loads_exactly_or_is_refused(form, tmp_path):
    outcomes, finding = fuzz.run(form, COUNT, 1, tmp_path)
    assert finding is None
    assert outcomes["exact"] + outcomes["loaded"] > 5
    assert outcomes["refused"] > COUNT / 4


def test_a_reader_that_verifies_no_checksum_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr("zlib.crc32", lambda _: None, raising=False)
    monkeypatch.setattr(
        "zipfile.ZipInfo.CRC", property(lambda _: None, lambda *_: None), raising=False
    )
    assert fuzz.run("torch", COUNT, 1, tmp_path)[1] is not None
