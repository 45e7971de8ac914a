"""Batches as functions of the step, hosts, broken examples, threads and signals."""

import importlib.util
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from albef_jax.data.eval_sets import EvalSet
from albef_jax.data.pipeline import Broken, example_rng
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer, train_tokenizer
from albef_jax.errors import UserError
from albef_jax.parallel import processes

SIZE, BATCH = 22, 4
HAS_TF = importlib.util.find_spec("tensorflow") is not None
ENGINES = ["pillow", pytest.param("tf", marks=pytest.mark.skipif(not HAS_TF, reason="no tf"))]


@pytest.fixture
def source():
    return make_source(dict(kind="synthetic", size=SIZE))


@pytest.fixture
def tokenizer(data_config, source):
    return make_tokenizer(data_config, source)


@pytest.fixture
def make_run(data_config, source, tokenizer, make_pipeline):
    """`make_run(engine, ...)` -> a pipeline on the synthetic source."""
    def make(engine="pillow", seed=3, **options):
        data_config.engine = engine
        return make_pipeline(source, BATCH, seed, tokenizer, **options)

    return make


def assert_same(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def data_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("albef-")]


def test_an_epoch_sees_every_example_at_most_once(make_run):
    steps = SIZE // BATCH
    pipeline = make_run(seed=0)
    epochs = [[pipeline.examples(e * steps + s) for s in range(steps)] for e in range(3)]
    for number, epoch in enumerate(epochs):
        indices, passes = (np.concatenate(rows) for rows in zip(*epoch))
        assert len(set(indices)) == steps * BATCH and set(indices) <= set(range(SIZE))
        assert set(passes) == {number}
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    assert epochs[0][0][0].dtype == np.int64
    assert not np.array_equal(make_run(seed=1).examples(0), epochs[0][0])


def test_batch_is_what_the_contract_says(make_run):
    batch = make_run().batch(0)
    kinds = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert kinds == {
        "image": ("uint8", (4, 32, 32, 3)),
        "text_ids": ("int32", (4, 8)),
        "text_mask": ("int32", (4, 8)),
        "image_id": ("int32", (4,)),
    }
    assert make_run().steps_per_epoch == SIZE // BATCH


@pytest.mark.parametrize("engine", ENGINES)
def test_iterating_from_any_step_gives_the_same_batches(make_run, engine):
    pipeline = make_run(engine)
    whole = list(pipeline.iterate(0, 8))
    assert len(whole) == 8
    for step, batch in zip(range(5, 8), make_run(engine).iterate(5, 8)):
        assert_same(batch, whole[step])
        assert_same(batch, pipeline.batch(step))
    assert data_threads() == []


def test_images_belong_to_their_texts(make_run, make_fields, source, tokenizer, data_config):
    data_config.update(crop_scale=(1.0, 1.0), flip=0.0, randaugment=(0, 0))
    batch = make_run(fields=make_fields(size=64)).batch(2)
    for image, ids, image_id in zip(batch["image"], batch["text_ids"], batch["image_id"]):
        np.testing.assert_array_equal(image, source.image(image_id))
        start = tokenizer.decode(ids)
        texts = [text.lower().rstrip(".") for text in source.text(image_id)]
        assert any(text.startswith(start) for text in texts)


def test_texts_and_crops_change_from_epoch_to_epoch(source, make_pipeline):
    pipeline = make_pipeline(source, SIZE)
    first, second = (pipeline.batch(epoch) for epoch in (0, 1))
    one, two = np.argsort(first["image_id"]), np.argsort(second["image_id"])
    texts = (first["text_ids"][one] != second["text_ids"][two]).any(-1)
    assert 4 <= texts.sum() <= SIZE - 4, "about half of the images change their text"
    assert (first["image"][one] != second["image"][two]).any((1, 2, 3)).all()


def test_hosts_make_slices_of_one_global_batch(make_run):
    whole = make_run().batch(3)
    size = len(whole["image_id"])
    for rows in (np.arange(size // 2), np.arange(1, size, 2)):  # of a host, in any order of hosts
        part = make_run(rows=rows).batch(3)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])


@pytest.mark.skipif(not HAS_TF, reason="needs TensorFlow")
def test_engines_differ_only_in_rounding(make_run):
    one, two = make_run("pillow").batch(1), make_run("tf").batch(1)
    assert np.abs(one.pop("image").astype(int) - two.pop("image")).mean() < 1
    assert_same(one, two)


