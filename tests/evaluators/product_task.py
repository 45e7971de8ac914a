"""A task on products whose encoder is written down: sums of what each modality holds, projected."""

import jax
import jax.numpy as jnp

from albef_jax.data.fields.label import LabelField
from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.text import TextField
from albef_jax.data.fields.title import TitleField
from albef_jax.models.scale import MODALITIES
from albef_jax.tasks.base import Task

WIDTH = 48
FIELDS = {"title": lambda data, words: TitleField(data, words),
          "table": lambda data, words: TableField(data, words),
          "regions": lambda data, words: RegionsField(data),
          "video": lambda data, words: VideoField(data),
          "audio": lambda data, words: AudioField(data)}


class Sums(Task):
    """`encode` and `classify` of SCALE's tasks, without anything to learn."""

    @classmethod
    def defaults(cls):
        data = {key: value for field in (TextField, TableField, RegionsField, VideoField,
                                         AudioField) for key, value in field.defaults.items()}
        return dict(model=dict(modalities="tipva", vocab_size=300, pad_id=0, cls_id=2, mask_id=4),
                    data=data | dict(sep=True, text_length=12, table_length=20))

    @classmethod
    def fields(cls, config):
        made = {MODALITIES[m]: FIELDS[MODALITIES[m]](config.data, config.model)
                for m in MODALITIES if m in config.model.modalities}
        return made | {"label": LabelField(16)}

    def __init__(self, config):
        self.config = config

    def init_boxed(self, rng):
        data, words = self.config.data, self.config.model.vocab_size
        sizes = {"title": words, "table": words, "regions": data.regions_width,
                 "video": data.video_length * data.video_width,
                 "audio": data.audio_length * data.audio_width, "class": WIDTH}
        return {name: jax.random.normal(key, (size, 16 if name == "class" else WIDTH)) / size**0.5
                for (name, size), key in zip(sizes.items(), jax.random.split(rng, len(sizes)))}

    def predict_fns(self):
        def encode(params, **arrays):
            joint = {}
            for letter, name in MODALITIES.items():
                if f"{name}_mask" in arrays:
                    mask = arrays[f"{name}_mask"][..., None].astype(jnp.float32)
                    rows = (params[name][arrays[f"{name}_ids"]] if f"{name}_ids" in arrays
                            else arrays[name])
                    rows = rows * mask
                    if name == "regions":
                        rows = rows.sum(axis=1)
                    if name in ("video", "audio"):
                        rows = rows.reshape(len(rows), -1)
                    joint[f"joint_{letter}"] = (
                        rows.sum(axis=1) if f"{name}_ids" in arrays else rows @ params[name])
            return joint

        def classify(params, **arrays):
            return sum(encode(params, **arrays).values()) @ params["class"]

        return {"encode": encode, "classify": classify}
