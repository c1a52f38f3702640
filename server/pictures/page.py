"""A page of pictures in one HTML file, which needs no network: headings, pictures, tables, words.

The page is well-formed XML as well, so that any parser can read it. It follows the reader's choice
of light or dark, and prints. It forbids the browser to load anything from elsewhere. Its one script
sorts tables; without it nothing is missing.
"""

import base64
import io
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedkd.files import replacing
from server.pictures.style import LIGHT, ON_DARK, Theme, for_dark

_PIXELS_PER_CSS_PIXEL = 120 / 96  # pictures are drawn at 120 dpi
_CSS_PIXELS_PER_INCH = 96
_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?([ %].*)?")
_NOTHING = ("", "-", "–")
_LONG = 40
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --soft: #666; --line: #d5d5d5;
        --alarm: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #17191c; --soft: #a8a8a8; --line: #44474c; --alarm: #f5a35c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.6rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
p.alarm { color: var(--alarm); font-weight: 600; }
figure { margin: 0; }
.scroll { overflow-x: auto; }
img { display: block; background: #fff; border-radius: 4px; height: auto; max-width: 100%;
      width: var(--natural); }
picture img { background: none; }
@media screen { td:not(.text) { white-space: nowrap; } }
@media (max-width: 700px) { img { max-width: none; width: calc(0.75 * var(--natural)); } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; }
td { vertical-align: top; }
td.long { overflow-wrap: anywhere; min-width: 12rem; }
caption { text-align: left; padding-bottom: 0.4rem; color: var(--soft); }
th button { all: unset; cursor: pointer; }
th button::after { content: " ↕"; opacity: 0.45; }
th[aria-sort="ascending"] button::after { content: " ↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " ↓"; opacity: 1; }
th button:focus-visible, .scroll:focus-visible { outline: 2px solid; outline-offset: 2px; }
.block { margin: 1rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #444; --line: #bbb; --alarm: #8a3600; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  img { width: auto; max-width: 100%; max-height: 230mm; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.35rem; }
  td.long { min-width: 0; }
  th button::after { content: ""; }
  @page { size: A4; margin: 15mm; }
}
"""
# Well-formed XML as it stands: no less-than sign and no ampersand.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const text = function (row) { return row.cells[column].textContent.trim(); };
      const number = function (row) {
        return parseFloat(text(row).replace(/,/g, "").replace("−", "-"));
      };
      const rows = Array.from(body.rows);
      rows.sort(function (a, b) {
        if (head.classList.contains("text")) {
          return (up ? 1 : -1) * text(a).localeCompare(text(b));
        }
        const x = number(a), y = number(b);
        if (isNaN(x) || isNaN(y)) { return isNaN(x) - isNaN(y); }
        return (up ? 1 : -1) * (x - y);
      });
      body.append(...rows);
    });
  });
}
"""


@dataclass(frozen=True)
class Alarm:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Drawing:
    """A figure, for light and for dark pages, embedded as vectors.

    Attributes:
        draw: Makes it; called within ``rc_context(theme.style())``.
        alt: What it shows, for those who cannot see it.
    """

    draw: Callable[[Theme], Figure]
    alt: str


@dataclass(frozen=True)
class DataTable:
    """A table of texts and numbers.

    Attributes:
        frame: Its columns being the headings. Cells are shown as ``str``.
        caption: Above it; empty means none.
    """

    frame: pd.DataFrame
    caption: str = ""


Block = str | Alarm | Path | Drawing | DataTable
"""A paragraph, a picture in a PNG file (embedded), or one of the above."""


@dataclass(frozen=True)
class Section:
    """One heading with what stands below it, in order."""

    heading: str
    blocks: Sequence[Block] = ()


def render_page(
    title: str, introduction: Sequence[str], sections: Sequence[Section], footer: str = ""
) -> str:
    """The page as text; all given texts are plain and are escaped.

    Args:
        title: Heading of the page.
        introduction: Paragraphs below it.
        sections: In order.
        footer: A last line.
    """
    parts = [f"<h1>{_text(title)}</h1>", *_paragraphs(introduction)]
    for section in sections:
        parts += ["<section>", f"<h2>{_text(section.heading)}</h2>"]
        parts += [_block(block, section.heading) for block in section.blocks]
        parts.append("</section>")
    if footer:
        parts.append(f"<footer>{_text(footer)}</footer>")
    if any(isinstance(block, DataTable) for section in sections for block in section.blocks):
        parts.append(f"<script>{_SCRIPT}</script>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(
    path: Path,
    title: str,
    introduction: Sequence[str],
    sections: Sequence[Section],
    footer: str = "",
) -> None:
    """Write :func:`render_page`, whole or not at all."""
    with replacing(path) as part:
        part.write_text(render_page(title, introduction, sections, footer), encoding="utf-8")


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [f"<p>{_text(text)}</p>" for text in texts]


def _block(block: Block, heading: str) -> str:
    match block:
        case str():
            return f"<p>{_text(block)}</p>"
        case Alarm():
            return f'<p class="alarm">{_text(block.text)}</p>'
        case Path():
            return _picture(block, heading)
        case Drawing():
            return _drawing(block)
        case DataTable():
            return _table(block)


def _drawing(drawing: Drawing) -> str:
    light, width, height = _svg(drawing, LIGHT)
    # Pixels in it, of very large tables, have no colours that could be told.
    dark = _svg(drawing, ON_DARK)[0] if "<image" in light else for_dark(light)
    alt = _text(drawing.alt)
    return (
        f'<figure class="block">{_scroll(alt)}<picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{_data(dark)}"/>'
        f'<img style="--natural: {width}px" width="{width}" height="{height}" alt="{alt}" '
        f'src="{_data(light)}"/></picture></div></figure>'
    )


def _svg(drawing: Drawing, theme: Theme) -> tuple[str, int, int]:
    """The drawing as text, its width and its height in CSS pixels."""
    text = io.StringIO()
    with rc_context(theme.style()), warnings.catch_warnings():
        # Names in letters that matplotlib's font lacks are boxes in drawings, whole in tables.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = drawing.draw(theme)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (round(side * _CSS_PIXELS_PER_INCH) for side in figure.get_size_inches())
    return text.getvalue(), width, height


def _data(svg: str) -> str:
    encoded = base64.b64encode(svg.encode()).decode("ascii")
    return f"data:image/svg+xml;base64,{encoded}"


def _picture(path: Path, heading: str) -> str:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of a PNG's first chunk
    natural = round(width / _PIXELS_PER_CSS_PIXEL)
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><div class="scroll"><img style="--natural: {natural}px" width="{width}" '
        f'height="{height}" alt="{_text(f"{heading} ({path.name})")}" '
        f'src="data:image/png;base64,{encoded}"/></div></figure>'
    )


