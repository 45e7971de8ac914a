"""`albef bench --retrieval`: where the time of a retrieval evaluation goes.

Noise images and random words go through the real evaluator, with fresh weights of a config's sizes;
its data is not read.
"""

import time

import jax
import numpy as np

from albef_jax.data.sources.base import Source
from albef_jax.data.text import train_tokenizer
from albef_jax.evaluators.retrieval import SCORES, RetrievalEvaluator
from albef_jax.parallel.mesh import make_mesh, replicated
from albef_jax.tasks import make_task

WORDS = 100  # different ones
SHORTEST_TEXT = 8  # words, unless the config's texts are shorter


class NoisePairs(Source):
    """Images of noise, dealt out to captions of random words.

    Args:
        images, texts: how many; every image has at least one text.
        size: side of the images.
        longest: words of a caption.
    """

    fingerprint = "noise"

    def __init__(self, images: int, texts: int, size: int, longest: int):
        rng = np.random.default_rng(0)
        counts = rng.integers(min(SHORTEST_TEXT, longest), longest + 1, max(images, texts))
        self._texts = [" ".join(f"w{word}" for word in rng.integers(0, WORDS, count))
                       for count in counts]
        self._images, self._size = images, size

    def __len__(self) -> int:
        return self._images

    def name(self, index: int) -> str:
        return f"noise {index}"

    def captions(self, index: int) -> list[str]:
        return self._texts[index::self._images]

    def image_id(self, index: int) -> int:
        return index

    def image(self, index: int) -> np.ndarray:
        shape = self._size, self._size, 3
        return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


class Recorder:
    """A compiled function that remembers what it was called with; arguments stay on the devices."""

    def __init__(self, function):
        self._function, self._calls = function, []

    def __call__(self, *args):
        self._calls.append(args)
        return self._function(*args)

    def seconds(self):
        """What all calls take again, back to back, with nothing else to do."""
        begin = time.perf_counter()
        for args in self._calls:
            result = self._function(*args)
        jax.block_until_ready(result)
        return time.perf_counter() - begin


def bench_retrieval(config, images, texts, k, batch_size):
    """Evaluates retrieval on noise, after a run that compiles, and prints where the time goes.

    Args:
      config: a locked config of the task 'pretrain' or 'retrieval'. images, texts: how many.
      k: candidates of each query. batch_size: of the evaluator.

    Returns:
      'phases' (name -> seconds), 'pairs' (how many were scored) and 'compute' (seconds of the same
      calls of the scoring function, back to back).
    """
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    data = config.data.copy_and_resolve_references().unlock()
    data.update(engine="pillow", tokenizer="", blind=False, image_size=config.model.image_size)
    length = data.eval_text_length or data.text_length
    source = NoisePairs(images, texts, data.image_size, min(length - 1, data.max_words))
    tokenizer = train_tokenizer([f"w{word}" for word in range(WORDS)] * 2, 2 * WORDS)
    settings = dict(k=k, ks=(), max_images=0, batch_size=batch_size)
    evaluator = RetrievalEvaluator(source, settings, data, tokenizer, config.seed)
    task, mesh = make_task(config), make_mesh()
    init = jax.jit(task.init, out_shardings=replicated(mesh))
    params, fns = init(jax.random.key(config.seed)), task.predict_fns()
    dict(evaluator.run(params, fns, mesh))  # compiles
    compiled = evaluator.held_out.compiled
    recorder = compiled["pairs"] = Recorder(compiled["pairs"])
    dict(evaluator.run(params, fns, mesh))
    result = {"phases": dict(evaluator.seconds), "pairs": evaluator.num_pairs,
              "compute": recorder.seconds()}
    if jax.process_index() == 0:
        device = mesh.devices.flat[0].device_kind
        print(f"{images} images, {texts} texts, k={k}, batch {batch_size}, {config.model.dtype} "
              f"on {mesh.size} x {device}, after a run that compiles")
        report(**result)
    return result


def report(phases, pairs, compute):
    """Prints the phases, pairs per second, and how much of the scoring is computing."""
    total, scores = sum(phases.values()), phases[SCORES]
    for phase, seconds in phases.items():
        print(f"{phase:28s} {seconds:9.3f} s  {seconds / total:6.1%}")
    print(f"{'total':28s} {total:9.3f} s")
    print(f"{'pairs':28s} {pairs:9d}    {pairs / scores:.0f} pairs/s")
    print(f"{'scores, compute alone':28s} {compute:9.3f} s  {compute / scores:6.1%} of {SCORES}")