@pytest.mark.parametrize("engine", ENGINES)
def test_broken_images_are_replaced_counted_and_named(
    engine, make_folder, odd_files, broken_files, data_config, make_pipeline
):
    data_config.update(engine=engine, max_bad_share=1.0)
    source = make_source(make_folder({**odd_files, **broken_files}, missing=["gone.jpg"]))
    pipeline = make_pipeline(source, len(source))
    batch = pipeline.batch(0)
    good = {i for i in range(len(source)) if source.name(i) in odd_files}
    assert set(batch["image_id"].tolist()) == good
    assert batch["image"].any((1, 2, 3)).all()
    assert set(pipeline.broken.names) == {*broken_files, "gone.jpg"}
    assert pipeline.broken.names["gone.jpg"] == "missing"
    for other in make_pipeline(source, len(source)).iterate(0, 1):
        assert_same(batch, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_too_many_broken_images_stop_the_run(
    engine, make_folder, broken_files, data_config, make_pipeline
):
    data_config.engine = engine
    pipeline = make_pipeline(make_source(make_folder(broken_files)), 5)
    with pytest.raises(UserError, match=r"\d examples .* data.max_bad_share=0.01: ") as error:
        list(pipeline.iterate(0, 2))
    assert all(name in str(error.value) for name in broken_files)
    assert "\n" not in str(error.value) and data_threads() == []


def test_no_readable_image_at_all_ends(make_folder, broken_files, data_config, make_pipeline):
    data_config.max_bad_share = 1.0
    pipeline = make_pipeline(make_source(make_folder(broken_files)), 5)
    with pytest.raises(UserError, match="No example of the data source can be read"):
        pipeline.batch(0)


def test_fewer_examples_than_a_batch(source, make_pipeline):
    with pytest.raises(UserError, match="22 examples, fewer than one batch of 23"):
        make_pipeline(source, 23)


def test_random_numbers_belong_to_seed_pass_example_and_field():
    keys = [(0, 0, 0, "image"), (1, 0, 0, "image"), (0, 1, 0, "image"), (0, 0, 1, "image"),
            (0, 0, 0, "text"), (2**32 - 1, 1000, 2**39, "text")]
    drawn = [tuple(example_rng(*key).integers(2**60, size=3)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [tuple(example_rng(*key).integers(2**60, size=3)) for key in keys]


def test_share_of_broken_ones_and_tolerance():
    broken = Broken(max_share=0.1)
    broken.add(10, {"a": "x", "b": "x", "c": "x"})
    broken.add(0, {"a": "x"})  # the same file again: still three different ones
    assert broken.note() == "4 of 10 reads failed and were replaced: a (x), b (x), c (x)"
    with pytest.raises(UserError, match=r"5 of 12 examples .*0.1: a \(x\), b .* d \(x\); mend"):
        broken.add(2, {"d": "x"})
    patient = Broken(max_share=0.1)
    for number in range(100):
        patient.add(100, {str(number): "x"})
    assert patient.count == 100 and patient.seen == 10000
    assert patient.note().endswith("19 (x) and 80 others") and Broken(0.1).note() == ""
    with pytest.raises(UserError, match=r"40 of 100 .* 19 \(x\) and 20 others; mend"):
        Broken(0.1).add(100, {str(number): "x" for number in range(40)})


class Store:
    """Stands in for the processes of a run: what each of them told last."""

    def __init__(self, monkeypatch, count):
        self.me, self._told = 0, {}
        monkeypatch.setattr(processes, "count", lambda: count)
        monkeypatch.setattr(processes, "total", self.total)

    def total(self, name, own):
        self._told[name, self.me] = own
        return sum(value for (told, _), value in self._told.items() if told == name)


def test_broken_ones_of_all_processes_count(monkeypatch):
    """Each of 4 processes meets one; together they are above the share, and nobody is before."""
    store, runs = Store(monkeypatch, count=4), [Broken(max_share=0.01) for _ in range(4)]
    for store.me, run in enumerate(runs):
        run.add(50, {})
    for store.me, run in enumerate(runs[:3]):
        run.add(0, {f"{store.me}.jpg": "missing"})
    store.me = 3
    with pytest.raises(UserError, match=r"4 of 200 examples .*: 3.jpg \(missing\) and 3 others;"):
        runs[3].add(0, {"3.jpg": "missing"})
    store.me = 0
    assert runs[0].count == 4 and runs[0].seen == 200
    assert runs[0].note() == ("4 of 200 reads failed and were replaced: 0.jpg (missing) and 3 "
                              "others")


def test_the_share_is_that_of_all_processes(monkeypatch):
    """One process has all the broken ones, a tenth of its rows: of all rows they are few."""
    Store(monkeypatch, count=20)
    run = Broken(max_share=0.01)
    run.add(100, {str(number): "x" for number in range(10)})
    assert run.count == 10 and run.seen == 2000
    with pytest.raises(UserError, match="30 of 2000 examples"):
        run.add(0, {str(number): "x" for number in range(20, 40)})


def run_script(script: str) -> subprocess.Popen:
    header = """
        import signal, sys
        from albef_jax.config import default_config
        from albef_jax.data.fields import open_fields
        from albef_jax.data.pipeline import TrainPipeline
        from albef_jax.data.sources import make_source
        from albef_jax.data.text import make_tokenizer
        from albef_jax.tasks import task_class
        config = default_config().copy_and_resolve_references().unlock()
        config.model.image_size = 64
        config.data.update(engine="pillow", text_length=8, vocab_size=200, workers=2)
        source = make_source(dict(kind="synthetic", size=64))
        tokenizer = make_tokenizer(config.data, source)
        fields = open_fields(task_class("pretrain").fields(config), source, tokenizer)
        pipeline = TrainPipeline(source, fields, config.data, 16, 0)
    """
    code = textwrap.dedent(header) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_pillow_engine_imports_neither_tensorflow_nor_transformers():
    process = run_script("""
        pipeline.batch(0)
        print([m for m in ("tensorflow", "transformers") if m in sys.modules])
    """)
    assert process.communicate(timeout=60)[0].strip() == "[]" and process.returncode == 0


@pytest.mark.parametrize(
    "handler",
    ["lambda *_: sys.exit(0)", "lambda *_: stop.append(1)"],
    ids=["raises", "sets a flag"],
)
def test_sigterm_in_the_main_thread_ends_the_process(handler):
    process = run_script(f"""
        stop = []
        signal.signal(signal.SIGTERM, {handler})
        for step, batch in enumerate(pipeline.iterate(0, 10**6)):
            if step == 2:
                print("running", flush=True)
            if stop:
                break
    """)
    assert process.stdout.readline().strip() == "running"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_ends_all_threads(make_run, engine, taken):
    batches = make_run(engine).iterate(0, 10**6)
    for _ in range(taken):
        next(batches)
    assert bool(data_threads()) == bool(taken)
    start = time.time()
    batches.close()
    assert data_threads() == [] and time.time() - start < 5


def test_breaking_out_of_a_loop_ends_all_threads(make_run):
    for _ in make_run().iterate(0, 10**6):
        break
    assert data_threads() == []


@pytest.mark.parametrize("engine", ENGINES)
def test_eval_set(engine, make_folder, odd_files, data_config, make_fields):
    data_config.engine = engine
    block = make_folder(odd_files)
    block["files"] = block["files"] * 2  # every image twice: rows of one image are joined
    source = make_source(block)
    held_out = EvalSet(source, make_fields(), train_tokenizer(["picture of a"], 100), data_config)
    number = len(odd_files)
    assert held_out.num_images == number
    assert held_out.text_image.tolist() == [i for i in range(number) for _ in range(2)] * 2
    assert held_out.text_ids.shape == held_out.text_mask.shape == (4 * number, 8)
    batches = list(held_out.images(4))
    assert all(batch["image"].shape == (4, 32, 32, 3) for batch in batches)
    mask = np.concatenate([batch["_mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert mask.sum() == number and index[mask > 0].tolist() == list(range(number))
    assert mask.dtype == np.float32 and index.dtype == np.int32
    assert data_threads() == []


def test_broken_evaluation_image_is_an_error(make_folder, odd_files, data_config, make_fields):
    source = make_source(make_folder(odd_files, missing=["gone.jpg"]))
    held_out = EvalSet(source, make_fields(), train_tokenizer(["a"], 100), data_config)
    with pytest.raises(UserError, match=r"example gone.jpg cannot be read \(missing\); mend it"):
        list(held_out.images(3))
    assert data_threads() == []
