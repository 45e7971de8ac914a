"""Checkpoints with exactly the names and shapes of the published ones (slow, gigabytes)."""

import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.core.build import build
from albef_jax.parallel.mesh import make_mesh
from albef_jax.run.restore import restore_params
from albef_jax.run.workdir import read_config
from albef_jax.weights.export import export
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.torch_file import read_tensors
from albef_jax.weights.foreign.torch_writer import write_torch_file
from albef_jax.weights.importer import import_file

GOLDEN = Path(__file__).parents[1] / "golden"
pytestmark = pytest.mark.slow

# Runs `albef import` alone and prints its peak in bytes.
MEASURED = """
import re, sys
from albef_jax.cli import main
assert main(["import", sys.argv[1], "--out", sys.argv[2]]) == 0
# Not getrusage: its peak includes that of the process which started this one.
print(int(re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def manifest(kind):
    """Name -> shape of the tensors of a kind."""
    imagebert = kind.startswith("imagebert_")
    file = "imagebert/manifests/imagebert" if imagebert else {
        "scale_pretrain": "scale_manifests/pretrain",
        "scale_classify": "scale_manifests/classification"}.get(kind, f"manifests/{kind}")
    masked = ("cls.", "moc_head.", "mrfr_head.") if kind == "imagebert_retrieval" else ("-",)
    return {name: shape for name, shape in json.loads((GOLDEN / f"{file}.json").read_text()).items()
            if not name.startswith(masked)}


def write_checkpoint(kind, path):
    """Random weights that bfloat16 holds, under the published names; returns them."""
    rng, tensors = np.random.default_rng(0), {}
    shapes = manifest(kind)
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        values = (rng.integers(-64, 64, size, np.int8) / np.float32(2048)).astype(np.float32)
        tensors[name] = values.reshape(shape)
    config = default_config(kind)  # ViT-B/16 and BERT-base, as all of them
    tensors |= KINDS[kind].buffers(config)
    for second, first in KINDS[kind].tied(config).items():
        tensors[second] = tensors[first]
    if "queue_ptr" in tensors:
        tensors["queue_ptr"] = np.array([512])
    if "idx_queue" in tensors:
        tensors["idx_queue"] = np.full(shapes["idx_queue"], -100)
    write_torch_file(path, tensors)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_published_names_and_shapes(kind, tmp_path):
    tensors = write_checkpoint(kind, tmp_path / "model.pth")
    report = import_file(tmp_path / "model.pth", tmp_path / "run")
    assert " 0 fresh" in str(report)
    (tmp_path / "model.pth").unlink()
    export(tmp_path / "run", tmp_path / "out.pth", KINDS[kind].layout)
    written = read_tensors(tmp_path / "out.pth")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        assert written[name].dtype == array.dtype, name
        np.testing.assert_array_equal(written[name], array)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_forward_pass(tmp_path, record_property):
    write_checkpoint("pretrain", tmp_path / "model.pth")
    size = (tmp_path / "model.pth").stat().st_size
    child = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "model.pth",
                            tmp_path / "run"], capture_output=True, text=True, check=True)
    peak = int(child.stdout.split()[-1])
    record_property("peak_over_size", peak / size)
    print(f"import peaks at {peak / 2**30:.2f} GiB for {size / 2**30:.2f} GiB: {peak / size:.2f}x")
    assert peak < 3 * size

    parts = build(read_config(tmp_path / "run"), make_mesh())
    params, step = restore_params(tmp_path / "run", parts)
    functions = parts.task.predict_fns()
    image = np.zeros((1, 256, 256, 3), np.uint8)
    ids, mask = np.full((1, 4), 101, np.int32), np.ones((1, 4), np.int32)
    image_bnd, image_be = functions["encode_image"](params, image)
    text_bld, text_be = functions["encode_text"](params, ids, mask)
    logits = functions["match"](params, image_bnd, text_bld, mask)
    words = functions["mlm_logits"](params, image_bnd, ids, mask)
    assert step == 0 and words.shape == (1, 4, 30522) and logits.shape == (1, 2)
    for array in (image_be, text_be, logits, words):
        assert np.isfinite(np.asarray(array, np.float32)).all()
    np.testing.assert_allclose(np.linalg.norm(image_be, axis=-1), 1, rtol=1e-3)
