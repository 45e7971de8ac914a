"""Sources of the tasks on scenes, whose scenes are made once for a file of tests."""

import pytest

from albef_jax.data.sources import make_source


@pytest.fixture(scope="module")
def make(request, tmp_path_factory):
    """`make(task, level, split, **options)` -> a source of as many scenes as SCENES there says."""
    sizes, folder = request.module.SCENES, str(tmp_path_factory.mktemp("scenes"))

    def make(task, level="demo", split="train", **options):
        block = dict(kind=task, level=level, split=split, data_dir=folder)
        return make_source(block | dict(size=sizes[level, split]) | options)

    return make


@pytest.fixture(scope="session")
def texts():
    """`texts(source)` -> the first text of every example."""
    return lambda source: [source.text(index)[0] for index in range(len(source))]
