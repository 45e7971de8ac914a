"""`albef embed`, `search`, `answer` and `explain`: a model at work, from the shell."""

import functools
import hashlib
import os
import sys

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from albef_jax.data.images.pillow import BrokenImage, decode, open_image, read
from albef_jax.data.sources import make_source, parse_source
from albef_jax.errors import UserError
from albef_jax.evaluators.heat import overlay, scaled, word_shares
from albef_jax.files import check_out, completed, read_bytes
from albef_jax.inference.api import load
from albef_jax.inference.collection import Features, open_collection
from albef_jax.inference.features import check_query
from albef_jax.inference.inputs import not_blank
from albef_jax.parallel.mesh import use_compile_cache

PROJECTIONS = ("vision_proj", "text_proj")  # of parameters
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_ANSWERS = 5
PRODUCTS = ("products:", "scenes:products")  # how sources of products are written in short
SIDE, GAP, LABEL, PER_ROW = 240, 10, 26, 5  # of the sheet of `explain`; pixels, and tiles
MAX_NAMED = 10  # images that cannot be read, named in the closing line


def embed(workdir, source, out, image_root=None, **options):
    """Encodes the images, and the captions of a manifest, into an .npz file at `out`.

    `workdir`, `options`: see `load`. `source`, `image_root`: see `open_collection`.
    """
    check_out(out)
    use_compile_cache()
    collection = open_collection(source, image_root)
    features = encode_collection(load(workdir, **options), collection)
    features.save(out)
    n, m = len(features.image_names), len(features.captions)
    print(f"{n} images and {m} captions, {features.image_features.shape[1]} numbers each: {out}")


def search(workdir, source, text=None, image=None, image_root=None, k=5, rerank=0, product=None,
           modalities="", **options):
    """Prints the best k of a collection for a text or an image.

    A text finds images. An image finds captions, or images where there are no captions. Products
    find products; a text is the title of one.

    Args:
      workdir, options: see `load`. source: a folder, a manifest or an .npz file of `embed`.
      text, image: the query, one of them; `image` is a path.
      product, modalities: of a model of products: the id of the query, and what is compared, see
        `ProductModel.encode`.
      image_root: see `open_collection`. k, rerank: see `FeatureModel.search`.

    Raises:
      UserError: nothing can be read, or the features are of another model.
    """
    use_compile_cache()
    if str(source).startswith(PRODUCTS):
        return search_products(load(workdir, **options), source, text, product, modalities, k)
    encoded = str(source).endswith(".npz")
    data = Features.load(source) if encoded else open_collection(source, image_root)
    kind = "text" if image is not None and len(data.captions) else "image"
    check_query(kind, text, image, rerank)
    model = load(workdir, **options)
    features = data if encoded else encode_collection(model, data)
    if features.model != fingerprint(model.params):
        raise UserError(f"{source} was made by another model or another checkpoint than "
                        f"{workdir}; run `albef embed` again.")
    report_hits(model.search(features.index(kind), text=text, image=image, k=k, rerank=rerank,
                             progress=True))


def search_products(model, source, title, name, modalities, k):
    """Prints the k products of a source most like one of them, or like one with a title.

    Folders of features are those of the model's training data, if it is of the same kind.

    Args:
      model: a `ProductModel`. source: in short form. title: a text, or None; name: an id, or None.
      modalities: see `ProductModel.encode`. k: how many.
    """
    if (title is None) == (name is None):
        raise UserError("A search among products needs one query: give a title, or --product ID.")
    if title is not None:
        not_blank(title, "title")
    given, trained = parse_source(source), model.config.data.source
    products = make_source({**trained, **given} if trained.kind == given["kind"] else given)
    rows = {products.name(row): row for row in range(len(products))}
    if name is not None and name not in rows:
        raise UserError(f"{source} has no product {name!r}; give one of its {len(rows)} ids, such "
                        f"as {next(iter(rows))!r}.")
    index = model.index_products(products, modalities=modalities, progress=True)
    report_hits(model.search(index, rows[name], k=k) if title is None else
                model.search(index, {"title": title}, "t", k))


def report_hits(hits):
    """Prints a line for each."""
    for place, hit in enumerate(hits, start=1):
        match = "" if hit.match is None else f"match {hit.match:.3f}  "
        print(f"{place:3d}  {match}similarity {hit.similarity:6.3f}  {hit.name}")


