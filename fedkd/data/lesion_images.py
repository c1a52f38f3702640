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

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedkd.data.skin_patterns import Canvas, Field, sigmoid

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
        structures: Chance of each dermoscopic structure, by its name in ``_STRUCTURES``.
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


@dataclass
class _Layers:
    """What absorbs light at each pixel, and the lesion's own geometry.

    Attributes:
        melanin: Units of melanin; likewise ``deep``, ``blood`` and ``keratin``.
        inside: 1 within the lesion, 0 outside, soft at the border.
        depth: 1 in the centre, 0 on the border, negative outside.
        rim: 1 along the border.
    """

    melanin: Field
    deep: Field
    blood: Field
    keratin: Field
    inside: Field
    depth: Field
    rim: Field
    radius: float


def draw_lesion(
    label: int, size: int, rng: np.random.Generator, magnification: float = 1.0
) -> npt.NDArray[np.float32]:
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
            _STRUCTURES[name](canvas, layers, np.float32(rng.uniform(0.45, 1.2)))
    density = MELANIN * layers.melanin + DEEP_MELANIN * layers.deep + BLOOD * layers.blood
    skin = PALE_SKIN * np.exp(-density)
    return np.clip(skin + np.clip(layers.keratin, 0, 0.9) * (KERATIN - skin), 0, 1)


def _lesion(canvas: Canvas, look: Diagnosis) -> _Layers:
    """Skin with the lesion's body on it, without structures."""
    rng = canvas.rng
    pick = {
        name: float(rng.uniform(*getattr(look, name)))
        for name in ("radius", "irregularity", "softness", "melanin", "deep", "blood", "keratin",
                     "variegation")
    }  # fmt: skip
    angle, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.16))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x = canvas.x - np.float32(rng.normal(0, 0.08))
    y = canvas.y - np.float32(rng.normal(0, 0.08))
    along, across = (cos * x + sin * y) * np.float32(stretch), (cos * y - sin * x) / np.float32(
        stretch
    )
    radius = pick["radius"]
    depth = 1 - np.hypot(along, across) / np.float32(radius)
    depth += np.float32(pick["irregularity"]) * (
        np.float32(0.8) * canvas.noise(2.5) + np.float32(0.3) * canvas.noise(7)
    )
    inside = sigmoid(depth / np.float32(0.35 * pick["softness"]))
    rim = np.exp(-np.square(depth / np.float32(0.22)))
    uneven = 1 + np.float32(pick["variegation"]) * canvas.noise(2.8)
    # One side is often darker than the other, the more so the more uneven the lesion.
    uneven += np.float32(pick["variegation"] * rng.normal(0, 0.8)) * along / np.float32(radius)
    body = inside * np.clip(uneven, 0.1, 2.5)
    tan, flush = np.float32(rng.uniform(0, 0.35)), np.float32(rng.uniform(0.02, 0.35))
    skin_texture = canvas.noise(12, 0.6)
    return _Layers(
        melanin=tan + np.float32(pick["melanin"]) * body + np.float32(0.02) * skin_texture,
        deep=np.float32(pick["deep"]) * body,
        blood=flush * (1 + np.float32(0.16) * canvas.noise(6, 0.9))
        + np.float32(pick["blood"]) * body,
        keratin=np.float32(pick["keratin"]) * inside,
        inside=inside,
        depth=depth,
        rim=rim,
        radius=radius,
    )


