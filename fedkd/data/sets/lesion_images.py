"""Draws one dermoscopy-like picture of a skin lesion, before any camera has seen it.

Skin is modelled by what absorbs its light: melanin near the surface (brown), melanin deep in the
dermis (blue-grey), blood (red) and keratin (whitish, scatters). Each diagnosis is a table of how
much of each it has, of its outline, and of the dermoscopic structures it may show and how often.

Synthetic: the tables are our own reading of textbook descriptions, tuned by eye and by how well
simple classifiers separate the classes. They measure nothing, and results on these pictures say
nothing about patients.

Source: the structures of each diagnosis follow Argenziano et al., "Dermoscopy of pigmented skin
lesions: results of a consensus meeting via the Internet", J Am Acad Dermatol 2003, and for AK, BCC
and SCC Kato et al., "Dermoscopy of Melanoma and Non-melanoma Skin Cancers", Front Med 2019; skin
colour as layers of melanin and haemoglobin follows Tsumura et al., "Image-based skin color and
texture analysis/synthesis by extracting hemoglobin and melanin information in the skin",
SIGGRAPH 2003. Class names: ISIC 2019 challenge. All numbers are our choice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedkd.data.sets.lesion_structures import STRUCTURES, Layers
from fedkd.data.sets.skin_patterns import Canvas, Field, sigmoid

Range = tuple[float, float]


def _colour(red: float, green: float, blue: float) -> npt.NDArray[np.float32]:
    return np.array([red, green, blue], np.float32)[:, None, None]


# Optical density of one unit of each absorber in red, green and blue light.
MELANIN = _colour(0.42, 0.66, 0.88)
DEEP_MELANIN = _colour(0.85, 0.72, 0.52)
BLOOD = _colour(0.12, 0.70, 0.52)
PALE_SKIN = _colour(0.96, 0.87, 0.82)
KERATIN = _colour(0.94, 0.89, 0.76)


@dataclass(frozen=True)
class Diagnosis:
    """What lesions of one class look like; every range is drawn from uniformly.

    Attributes:
        radius: Of the lesion in half image widths.
        irregularity: Waviness of the outline, as a fraction of the radius.
        softness: Width of the border, as a fraction of the radius; small is sharply cut.
        melanin: Units of melanin.
        deep: Units of deep melanin.
        blood: Units of blood.
        keratin: Whitening, 0..1.
        variegation: Relative unevenness of colour.
        mimics: Classes whose outline and colours this one may borrow.
        structures: Chance of each dermoscopic structure, by its name in ``STRUCTURES``.
    """

    radius: Range
    irregularity: Range
    softness: Range
    melanin: Range
    deep: Range
    blood: Range
    keratin: Range
    variegation: Range
    mimics: tuple[str, ...]
    structures: Mapping[str, float] = field(default_factory=dict)


DIAGNOSES: dict[str, Diagnosis] = {
    "MEL": Diagnosis(
        radius=(0.35, 0.80), irregularity=(0.12, 0.40), softness=(0.05, 0.25),
        melanin=(0.5, 2.0), deep=(0.0, 0.5), blood=(0.0, 0.6), keratin=(0.0, 0.05),
        variegation=(0.25, 0.7), mimics=("NV", "NV", "BKL", "BCC"),
        structures={"atypical_network": 0.8, "irregular_dots": 0.6, "streaks": 0.5,
                    "blue_veil": 0.5, "regression": 0.35},
    ),
    "NV": Diagnosis(
        radius=(0.25, 0.65), irregularity=(0.04, 0.20), softness=(0.08, 0.30),
        melanin=(0.4, 1.7), deep=(0.0, 0.12), blood=(0.0, 0.5), keratin=(0.0, 0.03),
        variegation=(0.05, 0.30), mimics=("MEL", "BKL", "DF"),
        structures={"network": 0.75, "globules": 0.45},
    ),
    "BCC": Diagnosis(
        radius=(0.28, 0.70), irregularity=(0.10, 0.32), softness=(0.12, 0.40),
        melanin=(0.0, 0.6), deep=(0.0, 0.25), blood=(0.15, 0.8), keratin=(0.0, 0.15),
        variegation=(0.15, 0.5), mimics=("SCC", "AK", "NV"),
        structures={"arborising_vessels": 0.85, "blue_nests": 0.6, "crust": 0.2},
    ),
    "AK": Diagnosis(
        radius=(0.35, 0.80), irregularity=(0.15, 0.40), softness=(0.2, 0.5),
        melanin=(0.0, 0.5), deep=(0.0, 0.05), blood=(0.25, 1.0), keratin=(0.0, 0.25),
        variegation=(0.1, 0.4), mimics=("SCC", "BKL", "BCC"),
        structures={"strawberry": 0.85, "scale": 0.65},
    ),
    "BKL": Diagnosis(
        radius=(0.32, 0.78), irregularity=(0.06, 0.28), softness=(0.03, 0.18),
        melanin=(0.2, 1.4), deep=(0.0, 0.12), blood=(0.0, 0.45), keratin=(0.0, 0.15),
        variegation=(0.1, 0.4), mimics=("NV", "MEL", "AK"),
        structures={"milia": 0.6, "comedones": 0.5, "ridges": 0.75},
    ),
    "DF": Diagnosis(
        radius=(0.25, 0.55), irregularity=(0.04, 0.18), softness=(0.2, 0.45),
        melanin=(0.15, 0.9), deep=(0.0, 0.1), blood=(0.05, 0.6), keratin=(0.0, 0.1),
        variegation=(0.05, 0.25), mimics=("NV", "BCC", "NV"),
        structures={"central_patch": 0.85, "delicate_network": 0.8},
    ),
    "VASC": Diagnosis(
        radius=(0.20, 0.55), irregularity=(0.06, 0.28), softness=(0.04, 0.20),
        melanin=(0.0, 0.3), deep=(0.0, 0.3), blood=(0.5, 2.0), keratin=(0.0, 0.05),
        variegation=(0.1, 0.4), mimics=("SCC", "BCC", "DF"),
        structures={"lacunae": 0.9, "crust": 0.1},
    ),
    "SCC": Diagnosis(
        radius=(0.32, 0.75), irregularity=(0.10, 0.35), softness=(0.1, 0.35),
        melanin=(0.0, 0.5), deep=(0.0, 0.1), blood=(0.25, 1.1), keratin=(0.05, 0.35),
        variegation=(0.15, 0.5), mimics=("AK", "BCC", "BKL"),
        structures={"keratin_mass": 0.75, "dotted_vessels": 0.8, "crust": 0.35, "scale": 0.25},
    ),
}  # fmt: skip

CLASS_NAMES = tuple(DIAGNOSES)
MIMICRY = 0.4
"""Chance that a lesion has the outline and the colours of another diagnosis."""


def draw_lesion(
    label: int, size: int, rng: np.random.Generator, magnification: float = 1.0
) -> Field:
    """One lesion on skin, as reflectance.

    Args:
        label: Class, an index into :data:`CLASS_NAMES`.
        size: Pixels along each edge.
        rng: The image's own stream; the picture is a function of it and the other arguments.
        magnification: Above 1 enlarges the lesion and its structures.

    Returns:
        Reflectance in red, green and blue, 0..1, float32 (3, size, size).
    """
    diagnosis = DIAGNOSES[CLASS_NAMES[label]]
    canvas = Canvas(size, rng, magnification)
    look = diagnosis
    if rng.random() < MIMICRY:
        look = DIAGNOSES[diagnosis.mimics[rng.integers(len(diagnosis.mimics))]]
    layers = _lesion(canvas, look)
    for name, chance in diagnosis.structures.items():
        if rng.random() < chance:
            STRUCTURES[name](canvas, layers, rng.uniform(0.45, 1.2))
    density = MELANIN * layers.melanin + DEEP_MELANIN * layers.deep + BLOOD * layers.blood
    skin = PALE_SKIN * np.exp(-density)
    return np.clip(skin + np.clip(layers.keratin, 0, 0.9) * (KERATIN - skin), 0, 1)


def _lesion(canvas: Canvas, look: Diagnosis) -> Layers:
    """Skin with the lesion's body on it, without structures."""
    rng = canvas.rng
    pick = {
        name: float(rng.uniform(*getattr(look, name)))
        for name in ("radius", "irregularity", "softness", "melanin", "deep", "blood", "keratin",
                     "variegation")
    }  # fmt: skip
    angle, stretch = rng.uniform(0, math.pi), math.exp(rng.normal(0, 0.16))
    cos, sin = math.cos(angle), math.sin(angle)
    x = canvas.x - rng.normal(0, 0.08)
    y = canvas.y - rng.normal(0, 0.08)
    along = (cos * x + sin * y) * stretch
    across = (cos * y - sin * x) / stretch
    radius = pick["radius"]
    depth = 1 - np.hypot(along, across) / radius
    depth += pick["irregularity"] * (0.8 * canvas.noise(2.5) + 0.3 * canvas.noise(7))
    inside = sigmoid(depth / (0.35 * pick["softness"]))
    rim = np.exp(-np.square(depth / 0.22))
    uneven = 1 + pick["variegation"] * canvas.noise(2.8)
    # One side is often darker than the other, the more so the more uneven the lesion.
    uneven += pick["variegation"] * rng.normal(0, 0.8) * along / radius
    body = inside * np.clip(uneven, 0.1, 2.5)
    tan, flush = rng.uniform(0, 0.35), rng.uniform(0.02, 0.35)
    skin_texture = canvas.noise(12, 0.6)
    return Layers(
        melanin=tan + pick["melanin"] * body + 0.02 * skin_texture,
        deep=pick["deep"] * body,
        blood=flush * (1 + 0.16 * canvas.noise(6, 0.9)) + pick["blood"] * body,
        keratin=pick["keratin"] * inside,
        inside=inside,
        depth=depth,
        rim=rim,
        radius=radius,
    )
