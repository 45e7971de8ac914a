"""`albef data shard`: a data source as ArrayRecord shards with small images, read by `tfds:`.

Regions of images come along, whatever the files were that they were in.
"""

import contextlib
import functools
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tqdm import tqdm

from albef_jax.data.images.pillow import BrokenImage, decode, is_plain_jpeg, open_image, read
from albef_jax.data.sources.base import Source, pairs, reason
from albef_jax.data.sources.tfds_convert import write_records
from albef_jax.data.sources.tfds_source import IMAGE_IDS, REGION_FACTS, REGIONS, SHARD_PLAN
from albef_jax.errors import UserError, listed
from albef_jax.files import completed, write

NAME, SPLIT, VERSION = "pairs", "train", "1.0.0"
ROWS = 8192  # of the source, per shard: about 200 MB with a short side of 288 pixels
AHEAD = 256  # images that are handed to the threads at once
QUALITY = 95  # of images that are resized
LISTED = 10
BROKEN = "broken.json"


def shard(source: Source, out: str, short_side: int = 288, workers: int = 0) -> str:
    """Writes the pairs of a source, in its order, and returns a sentence about them.

    A folder without `dataset_info.json` is unfinished: the same call goes on after its last
    complete shard. A pair whose image is broken is left out; `broken.json` lists them. Where there
    are regions, a pair is left out if these are, and a grey picture stands for a broken image.

    Args:
        source: image-text pairs, one image each, maybe with regions.
        out: a new folder, any that epath knows.
        short_side: larger images are resized to this short side, in pixels.
        workers: threads; 0: one per core.

    Raises:
        UserError: the source has other fields, or these with other facts; the folder is complete,
            holds shards of another source, or cannot be written; no image can be read.
    """
    folder, plain = epath.Path(out), pairs()
    fields = {name: {**plain.get(name, {}), **facts} for name, facts in source.fields.items()
              if name != REGIONS}
    if unlike := [name for name in fields | plain if fields.get(name) != plain.get(name)]:
        raise UserError("Only image-text pairs, an image, its captions and maybe its regions, can "
                        f"be written as shards; this source is unlike them in {', '.join(unlike)}.")
    if (folder / "dataset_info.json").exists():
        raise UserError(f"{folder} holds a complete data set; give another --out.")
    try:
        _start(folder, source, short_side)
        parts = range(-(-len(source) // ROWS))
        with (
            tqdm(total=len(source), desc="shard", unit="image", disable=None) as bar,
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        ):
            done = [_part(folder, source, part, len(parts), short_side, pool, bar)
                    for part in parts]
        return _finish(folder, source, done)
    except OSError as error:
        raise UserError(f"The shards in {folder} cannot be written ({error.strerror or error}); "
                        "mend that, and the same command goes on.") from None


def _start(folder: epath.Path, source: Source, short_side: int) -> None:
    """Says what the folder is for, or checks that it is for the same."""
    plan = {"fingerprint": source.fingerprint, "short_side": short_side, "rows": ROWS}
    path = folder / SHARD_PLAN
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(plan))
    elif json.loads(path.read_text()) != plan:
        raise UserError(f"{folder} holds unfinished shards of another source or short side; give "
                        "another --out, or delete it.")


def _part(folder, source: Source, part: int, parts: int, short_side: int, pool, bar) -> dict:
    """Writes a shard unless it is there; returns its broken images and its size."""
    path = _template(folder).sharded_filepath(shard_index=part, num_shards=parts)
    told = folder / f"{path.name}.json"  # written last: with it the shard is complete
    rows = range(part * ROWS, min((part + 1) * ROWS, len(source)))
    if not told.exists():
        broken: dict[str, list] = {}  # row -> name and reason
        with completed(path) as unfinished:
            size = write_records(unfinished, _records(source, rows, short_side, pool, broken, bar))
        write(told, json.dumps({"broken": broken, "bytes": size}))
    else:
        bar.update(len(rows))
    found = json.loads(told.read_text())
    return {**found, "length": len(rows) - len(found["broken"]), "told": told}


def _records(source: Source, rows: range, short_side: int, pool, broken: dict, bar):
    """The good examples of some rows; adds the others to `broken`."""
    features, has_regions = _features(source), REGIONS in source.fields
    for start in range(0, len(rows), AHEAD):
        chunk = rows[start : start + AHEAD]
        images = pool.map(lambda r: _small(source, r, short_side), chunk)
        regions = pool.map(lambda r: _regions(source, r), chunk) if has_regions else [None] * ROWS
        for row, image, found in zip(chunk, images, regions):
            bar.update()
            wrong = found if isinstance(found, str) else image if found is None else None
            if isinstance(wrong, str):
                broken[str(row)] = [source.name(row), wrong]
                continue
            image = NO_PICTURE if isinstance(image, str) else image
            yield features.serialize_example(features.encode_example({
                "image": io.BytesIO(image), "captions": source.get(row, "text"),
                "filename": source.name(row), "image_id": source.get(row, "image_id"),
                **({REGIONS: found} if has_regions else {})}))


def _regions(source: Source, row: int) -> bytes | str:
    """The regions of a row as the contents of a .npz file; or what is wrong with them."""
    try:
        found = source.get(row, REGIONS)
    except OSError as error:
        return reason(error)
    if found is None:
        return "no regions"
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in found._asdict().items() if value is not None})
    return file.getvalue()


