"""Products by any of their modalities: features, and which products are alike."""

from collections.abc import Mapping
import functools

import jax
import numpy as np

from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.title import TitleField
from albef_jax.data.sources.base import Source
from albef_jax.data.sources.products import MEDIA, checked_row, raw_value
from albef_jax.errors import UserError
from albef_jax.evaluators.products import features, unit
from albef_jax.inference.features import Hit, Index
from albef_jax.inference.model import Model
from albef_jax.models.scale import MODALITIES, is_subset, withheld


class ProductModel(Model):
    """A model of products with several modalities, of which each may be missing.

    A product is a row of a manifest as `data.sources.products.ProductSource` reads it, a dict with
    some of `title`, `table`, `image`, `video` and `audio`; the last three are features: a .npz or
    .npy file, an array `[n, width]`, or for images a `data.sources.regions.Regions`. Several are a
    list of such, or an opened source (`data.sources.make_source`).
    """

    calls = ("encode",)
    asks_some = {"title": TitleField, "regions": RegionsField, "table": TableField,
                 "video": VideoField, "audio": AudioField}

    def encode(self, products, modalities="", progress=False):
        """Features of products by some of their modalities.

        Args:
          products: one or several, see the class.
          modalities: letters of what the model sees of each, such as 'ti'; '': all that it knows.
          progress: show a progress bar, on a terminal.

        Returns:
          float32 `[n, d]`: the sum of the joint CLS tokens; of a fine-tuned model its hidden layer.

        Raises:
          UserError: a letter that the model does not know, or a product that cannot be read.
        """
        known = self.config.model.modalities
        products = products if isinstance(products, Products) else Products(products)
        seen = modalities or known
        if not is_subset(seen, known):
            names = ", ".join(f"{letter} ({MODALITIES[letter]})" for letter in known)
            raise UserError(f"encode got the modalities {modalities!r}; write some of the letters "
                            f"that the model knows: {names}.")

        def of_rows(rows):
            arrays = {}
            for name in map(MODALITIES.get, known):
                values = [products(row, name) for row in range(rows.start, rows.stop)]
                arrays |= self._load(name, values, rows.start)
            encoded = self._call(self.forward["encode"], **self._padded(withheld(arrays, seen)))
            return features(jax.device_get(encoded), seen)

        return self._in_blocks(of_rows, len(products), "products", progress)

    def index_products(self, products, names=None, modalities="", progress=False):
        """Encodes products to search in; `names`: of each; by default its id, or its row.

        See `encode`.
        """
        items = Products(products)
        names = list(names) if names is not None else [*map(items.name, range(len(items)))]
        if len(names) != len(items):
            raise UserError(f"Got {len(names)} names of {len(items)} products; give one for each.")
        return Index("product", products, names,
                     unit(self.encode(items, modalities, progress)))

    def search(self, index, product, modalities="", k=5):
        """The k products of an index most like a product, a list of `Hit`, best first.

        Args:
          index: from `index_products`. product: one, see the class, which may have one modality
            only; or the row of one in the index, which is not found itself.
          modalities: of the query, see `encode`.
        """
        if isinstance(product, int):
            similarity = index.features @ index.features[product]
            similarity[product] = -np.inf
            k = min(k, len(similarity) - 1)
        else:
            query = unit(self.encode(product, modalities))
            if len(query) != 1:
                raise UserError(f"search got {len(query)} products; call it for one at a time.")
            similarity = index.features @ query[0]
        return [Hit(index.names[row], int(row), float(similarity[row]), None)
                for row in np.argsort(-similarity, kind="stable")[:k]]


class Products:
    """One or several products as people give them; called with row and field for a raw value."""

    def __init__(self, products):
        self._source = products if isinstance(products, Source) else None
        if self._source is None:
            products = [products] if isinstance(products, Mapping) else list(products)
        self._given = products
        if not len(self._given):
            raise UserError("The list of products is empty; give at least one.")
        if self._source is not None:
            return
        for row, product in enumerate(self._given):
            if not isinstance(product, Mapping):
                raise UserError(f"Product {row} is a {type(product).__name__}; give a dict with "
                                f"some of title, table, {', '.join(MEDIA.values())}.")
        self._given = [*map(checked_row, self._given)]

    def __len__(self):
        return len(self._given)

    def __call__(self, row, field):
        if self._source is None:
            return functools.partial(raw_value, self._given[row], field)
        if field not in self._source.fields:  # no product has any
            return lambda: [] if field == "title" else None
        return functools.partial(self._source.get, row, field)

    def name(self, row):
        """The id of a product, or its row."""
        if self._source is None:
            return self._given[row]["id"] or str(row)
        return self._source.name(row)
