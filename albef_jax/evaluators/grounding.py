"""Grounding without box annotations: does the heat map of a phrase find its object?

ALBEF section 5 ("Visual Grounding"). Maps come from `models.gradcam`, by way of the task's
`itm_heat` and `itc_heat`.
"""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.batches import Rows, percent
from albef_jax.models.resample import upsample

MATCHED = 0.5  # least overlap of a right box


class GroundingEvaluator:
    """Shares of phrases in percent.

    Yields `pointing_game`: the middle of the hottest patch lies in the box. (Not the hottest pixel
    of the enlarged map: bicubic enlargement is hottest at the edge of a patch at the border.) With
    proposals also `iou_0.5`: the proposal that the map chooses overlaps the box by half or more.
    What could be had without a model stands beside them: `pointing_centre` (the middle of the image
    lies in the box), `pointing_random` (a random pixel does) and `iou_0.5_random` (a random
    proposal).

    Fields: `mode`, 'itm' (gradient of the match logit on a fusion layer) or 'itc' (of the
    similarity on a ViT block); `layer`, counted as in `models.gradcam`, -1 for its default.
    """

    fields = Rows.fields | {"mode": ("itm", ("itm", "itc")), "layer": (-1, -1)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        del seed  # Nothing is drawn.
        self._rows = rows = Rows(source, settings, data_config, tokenizer)
        self._mode, self._layer = settings["mode"], settings["layer"]
        self._heat = self._bound_to = None
        data = rows.data.source
        if "box" not in data.fields:
            raise UserError("The evals block of kind 'grounding' has a source without boxes; give "
                            "it rows with \"bbox\", or the folder of REFER as the option refer.")
        self._proposals = "proposals" in data.fields
        self.description = f"{len(rows.data)} phrases, {self._mode} heat maps"

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        if self._bound_to != predict_fns[f"{self._mode}_heat"]:
            self._bound_to = predict_fns[f"{self._mode}_heat"]
            self._heat = text_heat(self._bound_to, self._mode, self._layer)
        heat = self._rows.run(self._heat, params, mesh, "phrases")
        source, rows = self._rows.data.source, range(len(heat))
        boxes, sizes = [source.box(i) for i in rows], [source.size(i) for i in rows]
        yield "pointing_game", percent(
            inside(hottest(gg, size), box) for gg, size, box in zip(heat, sizes, boxes))
        yield "pointing_centre", percent(
            inside((w / 2, h / 2), box) for (w, h), box in zip(sizes, boxes))
        yield "pointing_random", percent(
            box[2] * box[3] / (w * h) for (w, h), box in zip(sizes, boxes))
        if self._proposals:
            chosen = []
            for i, (gg, (width, height)) in enumerate(zip(heat, sizes)):
                best = best_proposal(upsample(gg, height, width), source.proposals(i))
                # As in the public code a map that likes no proposal repeats the answer before.
                chosen.append(best if best is not None else chosen[-1] if chosen else None)
            yield "iou_0.5", percent(box is not None and iou(truth, box) >= MATCHED
                                     for truth, box in zip(boxes, chosen))
            yield "iou_0.5_random", percent(
                np.mean([iou(boxes[i], box) >= MATCHED for box in source.proposals(i)] or [0])
                for i in rows)


def text_heat(heat, mode, layer):
    """The map of a whole text, `[b, g, g]`, from `itm_heat` or `itc_heat` of a task.

    In 'itm' the mean over all positions of the text, padding included, as in the public code.
    """
    if mode == "itc":
        return lambda params, *rows: heat(params, *rows, block=layer)[0]
    return lambda params, *rows: heat(params, *rows, layer=layer)[0].mean(axis=1)


def best_proposal(heat_hw, proposals):
    """The proposal with the largest sum of heat over the root of its area.

    Args:
      heat_hw: at the size of the image. proposals: boxes x, y, width, height.

    Returns:
      One of them, the first of equals; None if no sum is above 0.
    """
    best, best_score = None, 0.0
    for box in proposals:
        x, y, w, h = box
        score = heat_hw[int(y):int(y + h), int(x):int(x + w)].sum() / (w * h) ** 0.5
        if score > best_score:
            best, best_score = box, score
    return best


def iou(one, two):
    """Intersection over union of two boxes, as the public code counts pixels.

    The last pixel of a box is x + width - 1, and an overlap that is a single pixel wide or high
    counts as none.
    """
    left, top = max(one[0], two[0]), max(one[1], two[1])
    right = min(one[0] + one[2], two[0] + two[2]) - 1
    bottom = min(one[1] + one[3], two[1] + two[3]) - 1
    both = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return both / (one[2] * one[3] + two[2] * two[3] - both)


def hottest(heat_gg, size):
    """The middle of the hottest patch: x, y in pixels of an image of this (width, height)."""
    row, column = np.unravel_index(np.argmax(heat_gg), heat_gg.shape)
    rows, columns = heat_gg.shape
    return (column + 0.5) * size[0] / columns, (row + 0.5) * size[1] / rows


def inside(point, box):
    """Whether a point x, y lies in a box x, y, width, height."""
    return (box[0] <= point[0] < box[0] + box[2]) and (box[1] <= point[1] < box[1] + box[3])
