"""Image-text pairs listed in JSON manifests, the format of the public ALBEF code."""

from __future__ import annotations

from collections.abc import Sequence

from albef_jax.data.sources.manifest import ManifestSource


class JsonSource(ManifestSource):
    """Rows `{"image": name, "caption": text or [texts]}` of one or several manifests.

    Made for millions of rows: the parsed rows are turned into two plain lists and dropped.

    Args:
        files, image_roots: see `ManifestSource`.
        merge_images: make one example of all rows with the same image name.
    """

    row_format = '{"image": ..., "caption": ...}'

    def __init__(
        self,
        files: Sequence[str],
        image_roots: Sequence[str] = (),
        merge_images: bool = False,
    ):
        self._merge_images = merge_images
        self._captions: list[str | list[str]] = []
        super().__init__(files, image_roots, f"json merge={bool(merge_images)}")

    def add(self, row) -> None:
        try:
            name, caption = row["image"], row["caption"]
        except (TypeError, KeyError):
            name = caption = None
        is_text = isinstance(caption, str) or _is_list_of_texts(caption)
        if not is_text or not isinstance(name, str):
            raise ValueError(_what_is_wrong(row))
        self.names.append(name)
        self._captions.append(caption)

    def finish(self) -> None:
        if self._merge_images:
            self.names, self._captions = _merge(self.names, self._captions)

    def captions(self, index: int) -> list[str]:
        captions = self._captions[index]
        return [captions] if isinstance(captions, str) else captions


def _is_list_of_texts(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) for t in value)


def _what_is_wrong(row) -> str:
    if isinstance(row, dict) and row.get("caption") == []:
        return "has an empty caption list; give it a caption or remove the row"
    return (
        'must be an object with "image" (a text) and "caption" (a text or a list of texts), '
        f"but is {str(row)[:100]}"
    )


def _merge(names: list[str], captions: list) -> tuple[list[str], list[list[str]]]:
    """One entry per image name, in order of first appearance."""
    merged: dict[str, list[str]] = {}
    for name, caption in zip(names, captions):
        merged.setdefault(name, []).extend([caption] if isinstance(caption, str) else caption)
    return list(merged), list(merged.values())
