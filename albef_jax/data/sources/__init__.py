"""Data sources: where examples come from. Others are named by their class; see `base.Source`."""

import inspect
import os
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError, shown, wanted
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
    "scenes_contrasts": "scenes_tasks:ScenesContrastsSource",
    "scenes_regions": "scenes_regions:ScenesRegionsSource",
    "scenes_products": "scenes_products:ScenesProductsSource",
    "tfds": "tfds_source:TfdsSource",
    "webdataset": "web_tars:WebTarsSource",
    "captions": "captions:CaptionsSource",
    "mixture": "mixture:Mixture",
    "grounding": "grounding_json:GroundingSource",
    "ve": "ve_json:VeJsonSource",
    "nlvr": "nlvr_json:NlvrJsonSource",
    "vqa": "vqa_json:VqaJsonSource",
    "contrasts": "contrasts_json:ContrastsSource",
    "products": "products:ProductSource",
    "regions": "regions_json:RegionsJsonSource",
}.items()}

# Annotation of an option -> a value of the type that it must have; others are not checked.
LIKE = {"int": 0, "float": 0.0, "bool": False, "str": "", "Sequence[str]": ("",),
        "Sequence[float]": (0.0,)}

__all__ = ["KINDS", "Source", "check_source", "make_source", "parse_source", "resolve_source",
           "source_block"]


def parse_source(text: str) -> dict:
    """The block of a short form: `json:FILE`, `webdataset:FILES`, `scenes:LEVEL[:SPLIT]` or
    `tfds:NAME[:VERSION][:SPLIT]`.

    Raises:
        UserError: the text is none of these.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise UserError(f"{text!r} is no data source; write json:FILE, webdataset:FILES, "
                        "scenes:LEVEL or tfds:NAME, where a split may follow the last two, such as "
                        "tfds:coco_captions:val.")
    return {"kind": kind, **_class_of(kind).options(rest)}


def source_block(name: str, image_roots: Sequence[str] = (), regions: Sequence[str] = (),
                 merge_images: bool = False):
    """The block, or the short form, of what an argument of a command names.

    Args:
        name: a manifest, a tar of pairs, or a short form. image_roots: of a manifest.
        regions: files and folders with those of a manifest's images.
        merge_images: rows of a manifest with the same image are one example.
    """
    if name.partition(":")[0] in KINDS and not os.path.exists(name):
        return name
    if name.endswith(".tar"):
        return {"kind": "webdataset", "files": (name,)}
    manifest = {"files": (name,), "image_roots": tuple(image_roots), "merge_images": merge_images}
    return ({"kind": "regions", **manifest, "regions": tuple(regions)} if regions else
            {"kind": "json", **manifest})


def resolve_source(config: Mapping | str, where: str = "The data source") -> tuple[
        type[Source], dict]:
    """The class of a source and its options, checked but not opened; as `make_source`.

    `where` is what messages call a block that is none.
    """
    if isinstance(config, str):
        options = parse_source(config)
    elif isinstance(config, Mapping | ConfigDict):
        options = dict(config)
    else:
        raise UserError(f"{where} is {shown(config)}; give it a block, such as dict(kind='json', "
                        "files=('train.json',)), or a short form, such as json:train.json.")
    options = {name: _as_text(value) for name, value in options.items()}
    kind = options.pop("kind", None)
    found = _class_of(kind)
    signature = inspect.signature(found)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(
            f"The options of the data source of kind {kind!r} are wrong: {error}.") from error
    for name, value in options.items():
        like = _like(signature.parameters.get(name))
        if isinstance(like, tuple) and isinstance(value, str):
            continue  # one file
        words = wanted(value, like, found.limits.get(name), found.choices.get(name))
        if words:
            raise UserError(f"The data source of kind {kind!r} has {name}={shown(value)}; it must "
                            f"be {words}.")
    found.check(**options)
    return found, options


def _as_text(value):
    """A path as a text, in a tuple too; other values as they are."""
    if isinstance(value, tuple | list):
        return tuple(map(_as_text, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _like(parameter: inspect.Parameter | None):
    """A value of the type that an option must have; None: it may be anything."""
    annotation = parameter.annotation if parameter else None
    # A text where the file puts off evaluating annotations.
    name = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return LIKE.get(name.rpartition(".")[2])


def check_source(config: Mapping | str | Source, where: str) -> None:
    """Checks what `make_source` takes, without opening anything; `where` is what it is called.

    Raises:
        UserError: the kind is unknown, an option is missing, unknown or out of range.
    """
    if not isinstance(config, Source):
        resolve_source(config, where)


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
