"""Whether a model tells captions from ones that are wrong in one thing (compositionality)."""

import re

import numpy as np

from albef_jax.data.eval_sets import EvalSet
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator, Group, Table
from albef_jax.evaluators.batches import percent
from albef_jax.evaluators.held_out import HeldOut

SCORES = {"itc": "contrastive (ITC)", "itm": "matching (ITM)"}
OF_TWO = {"text_of_two": "the caption of two, for both images",
          "image_of_two": "the image of two, for both captions", "both_of_two": "all four"}


class ContrastsEvaluator(Evaluator):
    """How often the true caption of an image has the higher score than its foil, in percent.

    Of sources with the field `foil`, such as `scenes_contrasts` and `contrasts`. Yields `itc` and
    `itm` of all examples, by similarity and by the match logit, and `itc_KIND`, `itm_KIND` of each
    kind; guessing gives 50. Where two examples are a group (Winoground), also `itc_text_of_two`
    (both captions right), `itc_image_of_two` (both images) and `itc_both_of_two`, and of `itm`;
    guessing gives 25, 25 and 16.7. Equal scores are wrong.
    """

    calls = ("encode_image", "encode_text", "match")
    asks = ("image", "text", "image_id")
    labels = SCORES
    headline = {"itm": "caption or foil, matching"}
    charts = (Chart("Caption or foil, {name}, %", {"itm": "matching", "itc": "contrastive"},
                    top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        if not {"foil", "kind"} <= self.source.fields.keys():
            raise UserError("An evals block of kind 'contrasts' needs a source whose captions have "
                            "foils, such as dict(kind='scenes_contrasts').")
        self._held_out = HeldOut(
            EvalSet(WithFoils(self.source), self.fields, self.tokenizer, self.config.data),
            self.settings["batch_size"])
        numbers = range(len(self.source))
        kinds = np.array([self.source.get(i, "kind") for i in numbers])
        self._kinds = {re.sub(r"\W+", "_", kind): kinds == kind
                       for kind in dict.fromkeys(kinds.tolist())}
        self._twos = np.array(twos(self.source), int)
        self.description = f"{len(numbers)} captions and foils of {len(self._kinds)} kinds"

    def names(self):
        kinds = ["", *self._kinds, *list(OF_TWO) * bool(len(self._twos))]
        return [f"{name}_{kind}".rstrip("_") for kind in kinds for name in SCORES]

    def run(self, forward):
        scores = self._scores(forward)
        right = {"": {name: own > foil for name, (own, foil) in scores.items()}}
        for kind, rows in self._kinds.items():
            right[kind] = {name: right[""][name][rows] for name in SCORES}
        if len(self._twos):
            right |= self._of_two(scores)
        for kind, found in right.items():
            for name in SCORES:
                yield f"{name}_{kind}".rstrip("_"), percent(found[name])

    def beneath(self, name, values):
        return [f"contrastive: {values['itc']:.1f}%", "guessing: 50%"]

    @classmethod
    def table(cls, values):
        """A row for each kind."""
        kinds = [name.removeprefix("itm") for name in values if name.startswith("itm")]
        return Table([(OF_TWO.get(kind[1:], kind[1:].replace("_", " ")) or "all",
                       [[values[f"{name}{kind}"]] for name in SCORES]) for kind in kinds],
                     tuple(Group(title, ("",)) for title in SCORES.values()))

    def _scores(self, forward):
        """Of each kind of score those of the captions and of the foils, `[n]` each."""
        data, number = self._held_out, np.arange(len(self._held_out.texts))
        image_feats, text_feats = data.encode_images(forward)[1], data.encode_texts(forward)[1]
        itc = np.sum(image_feats[data.text_image] * text_feats, axis=1)
        logits = data.match(forward, data.text_image, number)
        itm = logits[:, 1] - logits[:, 0]
        return {name: (values[::2], values[1::2]) for name, values in (("itc", itc), ("itm", itm))}

    def _of_two(self, scores):
        """Of the two examples of each group, whose captions are each other's foils."""
        one, other = self._twos.T
        found = {}
        for name, (own, foil) in scores.items():
            text = (own[one] > foil[one]) & (own[other] > foil[other])
            image = (own[one] > foil[other]) & (own[other] > foil[one])
            for kind, right in zip(OF_TWO, (text, image, text & image)):
                found.setdefault(kind, {})[name] = right
        return found


class WithFoils(Source):
    """A source whose foils come after the captions."""

    def __init__(self, source):
        self._source, self.fields, self.fingerprint = source, source.fields, source.fingerprint

    def __len__(self):
        return len(self._source)

    def name(self, index):
        return self._source.name(index)

    def get(self, index, field):
        if field == "text":
            return [self._source.get(index, "text")[0], self._source.get(index, "foil")]
        return self._source.get(index, field)


def twos(source):
    """Pairs of examples in a row that are of one group."""
    if "group" not in source.fields:
        return []
    groups = [source.get(i, "group") for i in range(len(source))]
    return [(i, i + 1) for i in range(len(groups) - 1)
            if groups[i] is not None and groups[i] == groups[i + 1]]
