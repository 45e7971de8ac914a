"""Data sources: where examples come from. Others are named by their class; see `base.Source`."""

import inspect
from collections.abc import Mapping

from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError
from albef_jax.files import find_class

KINDS = {kind: f"albef_jax.data.sources.{place}" for kind, place in {
    "json": "json_source:JsonSource",
    "arrays": "arrays:ArraySource",
    "synthetic": "synthetic:SyntheticSource",
    "scenes": "scenes_source:ScenesSource",
    "scenes_vqa": "scenes_tasks:ScenesVqaSource",
    "scenes_nlvr": "scenes_tasks:ScenesNlvrSource",
    "scenes_ve": "scenes_tasks:ScenesVeSource",
    "scenes_grounding": "scenes_tasks:ScenesGroundingSource",
    "scenes_products": "scenes_products:ScenesProductsSource",
    "tfds": "tfds_source:TfdsSource",
    "mixture": "mixture:Mixture",
    "grounding": "grounding_json:GroundingSource",
    "ve": "ve_json:VeJsonSource",
    "nlvr": "nlvr_json:NlvrJsonSource",
    "vqa": "vqa_json:VqaJsonSource",
    "products": "products:ProductSource",
}.items()}

__all__ = ["KINDS", "Source", "make_source", "parse_source", "resolve_source"]


def parse_source(text: str) -> dict:
    """The block of `json:FILE`, `scenes:LEVEL[:SPLIT]` or `tfds:NAME[:VERSION][:SPLIT]`.

    Raises:
        UserError: the text is none of these.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise UserError(f"{text!r} is no data source; write json:FILE, scenes:LEVEL or tfds:NAME, "
                        "where a split may follow the last two, such as tfds:coco_captions:val.")
    return {"kind": kind, **_class_of(kind).options(rest)}


def resolve_source(config: Mapping | str) -> tuple[type[Source], dict]:
    """The class of a source and its options, checked but not opened; as `make_source`."""
    options = parse_source(config) if isinstance(config, str) else dict(config)
    kind = options.pop("kind", None)
    found = _class_of(kind)
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise UserError(
            f"The options of the data source of kind {kind!r} are wrong: {error}.") from error
    return found, options


def make_source(config: Mapping | str | Source) -> Source:
    """The source of a config block: `kind` and the options of that kind, for example
    `dict(kind="json", files=("train.json",), image_roots=("images.tar",))`; or of a short form, see
    `parse_source`. A source is returned as it is.

    Raises:
        UserError: the kind is unknown, an option is missing or unknown, or the data is unusable.
    """
    if isinstance(config, Source):
        return config
    kind, options = resolve_source(config)
    return kind(**options)


def _class_of(kind) -> type[Source]:
    return find_class(kind, KINDS, Source, "The kind of a data source")
