"""Hostile names of classes and hospitals, and errors, stay text: in pages, LaTeX and terminals."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from fedkd.errors import ClientFailure, plain
from server import simulate
from server.cli import main
from server.latex import escape, to_latex
from server.opened_run import open_run

NAMES = (
    "<script>alert(1)</script>",
    "\"' onmouseover='alert(1)' x=\"",
    "</style></title></svg><img src=x onerror=alert(1)>",
    "javascript:alert(1)&lt;b&gt;]]><!-- $\\frac{$",
)
SITES = ("=cmd|'/c calc'!A0", '<a href="https://evil.example/?x">', "north\u202e</td></table>")
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "div", "figure",
    "picture", "source", "img", "table", "caption", "thead", "tbody", "tr", "th", "td", "footer",
    "script",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "role", "aria-label", "tabindex",
    "media", "srcset", "style", "width", "height", "alt", "src", "scope",
}  # fmt: skip


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.scripts, self.text = set(), [], 0, ""
        self.inside = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.scripts += tag == "script"
        self.inside = tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def hostile(make_recipe, hospitals, teacher, tmp_path):
    """A function that simulates hospitals and classes with such names; gives the run directory."""

    def run():
        def renamed(images, sites):
            return replace(images, class_names=NAMES, site_names=sites)

        given = {
            "sites": [
                renamed(images, (site,))
                for images, site in zip(hospitals["sites"], SITES, strict=True)
            ],
            "val": renamed(hospitals["val"], SITES),
            "test": renamed(hospitals["test"], SITES),
        }
        recipe = make_recipe(num_rounds=1, name="hostile", objective={"name": "supervised"})
        simulate(recipe, **given, teacher=None, output=tmp_path)
        (path,) = (tmp_path / "hostile").iterdir()
        return path

    return run


def check(page):
    seen = Seen(page)
    assert seen.elements <= ELEMENTS
    assert {name for _, name, _ in seen.attributes} <= ATTRIBUTES
    assert seen.scripts <= 1
    for tag, name, value in seen.attributes:
        if name in ("src", "srcset"):
            assert re.match(r"data:(image/svg\+xml|image/png)[;,]", value), (tag, value[:40])
        if name in ("src", "srcset", "style", "class"):
            assert not any(word in value for word in ("alert", "evil", "javascript")), (tag, value)
    (policy,) = [value for _, name, value in seen.attributes if name == "content" and ";" in value]
    assert policy.startswith("default-src 'none'; img-src data:;")
    return seen


def test_the_report_of_a_run_with_hostile_names_has_no_element_or_attribute_of_theirs(
    hostile, with_drawings
):
    run = hostile()
    assert main(["report", str(run)]) == 0
    seen = check((run / "report.html").read_text())
    for name in (*NAMES, *SITES):
        assert name in seen.text, name
    # Drawings are images, in which a browser runs no script.
    assert "svg+xml" in str(seen.attributes)


def test_what_a_damaged_run_directory_says_is_escaped_too(hostile):
    run = hostile()
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"status": NAMES[0], "error": NAMES[2], "mode": NAMES[1], "platform": SITES[1]}
    (run / "summary.json").write_text(json.dumps(summary))
    rounds = pd.read_csv(run / "rounds.csv").assign(num_failed=1)
    rounds.to_csv(run / "rounds.csv", index=False)
    failed = {"round": [1], "client": [NAMES[2]], "reason": [NAMES[0]]}
    pd.DataFrame(failed).to_csv(run / "failures.csv", index=False)
    assert main(["report", str(run)]) == 0
    text = check((run / "report.html").read_text()).text
    assert all(name in text for name in (*NAMES[:3], SITES[1]))


def test_latex_of_hostile_names_has_no_command_of_theirs():
    name = r"\input{/etc/passwd}\write18{rm} $x$ %c &d #e _f ^g ~h {i} </td>"
    text = to_latex(pd.DataFrame({name: [name]}), name)
    commands = set(re.findall(r"\\[a-zA-Z]+", text))
    assert commands == {
        "\\begin", "\\centering", "\\caption", "\\toprule", "\\midrule", "\\bottomrule", "\\end",
        "\\textbackslash", "\\textasciitilde", "\\textasciicircum", "\\textless", "\\textgreater",
    }  # fmt: skip
    assert escape(r"\write18") == r"\textbackslash{}write18"
    assert not re.search(r"(?<!\\)[$#_^~]|(?<!\\)%", escape(name))


def test_what_a_hospital_says_does_not_command_the_terminal(monkeypatch, capsys):
    said = "\x1b]0;owned\x07\x1b[2J\rhidden \x9b31m \u202ereversed\ttab\nline"
    assert plain(said) == (
        "\ufffd]0;owned\ufffd\ufffd[2J\ufffdhidden \ufffd31m \ufffdreversed\ttab\nline"
    )
    assert plain("Zürich, 北京, naïve – ±") == "Zürich, 北京, naïve – ±"

    def fail(options):
        raise ClientFailure(said)

    monkeypatch.setattr("server.commands.table.COMMANDS", {"list": fail})
    assert main(["list"]) == 1
    assert not re.search("[\x07\x1b\x9b\r\u202e]", capsys.readouterr().err)


def test_cells_that_a_spreadsheet_would_run_are_stored_as_they_are(hostile):
    # Changed names would be other names to whoever reads the tables: docs/security.md says so.
    run = hostile()
    assert open_run(run).summary["clients"] == list(SITES)
    assert pd.read_csv(run / "partition.csv")["client"][0] == SITES[0]
