"""Features of images and texts, and what they are good for: matching, search, heat maps."""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.evaluators.heat import explainer, explanation
from albef_jax.evaluators.pairs import score_pairs
from albef_jax.evaluators.words import top_words
from albef_jax.inference.inputs import as_images, as_texts, name_of, not_blank, paired
from albef_jax.inference.model import Model, NotOffered

MODES = ("itm", "itc")  # of heat maps
GAP = re.compile(r"\s*(?:\[mask\]|_{2,})\s*", re.IGNORECASE)  # for a word to be guessed
TEXTS_PER_IMAGE = 16  # that are scored with the keys and values of one image, where all are


class Hit(NamedTuple):
    """One result of a search."""

    name: str
    row: int  # in the index
    similarity: float  # cosine of the features
    match: float | None  # probability of the matching head, None where it was not asked


@dataclasses.dataclass
class Index:
    """Images, texts or products to search in, with their features."""

    kind: str  # 'image', 'text' or 'product'
    items: Sequence[Any]  # n images (any form that `FeatureModel.encode_image` takes) or texts
    names: Sequence[str]  # n, shown in results
    features: np.ndarray  # float32 unit vectors `[n, e]`


class FeatureModel(Model):
    """A model that encodes images and texts and says what matches: search, and heat maps, too."""

    calls = ("encode_image", "encode_text", "match")
    asks = {"image": ImageField, "text": TextField}

    def encode_image(self, images, progress=False, broken=None):
        """Features of images, to compare with those of texts or other images.

        Args:
          images: one or a list: paths, encoded files as bytes, PIL images, pixels uint8
            `[h, w, 3]`. They are resized as in evaluation, without keeping the aspect ratio.
          progress: show a progress bar, on a terminal.
          broken: a dict that takes row -> reason of images that cannot be read, whose rows then
            mean nothing; None: such an image is a UserError that names it.

        Returns:
          Unit vectors, float32 `[n, e]`.
        """
        images = as_images(images)
        return self._in_blocks(lambda rows: self._image_batch(images, rows, broken)[1],
                               len(images), "images", progress)

    def encode_patches(self, images):
        """The ViT's output for images in any form, float32 `[n, 1 + patches, d]`; [CLS] first."""
        images = as_images(images)
        return self._in_blocks(lambda rows: self._image_batch(images, rows)[0], len(images),
                               "images", progress=False)

    def encode_text(self, texts, progress=False):
        """Features of texts: unit vectors, float32 `[n, e]`.

        Texts are cleaned as in evaluation and cut to `config.data.text_length` tokens.
        """
        return self._encode_texts(self._load("text", as_texts(texts)), 1, progress)

    def match(self, images, texts, all_pairs=False, progress=False):
        """The probability that an image and a text belong together, by the matching head.

        Args:
          images, texts: n images and n texts, pair by pair; or one of one and n of the other.
          all_pairs: score each of n images with each of m texts instead.
          progress: show a progress bar, on a terminal.

        Returns:
          float32 `[n]`, or `[n, m]` with `all_pairs`.

        Raises:
          UserError: the numbers do not fit, or an image cannot be read.
        """
        images, texts = as_images(images), as_texts(texts)
        n, m = len(images), len(texts)
        image_p, text_p = paired(n, m, all_pairs, f"{n} images")
        scores_p = self._score(images, texts, image_p, text_p, progress)["itm"]
        return scores_p.reshape(n, m) if all_pairs else scores_p

    def pair_scores(self, images, texts, image_m, broken=None):
        """How well texts fit their images: float32 `[m]` by name, see `score.COLUMNS`.

        Args:
          images, broken: see `encode_image`. texts: m of them. image_m: int, the row of the image
            of each text.
        """
        texts = as_texts(texts)
        return self._score(as_images(images), texts, np.asarray(image_m), np.arange(len(texts)),
                           progress=False, broken=broken)

    def explain(self, image, text, mode="itm", layer=-1):
        """Where the model looks for a text and its words, an `evaluators.heat.Explanation`.

        Args:
          image: one, in any form that `encode_image` takes. text: one.
          mode: 'itm' asks the matching head, 'itc' the similarity (no words).
          layer: 'itm': a fusion layer, counted from the first text layer; 'itc': a ViT block; -1:
            see `models.gradcam`.

        Raises:
          UserError: the image cannot be read, or there is no such mode or layer.
        """
        if mode not in MODES:
            raise UserError(f"The mode {mode!r} is unknown; choose 'itm' (the matching head) or "
                            "'itc' (the similarity).")
        if f"{mode}_heat" not in self.forward:
            raise NotOffered(f"A model of the task {self.config.task!r} has no function "
                             f"{mode}_heat, and so no heat maps of the mode {mode!r}.")
        arrays = self._load("image", as_images(image)[:1]) | self._load("text", as_texts(text)[:1])
        result = self._call(explainer(self.forward[f"{mode}_heat"], mode, layer), **arrays)
        return explanation(jax.device_get(result), 0, arrays["text_ids"][0], self.tokenizer)

    def complete(self, image, text):
        """The likeliest words at each gap of a text about an image.

        Args:
          image: one, in any form that `encode_image` takes. text: one, with `[MASK]` or `___` where
            a word is missing.

        Returns:
          For each gap a list of (word, probability), likeliest first.

        Raises:
          UserError: the image cannot be read, or the text has no gap, or only beyond the tokens
            that are read.
        """
        if "mlm_logits" not in self.forward:
            raise NotOffered(f"A model of the task {self.config.task!r} has no words to guess.")
        field, tokenizer = self._open("text"), self.tokenizer
        parts = [field.clean(part, train=False) for part in GAP.split(not_blank(text, "text"))]
        ids = [tokenizer.cls_id]
        for number, pieces in enumerate(tokenizer.pieces(parts)):
            ids += [tokenizer.mask_id] * (number > 0) + pieces
        length = self.fields["text"].spec()["text_ids"].shape[0]
        gaps = np.flatnonzero(np.array(ids[:length]) == tokenizer.mask_id)
        if not len(gaps):
            raise UserError(f"The text {text!r} has no gap among the {length} tokens that are read; "
                            "write [MASK] where a word is missing.")
        ids_1l = np.full((1, length), tokenizer.pad_id, np.int32)
        ids_1l[0, :len(ids)] = ids[:length]
        embeds, _ = self._image_batch(as_images(image)[:1], slice(0, 1))
        shares, words = jax.device_get(self._call(
            top_words(self.forward["mlm_logits"]), image_embeds=embeds[:1], masked_ids=ids_1l,
            text_mask=(np.arange(length) < len(ids)).astype(np.int32)[None]))
        return [[(tokenizer.decode([word]), float(share))
                 for word, share in zip(words[0, gap], shares[0, gap])] for gap in gaps]

    def index_images(self, images, names=None, progress=False, broken=None):
        """Encodes images to search in; those in `broken` (see `encode_image`) are left out.

        `names` has one per image (UserError); by default the path, or the row where there is none.
        """
        images = as_images(images)
        names = [name_of(image, row) for row, image in enumerate(images)] if names is None else (
            list(map(str, names)))
        if len(names) != len(images):
            raise UserError(f"index_images got {len(names)} names of {len(images)} images; give one "
                            "for each.")
        features = self.encode_image(images, progress, broken)
        kept = [row for row in range(len(images)) if row not in (broken or {})]
        return Index("image", [images[row] for row in kept], [names[row] for row in kept],
                     features[kept])

    def index_texts(self, texts, progress=False):
        """Encodes texts to search in; they are their own names."""
        texts = as_texts(texts)
        return Index("text", texts, texts, self.encode_text(texts, progress))

    def search(self, index, text=None, image=None, k=5, rerank=0, progress=False):
        """The best k of an index for one query, a list of `Hit`, best first.

        Args:
          index: from `index_images` or `index_texts`. text, image: the query, one of them.
          rerank: how many of the most similar the matching head scores and reorders (k at
            least); 0: rank by similarity alone.
          progress: show a progress bar while re-ranking.

        Raises:
          UserError: see `check_query`, or the query is several.
        """
        check_query(index.kind, text, image, rerank)
        if k < 1:
            raise UserError(f"search got k={k}; ask for 1 or more.")
        query = self.encode_text(text) if image is None else self.encode_image(image)
        if len(query) != 1:
            raise UserError(f"search got {len(query)} queries; call it for one at a time.")
        similarity = index.features @ query[0]
        best = np.argsort(-similarity, kind="stable")[:max(k, rerank)]
        match = dict.fromkeys(best)  # row -> probability
        if rerank:
            found = [index.items[row] for row in best]
            pairs = (found, text) if image is None else (image, found)
            scores = self.match(*pairs, progress=progress)
            match = dict(zip(best, scores.tolist()))
            best = best[np.argsort(-scores, kind="stable")]
        return [Hit(index.names[row], int(row), float(similarity[row]), match[row])
                for row in best[:k]]

    def _image_batch(self, images, rows, broken=None):
        """Embeddings and features, on the device, of a slice of a list of images."""
        arrays = self._load("image", images[rows], rows.start, broken)
        return self._call(self.forward["encode_image"], **self._padded(arrays))

    def _encode_texts(self, text, part=None, progress=False):
        """Embeddings (`part` 0), features (1) or both of texts, given as arrays `[n, l]` by name.
        """
        def encode(rows):
            arrays = {name: array[rows] for name, array in text.items()}
            both = self._call(self.forward["encode_text"], **self._padded(arrays))
            return both if part is None else both[part]

        return self._in_blocks(encode, len(text["text_ids"]), "texts", progress)

    def _score(self, images, texts, image_p, text_p, progress, broken=None):
        """Scores `[p]` of pairs by name; each image and each text is encoded once."""
        text = self._load("text", texts)
        text_embeds, text_features = self._encode_texts(text)
        tables = {"text_embeds": text_embeds, "real_mask": text["text_mask"]}
        tables = jax.device_put(self._padded(tables))
        # As if all were equally long: texts that are cut are compiled anew for every length.
        tables["text_mask"] = np.ones(tables["real_mask"].shape, np.int32)
        batch_size = 1 if len(image_p) == 1 else self.batch_size
        per_image = TEXTS_PER_IMAGE if len(image_p) >= TEXTS_PER_IMAGE * len(images) else 1
        scores = {name: np.empty(len(image_p), np.float32) for name in ("itc", "itm")}
        for rows in self._blocks(len(images), "match", progress):
            here = np.flatnonzero((rows.start <= image_p) & (image_p < rows.stop))
            image_embeds, image_features = self._image_batch(images, rows, broken)
            scores["itc"][here] = np.einsum(
                "pe,pe->p", np.asarray(image_features)[image_p[here] - rows.start],
                text_features[text_p[here]])
            with jax.default_matmul_precision(self.config.matmul_precision):
                scores["itm"][here] = score_pairs(
                    self.forward, probability(self.forward["match"]), image_embeds, tables,
                    image_p[here] - rows.start, text_p[here], batch_size, per_image)
        return scores


@functools.lru_cache(maxsize=64)
def probability(match):
    """The function for `score_pairs` that gives probabilities of a match, `[g]`."""
    def of_pairs(params, image_embeds, text_embeds, real_mask, text_mask):
        del text_mask
        return jax.nn.softmax(match(params, image_embeds=image_embeds, text_embeds=text_embeds,
                                    text_mask=real_mask))[..., 1]

    return of_pairs


def check_query(kind, text, image, rerank):
    """UserError where an index of this kind, 'image' or 'text', cannot be asked so.

    That is no query, a blank one or two, or re-ranking of two images or two texts.
    """
    if (text is None) == (image is None):
        raise UserError("A search needs one query: give a text or an image.")
    for query in as_texts(text) if text is not None else ():
        not_blank(query, "query")
    if rerank and kind == ("image" if text is None else "text"):
        raise UserError(f"Re-ranking compares an image with a text, but query and index are both "
                        f"{kind}s; rank by similarity alone, without rerank.")
