"""How all pictures look: colours, fonts, names that are too long, and writing them.

Figures are made without pyplot, so nothing global changes and no display is needed. Colours are
those of Okabe and Ito, "Color Universal Design", 2008, told apart with colour-blind eyes.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

from fedkd.files import replacing

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, YELLOW, PURPLE, GREY, DARK = "#56B4E9", "#F0E442", "#CC79A7", "#999999", "#333333"
CLASS_COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY)
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a hospital's name is a "$"
}
# Fewer than the 50 from which a scale is drawn as pixels, whose colours no text tells.
_NUM_SHADES = 48
STRONG = 35 / _NUM_SHADES
"""From this share of the scale on shades take the other ink, on white as on dark."""


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing on a page: on white, which prints, or on dark.

    Attributes:
        name: light or dark.
        ink: Text.
        paper: Background.
        soft: Axes and lesser text.
        line: Grids.
        shades: Of a scale, the weakest first.
        inks: Of text on shades below ``STRONG``, and on the others.
    """

    name: str
    ink: str
    paper: str
    soft: str
    line: str
    shades: tuple[str, ...]
    inks: tuple[str, str]

    def style(self) -> dict[Any, Any]:
        """Settings of matplotlib, on top of ``STYLE``, for ``rc_context``."""
        return {
            **STYLE,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.soft,
            "xtick.color": self.soft,
            "ytick.color": self.soft,
            "grid.color": self.line,
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "figure.constrained_layout.w_pad": 0.1,
            "svg.fonttype": "path",
            "svg.hashsalt": "fedkd",
        }


def _shades(*colours: str) -> tuple[str, ...]:
    scale = LinearSegmentedColormap.from_list("shades", colours, N=_NUM_SHADES)
    return tuple(to_hex(scale(number)) for number in range(_NUM_SHADES))


# No two colours of one theme are equal, so that ``for_dark`` can tell them apart.
LIGHT = Theme(
    "light",
    ink="#222222",
    paper="#ffffff",
    soft="#666666",
    line="#e0e0e0",
    shades=_shades("#f4f8fc", "#6baed6", "#08519c"),
    inks=("#010101", "#fefefe"),
)
ON_DARK = Theme(
    "dark",
    ink="#e8e8e8",
    paper="#17191c",
    soft="#a8a8a8",
    line="#3a3d42",
    shades=_shades("#1f262d", "#1c4160", "#9ad0f5"),
    inks=("#fefefe", "#010101"),
)


def _colours(theme: Theme) -> tuple[str, ...]:
    return (theme.ink, theme.paper, theme.soft, theme.line, *theme.shades, *theme.inks)


_FOR_DARK = dict(zip(_colours(LIGHT), _colours(ON_DARK), strict=True))


def for_dark(svg: str) -> str:
    """A drawing made for ``LIGHT``, as it is made for ``ON_DARK``: drawing it takes far longer."""
    return re.sub("#[0-9a-f]{6}", lambda found: _FOR_DARK.get(found[0], found[0]), svg)


def _mixed(colour: str, share: float, brightness: float) -> str:
    red, green, blue = ((1 - share) * part + share * brightness for part in to_rgb(colour))
    return to_hex((red, green, blue)).upper()


def class_colours(num_classes: int) -> list[str]:
    """Colours that differ much between neighbours: pure, lightened, darkened, and so again."""
    colours = [
        _mixed(colour, share, brightness)
        for share, brightness in ((0.0, 0), (0.55, 1), (0.5, 0))
        for colour in CLASS_COLOURS
    ]
    return list(itertools.islice(itertools.cycle(colours), num_classes))


def short_name(name: str, length: int = 28) -> str:
    """The name, without its middle if it is long: names differ at either end."""
    end = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"


def write_figure(figure: Figure, path: Path) -> None:
    """Write as PNG, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png")
