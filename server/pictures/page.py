"""A page of pictures in one HTML file, which needs no network: headings, pictures, tables, words.

The page is well-formed XML as well, so that any parser can read it. It follows the reader's choice
of light or dark, and prints.
"""

import base64
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedkd.files import replacing
from server.pictures.style import LIGHT, ON_DARK, Theme

_PIXELS_PER_CSS_PIXEL = 120 / 96  # pictures are drawn at 120 dpi
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
@media (max-width: 700px) { img { max-width: none; width: calc(0.75 * var(--natural)); } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #444; --line: #bbb; --alarm: #8a3600; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  img { width: auto; max-width: 100%; max-height: 230mm; }
}
"""


@dataclass(frozen=True)
class Alarm:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Drawing:
    """A figure, drawn once for light and once for dark pages, embedded as vectors.

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
    parts = [f"<h1>{escape(title)}</h1>", *_paragraphs(introduction)]
    for section in sections:
        parts += ["<section>", f"<h2>{escape(section.heading)}</h2>"]
        parts += [_block(block, section.heading) for block in section.blocks]
        parts.append("</section>")
    if footer:
        parts.append(f"<footer>{escape(footer)}</footer>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
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
    return [f"<p>{escape(text)}</p>" for text in texts]


def _block(block: Block, heading: str) -> str:
    match block:
        case str():
            return f"<p>{escape(block)}</p>"
        case Alarm():
            return f'<p class="alarm">{escape(block.text)}</p>'
        case Path():
            return _picture(block, heading)
        case Drawing():
            return _drawing(block)
        case DataTable():
            return _table(block)


def _drawing(drawing: Drawing) -> str:
    light, dark = (_svg(drawing, theme) for theme in (LIGHT, ON_DARK))
    return (
        '<figure><div class="scroll"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}"/>'
        f'<img alt="{escape(drawing.alt)}" src="{light}"/></picture></div></figure>'
    )


def _svg(drawing: Drawing, theme: Theme) -> str:
    text = io.BytesIO()
    with rc_context(theme.style()):
        drawing.draw(theme).savefig(text, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(text.getvalue()).decode('ascii')}"


def _picture(path: Path, heading: str) -> str:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of a PNG's first chunk
    natural = round(width / _PIXELS_PER_CSS_PIXEL)
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><div class="scroll"><img style="--natural: {natural}px" width="{width}" '
        f'height="{height}" alt="{escape(f"{heading} ({path.name})")}" '
        f'src="data:image/png;base64,{encoded}"/></div></figure>'
    )


def _table(table: DataTable) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table.frame.columns)
    rows = (
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in table.frame.itertuples(index=False)
    )
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>{caption}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
