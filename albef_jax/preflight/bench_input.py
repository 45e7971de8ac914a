"""`albef bench --input`: images per second of the input pipeline alone, both engines in turn."""

from concurrent.futures import ProcessPoolExecutor
import functools
import io
import json
import multiprocessing
import os
from pathlib import Path
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from albef_jax.config import from_json, to_json
from albef_jax.data.fields import open_fields
from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.models.flops import PEAK_BF16
from albef_jax.preflight.assume import assumed
from albef_jax.tasks import task_class

CORES = (1, 2)
PHOTOS, SHAPE, QUALITY = 256, (375, 500), 90
BATCH, STEPS, ROUNDS = 64, 4, 5  # a round is so many steps of each engine
DEVICES = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "TPU v4", "TPU v5 lite", "TPU v6 lite")


class Measured(NamedTuple):
    """Of one engine: images per second of each round, CPU seconds per image, those of stages."""

    rates: list[float]
    cpu: float
    stages: dict[str, float]

    @property
    def rate(self) -> float:
        """The median."""
        return float(np.median(self.rates))


def bench_input(config, photos="", mfu=0.4):
    """Measures and prints images per second, the cost of each stage, and what a step needs.

    Args:
      config: a locked config of a task with images; their size, crops, RandAugment and the length
        of texts count.
      photos: a folder of JPEG files; '': noise with the spectrum of photographs, 500 x 375.
      mfu: utilisation at which the needs of a device are computed.

    Raises:
      UserError: the folder has no JPEG files, the task no images, or TensorFlow is missing.
    """
    config = assumed(config)
    fields_of(config)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch, "rows.json")
        manifest.write_text(json.dumps(rows_of(photos or write_photos(scratch))))
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        found = {}
        for cores in [cores for cores in CORES if cores <= available]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found |= pool.submit(measure, str(manifest), to_json(config), cores).result()
    report(config, found, mfu)


def fields_of(config):
    """The image of a task, one of each example, and its text, if it has one."""
    fields = task_class(config.task).fields(config)
    image, text = fields.get("image"), fields.get("text")
    if not isinstance(image, ImageField):
        raise UserError(f"bench --input measures how images are read, and the task {config.task!r} "
                        "has none; measure its step with bench alone.")
    size = image.spec()["image"].shape[-2]
    return ({"image": ImageField(config.data, size)}
            | ({"text": text} if isinstance(text, TextField) else {}))


