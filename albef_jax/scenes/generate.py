"""Whole scenes, as they are stored, made in order by several processes."""

from collections.abc import Iterator
import json
import os
import pickle
import signal
import subprocess
import sys

from albef_jax.scenes.captions import make_captions
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.levels import get_level
from albef_jax.scenes.render import render

VERSION = 1  # what a seed gives changes with it
CAPTIONS = 5  # per scene
BLOCK = 64  # scenes that a process makes in a row


def make_scene(level: str, split: str, seed: int, index: int) -> dict:
    """One scene: image uint8 [side, side, 3], captions (list of `CAPTIONS` texts), forms (their
    logical forms, a JSON list) and graph (JSON)."""
    level = get_level(level)
    graph = sample_graph(level, split, index, seed)
    rng = scene_rng(seed, split, index, 1)
    texts, forms = zip(*make_captions(graph, level, rng, CAPTIONS))
    return {"image": render(graph), "captions": list(texts), "forms": json.dumps(forms),
            "graph": json.dumps(graph)}


def generate(level: str, split: str, seed: int, size: int, workers: int = 0) -> Iterator[dict]:
    """The scenes 0 .. size-1, the same ones for any number of processes.

    Args:
        workers: processes; 0: one per core, and none for small sets.
    """
    workers = workers or (1 if size < 4 * BLOCK else os.cpu_count() or 1)
    if workers == 1:
        yield from (make_scene(level, split, seed, index) for index in range(size))
        return
    # Not multiprocessing: forks do not go with the threads of JAX, and its other ways of starting
    # run the user's script once more.
    command = [sys.executable, "-m", __name__, level, split, str(seed), str(size), str(workers)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [subprocess.Popen([*command, str(worker)], stdout=subprocess.PIPE, env=environment)
                for worker in range(workers)]
    try:
        for block in range(-(-size // BLOCK)):
            yield from pickle.load(children[block % workers].stdout)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _write_blocks(level, split, seed, size, workers, worker):
    """Writes every `workers`-th block of scenes to standard output."""
    for start in range(worker * BLOCK, size, workers * BLOCK):
        stop = min(start + BLOCK, size)
        block = [make_scene(level, split, seed, index) for index in range(start, stop)]
        pickle.dump(block, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends without a word when the reader is gone
    _write_blocks(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
