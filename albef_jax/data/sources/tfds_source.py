"""Any TensorFlow Datasets (TFDS) data set with an image and a text, read with random access."""

import difflib
import functools
import hashlib
import json
import operator
import os
import re
import threading
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from flax.traverse_util import unflatten_dict

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.numbering import NumberedSource
from albef_jax.data.sources.region_files import parse_features
from albef_jax.data.sources.regions import Regions
from albef_jax.data.sources.tfds_convert import with_random_access
from albef_jax.data.sources.tfds_private import builder_from_files
from albef_jax.errors import UserError, first_line

REMEMBERED = 50_000  # examples whose captions are kept once their image was read
# Texts that go with an image and are no captions.
NOT_CAPTIONS = {"filename", "file_name", "id", "image_id", "path", "url", "license", "regions"}

# Files of `albef data shard`: int32 [n]; facts of the regions; and what is there while it works.
IMAGE_IDS, REGION_FACTS, SHARD_PLAN = "image_ids.npy", "regions.json", "plan.json"
REGIONS = "regions"  # the field, and its feature: the contents of a .npz file

SHORT_FORM = re.compile(r"(?P<name>(\w+://)?[^:]+(:[\d*][\d.*]*)?)(:(?P<split>.+))?")


class TfdsSource(NumberedSource):
    """A TFDS data set on disk, without TensorFlow where it is stored as ArrayRecord.

    A set that is stored as TFRecord is converted once, next to the original. Nothing is ever
    downloaded.

    Args:
        name: as for `tfds.load`, `name[/config][:version]`; or the folder of a prepared set, the
            one with `dataset_info.json`.
        split: as for `tfds.load`, such as `train` or `validation[:90%]`.
        image: name of the image feature, its parts joined by `/`; found if there is only one.
        text: name of the text feature: a text or a list of texts, such as `captions/text`.
        data_dir: of TFDS; by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
        UserError: the set is unknown or not prepared, the split or a feature is unknown or
            ambiguous, or the conversion fails.
    """

    fields = pairs()

    def __init__(self, name: str, split: str = "train", image: str = "", text: str = "",
                 data_dir: str = ""):
        builder = with_random_access(_find(name, data_dir))
        images, texts = _candidates(builder.info.features)
        self._image = _choose(name, "image", image, images, images)
        captions = [path for path in texts if path[-1].split("/")[-1] not in NOT_CAPTIONS]
        self._text = _choose(name, "text", text, texts, captions)
        self._name = f"{name}[{split}]"
        skip = unflatten_dict({path: tfds.decode.SkipDecoding() for path in images})
        _check_split(builder.info.splits, name, split)
        self._records = builder.as_data_source(split, decoders=skip)
        self._image_ids = _read_image_ids(builder, split, len(self._records))
        facts = epath.Path(builder.data_dir) / REGION_FACTS
        if facts.exists():
            self.fields = pairs() | {REGIONS: json.loads(facts.read_text())}
        self._recent: dict[int, list[str]] = {}  # what a batch asks for next: see `image`
        self._lock = threading.Lock()
        # TFDS sets of one name, version and sizes have one content.
        sizes = sorted((s.name, s.num_examples, s.num_bytes) for s in builder.info.splits.values())
        known = repr((builder.info.full_name, sizes, split, (self._image, self._text)))
        self.fingerprint = "tfds " + hashlib.blake2b(known.encode(), digest_size=16).hexdigest()

    @classmethod
    def options(cls, text: str) -> dict:
        match = SHORT_FORM.fullmatch(text)
        if not match:
            raise UserError(f"'tfds:{text}' is no data source; write tfds:NAME or tfds:NAME:SPLIT.")
        return {"name": match["name"], "split": match["split"] or "train"}

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def text(self, index: int) -> list[str]:
        with self._lock:
            captions = self._recent.get(index)
        try:
            return captions or self._captions_of(self._read(index))
        except OSError as error:
            raise UserError(f"The record {self.name(index)} is damaged or missing ({error}); "
                            "prepare the TFDS data set again.") from None

    def image(self, index: int) -> bytes:
        record = self._read(index)
        captions = self._captions_of(record)
        with self._lock:
            while len(self._recent) >= REMEMBERED:
                del self._recent[next(iter(self._recent))]
            self._recent[index] = captions
        return functools.reduce(operator.getitem, self._image, record)

    def regions(self, index: int) -> Regions:
        """Of a set that `albef data shard` made of a source with regions; raises OSError."""
        return parse_features(self._read(index)[REGIONS])

    def _read(self, index: int) -> dict:
        try:
            return self._records[index]
        except (RuntimeError, ValueError) as error:  # what ArrayRecord raises on damaged files
            raise OSError(first_line(error)) from None
        except TypeError:  # it has no record there: the file ends too early
            raise OSError("the file is cut short") from None

    def _captions_of(self, record: dict) -> list[str]:
        return list(_texts(functools.reduce(operator.getitem, self._text, record))) or [""]


