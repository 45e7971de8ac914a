"""Numbers for things that are equal or not, such as the images of examples."""

import hashlib
from collections.abc import Iterable

import numpy as np

from albef_jax.data.sources.base import Source


class NumberedSource(Source):
    """A source that knows which images are the same of all its examples at once.

    A subclass sets `_image_ids`, integers [n].
    """

    _image_ids: np.ndarray

    def image_id(self, index: int) -> int:
        return int(self._image_ids[index])

    def image_ids(self) -> np.ndarray:
        return self._image_ids


def number(keys: np.ndarray) -> np.ndarray:
    """Consecutive numbers int32 [n], equal for equal keys [n], by first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int32)[inverse]


def hashed(names: Iterable[str]) -> np.ndarray:
    """Keys uint64 [n] of names.

    Two of 14 million different names have the same key by chance once in 200,000 such sets.
    """
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
               for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
