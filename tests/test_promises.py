"""docs/security.md and docs/reliability.md: each promise names a test that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {"security": "## What fedkd checks\n", "reliability": "## Promises, and what keeps them\n"}


def table(page):
    text = (ROOT / f"docs/{page}.md").read_text()
    return text.partition(PAGES[page])[2].partition("\n## ")[0]


def claims(page):
    return re.findall(r"^\| .* \| `(test_\w+\.py)::(test_\w+)` \|$", table(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_a_test(page):
    rows = [line for line in table(page).splitlines() if line.startswith("|")]
    heads = sum(line.startswith("|---") for line in rows)
    assert len(rows) == len(claims(page)) + 2 * heads > 30


@pytest.mark.parametrize("claim", sorted({claim for page in PAGES for claim in claims(page)}))
def test_the_test_that_a_promise_names_exists(claim):
    module, name = claim
    assert f"def {name}(" in (ROOT / "tests" / module).read_text()
