"""Visual entailment (SNLI-VE) in the JSON format of the public ALBEF code."""

from __future__ import annotations

import os
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of

CLASSES = ("contradiction", "neutral", "entailment")


class VeJsonSource(ManifestSource):
    """Rows `{"image": name, "sentence": text, "label": one of CLASSES}`.

    The official files name images without an ending: `.jpg` is added where there is none.

    Args:
        files, image_roots: see `ManifestSource`.
    """

    row_format = '{"image": ..., "sentence": ..., "label": "entailment"}'
    fields = pairs() | {"label": {"class_names": CLASSES}}

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = ()):
        self._sentences: list[str] = []
        self._labels: list[int] = []
        super().__init__(files, image_roots, "ve")

    def add(self, row) -> None:
        image, sentence, label = fields_of(row, image=str, sentence=str, label=str)
        if label not in CLASSES:
            raise ValueError(f"has the label {label!r}; use one of {', '.join(CLASSES)}")
        self.names.append(image if os.path.splitext(image)[1] else f"{image}.jpg")
        self._sentences.append(sentence)
        self._labels.append(CLASSES.index(label))

    def text(self, index: int) -> list[str]:
        return [self._sentences[index]]

    def label(self, index: int) -> int:
        return self._labels[index]
