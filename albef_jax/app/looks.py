"""How results are shown: pictures of a bounded size, and lines of text."""

import functools

from PIL import Image, ImageDraw

from albef_jax.data.images.pillow import BrokenImage, decode, open_image, read
from albef_jax.errors import UserError
from albef_jax.evaluators.heat import scaled
from albef_jax.inference.inputs import raw_image

BOX = "#e8590c"


def picture_of(image, side=0):
    """An image in any form as Pillow's, with `side` pixels along its longer side; 0: its own size.

    UserError where it cannot be read.
    """
    try:
        picture = decode(open_image(read(functools.partial(raw_image, image))))
    except BrokenImage as error:
        raise UserError(f"The picture cannot be read ({error}); give a complete one in a format "
                        "that Pillow knows.") from None
    return scaled(picture, side) if side else picture


def label(hit):
    """The line under a result."""
    match = "" if hit.match is None else f"match {hit.match:.2f}, "
    return f"{match}{hit.similarity:.3f}  {hit.name}"


def table_of_hits(hits):
    """Rows of similarity and name."""
    return [[f"{hit.similarity:.3f}", hit.name] for hit in hits]


def boxed(source, row, regions, side=480):
    """The picture of an example with the boxes of its regions; on grey where it has none."""
    if "image" in source.fields:
        picture = picture_of(source.get(row, "image"), side)
    else:
        picture = Image.new("RGB", (side, side), "#808080")
    pen = ImageDraw.Draw(picture)
    width, height = regions.size
    for left, top, right, bottom in regions.boxes.tolist():
        pen.rectangle((left / width * picture.width, top / height * picture.height,
                       right / width * picture.width, bottom / height * picture.height),
                      outline=BOX, width=2)
    return picture
