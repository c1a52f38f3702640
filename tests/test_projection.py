import numpy as np
import pytest

from fedkd.probing import projection
from fedkd.probing.projection import project


def clouds(num, distance=30.0):
    """Two clouds, the even and the odd rows."""
    features = np.random.default_rng(0).normal(size=(num, 5))
    features[::2, 0] += distance
    return features.astype(np.float32)


def test_near_features_stay_near():
    rows, places = project(clouds(60), seed=0)
    assert rows.tolist() == list(range(60))
    centres = np.stack([places[::2].mean(0), places[1::2].mean(0)])
    own = np.linalg.norm(places - np.tile(centres, (30, 1)), axis=1)
    other = np.linalg.norm(places - np.tile(centres[::-1], (30, 1)), axis=1)
    assert (own < other).all()
    assert np.array_equal(places, project(clouds(60), seed=0)[1])


def test_of_many_images_a_seeded_draw_is_shown(monkeypatch):
    monkeypatch.setattr(projection, "MAX_POINTS", 20)
    rows, places = project(clouds(50), seed=0)
    assert len(set(rows)) == 20
    assert (np.diff(rows) > 0).all()
    assert places.shape == (20, 2)
    assert project(clouds(50), seed=1)[0].tolist() != rows.tolist()


@pytest.mark.parametrize("num", [1, 2, 9, 10])
def test_few_images_have_places_too(num):
    rows, places = project(clouds(num), seed=0)
    assert rows.tolist() == list(range(num))
    assert places.shape == (num, 2)
    assert np.isfinite(places).all()


def test_features_that_do_not_vary_have_places():
    assert np.isfinite(project(np.ones((12, 4), np.float32), seed=0)[1]).all()
