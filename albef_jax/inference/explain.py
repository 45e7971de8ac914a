"""A picture of where a model looks for the words of a text, see `evaluators.heat`."""

from PIL import Image, ImageDraw, ImageFont

from albef_jax.evaluators.heat import overlay, scaled, word_shares

SIDE, GAP, LABEL, PER_ROW = 240, 10, 26, 5  # of the sheet; pixels, and tiles


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
