"""Image-text pairs listed in JSON manifests, the format of the public ALBEF code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from albef_jax.data.sources.base import Source
from albef_jax.data.sources.tar import TarFolder
from albef_jax.errors import UserError


class JsonSource(Source):
    """Rows `{"image": name, "caption": text or [texts]}` of one or several manifests.

    Made for millions of rows: the parsed rows are turned into two plain lists and dropped.

    Args:
        files: manifests, read in this order.
        image_roots: folders and plain tar files, searched in this order for each image; without
            any, the folders of the manifests. An absolute image name is taken as it is.
        merge_images: make one example of all rows with the same image name.

    Raises:
        UserError: a manifest or an image root is missing or unusable; names the file and the row.
    """

    def __init__(
        self,
        files: Sequence[str],
        image_roots: Sequence[str] = (),
        merge_images: bool = False,
    ):
        problems = self._load(files, image_roots, merge_images)
        if problems:
            more = f"; `albef data check` lists {len(problems) - 1} more." if problems[1:] else "."
            raise UserError(problems[0].rstrip(".") + more)

    @classmethod
    def checked(
        cls,
        files: Sequence[str],
        image_roots: Sequence[str] = (),
        merge_images: bool = False,
    ) -> tuple[JsonSource, list[str]]:
        """The source without what is wrong, and a sentence about each manifest, row and root."""
        source = cls.__new__(cls)
        return source, source._load(files, image_roots, merge_images)

    def _load(self, files, image_roots, merge_images) -> list[str]:
        """Reads everything that can be read; returns what is wrong."""
        files = [files] if isinstance(files, str) else list(files)
        image_roots = [image_roots] if isinstance(image_roots, str) else list(image_roots)
        digest = hashlib.blake2b(f"json merge={bool(merge_images)}".encode(), digest_size=16)
        self._names: list[str] = []
        self._captions: list[str | list[str]] = []
        self._folders: list[Folder | TarFolder] = []
        problems, folders = [], []
        for path in files:
            try:
                contents = _read_manifest(path)
                rows = _parse(path, contents)
            except UserError as error:
                problems.append(str(error))
                continue
            digest.update(hashlib.blake2b(contents).digest())
            folders.append(os.path.dirname(path) or ".")
            problems += _append_rows(path, rows, self._names, self._captions)
        if not self._names and not problems:
            problems.append(f"The manifest {files} holds no rows; give one with image-text rows.")
        if merge_images:
            self._names, self._captions = _merge(self._names, self._captions)
        self._image_ids = _number(self._names)
        for root in image_roots or dict.fromkeys(folders):
            try:
                self._folders.append(_open_root(root))
            except UserError as error:
                problems.append(str(error))
        self.fingerprint = digest.hexdigest()
        return problems

    @classmethod
    def options(cls, text: str) -> dict:
        return {"files": (text,)}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def captions(self, index: int) -> list[str]:
        captions = self._captions[index]
        return [captions] if isinstance(captions, str) else captions

    def image_id(self, index: int) -> int:
        return int(self._image_ids[index])

    def image(self, index: int) -> bytes:
        name = self._names[index]
        for folder in self._folders:
            try:
                return folder.read(name)
            except FileNotFoundError:
                continue
        raise FileNotFoundError("not found in any image root")


class Folder:
    """Files under a directory."""

    def __init__(self, path: str):
        self.path = path

    def read(self, name: str) -> bytes:
        """Contents of one file; raises OSError."""
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()


def _open_root(path: str) -> Folder | TarFolder:
    if os.path.isdir(path):
        return Folder(path)
    if os.path.isfile(path):
        return TarFolder(path)
    raise UserError(f"The image root {path} does not exist; give a folder or a .tar file.")


def _read_manifest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"The manifest {path} cannot be read ({error.strerror}); check data.source.files."
        ) from None


def _parse(path: str, contents: bytes) -> list:
    try:
        rows = json.loads(contents)
    except ValueError as error:
        raise UserError(f"The manifest {path} is not valid JSON: {error}.") from None
    if not isinstance(rows, list):
        raise UserError(
            f"The manifest {path} must be a JSON list of rows, but is {type(rows).__name__}; "
            'write it as [{"image": ..., "caption": ...}, ...].'
        )
    return rows


def _append_rows(path: str, rows: list, names: list, captions: list) -> list[str]:
    """Appends what the rows hold; returns a sentence about each wrong row, which is left out."""
    problems = []
    for number, row in enumerate(rows):
        try:
            name, caption = row["image"], row["caption"]
        except (TypeError, KeyError):
            name = caption = None
        is_text = isinstance(caption, str) or _is_list_of_texts(caption)
        if is_text and isinstance(name, str):
            names.append(name)
            captions.append(caption)
        else:
            problems.append(_what_is_wrong(path, number, row))
    return problems


def _is_list_of_texts(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) for t in value)


def _what_is_wrong(path: str, number: int, row) -> str:
    where = f"Row {number} (counted from 0) of {path}"
    if isinstance(row, dict) and row.get("caption") == []:
        return f"{where} has an empty caption list; give it a caption or remove the row."
    return (
        f'{where} must be an object with "image" (a text) and "caption" (a text or a list of '
        f"texts), but is {str(row)[:100]}."
    )


def _merge(names: list[str], captions: list) -> tuple[list[str], list[list[str]]]:
    """One entry per image name, in order of first appearance."""
    merged: dict[str, list[str]] = {}
    for name, caption in zip(names, captions):
        merged.setdefault(name, []).extend([caption] if isinstance(caption, str) else caption)
    return list(merged), list(merged.values())


def _number(names: list[str]) -> np.ndarray:
    """Consecutive numbers int32 [n] for names, equal for equal names."""
    seen: dict[str, int] = {}
    return np.fromiter((seen.setdefault(name, len(seen)) for name in names), np.int32, len(names))
