"""Checks on real photographs, which may not be part of the project.

Give the folder that holds `flickr8k/` in ALBEF_DATA: `ALBEF_DATA=... make test-slow`.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.data.pipeline import TrainPipeline
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer

DATA = os.environ.get("ALBEF_DATA", "")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="needs real photographs: set ALBEF_DATA"),
]


def test_both_engines_show_the_same_photographs():
    """Same crops, flips, captions; grey levels within the decoders' and resizers' rounding."""
    config = load_config(f"{ROOT}/configs/flickr8k.py:{DATA}/flickr8k",
                         ["--config.data.randaugment=(0,0)"])
    source = make_source(config.data.source)
    tokenizer = make_tokenizer(config.data, source)
    batches = {}
    for engine in ("tf", "pillow"):
        config.data.engine = engine
        batches[engine] = TrainPipeline(source, tokenizer, config.data, 256, seed=0).batch(3)
    tf, pillow = batches["tf"], batches["pillow"]
    for name in ("text_ids", "text_mask", "image_id"):
        np.testing.assert_array_equal(tf[name], pillow[name])
    difference = np.abs(tf["image"].astype(int) - pillow["image"])
    assert difference.mean() < 0.7 and difference.mean(axis=(1, 2, 3)).max() < 3.0


def test_flickr8k_trains_stops_and_evaluates(albef, tmp_path):
    """The README's commands on the real manifests: MLM falls and the dev split is measured."""
    config = f"configs/flickr8k.py:{DATA}/flickr8k"
    short = ["--config.steps=60", "--config.log_every=10", "--config.epochs=0",
             "--config.evals.retrieval.max_images=100", "--config.evals.matching.every=0",
             "--config.evals.masked.max_images=100"]
    done = albef.train(tmp_path, *short, config=config)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    mlm = [line["mlm"] for line in lines if "mlm" in line]
    assert mlm[-1] < 0.9 * mlm[0]
    assert albef.run("evaluate", tmp_path).returncode == 0
    values = json.loads((tmp_path / "results/retrieval.json").read_text())["values"]
    assert all(0 <= value <= 100 for value in values.values())
