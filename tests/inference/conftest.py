"""A tiny run with a checkpoint, scenes as image files, and a manifest of them."""

import json

import jax
from PIL import Image
import pytest

import albef_jax
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.config import load_config, to_json
from albef_jax.data.sources import make_source
from albef_jax.data.text import clean_caption, train_tokenizer
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import TrainState
from albef_jax.tasks import make_task

SCENES = 16


@pytest.fixture(scope="session")
def source():
    """Scenes with two captions each."""
    return make_source(dict(kind="synthetic", size=SCENES, image_size=32))


@pytest.fixture(scope="session")
def workdir(source, tmp_path_factory):
    """A work directory with one checkpoint, whose teacher is not the online model."""
    folder = tmp_path_factory.mktemp("inference") / "run"
    captions = [clean_caption(c, 30) for i in range(SCENES) for c in source.captions(i)]
    tokenizer = train_tokenizer(captions, 200)
    tokenizer.save(str(folder / "tokenizer"))
    config = load_config("tests/tiny.py")
    config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                        cls_id=tokenizer.cls_id, mask_id=tokenizer.mask_id)
    (folder / "config.json").write_text(to_json(config))
    task = make_task(config)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.steps))
    state = jax.jit(lambda: TrainState.create(task, optimizer, config.seed))()
    # Random weights have nearly equal [CLS] states; larger ones tell inputs apart.
    state = state.replace(params=jax.tree.map(lambda x: 2 * x, state.params))
    checkpointer = Checkpointer(folder, config.checkpoint)
    checkpointer.save(7, state)
    checkpointer.close()
    return folder


@pytest.fixture(scope="session")
def scenes(source, tmp_path_factory):
    """A folder with `a/00.png` ... and `pairs.json`, two captions per image."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "a").mkdir()
    rows = []
    for i in range(SCENES):
        Image.fromarray(source.image(i)).save(folder / "a" / f"{i:02d}.png")
        rows.append({"image": f"a/{i:02d}.png", "caption": source.captions(i)})
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def model(workdir):
    """The run's model in float32, four rows at once."""
    return albef_jax.load(workdir, batch_size=4)