def _find(name: str, data_dir: str):
    """The builder of a set that is on disk; its code, if it has any, is not needed."""
    try:
        if (epath.Path(name) / "dataset_info.json").exists():
            return tfds.builder_from_directory(name)
        if (epath.Path(name) / SHARD_PLAN).exists():
            raise UserError(f"{name} is unfinished; the same `albef data shard` as before goes on.")
        return builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, OSError):
        raise UserError(_how_to_prepare(name, data_dir)) from None
    except ValueError as error:
        raise UserError(f"The TFDS data set {name!r} cannot be opened ({first_line(error)}); a "
                        "name looks like coco_captions, name/config or "
                        "name/config:1.0.0.") from None


def _read_image_ids(builder, split: str, count: int) -> np.ndarray:
    """Which examples show one image, if the set knows it; by default every one its own."""
    path = epath.Path(builder.data_dir) / IMAGE_IDS
    if split not in builder.info.splits or not path.exists():
        return np.arange(count, dtype=np.int32)
    with path.open("rb") as file:
        return np.load(file)


def _how_to_prepare(name: str, data_dir: str) -> str:
    place = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    known = tfds.list_builders(with_community_datasets=False)
    bare = re.split("[/:]", name)[0]
    if bare not in known:
        close = difflib.get_close_matches(bare, known, n=3)
        guess = f"it knows {', '.join(close)}" if close else "check the name and data_dir"
        return f"No TFDS data set {name!r} is in {place}, and TFDS knows no such name; {guess}."
    options = f", data_dir={data_dir!r}" if data_dir else ""
    return (f"The TFDS data set {name!r} is not in {place}; prepare it there with `python -c "
            f"\"import tensorflow_datasets as tfds; tfds.builder({name!r}{options}, "
            "file_format='array_record').download_and_prepare()\"`, which downloads it and needs "
            "TensorFlow, or say with data_dir where it is.")


def _check_split(splits, name: str, split: str) -> None:
    try:
        count = splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise UserError(f"The split {split!r} of the TFDS data set {name!r} is unknown "
                        f"({first_line(error)}); its splits are {', '.join(splits)}.") from None
    if not count:
        raise UserError(f"The split {split!r} of the TFDS data set {name!r} is empty; give more.")


def _candidates(features) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Paths of the images (one per example) and of the texts (one or a list per example)."""
    images, texts = [], []

    def visit(feature, path, repeated):
        if isinstance(feature, tfds.features.FeaturesDict):
            for name, part in feature.items():
                visit(part, (*path, name), repeated)
        elif isinstance(feature, tfds.features.Sequence):
            visit(feature.feature, path, True)
        elif isinstance(feature, tfds.features.Image):
            if not repeated:
                images.append(path)
        elif feature.np_dtype == object and len(feature.shape) <= 1:
            texts.append(path)

    visit(features, (), False)
    return sorted(images), sorted(texts)  # TFDS reads features in no fixed order


def _choose(name: str, kind: str, wanted: str, allowed, likely) -> tuple[str, ...]:
    """The feature that was asked for, or the only likely one."""
    listed = ", ".join("/".join(path) for path in allowed)
    if wanted:
        found = [path for path in allowed if "/".join(path) == wanted]
        if not found:
            raise UserError(f"The TFDS data set {name!r} has no {kind} feature {wanted!r}; it has "
                            f"{listed or 'none'}.")
        return found[0]
    if len(likely) != 1:
        choose = f", {listed}; choose one with {kind}='...'." if listed else "; use another set."
        raise UserError(f"The TFDS data set {name!r} has {len(likely) or 'no'} {kind} features"
                        f"{choose}")
    return likely[0]


def _texts(value) -> Iterator[str]:
    """All texts of a value: bytes, or lists of them, also lists of lists."""
    if isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, str):
        yield value
    else:
        for part in value:
            yield from _texts(part)
