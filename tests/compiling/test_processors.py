"""The same bits on other processors, whose code is compiled here."""

from pathlib import Path

from processes import ROOT, passes

DIGESTS = Path(__file__).with_name("kernel_digests.py")
NO_FUSED_MULTIPLY_ADD = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


def test_the_width_of_vectors_changes_no_bit(tmp_path):
    """Nor does memory that was freed, which glibc overwrites here."""
    lanes, expected = passes(DIGESTS).split()
    own = {"NUMBA_CACHE_DIR": str(tmp_path), "MALLOC_PERTURB_": "165"}
    others, found = passes(DIGESTS, "--other-lanes", **own).split()
    assert {lanes, others} == {"8", "16"}
    assert found == expected


def test_functions_are_the_same_without_fused_multiply_adds():
    _, expected = passes(DIGESTS, "--pointwise").split()
    _, found = passes(DIGESTS, "--pointwise", **NO_FUSED_MULTIPLY_ADD).split()
    assert found == expected


def test_convolutions_are_the_same_without_fused_multiply_adds():
    golden = ROOT / "tests" / "test_golden.py"
    passes("-m", "pytest", "-q", "-p", "no:cacheprovider", golden, **NO_FUSED_MULTIPLY_ADD)
