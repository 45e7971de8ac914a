"""`albef features`: images, videos and sounds of one's own as features that products have, and
images of pairs as regions, where there is no detector."""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from albef_jax.data.images.pillow import decode, open_image
from albef_jax.data.media import FRAMES, read_frames, read_sound, sound_features
from albef_jax.data.sources.base import reason
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.sources.products import ProductSource
from albef_jax.data.sources.region_files import files_under
from albef_jax.errors import MISSING, UserError, listed
from albef_jax.files import completed, local_copy, read_bytes
from albef_jax.inference.api import load
from albef_jax.inference.collection import IMAGE_SUFFIXES, open_collection
from albef_jax.parallel.mesh import use_compile_cache

RECIPE = "features.json"  # beside the features: how they were made
ENDINGS = {"image": ".npz", "regions": ".npz", "video": ".npy", "audio": ".npy"}
IMAGES = ("image", "regions")
MIDDLE, SPREAD = 0.5, 0.25  # of pixels in 0..1
BLOCK = 32  # files that are handed on at once
SAMPLED = 2000  # images that classes of regions are found in
MAX_NAMED = 10


class Media(NamedTuple):
    """A file. name: of its product or image. path: of the file or folder. read: its bytes."""

    name: str
    path: str
    read: Callable[[], bytes]


def extract(kind, source, out, model=None, grid=6, patch=16, frames=16, merge=0, classes=1600,
            image_roots=()):
    """Writes a file of features for each image, video or sound; goes on where it stopped.

    Images become grid x grid regions, videos a row per clip: the tokens of a trained ViT of this
    project, or pixels. Sounds become the mel spectrogram of M5Product. 'regions' are those of
    images of pairs, for ImageBERT: with classes, which are clusters of features.

    Args:
      kind: 'image', 'regions', 'video' or 'audio'. source: a folder of files, or a manifest of
        products; of 'regions', of pairs.
      out: folder of the features, NAME.npz for images and NAME.npy else.
      model: work directory or export whose `encode_image` makes features; None: pixels.
      grid: regions of an image, a side. patch: pixels of a region of an image, or of a frame of a
        video, a side. frames: of a clip.
      merge: of 'regions': how many are left when those beside each other that are alike become
        one; 0: as many as there are. classes: of 'regions': how many there are.
      image_roots: folders and .tar files with the files of a manifest; by default its own folder.

    Raises:
      UserError: nothing can be read or written, or the folder holds features of another recipe.
    """
    use_compile_cache()
    media = list(find_media(kind, source, image_roots))
    if not media:
        raise UserError(f"{source} names no {kind}; give a folder of files, or a manifest that "
                        "names some.")
    tokens = {"model": model} if model else {"patch": patch}
    cells = tokens | {"grid": grid}
    recipe = {"kind": kind} | {
        "image": cells, "regions": cells | {"merge": merge, "classes": classes},
        "video": tokens | {"frames": frames}, "audio": {}}[kind]
    folder = epath.Path(out)
    check_recipe(folder, recipe)
    make = maker(kind, model, grid, patch, frames)
    if kind == "regions":
        make = with_clusters(make, folder, media, grid, merge, classes)
    done = {name.removesuffix(ENDINGS[kind]) for name in files_under(folder, ENDINGS[kind])}
    waiting, broken = [one for one in media if one.name not in done], {}
    with tqdm(desc=f"features of {kind}", unit="file", initial=len(media) - len(waiting),
              total=len(media), disable=None) as bar:
        for some in blocks_of(waiting):
            for one, features in zip(some, make(some)):
                if isinstance(features, OSError):
                    broken[one.path] = reason(features)
                else:
                    save(folder / f"{one.name}{ENDINGS[kind]}", features)
                bar.update()
    return summary(kind, out, len(media), len(media) - len(waiting), broken)