def _small(source: Source, row: int, short_side: int) -> bytes | str:
    """A JPEG file, as it is if it is small enough; or what is wrong with the image."""
    try:
        data = read(functools.partial(source.get, row, "image"))
        image = open_image(data)
        keep = is_plain_jpeg(image) and min(image.size) <= short_side
        pixels = decode(image)  # also of those that stay: a broken one must not
    except BrokenImage as error:
        return str(error)
    if keep:
        return data
    scale = min(1.0, short_side / min(pixels.size))
    size = tuple(max(1, round(side * scale)) for side in pixels.size)
    file = io.BytesIO()
    pixels.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _finish(folder: epath.Path, source: Source, done: list[dict]) -> str:
    """Writes what makes a data set of the shards."""
    broken = {row: why for part in done for row, why in part["broken"].items()}
    if len(broken) == len(source):
        raise UserError("No image of the data source can be read; check its image roots.")
    kept = np.delete(source.image_ids(), [int(row) for row in broken])
    with (folder / IMAGE_IDS).open("wb") as file:
        np.save(file, kept.astype(np.int32))
    (folder / BROKEN).write_text(json.dumps(list(broken.values()), indent=1))
    if REGIONS in source.fields:
        (folder / REGION_FACTS).write_text(json.dumps(dict(source.fields[REGIONS])))
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=[part["length"] for part in done],
        num_bytes=sum(part["bytes"] for part in done), filename_template=_template(folder))
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=_features(source), split_infos=[split], version=VERSION,
        filename_template=_template(folder), check_data=False)
    for path in (*(part["told"] for part in done), folder / SHARD_PLAN):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    named = listed((f"{name} ({why})" for name, why in broken.values()), LISTED)
    return (f"{len(kept)} pairs in {len(done)} shards, to be read as tfds:{folder}"
            + (f"; {len(broken)} left out, as they are broken, all in {BROKEN}: {named}"
               if broken else ""))


def _features(source: Source):
    return tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "filename": tfds.features.Text(),
        "image_id": np.int64,
        **({REGIONS: tfds.features.Text()} if REGIONS in source.fields else {}),  # bytes, as a .npz
    })


def _grey() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "#808080").save(file, "JPEG")
    return file.getvalue()


NO_PICTURE = _grey()


def _template(folder: epath.Path):
    return tfds.core.ShardedFileTemplate(
        dataset_name=NAME, data_dir=folder, split=SPLIT, filetype_suffix="array_record")
