"""A folder of ordinary, odd and broken images, and the config, fields and pipeline that read it."""

import json

import pytest
from pictures import broken_files, odd_files, photo_jpeg  # noqa: F401

from albef_jax.config import default_config
from albef_jax.data.fields import open_fields
from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.number import NumberField
from albef_jax.data.fields.text import TextField
from albef_jax.data.pipeline import TrainPipeline
from albef_jax.data.text import make_tokenizer


@pytest.fixture
def data_config():
    config = default_config("vqa").data.copy_and_resolve_references().unlock()
    config.update(engine="pillow", text_length=8, vocab_size=200, workers=2)
    return config


@pytest.fixture
def make_fields(data_config):
    """`make_fields(size, views)` -> the fields of image-text pairs."""
    def make(size=32, views=1):
        return {"image": ImageField(data_config, size, views),
                "text": TextField(data_config, default_config().model),
                "image_id": NumberField("image_id")}

    return make


@pytest.fixture
def make_pipeline(data_config, make_fields):
    """`make_pipeline(source, batch_size)` -> a pipeline; of pairs, if no other fields are given."""
    def make(source, batch_size, seed=0, tokenizer=None, fields=None, rows=None):
        tokenizer = tokenizer or make_tokenizer(data_config, source)
        fields = open_fields(fields or make_fields(), source, tokenizer)
        return TrainPipeline(source, fields, data_config, batch_size, seed, rows)

    return make


@pytest.fixture
def make_folder(tmp_path):
    """Writes images and a manifest `rows.json`; `missing` names are only in the manifest."""

    def make(files: dict[str, bytes], missing=()) -> dict:
        rows = []
        for name in [*files, *missing]:
            if name in files:
                (tmp_path / name).write_bytes(files[name])
            rows.append({"image": name, "caption": [f"picture of {name[:3]}", "a picture"]})
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return dict(kind="json", files=(str(tmp_path / "rows.json"),), image_roots=(str(tmp_path),))

    return make
