"""Data sources: where examples come from. One kind is one file and one line below."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from albef_jax.data.sources.arrays import ArraySource
from albef_jax.data.sources.base import Source
from albef_jax.data.sources.grounding_json import GroundingSource
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.sources.mixture import Mixture
from albef_jax.data.sources.nlvr_json import NlvrJsonSource
from albef_jax.data.sources.scenes_source import ScenesSource
from albef_jax.data.sources.scenes_tasks import (
    ScenesGroundingSource, ScenesNlvrSource, ScenesVeSource, ScenesVqaSource,
)
from albef_jax.data.sources.synthetic import SyntheticSource
from albef_jax.data.sources.tfds_source import TfdsSource
from albef_jax.data.sources.ve_json import VeJsonSource
from albef_jax.data.sources.vqa_json import VqaJsonSource
from albef_jax.errors import UserError

KINDS = {
    "json": JsonSource,
    "arrays": ArraySource,
    "synthetic": SyntheticSource,
    "scenes": ScenesSource,
    "scenes_vqa": ScenesVqaSource,
    "scenes_nlvr": ScenesNlvrSource,
    "scenes_ve": ScenesVeSource,
    "scenes_grounding": ScenesGroundingSource,
    "tfds": TfdsSource,
    "mixture": Mixture,
    "grounding": GroundingSource,
    "ve": VeJsonSource,
    "nlvr": NlvrJsonSource,
    "vqa": VqaJsonSource,
}

__all__ = ["KINDS", "Source", "make_source", "parse_source", "resolve_source"]


def parse_source(text: str) -> dict:
    """The block that a short form stands for.

    Args:
        text: `json:FILE`, `scenes:LEVEL[:SPLIT]` or `tfds:NAME[:VERSION][:SPLIT]`.

    Raises:
        UserError: the text is none of these.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise UserError(
            f"{text!r} is no data source; write json:FILE, scenes:LEVEL or tfds:NAME, where a "
            "split may follow the last two, such as tfds:coco_captions:val."
        )
    return {"kind": kind, **KINDS[kind].options(rest)}


def resolve_source(config: Mapping | str) -> tuple[type[Source], dict]:
    """The class of a source and its options, checked but not opened; as `make_source`."""
    options = parse_source(config) if isinstance(config, str) else dict(config)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"data source kind {kind!r} is unknown; use one of {sorted(KINDS)}.")
    try:
        inspect.signature(KINDS[kind]).bind(**options)
    except TypeError as error:
        raise UserError(f"The options of the data source of kind {kind!r} are wrong: {error}.")
    return KINDS[kind], options


def make_source(config: Mapping | str | Source) -> Source:
    """Builds a source from its config block.

    Args:
        config: `kind` and the options of that kind, for example
            `dict(kind="json", files=("train.json",), image_roots=("images.tar",))`; or a short
            form, see `parse_source`; or a source, which is returned.

    Raises:
        UserError: the kind is unknown, an option is missing or unknown, or the data is unusable.
    """
    if isinstance(config, Source):
        return config
    kind, options = resolve_source(config)
    return kind(**options)
