"""gs:// wherever a path is taken, with the real clients over HTTP: TensorFlow's, and gcsfs."""

import io
import json
import os
from pathlib import Path
import string
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from fake_gcs import Store, write_certificate

ROOT = Path(__file__).parents[1]
CLIENTS = [pytest.param("tensorflow", marks=pytest.mark.slow), "gcsfs"]
CONFIG = '''
import runpy
def get_config(folder):
    config = runpy.run_path("tests/tiny.py")["get_config"]()
    config.steps, config.batch_size, config.group_size = 4, 8, 4
    config.objective.queue_size = 16
    config.data.source = dict(kind="json", files=(f"{folder}/train.json",),
                              image_roots=(folder, f"{folder}/more.tar"))
    config.evals.dev = dict(kind="retrieval", source=config.data.source.to_dict(), batch_size=8,
                            k=2, every=0, max_images=8)
    config.checkpoint.every = 2
    return config
'''


class Bucket:
    """A bucket, and commands in processes that see it."""

    def __init__(self, store, client):
        self.store = store
        self.environment = os.environ | store.environment | {
            "EPATH_USE_TF": str(client == "tensorflow").lower(), "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}

    def put(self, name, contents):
        self.store.put(("bucket", name), contents)

    def get(self, name):
        return self.store.objects["bucket", name][1]

    def names(self, prefix=""):
        return [name for _, name in sorted(self.store.objects) if name.startswith(prefix)]

    def python(self, code):
        return self._run(sys.executable, "-c", code)

    def albef(self, *arguments):
        """Runs a command; returns what it prints."""
        return self._run(sys.executable, "-c",
                         "import sys; from albef_jax.cli import main; sys.exit(main())", *arguments)

    def _run(self, *command):
        done = subprocess.run(command, cwd=ROOT, env=self.environment, text=True,
                              capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module", params=CLIENTS)
def bucket(request, tmp_path_factory):
    store = Store(write_certificate(tmp_path_factory.mktemp("certificate") / "tests.pem"))
    yield Bucket(store, request.param)
    store.shutdown()


def jpeg(seed):
    pixels, file = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def add_pairs(bucket):
    """24 pairs: images in a folder, in a tar, and one by its full name; names with spaces."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(12, 23):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(jpeg(number))
            archive.addfile(info, io.BytesIO(jpeg(number)))
    bucket.put("my pairs/more.tar", tar.getvalue())
    for number in range(12):
        bucket.put(f"my pairs/an image {number}.jpg", jpeg(number))
    bucket.put("else/where.jpg", jpeg(23))
    names = [*(f"an image {n}.jpg" for n in range(12)), *(f"{n}.jpg" for n in range(12, 23)),
             "gs://bucket/else/where.jpg"]
    rows = [{"image": name, "caption": f"a picture of {letter}"}
            for name, letter in zip(names, string.ascii_letters)]
    bucket.put("my pairs/train.json", json.dumps(rows).encode())
    bucket.put("my config.py", CONFIG.encode())


def test_growing_file(bucket):
    bucket.python('''
from albef_jax.files import GrowingFile
file = GrowingFile("gs://bucket/grown/metrics.jsonl")
for number in range(50):
    file.write(f"{number}\\n".encode())
file.close()
file = GrowingFile("gs://bucket/grown/metrics.jsonl")
file.write(b"again\\n")
''')
    assert bucket.get("grown/metrics.jsonl").decode().split() == [*map(str, range(50)), "again"]
    written = [path for method, path in bucket.store.requests
               if method != "GET" and "grown" in path]
    assert len(written) < 10  # not once for each line: objects take one write a second


def test_errors_are_sentences(bucket):
    bucket.put("rows.json", b'[{"image": "a.jpg", "caption": "a"}]')
    bucket.python('''
from pytest import raises
from albef_jax.data.sources import make_source
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.weights.foreign.torch_file import read_tensors
def sentence(call, argument):
    with raises(UserError) as caught:
        call(argument)
    return str(caught.value)
missing = "gs://bucket/nothing.json"
assert sentence(make_source, dict(kind="json", files=(missing,))).startswith(
    f"The manifest {missing} cannot be read (")
assert "The image root gs://bucket/no does not exist" in sentence(
    make_source, dict(kind="json", files=("gs://bucket/rows.json",),
                      image_roots=("gs://bucket/no",)))
assert "gs://bucket/tok does not exist" in sentence(load_tokenizer, "gs://bucket/tok")
assert "The weights gs://bucket/a.pth cannot be read (No such" in sentence(
    read_tensors, "gs://bucket/a.pth")
''')


class Greys(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Five pictures with captions."""

    name = "greys"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            yield i, {"image": np.full((6, 7, 3), i, np.uint8), "caption": f"grey {i}"}


@pytest.mark.slow
def test_array_records(bucket, tmp_path):
    Greys(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            bucket.put(f"tfds/{path.relative_to(tmp_path)}", path.read_bytes())
    out = bucket.python('''
from albef_jax.data.sources import make_source
source = make_source(dict(kind="tfds", name="greys", data_dir="gs://bucket/tfds"))
print(sorted(source.get(row, 'text')[0] for row in range(len(source))), source.get(2, 'image')[1:4])
''')
    assert "['grey 0', 'grey 1', 'grey 2', 'grey 3', 'grey 4'] b'PNG'" in out


@pytest.mark.slow
def test_a_run_and_what_becomes_of_it(bucket):
    add_pairs(bucket)
    config, run = "gs://bucket/my config.py:gs://bucket/my pairs", "gs://bucket/runs/a run"
    train = ["train", "--config", config, "--workdir", run]
    bucket.albef(*train, "--config.steps=2", "--profile", "2:2")
    assert "resuming at step 2" in bucket.albef(*train)
    lines = [json.loads(line) for line in bucket.get("runs/a run/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    events = bucket.names("runs/a run/events.out.tfevents")
    assert len(events) == 2 and all(len(bucket.get(name)) > 100 for name in events)
    assert any(name.endswith(".xplane.pb") for name in bucket.names("runs/a run/profile"))
    assert not [name for name in bucket.names("runs/a run") if "unfinished" in name]

    bucket.albef("evaluate", run)
    assert json.loads(bucket.get("runs/a run/results/dev.json"))["step"] == 4
    bucket.albef("report", run)
    assert b"<html" in bucket.get("runs/a run/report.html")

    bucket.albef("export", run, "--format", "salesforce", "--out", "gs://bucket/out/mine.pth")
    bucket.albef("export", run, "--format", "safetensors", "--out", "gs://bucket/out/mine")
    assert "gs://bucket/again" in bucket.albef(
        "import", "gs://bucket/out/mine.pth", "--out", "gs://bucket/again", "--heads", "2",
        "--tokenizer", "gs://bucket/out/mine/tokenizer")
    bucket.albef("train", "--config", config, "--workdir", "gs://bucket/runs/next",
                 "--config.steps=1", "--init", "gs://bucket/again")
    assert "runs/next/init.txt" in bucket.names()

    bucket.albef("embed", "gs://bucket/out/mine", "gs://bucket/my pairs", "--out",
                 "gs://bucket/features.npz")
    hits = bucket.albef("search", "gs://bucket/out/mine", "gs://bucket/features.npz", "a picture",
                        "-k", "3", "--rerank", "2")
    assert hits.count("an image") == 3
    bucket.albef("explain", run, "--image", "gs://bucket/my pairs/an image 1.jpg", "--text",
                 "a picture", "--out", "gs://bucket/heat.png")
    assert bucket.get("heat.png").startswith(b"\x89PNG")
    assert "24" in bucket.albef("data", "check", "gs://bucket/my pairs/train.json",
                                "--image-roots", "gs://bucket/my pairs",
                                "gs://bucket/my pairs/more.tar")
