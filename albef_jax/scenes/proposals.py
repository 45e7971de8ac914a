"""Boxes to choose from, as a detector would give them: of objects, and of nothing in particular."""

from numpy.random import Generator

PROPOSALS = 8
RIGHT, WRONG = 0.6, 0.4  # IoU with the target: least of its proposal, most of the others
WIDE = 16  # pixels of the shorter side from which a proposal may be off by two pixels, not one
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


def width_height(box) -> Box:
    """x, y, width, height of x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def propose(graph: dict, target: int, rng: Generator) -> list[Box]:
    """`PROPOSALS` boxes in any order; just one of them is that of the target, nearly."""
    side, boxes = graph["side"], [item["box"] for item in graph["objects"]]
    truth = boxes[target]
    while True:
        near = shaken(truth, side, rng)
        if iou(near, truth) >= RIGHT:
            break
    others = [shaken(box, side, rng) for i, box in enumerate(boxes) if i != target]
    while len(others) < PROPOSALS - 1:
        loose = loose_box(boxes[int(rng.random() * len(boxes))], side, rng)
        if iou(loose, truth) <= WRONG:
            others.append(loose)
    proposals = [near, *others[: PROPOSALS - 1]]
    return [width_height(proposals[i]) for i in rng.permutation(PROPOSALS)]


def iou(a, b) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def shaken(box, side, rng):
    """The box with every edge moved by a pixel or two."""
    most = 1 if min(box[2] - box[0], box[3] - box[1]) < WIDE else 2
    moved = [edge + int((2 * most + 1) * draw) - most for edge, draw in zip(box, rng.random(4))]
    return [min(max(edge, 0), side) for edge in moved]


def loose_box(box, side, rng):
    """A box of about an object's size or up to twice that, anywhere or beside an object."""
    scale, beside, *draws = rng.random(5).tolist()
    width, height = ((high - low) * (0.8 + 1.2 * scale) for low, high in zip(box[:2], box[2:]))
    if beside < 0.5:
        x, y = (low - 0.5 * length + draw * length
                for low, length, draw in zip(box[:2], (width, height), draws))
    else:
        x, y = draws[0] * (side - width), draws[1] * (side - height)
    x, y = (min(max(int(place), 0), side - int(length)) for place, length in
            ((x, width), (y, height)))
    return [x, y, x + int(width), y + int(height)]
