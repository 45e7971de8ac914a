"""Models that read the regions of an image beside its text, and say whether they match."""

import numpy as np
import scipy.special

from albef_jax.data.fields.regions import DetectedRegionsField
from albef_jax.data.fields.text import TextField
from albef_jax.data.sources.regions import Regions
from albef_jax.errors import UserError
from albef_jax.inference.inputs import as_texts, paired
from albef_jax.inference.model import Model


class RegionModel(Model):
    """A model of words and regions, such as ImageBERT."""

    calls = ("embed_image", "embed_text", "match")
    asks = {"regions": DetectedRegionsField, "text": TextField}

    def match(self, regions, texts, all_pairs=False):
        """The probability that the regions of an image and a text belong together.

        Args:
          regions: n `data.sources.regions.Regions`, or one. texts: n, pair by pair; or one of one
            and n of the other.
          all_pairs: score each of n images with each of m texts instead.

        Returns:
          float32 `[n]`, or `[n, m]` with `all_pairs`.

        Raises:
          UserError: the numbers do not fit, or regions cannot be used.
        """
        regions = [regions] if isinstance(regions, Regions) else list(regions)
        texts = as_texts(texts)
        n, m = len(regions), len(texts)
        if not n:
            raise UserError("The list of regions is empty; give those of at least one image.")
        image_p, text_p = paired(n, m, all_pairs, f"regions of {n} images")
        scores_p = self.pair_scores(regions, [texts[row] for row in text_p], image_p)["itm"]
        return scores_p.reshape(n, m) if all_pairs else scores_p

    def pair_scores(self, regions, texts, image_m, broken=None):
        """How well texts fit the regions of their images; as `FeatureModel.pair_scores`."""
        if "global_feature" in self.fields:
            raise UserError("The model also reads a feature of the whole image; give it to "
                            "predict('match', regions=..., text=..., global_feature=...).")
        arrays = self._load("regions", regions, broken=broken)

        def of_rows(rows):
            some = {name: array[image_m[rows]] for name, array in arrays.items()}
            some = {name: some[name] for name in ("regions", "regions_box", "regions_mask")}
            return self._call(self.forward["match"], **self._padded(
                some | self._load("text", texts[rows], rows.start)))

        logits_m = self._in_blocks(of_rows, len(texts), "match", progress=False)
        return {"itm": scipy.special.expit(np.asarray(logits_m, np.float32))}
