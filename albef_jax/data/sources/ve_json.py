"""Visual entailment (SNLI-VE) in the JSON format of the public ALBEF code."""

import os
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of

CLASSES = ("contradiction", "neutral", "entailment")


class VeJsonSource(ManifestSource):
    """Rows `{"image": name, "sentence": text, "label": one of CLASSES}`.

    The official files name images without an ending: `.jpg` is added where there is none. The
    options are those of `ManifestSource`.
    """

    row_format = '{"image": ..., "sentence": ..., "label": "entailment"}'
    fields = pairs() | {"label": {"class_names": CLASSES}}

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = ()):
        super().__init__(files, image_roots, "ve")

    def add(self, row) -> None:
        image, sentence, label = fields_of(row, image=str, sentence=str, label=str)
        if label not in CLASSES:
            raise ValueError(f"has the label {label!r}; use one of {', '.join(CLASSES)}")
        self.append(image if os.path.splitext(image)[1] else f"{image}.jpg",
                    text=[sentence], label=CLASSES.index(label))