def with_clusters(make, folder, media, grid, merge, classes) -> Callable:
    """As `make`, a function of `maker`, with cells merged and classes; see `extract`."""
    try:
        from albef_jax.inference import clusters  # an extra
    except ImportError:
        raise UserError(MISSING.format("A region without a detector", "scikit-learn", "cluster")
                        ) from None

    def regions(some):
        return [clusters.merged(one, grid, merge) if merge and not isinstance(one, OSError) else one
                for one in make(some)]

    def examples():
        chosen = media[::-(-len(media) // SAMPLED)]
        with tqdm(desc="regions for classes", unit="file", total=len(chosen), disable=None) as bar:
            for some in blocks_of(chosen):
                yield from (one["features"] for one in regions(some)
                            if not isinstance(one, OSError))
                bar.update(len(some))

    centres = clusters.fit_classes(folder, classes, examples())
    return lambda some: [one if isinstance(one, OSError) else clusters.with_classes(one, centres)
                         for one in regions(some)]


def blocks_of(media) -> Iterator[list[Media]]:
    """Media in lists of `BLOCK`."""
    media = iter(media)
    while some := list(itertools.islice(media, BLOCK)):
        yield some


def find_media(kind, source, image_roots=()) -> Iterator[Media]:
    """The files of a folder, or those that a manifest of products names.

    A video may be a folder of frames; it must be a file of its own, not part of a .tar.
    """
    source = os.fspath(source)
    if kind == "regions":
        yield from images_of_pairs(source, image_roots)
        return
    if os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            path = os.path.join(source, name)
            frames = os.path.isdir(path) and kind == "video" and any(
                file.lower().endswith(FRAMES) for file in os.listdir(path))
            suffix = os.path.splitext(name)[1].lower()
            if frames or (os.path.isfile(path) and (kind != "image" or suffix in IMAGE_SUFFIXES)):
                yield Media(name if frames else os.path.splitext(name)[0], path,
                            functools.partial(read_bytes, path))
        return
    products, problems = ProductSource.checked(files=source, image_roots=image_roots)
    if not len(products):
        raise UserError(problems[0])
    roots = image_roots or [os.path.dirname(source)]
    for index in range(len(products)):
        name = products.media(index, kind)
        if name is not None:
            paths = [os.path.join(root, name) for root in roots]
            yield Media(products.name(index), next(filter(os.path.exists, paths), paths[0]),
                        functools.partial(products.read, name))


def check_recipe(folder, recipe):
    """Makes the folder of features, or compares how those in it were made.

    Raises:
      UserError: they were made in another way, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RECIPE).exists():
            made = json.loads((folder / RECIPE).read_text())
            if made != recipe:
                raise UserError(f"{folder} holds features made with {made}, not {recipe}; give "
                                "another --out, or the same values.")
        else:
            (folder / RECIPE).write_text(json.dumps(recipe))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); give another "
                        "--out.") from None


def save(path, features):
    """Writes features, an array or a dict of them, as a whole or not at all.

    Raises:
      UserError: the disk does not take them.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with completed(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **features) if isinstance(features, dict) else np.save(file, features)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); mend the cause, "
                        "and run the same command again: it goes on.") from None


def images_of_pairs(source, image_roots=()) -> Iterator[Media]:
    """The images of a folder, at any depth, or of a manifest of pairs; each once."""
    if os.path.isdir(source):
        found = open_collection(source)
        for name, path in zip(found.names, found.images):
            yield Media(os.path.splitext(name)[0], path, functools.partial(read_bytes, path))
        return
    pairs, problems = JsonSource.checked(files=source, image_roots=image_roots, merge_images=True)
    if not len(pairs):
        raise UserError(problems[0])
    for index in range(len(pairs)):
        name = pairs.name(index)
        inside = not os.path.isabs(name) and ".." not in name.split("/")  # the folder --out
        yield Media(os.path.splitext(name if inside else os.path.basename(name))[0], name,
                    functools.partial(pairs.image, index))


