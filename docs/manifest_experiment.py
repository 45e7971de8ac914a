"""Start-up time and memory of a manifest of millions of rows, on noise.

    python docs/manifest_experiment.py --rows 14000000 --folder FOLDER

Writes FOLDER/rows.json, unless it is there, and keeps the index in FOLDER/cache. Two processes, one
after the other, open the source, train a tokenizer and make a batch: the first one has to build the
index, the second one finds it.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

WORDS, CHUNK, BATCH = 20_000, 100_000, 64


def write_manifest(path, rows):
    """Rows like those of web data: a path of its own, and a caption of 5 to 15 words."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(3, 9)))) for _ in range(WORDS)]
    with open(path, "w") as file:
        file.write("[")
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            lengths, chosen = rng.integers(5, 16, count), rng.integers(0, WORDS, (count, 15))
            texts = (" ".join(words[i] for i in row[:n])
                     for row, n in zip(chosen.tolist(), lengths))
            file.write(",\n" if start else "\n")
            file.write(",\n".join(
                f'{{"image": "{row // 10_000:05d}/{row:09d}.jpg", "caption": "{text}"}}'
                for row, text in enumerate(texts, start)))
        file.write("\n]\n")


def memory():
    """Resident memory in GB: own, of mapped files (which the kernel may drop), and the peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(status[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return f"{own:5.2f} GB own, {files:5.2f} GB mapped, {peak:5.2f} GB peak"


def start(folder, images):
    """Opens everything as training does, and says what each step took."""
    begin = time.perf_counter()
    from albef_jax.config import default_config
    from albef_jax.data.fields import open_fields
    from albef_jax.data.pipeline import TrainPipeline
    from albef_jax.data.sources import make_source
    from albef_jax.data.text import make_tokenizer
    from albef_jax.tasks import task_class

    config = default_config()

    def say(what):
        nonlocal begin
        print(f"{what:28s} {time.perf_counter() - begin:7.2f} s  {memory()}", flush=True)
        begin = time.perf_counter()

    say("imports")
    source = make_source(dict(kind="json", files=(f"{folder}/rows.json",), image_roots=(images,)))
    say(f"source of {len(source)} rows")
    tokenizer = make_tokenizer(config.data, source)
    say("tokenizer, trained")
    fields = open_fields(task_class(config.task).fields(config), source, tokenizer)
    say("image engine")
    pipeline = TrainPipeline(source, fields, config.data, BATCH, seed=0)
    examples = pipeline.examples(0)[0].tolist()
    say("order of the first epoch")
    write_images([Path(images, source.name(index)) for index in examples])
    begin = time.perf_counter()
    pipeline.batch(0)
    say(f"first batch of {BATCH}")


def write_images(paths):
    """Photographs of noise for the batch that is read."""
    rng = np.random.default_rng(0)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--start", action="store_true", help="only open what is there")
    args = parser.parse_args()
    folder = Path(args.folder)
    if args.start:
        return start(folder, str(folder / "images"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if not (folder / "rows.json").exists():
        write_manifest(folder / "rows.json", args.rows)
    print(f"manifest of {(folder / 'rows.json').stat().st_size / 1e9:.2f} GB")
    for name in ("first start", "next start"):
        print(name, flush=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        command = [sys.executable, __file__, "--folder", str(folder), "--start"]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
