"""docs/security.md: each promise names a test that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
CLAIMS = re.findall(r"^\| .* \| `(test_\w+\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE)


def test_every_promise_names_a_test():
    table = PAGE.partition("## What fedkd checks\n")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == len(CLAIMS) + 2 > 30


@pytest.mark.parametrize(("module", "name"), CLAIMS)
def test_the_test_that_a_promise_names_exists(module, name):
    assert f"def {name}(" in (ROOT / "tests" / module).read_text()
