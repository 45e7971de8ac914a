"""Regions without a detector: neighbours that are alike become one, and classes are clusters."""

import os
from collections.abc import Iterable

import numpy as np
from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import pairwise_distances_argmin

from albef_jax.errors import UserError
from albef_jax.files import completed

CENTRES = "classes.npy"  # in a folder of regions: float32 [classes, width]


def merged(regions: dict[str, np.ndarray], grid: int, count: int) -> dict[str, np.ndarray]:
    """`count` regions of a grid's cells: of those beside each other the likest ones become one.

    Its feature is the mean of the cells, its box holds them all.

    Raises:
        UserError: there are fewer cells.
    """
    if count > grid * grid:
        raise UserError(f"--merge is {count}, but a grid of {grid} x {grid} has {grid * grid} "
                        "regions; give at most as many, or a larger --grid.")
    features, boxes = regions["features"], regions["boxes"]
    group = AgglomerativeClustering(count, connectivity=grid_to_graph(grid, grid)).fit_predict(
        features)
    # In the order of their first cells, so that a figure shows them from top to bottom.
    members = [np.flatnonzero(group == number) for number in dict.fromkeys(group.tolist())]
    corners = [np.concatenate([boxes[some, :2].min(axis=0), boxes[some, 2:].max(axis=0)])
               for some in members]
    return regions | {"features": np.stack([features[some].mean(axis=0) for some in members]),
                      "boxes": np.stack(corners)}


def fit_classes(folder, classes: int, features: Iterable[np.ndarray]) -> np.ndarray:
    """The centres of the classes, float32 [classes, width]: those in the folder, or new ones of
    k-means, which are then written there.

    Args:
        folder: of the regions, an epath. features: of regions of some images, [n, width] each.

    Raises:
        UserError: there are fewer regions, or the folder takes no file.
    """
    path = folder / CENTRES
    try:
        if path.exists():
            with path.open("rb") as file:
                return np.load(file)
        found = list(features)
        regions = np.concatenate(found) if found else np.zeros((0, 1), np.float32)
        if len(regions) < classes:
            raise UserError(f"--classes is {classes}, but only {len(regions)} regions were found; "
                            "give fewer classes, or more images.")
        centres = MiniBatchKMeans(classes, random_state=0, n_init=1).fit(regions).cluster_centers_
        with completed(path) as unfinished, open(unfinished, "wb") as file:
            np.save(file, centres.astype(np.float32))
        return centres.astype(np.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)} can be neither read nor written "
                        f"({getattr(error, 'strerror', None) or error}); delete it, or give "
                        "another --out.") from None


def with_classes(regions: dict[str, np.ndarray], centres: np.ndarray) -> dict[str, np.ndarray]:
    """Regions with the class of the nearest centre each, int32."""
    return regions | {"classes": pairwise_distances_argmin(regions["features"], centres).astype(
        np.int32)}
