"""What README promises can be done as it stands there."""

import re
from pathlib import Path

from fedkd import config
from fedkd.recipe import Recipe
from server.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_with_own_arrays_runs():
    _, example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})


def test_every_command_is_one_of_the_parser():
    commands = set(re.findall(r"^\| `fedkd (\w+)", README, re.MULTILINE))
    (subparsers,) = [a for a in build_parser()._actions if a.choices]
    assert commands == set(subparsers.choices)


def test_every_override_in_a_command_is_a_key():
    lines = re.findall(r"fedkd run (configs/\S+\.toml)((?: \w[\w.]*=\w+)+)", README)
    assert lines
    for path, overrides in lines:
        config.load(Recipe, ROOT / path, overrides.split())


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
