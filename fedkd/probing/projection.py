"""A feature space in two dimensions, to look at."""

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from fedkd import seeding

MAX_POINTS = 2000
"""More are thinned out by a seeded draw: t-SNE takes its time, and points hide each other."""
MIN_POINTS = 10


def project(
    features: npt.NDArray[np.float32], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which images are shown, and where.

    t-SNE of the first 50 principal components of standardised features, perplexity 30 or a third of
    the images where that is less (our choice: principal components alone show two directions of
    hundreds). Near is alike; distances between far groups, sizes and axes mean nothing. Below 10
    images, or if they are all alike, the first two principal components, without t-SNE.

    Args:
        features: Float32 (num_images, num_features), at least one image.
        seed: Of the draw and of t-SNE.

    Returns:
        Rows, rising, int64 (num_shown,), and their places, float64 (num_shown, 2).
    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    rows = np.arange(len(features))
    if len(rows) > MAX_POINTS:
        drawn = seeding.rng(seed, "probe-picture").choice(len(rows), MAX_POINTS, replace=False)
        rows = np.sort(drawn)
    shown = StandardScaler().fit_transform(features[rows]).astype(np.float64)
    # t-SNE of features that are all the same ends the process, not with an error.
    if len(rows) < MIN_POINTS or not shown.any():
        places = np.zeros((len(rows), 2))
        if shown.any():
            some = PCA(min(2, *shown.shape), svd_solver="full").fit_transform(shown)
            places[:, : some.shape[1]] = some
        return rows, places
    components = PCA(min(50, *shown.shape), svd_solver="full").fit_transform(shown)
    number = int(seeding.rng(seed, "probe-tsne").integers(2**31))
    model = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=number)
    return rows, np.asarray(model.fit_transform(components), np.float64)