def _network(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Regular brown honeycomb that fades towards the border."""
    mesh = canvas.network(canvas.rng.uniform(10, 14), 0.12)
    fade = layers.inside * np.clip(0.35 + layers.depth, 0.2, 1)
    layers.melanin += strength * np.float32(1.0) * fade * (mesh - np.float32(0.45))


def _delicate_network(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Fine, pale honeycomb along the border."""
    mesh = canvas.network(canvas.rng.uniform(15, 19), 0.12)
    layers.melanin += strength * np.float32(0.7) * layers.rim * mesh


def _atypical_network(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Honeycomb of uneven meshes and thick lines, present in patches, cut off at the border."""
    mesh = canvas.network(canvas.rng.uniform(6, 9), 0.45)
    patches = sigmoid(np.float32(3.0) * (canvas.noise(2.5) + np.float32(0.2)))
    layers.melanin += strength * np.float32(1.5) * layers.inside * patches * mesh


def _globules(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Brown globules of even size, evenly spread."""
    holes = canvas.network(canvas.rng.uniform(7, 9.5), 0.15)
    layers.melanin += strength * np.float32(0.9) * layers.inside * (1 - holes)


def _irregular_dots(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Black dots of many sizes, off the centre."""
    spread = layers.radius * 0.6
    few = canvas.dots(int(canvas.rng.integers(3, 12)), 0.05, spread)
    layers.melanin += strength * np.float32(1.8) * layers.inside * few


def _streaks(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Radial projections from parts of the border."""
    angle = np.arctan2(canvas.y, canvas.x)
    count = int(canvas.rng.integers(12, 22))
    rays = np.cos(count * angle + np.float32(1.5) * canvas.noise(3))
    part = sigmoid(np.float32(3.0) * canvas.noise(1.5))
    reach = np.exp(-np.square((layers.depth + np.float32(0.08)) / np.float32(0.2)))
    layers.melanin += strength * np.float32(1.6) * reach * part * np.clip(rays, 0, 1)


def _blue_veil(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Blue-grey area with a whitish haze, without structure."""
    veil = layers.inside * sigmoid(np.float32(4.0) * (canvas.noise(2) - np.float32(0.3)))
    layers.deep += strength * np.float32(0.9) * veil
    layers.melanin *= 1 - np.float32(0.5) * veil
    layers.keratin += strength * np.float32(0.12) * veil


def _regression(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Scar-like white area with grey peppering."""
    scar = layers.inside * sigmoid(np.float32(4.0) * (canvas.noise(2.5) - np.float32(0.6)))
    layers.melanin *= 1 - np.float32(0.75) * scar
    layers.keratin += strength * np.float32(0.3) * scar
    layers.deep += strength * np.float32(0.8) * scar * canvas.blobs(20, 0.9)


def _arborising_vessels(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Sharp branching vessels, thick stems and thin twigs, over the lesion."""
    stems = canvas.lines(3.5, 0.14, breaks=-0.4)
    twigs = canvas.lines(8, 0.16, breaks=0.3)
    near = sigmoid((layers.depth + np.float32(0.15)) / np.float32(0.1))
    layers.blood += strength * near * (np.float32(1.5) * stems + np.float32(0.9) * twigs)


def _blue_nests(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """A few blue-grey ovoid nests and leaf-like areas towards the border."""
    nests = canvas.dots(int(canvas.rng.integers(2, 7)), 0.11, layers.radius * 0.6)
    layers.deep += strength * np.float32(1.2) * nests * np.clip(layers.inside + 0.2, 0, 1)


def _strawberry(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Red network around whitish follicle openings."""
    mesh = canvas.network(canvas.rng.uniform(8, 11), 0.25)
    layers.blood += strength * np.float32(0.9) * layers.inside * (mesh - np.float32(0.2))
    layers.keratin += strength * np.float32(0.25) * layers.inside * (1 - mesh)


def _scale(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Fine whitish flakes."""
    flakes = canvas.blobs(22, 0.7) * sigmoid(np.float32(3.0) * canvas.noise(3))
    layers.keratin += strength * np.float32(0.6) * layers.inside * flakes


def _milia(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Small round white cysts."""
    cysts = canvas.dots(int(canvas.rng.integers(4, 14)), 0.045, layers.radius * 0.5)
    layers.keratin += strength * np.float32(0.6) * layers.inside * cysts


def _comedones(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Dark brown plugs."""
    plugs = canvas.dots(int(canvas.rng.integers(3, 10)), 0.06, layers.radius * 0.5)
    layers.melanin += strength * np.float32(1.2) * layers.inside * plugs


def _ridges(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Winding fissures and ridges, like the surface of a brain."""
    fissures = canvas.lines(canvas.rng.uniform(7, 10), 0.35, breaks=-3)
    layers.melanin += strength * np.float32(1.0) * layers.inside * (fissures - np.float32(0.3))


def _central_patch(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """White scar-like patch in the middle."""
    patch = sigmoid((layers.depth - np.float32(canvas.rng.uniform(0.35, 0.6))) / np.float32(0.08))
    layers.melanin *= 1 - np.float32(0.6) * strength * patch
    layers.keratin += np.float32(0.35) * strength * patch


def _lacunae(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Red to purple lagoons, sharply bounded, with pale septa between them."""
    lagoons = 1 - canvas.network(canvas.rng.uniform(4.5, 7), 0.35)
    layers.blood += strength * np.float32(1.5) * layers.inside * (lagoons - np.float32(0.35))
    purple = sigmoid(np.float32(3.0) * canvas.noise(2)) * np.float32(canvas.rng.uniform(0, 0.9))
    layers.deep += strength * layers.inside * lagoons * purple


def _keratin_mass(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Yellowish-white horny masses, mostly in the middle."""
    core = sigmoid(
        (layers.depth - np.float32(0.35) + np.float32(0.25) * canvas.noise(5)) / np.float32(0.06)
    )
    layers.keratin += strength * np.float32(0.6) * core * (1 + np.float32(0.3) * canvas.noise(9))


def _dotted_vessels(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """Red dots and short loops towards the border."""
    ring = np.clip(1 - layers.depth, 0.2, 1) * layers.inside
    layers.blood += strength * np.float32(1.6) * ring * canvas.blobs(16, 0.9)


def _crust(canvas: Canvas, layers: _Layers, strength: np.float32) -> None:
    """A dark red ulcer or crust."""
    ulcer = layers.inside * canvas.dots(int(canvas.rng.integers(1, 3)), 0.13, layers.radius * 0.3)
    layers.blood += strength * np.float32(1.5) * ulcer
    layers.melanin += strength * np.float32(0.6) * ulcer


_STRUCTURES = {
    "network": _network,
    "delicate_network": _delicate_network,
    "atypical_network": _atypical_network,
    "globules": _globules,
    "irregular_dots": _irregular_dots,
    "streaks": _streaks,
    "blue_veil": _blue_veil,
    "regression": _regression,
    "arborising_vessels": _arborising_vessels,
    "blue_nests": _blue_nests,
    "strawberry": _strawberry,
    "scale": _scale,
    "milia": _milia,
    "comedones": _comedones,
    "ridges": _ridges,
    "central_patch": _central_patch,
    "lacunae": _lacunae,
    "keratin_mass": _keratin_mass,
    "dotted_vessels": _dotted_vessels,
    "crust": _crust,
}
