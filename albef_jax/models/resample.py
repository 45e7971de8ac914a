"""Position embeddings at another resolution."""

import numpy as np


def resize_positions(pos_embed, side):
    """Position embeddings for `side` patches along each side: `[1, 1+n*n, d]` with another n.

    Bicubic as in the public code (torch): kernel with a = -0.75, half-pixel centres, border
    repeated, no antialias. The embedding of [CLS], the first one, stays.
    """
    old = round((pos_embed.shape[1] - 1) ** 0.5)
    if old == side:
        return pos_embed
    grid = pos_embed[0, 1:].reshape(old, old, -1).astype(np.float64)
    weights = bicubic_weights(old, side)
    grid = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    patches = grid.reshape(1, side * side, -1).astype(pos_embed.dtype)
    return np.concatenate([pos_embed[:, :1], patches], axis=1)


def bicubic_weights(before, after, a=-0.75):
    """Matrix `[after, before]` that resamples one axis (Keys 1981, kernel parameter `a`)."""
    centre = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((after, before))
    for tap in range(4):
        t = np.abs(centre - (first + tap))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        column = np.clip(first + tap, 0, before - 1)
        np.add.at(weights, (np.arange(after), column), np.where(t <= 1, near, far))
    return weights


def upsample(heat_gg, height, width):
    """A heat map at the size of its image, float64 `[height, width]`.

    Bicubic as position embeddings, as in the public code.
    """
    rows, columns = heat_gg.shape
    heat_gg = np.asarray(heat_gg, np.float64)
    return bicubic_weights(rows, height) @ heat_gg @ bicubic_weights(columns, width).T