def answer(workdir, image, question, answers=None, k=128, beams=3, text_length=None):
    """Prints the best answers to a question about an image, with their probabilities.

    `workdir`, `text_length`: see `load`. `image` and `answers` are paths; the others: see `AnswerModel.answer`.
    """
    use_compile_cache()
    print_answers(load(workdir, text_length=text_length).answer(image, question, answers, k, beams))


def caption(workdir, image, beams=3):
    """Prints the captions that a model writes of an image, with their probabilities.

    `workdir`: see `load`. `image` is a path; `beams`: see `AnswerModel.caption`.
    """
    use_compile_cache()
    print_answers(load(workdir).caption(image, beams))


def print_answers(found):
    """A line for each `Answer`."""
    for place, (text, probability) in enumerate(found[:MAX_ANSWERS], start=1):
        print(f"{place:3d}  {probability:.3f}  {text}")


def explain(workdir, image, text, out, mode="itm", layer=-1, text_length=None):
    """Writes a picture of where the model looks for each word of a text.

    `workdir`, `text_length`: see `load`. `image` and `out` are paths; the others: see `FeatureModel.explain`.
    """
    try:
        picture = decode(open_image(read(functools.partial(read_bytes, image))))
    except BrokenImage as error:
        raise UserError(f"The image {image} cannot be read ({error}); give a complete picture in "
                        "a format that Pillow knows.") from None
    check_out(out, [*PICTURES])
    use_compile_cache()
    explained = load(workdir, text_length=text_length).explain(picture, text, mode, layer)
    try:
        with completed(out) as file:
            draw(picture, explained, text).save(file, PICTURES[os.path.splitext(out)[1].lower()])
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); give another --out, "
                        "or mend the cause.") from None
    what = "probability of a match" if mode == "itm" else "cosine similarity"
    print(f"{what} {explained.score:.3f}: {out}")


def draw(picture, explained, text):
    """The picture, the heat of the whole text, and of each word, on one sheet.

    Every map has its own scale of colours; the number says how hot a word is at most, in percent
    of the hottest one.
    """
    picture = scaled(picture, SIDE)
    tiles = [(picture, text), (overlay(picture, explained.heat), f"all: {explained.score:.2f}")]
    tiles += [(overlay(picture, heat), f"{word} {100 * share:.0f}%") for word, heat, share in zip(
        explained.words, explained.word_heat, word_shares(explained))]
    width, height = picture.width + GAP, picture.height + GAP + LABEL
    rows = -(-len(tiles) // PER_ROW)
    sheet = Image.new("RGB", (min(len(tiles), PER_ROW) * width + GAP, rows * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (tile, label) in enumerate(tiles):
        row, column = divmod(number, PER_ROW)
        x, y = GAP + column * width, GAP + row * height
        sheet.paste(tile, (x, y))
        while label and pen.textlength(label, font) > picture.width:
            label = label.removesuffix("…")[:-1] + "…"
        pen.text((x, y + picture.height + 4), label, "black", font)
    return sheet


def encode_collection(model, collection):
    """Features of a folder or a manifest; images that cannot be read are reported and left out."""
    broken = {}
    images = model.encode_image(collection.images, progress=True, broken=broken)
    report_broken(collection.source, collection.names, broken)
    kept = np.array([row not in broken for row in range(len(images))])
    new_row = np.cumsum(kept) - 1
    told = np.flatnonzero(kept[collection.caption_images])
    captions = [collection.captions[row] for row in told]
    texts = (model.encode_text(captions, progress=True) if captions
             else np.zeros((0, images.shape[1]), np.float32))
    return Features(
        np.array(collection.names)[kept], images[kept], np.array(captions, dtype=str),
        new_row[collection.caption_images[told]], texts, collection.source,
        collection.image_root, fingerprint(model.params))


def report_broken(source, names, broken):
    """Says which images were left out; UserError if all of them."""
    if not broken:
        return
    named = ", ".join(f"{names[row]} ({why})" for row, why in sorted(broken.items())[:MAX_NAMED])
    if len(broken) == len(names):
        raise UserError(f"No image of {source} can be read: {named}; check the folder of the "
                        "images.")
    print(f"{len(broken)} of {len(names)} images cannot be read and are left out: {named}",
          file=sys.stderr)


def fingerprint(params):
    """Short hash of the projections, which no two checkpoints share; without any, of all."""
    projections = [part for name, part in sorted(params.items()) if name in PROJECTIONS]
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(projections or params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
