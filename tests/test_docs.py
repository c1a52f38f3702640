"""What the documents say exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIDELITY = (ROOT / "docs/fidelity.md").read_text()
ROWS = [
    line
    for line in FIDELITY.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| Fed-MAS | fedkd"))
]
CLAIM = re.compile(r"`(test_\w+\.py)::(test_\w+)` \|$")
CLAIMS = sorted({match.groups() for row in ROWS if (match := CLAIM.search(row))})


def test_every_row_of_the_fidelity_table_has_four_cells_and_names_a_test():
    assert len(ROWS) > 60
    assert [row for row in ROWS if row.count("|") != 5 or not CLAIM.search(row)] == []


@pytest.mark.parametrize(("module", "name"), CLAIMS)
def test_every_test_that_the_fidelity_table_names_exists(module, name):
    source = (ROOT / "tests" / module).read_text()
    assert f"def {name}(" in source


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]))
def test_recipes_and_pages_that_a_document_names_exist(page):
    text = page.read_text()
    for recipe in re.findall(r"configs/\w+\.toml", text):
        assert (ROOT / recipe).is_file(), recipe
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (page.parent / link).exists(), link