def rows_of(folder):
    """Rows of a manifest of the JPEG files of a folder, each with a caption."""
    paths = sorted(path for path in Path(folder).iterdir()
                   if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"{folder} holds no .jpg files; give another folder of photographs.")
    paths = (paths * -(-BATCH // len(paths)))[:max(len(paths), BATCH)]
    return [{"image": str(path.absolute()), "caption": "a photograph of noise"} for path in paths]


def write_photos(folder):
    """Writes noise whose amplitudes fall with frequency as those of photographs do."""
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        Path(folder, f"{number:03d}.jpg").write_bytes(photo(rng))
    return folder


def photo(rng):
    """A JPEG file of about 110 kB."""
    height, width = SHAPE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = np.maximum(frequency, 1 / width) ** -1.1

    def field():
        values = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), SHAPE)
        return (values - values.mean()) / values.std()

    light = field()
    pixels = np.stack([128 + 50 * light + 15 * field() for _ in "rgb"], axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def measure(manifest, config_json, cores):
    """In a process of its own, kept to some cores: {(cores, engine): Measured}."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from albef_jax.data.pipeline import TrainPipeline
    from albef_jax.data.sources import make_source
    from albef_jax.data.text import train_tokenizer

    source = make_source(f"json:{manifest}")
    tokenizer = train_tokenizer(source.words(), 100)
    pipelines = {}
    for engine in ("pillow", "tf"):
        config = from_json(config_json)
        config.data.update(engine=engine, workers=cores, blind=False)
        fields = open_fields(fields_of(config), source, tokenizer)
        pipelines[engine] = TrainPipeline(source, fields, config.data, BATCH, seed=0)
        list(pipelines[engine].iterate(0, STEPS))  # warm-up, compilation
    seconds = {engine: [] for engine in pipelines}
    for number in range(ROUNDS):
        for engine, pipeline in pipelines.items():
            start = (number + 1) * STEPS
            begin, cpu = time.perf_counter(), time.process_time()
            for _ in pipeline.iterate(start, start + STEPS):
                pass
            seconds[engine].append((time.perf_counter() - begin, time.process_time() - cpu))
    images = BATCH * STEPS
    return {(cores, engine): Measured(
        [images / wall for wall, _ in times], float(np.median([cpu for _, cpu in times])) / images,
        stages(source, config, engine) if cores == 1 else {}) for engine, times in seconds.items()}


def stages(source, config, engine):
    """Seconds of CPU per image of each stage, one image after the other."""
    from albef_jax.data.images import pillow as images
    from albef_jax.data.images import randaugment

    size = fields_of(config)["image"].spec()["image"].shape[0]
    draws = [images.draw_train(np.random.default_rng(i), config.data) for i in range(len(source))]
    spent = {}

    def stage(name, function, *columns):
        function(*(column[0] for column in columns))  # warm-up
        begin = time.process_time()
        results = [function(*row) for row in zip(*columns)]
        spent[name] = (time.process_time() - begin) / len(results)
        return results

    contents = stage("read", source.image, range(len(source)))
    if engine == "tf":
        return spent | tf_stages(contents, draws, size)
    decoded = stage("decode", lambda data: images.decode(images.open_image(data)), contents)
    boxes = [images.crop_box(draw, image.height, image.width)
             for draw, image in zip(draws, decoded)]

    def resize(image, box):
        corners = box.left, box.top, box.left + box.width, box.top + box.height
        return image.crop(corners).resize((size, size), Image.Resampling.BICUBIC)

    def augment(image, draw):
        for name, value in draw.operations:
            image = randaugment.apply_operation(image, name, value)
        return np.asarray(image)

    resized = stage("crop, resize", resize, decoded, boxes)
    stage("RandAugment", augment, resized, draws)
    return spent


def tf_stages(contents, draws, size):
    """As `stages`, of the tf engine: what its graph costs, cut off after each stage."""
    import tensorflow as tf

    from albef_jax.data.images.tf import TfEngine, columns_of, prepare

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are made in a loop
    engine = TfEngine(size, 1)
    begin = time.process_time()
    items = [prepare(0, data, draw, size) for data, draw in zip(contents, draws)]
    spent, before = {"header and boxes": (time.process_time() - begin) / len(items)}, 0.0
    columns = columns_of(items)
    for number, name in enumerate(("hand over", *engine.stages)):
        @tf.function
        def run(columns):
            dataset = tf.data.Dataset.from_tensor_slices(columns)
            dataset = dataset.map(functools.partial(engine.run, stages=number))
            return dataset.reduce(0, lambda count, _: count + 1)

        run(columns)  # warm-up
        begin = time.process_time()
        run(columns)
        total = (time.process_time() - begin) / len(items)
        spent[name], before = total - before, total
    return spent


def report(config, found, mfu):
    """Prints rates, ratios, stages, and what devices need."""
    need = sum(task_class(config.task).flops(config).values())
    for (cores, engine), one in found.items():
        print(f"{cores} core(s), {engine:6s} {one.rate:7.1f} images/s (rounds {min(one.rates):.1f} "
              f"to {max(one.rates):.1f}), {1000 * one.cpu:.2f} ms of CPU per image")
    for cores in sorted({cores for cores, _ in found}):
        tf, pillow = (found[cores, engine] for engine in ("tf", "pillow"))
        print(f"{cores} core(s), tf / pillow: {tf.rate / pillow.rate:.2f} by time, "
              f"{pillow.cpu / tf.cpu:.2f} by CPU")
    for engine in ("pillow", "tf"):
        one = found[1, engine]
        rest = {"batch assembly, the rest": one.cpu - sum(one.stages.values())}
        for name, seconds in (one.stages | rest).items():
            print(f"{engine:6s} {name:25s} {1000 * seconds:6.2f} ms per image")
    best = found[1, "tf"].rate
    for kind in DEVICES if need else ():  # the FLOPs of a task may not be known
        samples = mfu * PEAK_BF16[kind] / need
        print(f"{kind:22s} {samples:7.1f} samples/s at {mfu:.0%} MFU: {samples / best:5.2f} cores")