def _table(table: DataTable) -> str:
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    numbers = range(table.frame.shape[1])  # not names: two columns may have the same
    columns = [[str(value) for value in table.frame.iloc[:, number]] for number in numbers]
    marks = [_class_of(cells) for cells in columns]
    head = "".join(
        f'<th scope="col"{mark}>{_text(str(name))}</th>'
        for name, mark in zip(table.frame.columns, marks, strict=True)
    )
    rows = (
        "<tr>"
        + "".join(f"<td{mark}>{_text(cell)}</td>" for cell, mark in zip(row, marks, strict=True))
        + "</tr>"
        for row in zip(*columns, strict=True)
    )
    body = "\n".join(rows)
    return (
        f"{_scroll(_text(table.caption) or 'table', 'scroll block')}<table>{caption}\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _class_of(cells: Sequence[str]) -> str:
    """Columns of texts stand left; those of long ones may be broken anywhere."""
    if all(cell in _NOTHING or _NUMBER.fullmatch(cell) for cell in cells):
        return ""
    return ' class="text long"' if max(map(len, cells)) > _LONG else ' class="text"'


def _scroll(label: str, kind: str = "scroll") -> str:
    """A box for what may be wider than the screen, which the keyboard can move as well."""
    return f'<div class="{kind}" role="region" aria-label="{label}" tabindex="0">'


def _text(text: str) -> str:
    """Escaped; characters that XML forbids are shown as a replacement character."""
    return escape(_FORBIDDEN.sub("\ufffd", text))
