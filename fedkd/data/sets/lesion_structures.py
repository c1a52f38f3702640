"""Dermoscopic structures, drawn onto a lesion: networks, globules, vessels, cysts, scale ...

Each function changes the layers in place by ``strength`` (about 0.45..1.2). What they show follows
the sources named in :mod:`fedkd.data.sets.lesion_images`; all numbers are our choice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkd.data.sets.skin_patterns import Canvas, Field, sigmoid


@dataclass
class Layers:
    """What absorbs light at each pixel, and the geometry of the lesion.

    Attributes:
        melanin: Units of melanin; likewise ``deep``, ``blood`` and ``keratin``.
        inside: 1 within the lesion, 0 outside, soft at the border.
        depth: 1 in the centre, 0 on the border, negative outside.
        rim: 1 along the border.
        radius: Of the lesion in half image widths.
    """

    melanin: Field
    deep: Field
    blood: Field
    keratin: Field
    inside: Field
    depth: Field
    rim: Field
    radius: float


def _network(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Regular brown honeycomb that fades towards the border."""
    mesh = canvas.network(canvas.rng.uniform(10, 14), 0.12)
    fade = layers.inside * np.clip(0.35 + layers.depth, 0.2, 1)
    layers.melanin += strength * fade * (mesh - 0.45)


def _delicate_network(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Fine, pale honeycomb along the border."""
    mesh = canvas.network(canvas.rng.uniform(15, 19), 0.12)
    layers.melanin += strength * 0.7 * layers.rim * mesh


def _atypical_network(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Honeycomb of uneven meshes and thick lines, present in patches, cut off at the border."""
    mesh = canvas.network(canvas.rng.uniform(6, 9), 0.45)
    patches = sigmoid(3.0 * (canvas.noise(2.5) + 0.2))
    layers.melanin += strength * 1.5 * layers.inside * patches * mesh


def _globules(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Brown globules of even size, evenly spread."""
    mesh = canvas.network(canvas.rng.uniform(7, 9.5), 0.15)
    layers.melanin += strength * 0.9 * layers.inside * (1 - mesh)


def _irregular_dots(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Black dots of many sizes, off the centre."""
    spread = layers.radius * 0.6
    few = canvas.dots(int(canvas.rng.integers(3, 12)), 0.05, spread)
    layers.melanin += strength * 1.8 * layers.inside * few


def _streaks(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Radial projections from parts of the border."""
    angle = np.arctan2(canvas.y, canvas.x)
    count = int(canvas.rng.integers(12, 22))
    rays = np.cos(count * angle + 1.5 * canvas.noise(3))
    part = sigmoid(3.0 * canvas.noise(1.5))
    reach = np.exp(-np.square((layers.depth + 0.08) / 0.2))
    layers.melanin += strength * 1.6 * reach * part * np.clip(rays, 0, 1)


def _blue_veil(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Blue-grey area with a whitish haze, without structure."""
    veil = layers.inside * sigmoid(4.0 * (canvas.noise(2) - 0.3))
    layers.deep += strength * 0.9 * veil
    layers.melanin *= 1 - 0.5 * veil
    layers.keratin += strength * 0.12 * veil


def _regression(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Scar-like white area with grey peppering."""
    scar = layers.inside * sigmoid(4.0 * (canvas.noise(2.5) - 0.6))
    layers.melanin *= 1 - 0.75 * scar
    layers.keratin += strength * 0.3 * scar
    layers.deep += strength * 0.8 * scar * canvas.blobs(20, 0.9)


def _arborising_vessels(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Sharp branching vessels, thick stems and thin twigs, over the lesion."""
    stems = canvas.lines(3.5, 0.14, breaks=-0.4)
    twigs = canvas.lines(8, 0.16, breaks=0.3)
    near = sigmoid((layers.depth + 0.15) / 0.1)
    layers.blood += strength * near * (1.5 * stems + 0.9 * twigs)


def _blue_nests(canvas: Canvas, layers: Layers, strength: float) -> None:
    """A few blue-grey ovoid nests and leaf-like areas towards the border."""
    nests = canvas.dots(int(canvas.rng.integers(2, 7)), 0.11, layers.radius * 0.6)
    layers.deep += strength * 1.2 * nests * np.clip(layers.inside + 0.2, 0, 1)


def _strawberry(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Red network around whitish follicle openings."""
    mesh = canvas.network(canvas.rng.uniform(8, 11), 0.25)
    layers.blood += strength * 0.9 * layers.inside * (mesh - 0.2)
    layers.keratin += strength * 0.25 * layers.inside * (1 - mesh)


def _scale(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Fine whitish flakes."""
    flakes = canvas.blobs(22, 0.7) * sigmoid(3.0 * canvas.noise(3))
    layers.keratin += strength * 0.6 * layers.inside * flakes


def _milia(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Small round white cysts."""
    cysts = canvas.dots(int(canvas.rng.integers(4, 14)), 0.045, layers.radius * 0.5)
    layers.keratin += strength * 0.6 * layers.inside * cysts


def _comedones(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Dark brown plugs."""
    plugs = canvas.dots(int(canvas.rng.integers(3, 10)), 0.06, layers.radius * 0.5)
    layers.melanin += strength * 1.2 * layers.inside * plugs


def _ridges(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Winding fissures and ridges, like the surface of a brain."""
    fissures = canvas.lines(canvas.rng.uniform(7, 10), 0.35, breaks=-3)
    layers.melanin += strength * layers.inside * (fissures - 0.3)


def _central_patch(canvas: Canvas, layers: Layers, strength: float) -> None:
    """White scar-like patch in the middle."""
    patch = sigmoid((layers.depth - canvas.rng.uniform(0.35, 0.6)) / 0.08)
    layers.melanin *= 1 - 0.6 * strength * patch
    layers.keratin += 0.35 * strength * patch


def _lacunae(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Red to purple lagoons, sharply bounded, with pale septa between them."""
    lagoons = 1 - canvas.network(canvas.rng.uniform(4.5, 7), 0.35)
    layers.blood += strength * 1.5 * layers.inside * (lagoons - 0.35)
    purple = sigmoid(3.0 * canvas.noise(2)) * canvas.rng.uniform(0, 0.9)
    layers.deep += strength * layers.inside * lagoons * purple


def _keratin_mass(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Yellowish-white horny masses, mostly in the middle."""
    core = sigmoid((layers.depth - 0.35 + 0.25 * canvas.noise(5)) / 0.06)
    layers.keratin += strength * 0.6 * core * (1 + 0.3 * canvas.noise(9))


def _dotted_vessels(canvas: Canvas, layers: Layers, strength: float) -> None:
    """Red dots and short loops towards the border."""
    ring = np.clip(1 - layers.depth, 0.2, 1) * layers.inside
    layers.blood += strength * 1.6 * ring * canvas.blobs(16, 0.9)


def _crust(canvas: Canvas, layers: Layers, strength: float) -> None:
    """A dark red ulcer or crust."""
    ulcer = layers.inside * canvas.dots(int(canvas.rng.integers(1, 3)), 0.13, layers.radius * 0.3)
    layers.blood += strength * 1.5 * ulcer
    layers.melanin += strength * 0.6 * ulcer


STRUCTURES: dict[str, Callable[[Canvas, Layers, float], None]] = {
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
