"""Image-text pairs in one .npz file: small data sets, tests, notebooks."""

import zipfile
import zlib

import numpy as np

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.numbering import NumberedSource
from albef_jax.errors import UserError
from albef_jax.files import local_copy


class ArraySource(NumberedSource):
    """Arrays of a .npz file, held in memory.

    Args:
        path: file with `image` uint8 [n, h, w, 3], `caption` unicode [n] or [n, k], and optionally
            `image_id` integer [n] (equal = same image); without it every row is its own image.

    Raises:
        UserError: the file is missing, or an array is missing or has another shape or type.
    """

    fields = pairs()

    def __init__(self, path: str):
        arrays = _load(path)
        self._path = path
        self._images = _require(
            arrays, path, "image", "uint8 [n, h, w, 3]",
            lambda array: array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3)
        captions = _require(
            arrays, path, "caption", "unicode [n] or [n, k]",
            lambda array: array.dtype.kind == "U" and array.ndim in (1, 2))
        numbers = arrays.get("image_id", np.arange(len(self._images)))
        self._captions = captions.reshape(len(captions), -1) if captions.size else captions
        self._image_ids = np.asarray(numbers, np.int32)
        if not len(self._images) == len(self._captions) == len(self._image_ids) > 0:
            raise UserError(f"The arrays of {path} must have the same length, at least 1, but "
                            f"have {len(self._images)} images, {len(self._captions)} captions "
                            f"and {len(self._image_ids)} image ids.")
        with zipfile.ZipFile(local_copy(path)) as file:  # it holds a checksum of every array
            self.fingerprint = "npz " + " ".join(f"{member.filename}:{member.CRC:08x}"
                                                 for member in file.infolist())

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._path}[{index}]"

    def text(self, index: int) -> list[str]:
        return self._captions[index].tolist()

    def image(self, index: int) -> np.ndarray:
        return self._images[index]


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(local_copy(path), allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        why = error.strerror or "not an .npz file"
        raise UserError(f"The array file {path} cannot be read ({why}); check "
                        "data.source.path.") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an .npz file of plain arrays: {error}.") from None


def _require(arrays: dict, path: str, name: str, what: str, is_right) -> np.ndarray:
    array = arrays.get(name)
    if array is None or not is_right(array):
        found = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
        raise UserError(f"The array {name!r} of {path} must be {what}, but is {found}.")
    return array
