"""`albef bench --retrieval`: where the time of a retrieval evaluation goes.

Noise and random words go through the real evaluator, with fresh weights of a config's sizes;
its data is not read.
"""

import time

import jax
import numpy as np

from albef_jax.core.build import build
from albef_jax.data.sources.base import Source, pairs
from albef_jax.data.sources.regions import Regions
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import check_task, make_evaluator
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.pairs import in_steps
from albef_jax.evaluators.retrieval import SCORES
from albef_jax.parallel.mesh import make_mesh, replicated
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.bench import dtype_of

# The first that the task can do, and how many images and texts, of which one scores every pair.
KINDS = {"retrieval": (1000, 5000), "pair_retrieval": (100, 500)}
WORDS = 100  # different ones
SHORTEST_TEXT = 8  # words, unless the config's texts are shorter


class NoisePairs(Source):
    """So many images of noise, pixels or regions of the sizes of a whole config, dealt out to texts
    of random words, at most `longest`; every image has at least one text."""

    fingerprint = "noise"
    fields = pairs() | {"regions": {}, "global_feature": {}}

    def __init__(self, images: int, texts: int, config, longest: int):
        rng = np.random.default_rng(0)
        counts = rng.integers(min(SHORTEST_TEXT, longest), longest + 1, max(images, texts))
        self._texts = [" ".join(f"w{word}" for word in rng.integers(0, WORDS, count))
                       for count in counts]
        self._images, self._config = images, config

    def __len__(self) -> int:
        return self._images

    def name(self, index: int) -> str:
        return f"noise {index}"

    def text(self, index: int) -> list[str]:
        return self._texts[index::self._images]

    def image_id(self, index: int) -> int:
        return index

    def image(self, index: int) -> np.ndarray:
        shape = self._config.model.image_size, self._config.model.image_size, 3
        return np.random.default_rng(index).integers(0, 256, shape, np.uint8)

    def regions(self, index: int) -> Regions:
        data, rng = self._config.data, np.random.default_rng(index)
        features = rng.standard_normal((data.regions_length, data.regions_width), np.float32)
        corners = np.sort(rng.random((data.regions_length, 2, 2)), axis=1)
        return Regions(features, corners.reshape(-1, 4), (1, 1))

    def global_feature(self, index: int) -> np.ndarray:
        width = self._config.data.global_width
        return np.random.default_rng(index).standard_normal(width, np.float32)


class Recorder(Forward):
    """Remembers what one of its functions was called with; arguments stay on the devices."""

    def __init__(self, params, functions, mesh, watched):
        super().__init__(params, functions, mesh)
        self._watched, self._calls = watched, []

    def compiled(self, function):
        """See `Forward.compiled`."""
        compiled = super().compiled(function)
        if function is not self._watched:
            return compiled

        def call(*args):
            self._calls.append((compiled, args))
            return compiled(*args)

        return call

    def seconds(self):
        """What all calls take again, back to back, with nothing else to do."""
        begin, result = time.perf_counter(), None
        for compiled, args in self._calls:
            result = compiled(*args)
        jax.block_until_ready(result)
        return time.perf_counter() - begin


def bench_retrieval(config, images, texts, k, batch_size):
    """Evaluates retrieval on noise, after a run that compiles, and prints where the time goes.

    Args:
      config: a locked config of a task that retrieval can be evaluated of. images, texts: how many;
        None: that of `KINDS`. k: candidates of each query. batch_size: of the evaluator.

    Raises:
      UserError: a config that cannot be used.
    """
    config = assumed(config)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    kind = kind_for(config)
    images, texts = images or KINDS[kind][0], texts or KINDS[kind][1]
    config.data.update({name: value for name, value in dict(
        engine="pillow", tokenizer="", blind=False).items() if name in config.data})
    parts = build(config, make_mesh())
    mesh, functions = parts.mesh, parts.task.predict_fns()
    evaluator = noise_evaluator(kind, config, images, texts, k, batch_size)
    params = jax.jit(parts.task.init, out_shardings=replicated(mesh))(jax.random.key(config.seed))
    dict(evaluator.run(Forward(params, functions, mesh)))  # compiles
    score = functions[evaluator.calls[2]]
    recorder = Recorder(params, functions, mesh, in_steps(score, mesh))
    dict(evaluator.run(recorder))
    compute = recorder.seconds()
    if jax.process_index() == 0:
        device = mesh.devices.flat[0].device_kind
        print(f"{images} images, {texts} texts, k={k}, batch {batch_size}, {dtype_of(config)} "
              f"on {mesh.size} x {device}, after a run that compiles")
        report(evaluator.seconds, evaluator.num_pairs, compute)


def kind_for(config):
    """The kind of evaluator that the task of a config can do.

    Raises:
      UserError: none of `KINDS`.
    """
    errors = []
    for kind in KINDS:
        try:
            check_task("noise", kind, config)
            return kind
        except UserError as error:
            errors.append(error)
    raise errors[0]


def noise_evaluator(kind, config, images, texts, k, batch_size):
    """The evaluator of retrieval on noise; see `bench_retrieval`."""
    data = config.data
    length = data.eval_text_length or data.text_length
    source = NoisePairs(images, texts, config, min(length - 1, data.max_words))
    tokenizer = train_tokenizer([f"w{word}" for word in range(WORDS)] * 2, 2 * WORDS)
    block = dict(kind=kind, source=source, k=k, batch_size=batch_size)
    return make_evaluator("noise", block, config, tokenizer)


def report(phases, pairs, compute):
    """Prints the phases, pairs per second, and how much of the scoring is computing."""
    total, scores = sum(phases.values()), phases[SCORES]
    for phase, seconds in phases.items():
        print(f"{phase:28s} {seconds:9.3f} s  {seconds / total:6.1%}")
    print(f"{'total':28s} {total:9.3f} s")
    print(f"{'pairs':28s} {pairs:9d}    {pairs / scores:.0f} pairs/s")
    print(f"{'scores, compute alone':28s} {compute:9.3f} s  {compute / scores:6.1%} of {SCORES}")
