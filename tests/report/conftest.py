"""What several tests of reports share."""

import pytest

ACTED_ON = (
    "\x00\x07\x1b[31m\x7f\x85\x9b31m\r\n\t\u200b\u200d\u200e\u202a\u202e"
    "\u2028\u2029\u2066\u2069\ufeff\udcff\ud800"
)
MARKUP = "<script>alert(1)</script><b>&lt;[red]{{ 7 * 7 }}%{x}$\\\\alpha$\"'`"


@pytest.fixture(
    params=[ACTED_ON, f"a{ACTED_ON}{MARKUP}", f"{MARKUP}\u202e\u05d0" + "x" * 500],
    ids=["controls", "both", "long"],
)
def hostile(request):
    """A name that nobody means well with."""
    return request.param
