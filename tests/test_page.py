"""The page of pictures is one well-formed file that needs nothing else."""

import base64
from xml.etree import ElementTree

import pandas as pd
from matplotlib.figure import Figure

from server.pictures.page import Alarm, DataTable, Section, render_page, write_page
from server.pictures.style import write_figure

NASTY = "<script>alert(\"x\")</script> & 'so' on"


def parse(text):
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text)


def test_all_given_texts_are_escaped():
    table = pd.DataFrame({NASTY: [NASTY, "ü"]})
    section = Section(NASTY, [NASTY, DataTable(table), Alarm(NASTY)])
    page = parse(render_page(NASTY, [NASTY], [section], NASTY))
    assert [NASTY in script.text for script in page.iter("script")] == [False]
    for tag, num in (("title", 1), ("h1", 1), ("h2", 1), ("p", 3), ("th", 1), ("footer", 1)):
        assert [one.text for one in page.iter(tag)] == [NASTY] * num
    assert [cell.text for cell in page.iter("td")] == [NASTY, "ü"]
    assert [one.text for one in page.findall(".//p[@class='alarm']")] == [NASTY]


def test_pictures_are_in_the_page_itself_with_their_size(tmp_path):
    picture = tmp_path / "a.png"
    write_figure(Figure(figsize=(3, 2), dpi=100), picture)
    write_page(tmp_path / "page.html", "title", [], [Section("one", ["seen", picture, picture])])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    first, second = parse(text).iter("img")
    kind, _, encoded = first.get("src").partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded, validate=True) == picture.read_bytes()
    assert (first.get("width"), first.get("height")) == ("300", "200")
    assert second.get("alt") == "one (a.png)"
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_columns_of_texts_stand_left_and_others_right():
    table = pd.DataFrame({"a": ["x", "y"], "b": ["1,200", "–"], "c": ["0.1 ± 0.2", "12 %"]})
    page = parse(render_page("title", [], [Section("one", [DataTable(table)])]))
    assert [one.get("class") for one in page.iter("th")] == ["text", None, None]


def test_a_page_without_tables_has_no_script():
    assert "<script" not in render_page("title", ["text"], [Section("one", ["text"])])


def test_characters_that_xml_forbids_are_replaced():
    assert parse(render_page("a\x00b", [], [])).find(".//h1").text == "a\ufffdb"


def test_the_page_is_for_light_dark_print_and_small_screens():
    text = render_page("title", [], [])
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text
    assert parse(text).get("lang") == "en"
