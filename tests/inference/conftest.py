"""A tiny run with a checkpoint, scenes as image files, and a manifest of them."""

import json

import jax
import optax
from PIL import Image
import pytest

import albef_jax
from albef_jax.cli import main
from albef_jax.config import load_config, to_json, with_task
from albef_jax.core.state import TrainState
from albef_jax.data.sources import make_source
from albef_jax.data.text import clean_caption, train_tokenizer
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.tasks import make_task

SCENES = 16


@pytest.fixture
def albef(capsys):
    """`albef(*arguments)` -> exit code, stdout, stderr."""
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def source():
    """Scenes with two captions each."""
    return make_source(dict(kind="synthetic", size=SCENES, image_size=32))


@pytest.fixture(scope="session")
def tokenizer(source):
    """Of the captions of the scenes."""
    return train_tokenizer([clean_caption(caption, 30) for i in range(SCENES)
                            for caption in source.get(i, "text")], 200)


@pytest.fixture(scope="session")
def config_of(tokenizer):
    """`config_of("vqa")` -> the tiny config for a task."""
    def make(task):
        config = with_task(load_config("tests/tiny.py"), task).unlock()
        config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                            cls_id=tokenizer.cls_id, mask_id=tokenizer.mask_id)
        return config

    return make


@pytest.fixture(scope="session")
def saved(tokenizer):
    """`saved(config, folder)` makes a work directory with one checkpoint of fresh weights."""
    def make(config, folder, change=lambda params: params):
        tokenizer.save(str(folder / "tokenizer"))
        (folder / "config.json").write_text(to_json(config))
        # Without an optimizer, which nothing reads here.
        state = jax.jit(lambda: TrainState.create(make_task(config), optax.identity(), 0))()
        checkpointer = Checkpointer(folder, config.checkpoint)
        checkpointer.save(7, state.replace(params=change(state.params)))
        checkpointer.close()
        return folder

    return make


@pytest.fixture(scope="session")
def workdir(config_of, saved, tmp_path_factory):
    """A work directory with one checkpoint, whose teacher is not the online model."""
    # Random weights have nearly equal [CLS] states; larger ones tell inputs apart.
    return saved(config_of("pretrain"), tmp_path_factory.mktemp("inference") / "run",
                 lambda params: jax.tree.map(lambda x: 2 * x, params))


@pytest.fixture(scope="session")
def scenes(source, tmp_path_factory):
    """A folder with `a/00.png` ... and `pairs.json`, two captions per image."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "a").mkdir()
    rows = []
    for i in range(SCENES):
        Image.fromarray(source.get(i, "image")).save(folder / "a" / f"{i:02d}.png")
        rows.append({"image": f"a/{i:02d}.png", "caption": source.get(i, "text")})
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def model(workdir):
    """The run's model in float32, four rows at once."""
    return albef_jax.load(workdir, batch_size=4)