def maker(kind, model, grid, patch, frames) -> Callable:
    """A function from a list of `Media` to that of their features, an OSError where there are none.

    See `extract`.
    """
    if kind == "audio":
        return lambda some: [attempt(lambda: sound_features(*read_sound(one.read())))
                             for one in some]
    side = grid * patch if kind in IMAGES else patch
    tokens = pixel_tokens(side, patch) if model is None else model_tokens(load(model), kind, grid)
    if kind == "video":
        return lambda some: [attempt(lambda: video_features(one, tokens, frames)) for one in some]
    return functools.partial(image_features, tokens=tokens, grid=grid)


def attempt(make: Callable):
    """What it returns, or the OSError that it raises."""
    try:
        return make()
    except OSError as error:
        return error


def image_features(some: Sequence[Media], tokens, grid) -> list:
    """The regions of images by name, as `Regions` has them, a grid row by row; or the OSError."""
    images = [attempt(lambda: decode(open_image(one.read()))) for one in some]
    read = [image for image in images if not isinstance(image, OSError)]
    features = iter(tokens(read) if read else ())
    return [image if isinstance(image, OSError) else grid_cells(image.size, next(features), grid)
            for image in images]


def grid_cells(size, features, grid) -> dict[str, np.ndarray]:
    """The cells of an image of this width and height, with their features."""
    width, height = size
    y, x = np.divmod(np.arange(grid * grid), grid)
    boxes = np.stack([x * width, y * height, (x + 1) * width, (y + 1) * height], axis=1) / grid
    return {"features": features.astype(np.float32), "boxes": boxes.astype(np.float32),
            "size": np.array(size)}


def video_features(one, tokens, frames):
    """A row per clip: the mean over its frames of their tokens, float32 `[clips, d]`."""
    rows = tokens(read_frames(local_copy(one.path))).mean(axis=1)
    clips = [rows[start:start + frames].mean(axis=0) for start in range(0, len(rows), frames)]
    return np.stack(clips).astype(np.float32)


def pixel_tokens(side, patch):
    """A function from images to their pixels: `[n, (side / patch)**2, 3 patch**2]`."""
    def tokens(images):
        squares = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
                            for image in images])
        grid = side // patch
        cells = squares.reshape(-1, grid, patch, grid, patch, 3).swapaxes(2, 3)
        flat = cells.reshape(len(images), grid * grid, -1)
        return (flat.astype(np.float32) / 255 - MIDDLE) / SPREAD

    return tokens


def model_tokens(model, kind, grid):
    """A function from images to the tokens of a model's ViT: a grid of means, or the whole image.

    Raises:
      UserError: the model encodes no images, or has fewer patches.
    """
    if not hasattr(model, "encode_patches"):
        raise UserError(f"A model of the task {model.config.task!r} encodes no images alone; give "
                        "--model one that was pre-trained on image-text pairs.")

    def tokens(images):
        embeds = np.asarray(model.encode_patches(images), np.float32)
        if kind == "video":
            return embeds[:, :1]
        side = round((embeds.shape[1] - 1) ** 0.5)
        if grid > side:
            raise UserError(f"--grid is {grid}, but the model has {side} patches a side; give at "
                            "most as many.")
        cells = embeds[:, 1:].reshape(len(images), side, side, -1)
        return np.stack([part.mean(axis=(1, 2)) for row in np.array_split(cells, grid, axis=1)
                         for part in np.array_split(row, grid, axis=2)], axis=1)

    return tokens


def summary(kind, out, count, before, broken):
    """What was done; raises UserError where nothing could be read."""
    named = listed((f"{path} ({why})" for path, why in broken.items()), MAX_NAMED)
    if len(broken) == count:
        raise UserError(f"No {kind} can be read: {named}.")
    told = f"{count - len(broken)} features of {kind} in {out}"
    told += f", {before} of them from before" * bool(before)
    return told + f"; {len(broken)} cannot be read and are left out: {named}" * bool(broken)
