"""Grounding without box annotations (ALBEF section 5): does the heat of a phrase find its box?"""

import functools

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.batches import Rows, percent
from albef_jax.evaluators.heat import explainer, source_pictures
from albef_jax.models.gradcam import fusion_layer, vit_block
from albef_jax.models.resample import upsample

MATCHED = 0.5  # least overlap of a right box


class GroundingEvaluator(Evaluator):
    """Shares of phrases in percent.

    Yields `pointing_game`: the middle of the hottest patch lies in the box. (Not the hottest pixel
    of the enlarged map: bicubic enlargement is hottest at the edge of a patch at the border.) With
    proposals also `iou_0.5`: the proposal that the map chooses overlaps the box by half or more.
    What could be had without a model stands beside them: `pointing_centre` (the middle of the image
    lies in the box), `pointing_random` (a random pixel does) and `iou_0.5_random` (a random
    proposal).

    Options: `mode`, 'itm' (gradient of the match logit on a fusion layer) or 'itc' (of the
    similarity on a ViT block); `layer`, counted as in `models.gradcam`, -1 for its default.
    """

    options = Rows.options | {"mode": ("itm", ("itm", "itc")), "layer": (-1, -1)}
    calls = ("itm_heat", "itc_heat")
    asks = ("image", "text")
    labels = {"pointing_game": "middle of the hottest patch lies in the box",
              "pointing_centre": "middle of the image lies in the box",
              "pointing_random": "random place lies in the box",
              "iou_0.5": "right proposal (IoU 0.5)",
              "iou_0.5_random": "random proposal (IoU 0.5)"}
    headline = {"pointing_game": "pointing game"}
    charts = (Chart("Held-out {name}, %",
                    {"pointing_game": "pointing game", "iou_0.5": "right proposal"}, top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows, self._mode = Rows(self), self.settings["mode"]
        if "box" not in self.source.fields:
            raise UserError("The evals block of kind 'grounding' has a source without boxes; give "
                            "it rows with \"bbox\", or the folder of REFER as the option refer.")
        self._proposals = "proposals" in self.source.fields
        self.description = f"{len(self._rows)} phrases, {self._mode} heat maps"

    @classmethod
    def check(cls, settings, config):
        find = vit_block if settings["mode"] == "itc" else fusion_layer
        find(config.model, settings["layer"])

    def names(self):
        return ["pointing_game", "pointing_centre", "pointing_random"] + (
            ["iou_0.5", "iou_0.5_random"] if self._proposals else [])

    def run(self, forward):
        find = text_heat(forward[f"{self._mode}_heat"], self._mode, self.settings["layer"])
        heat = self._rows.run(forward, find, "phrases")
        get, rows = self.source.get, range(len(heat))
        boxes, sizes = ([get(i, field) for i in rows] for field in ("box", "size"))
        yield "pointing_game", percent(
            inside(hottest(gg, size), box) for gg, size, box in zip(heat, sizes, boxes))
        yield "pointing_centre", percent(
            inside((w / 2, h / 2), box) for (w, h), box in zip(sizes, boxes))
        yield "pointing_random", percent(
            box[2] * box[3] / (w * h) for (w, h), box in zip(sizes, boxes))
        if self._proposals:
            proposals, chosen = [get(i, "proposals") for i in rows], []
            for gg, (width, height), of_image in zip(heat, sizes, proposals):
                best = best_proposal(upsample(gg, height, width), of_image)
                # As in the public code a map that likes no proposal repeats the answer before.
                chosen.append(best if best is not None else chosen[-1] if chosen else None)
            yield "iou_0.5", percent(box is not None and iou(truth, box) >= MATCHED
                                     for truth, box in zip(boxes, chosen))
            yield "iou_0.5_random", percent(
                np.mean([iou(truth, box) >= MATCHED for box in of_image] or [0])
                for truth, of_image in zip(boxes, proposals))

    def beneath(self, name, values):
        blind = {"the middle of the image": "pointing_centre", "a random place": "pointing_random"}
        return [", ".join(f"{what}: {values[name]:.1f}%" for what, name in blind.items()
                          if name in values)]

    def examples(self, forward, teacher):
        return {"heat": source_pictures(forward, self)}


@functools.lru_cache(maxsize=64)
def text_heat(heat, mode, layer):
    """The map of a whole text, `[b, g, g]`, from `itm_heat` or `itc_heat`; see `explainer`."""
    explain = explainer(heat, mode, layer)

    def of_texts(params, image, text_ids, text_mask):
        return explain(params, image, text_ids, text_mask)[0]

    return of_texts


def best_proposal(heat_hw, proposals):
    """The first of the proposals (x, y, width, height) with most heat over the root of its area.

    None if none has a sum above 0. `heat_hw` is at the size of the image.
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
