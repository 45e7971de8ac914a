"""Products with a title, a table, an image, a video and a sound, any of which may be missing."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from albef_jax.data.sources.json_rows import read_rows
from albef_jax.data.sources.manifest import ManifestSource
from albef_jax.data.sources.region_files import (
    FeatureFolder, open_all, open_regions, parse_features)
from albef_jax.data.sources.regions import Regions
from albef_jax.data.table import parse_table
from albef_jax.errors import UserError, first_line
from albef_jax.files import read_bytes

# Key of a row -> other names of it in files that people have, those of M5Product among them.
ROW_KEYS = {
    "id": ("item_id",), "title": ("caption",), "table": ("pv", "tabular", "attributes"),
    "image": (), "video": (), "audio": (), "category": ("label",), "instance": ()}
ROW_FORMAT = '{"id": "1", "title": ..., "table": [["colour", "red"], ...], "image": ...}'
MODALITIES = ("title", "regions", "table", "video", "audio")
MEDIA = {"regions": "image", "video": "video", "audio": "audio"}  # modality -> key of its file
FEATURES = (".npy", ".npz")
TRIED = 10  # products whose features are looked at for their width


class ProductSource(ManifestSource):
    """Rows of manifests: a JSON list, a row per line, or an object of rows by id as M5Product has.

    `{"id", "title", "table", "image", "video", "audio", "category", "instance"}`, all optional but
    one of id and image. A table is what `data.table.parse_table` knows. `category` is a name or a
    list of names from coarse to fine, and `instance` is finer. Files are either features (.npz of
    regions, .npy) or media, whose features are looked for by the product's id in the folders below.
    What is not found there is missing; a product may lack anything but everything.

    Args:
        files, image_roots: see `ManifestSource`; media and features that rows name are there.
        regions: files and folders of regions, see `sources.region_files`.
        video, audio: folders of files ID.npy.
        classes: the names of all classes in order, or a file: a JSON list of them, or another
            manifest, whose classes are taken. Without any: those of this one.
        coarse, fine: which of category and instance are the class, and what is retrieved.
        complete: leave out products that lack a modality.
    """

    row_format = ROW_FORMAT
    row_keys = (*ROW_KEYS, *(other for names in ROW_KEYS.values() for other in names))

    limits = dict(coarse=(-64, 63), fine=(-64, 63))  # levels of a category

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (),
                 regions: Sequence[str] = (), video: Sequence[str] = (), audio: Sequence[str] = (),
                 classes: Sequence[str] = (), coarse: int = 0, fine: int = -1,
                 complete: bool = False):
        self._rows: list[dict] = []
        self._coarse, self._fine, self._complete = coarse, fine, complete
        self._wrong: list[str] = []
        self._stores = {
            "regions": self._opened(open_regions, regions),
            "video": self._opened(functools.partial(FeatureFolder, ending=".npy"), video),
            "audio": self._opened(functools.partial(FeatureFolder, ending=".npy"), audio)}
        self._classes = self._class_names(classes)
        super().__init__(files, image_roots, f"products {regions} {video} {audio} {classes} "
                                             f"{coarse} {fine} {complete}")

    def add(self, row) -> None:
        row = _named(row)
        row["names"] = _names(row)
        try:
            row["table"] = parse_table(row.get("table"))
        except ValueError as error:
            raise ValueError(f'has a "table" that {error}') from None
        row["has"] = self._found(row)
        if not row["has"]:
            raise ValueError("has no modality at all: no title, no value in its table, and no file "
                             "or features of image, video or audio; leave it out")
        if row["names"] and self._classes and self._class(row) not in self._classes:
            raise ValueError(f"has the class {self._class(row)!r}, which is not one of the "
                             f"{len(self._classes)} of data.source.classes")
        self.names.append(row["id"])
        self._rows.append(row)

    def finish(self) -> None:
        """Leaves out incomplete products if asked, and numbers the classes.

        Raises:
            UserError: all are incomplete.
        """
        self._modalities = [name for name in MODALITIES
                            if any(name in row["has"] for row in self._rows)]
        if self._complete:
            self._rows = [row for row in self._rows if len(row["has"]) == len(self._modalities)]
            self.names = [row["id"] for row in self._rows]
            if not self._rows:
                raise UserError(f"No product has all of {', '.join(self._modalities)}; set "
                                "data.source.complete=False.")
        self._labelled = bool(self._rows) and all(row["names"] for row in self._rows)
        if self._labelled:
            self._classes = self._classes or sorted(set(map(self._class, self._rows)))
        self._number = {name: number for number, name in enumerate(self._classes)}

    @functools.cached_property
    def fields(self):
        fields = {name: {"optional": True} for name in self._modalities}
        for name in MEDIA.keys() & fields.keys():
            fields[name] |= self._width(name)
        if "title" in fields:
            fields["title"]["cleaning"] = "none"
        if self._labelled:
            fields |= {"label": {"class_names": tuple(self._classes)}, "coarse": {}, "fine": {}}
        return fields

    def _width(self, name: str) -> dict[str, int]:
        """The fact `width`, from the first product whose features can be read."""
        having = (index for index in range(len(self)) if name in self.modalities(index))
        for index in itertools.islice(having, TRIED):
            try:
                value = self._features(index, name)
            except OSError:
                continue
            return {"width": (value.features if name == "regions" else value).shape[1]}
        return {}

    def read_manifests(self, files):
        digests, problems = super().read_manifests(files)
        unread = {key: sum(key in row and name not in row["has"] for row in self._rows)
                  for name, key in MEDIA.items() if not self._stores[name]}
        problems += [f"{count} products of {', '.join(files)} name a file for {key!r}, but "
                     f"data.source has no features of it; make them with `albef features {key}`."
                     for key, count in unread.items() if count]
        return digests, self._wrong + problems

    def name(self, index: int) -> str:
        return self._rows[index]["id"]

    def modalities(self, index: int) -> tuple[str, ...]:
        return self._rows[index]["has"]

    def title(self, index: int) -> list[str]:
        return [self._rows[index]["title"]] if "title" in self.modalities(index) else []

    def table(self, index: int) -> list[tuple[str, str]] | None:
        return self._rows[index]["table"] or None

    def regions(self, index: int) -> Regions | None:
        return self._features(index, "regions")

    def video(self, index: int) -> np.ndarray | None:
        return self._features(index, "video")

    def audio(self, index: int) -> np.ndarray | None:
        return self._features(index, "audio")

    def label(self, index: int) -> int:
        return self._number[self._class(self._rows[index])]

    def coarse(self, index: int) -> str:
        return self._class(self._rows[index])

    def fine(self, index: int) -> str:
        return self._rows[index]["names"][self._fine]

    def media(self, index: int, key: str) -> str | None:
        """The file of an image, a video or a sound that a row names; None where it names none."""
        name = self._rows[index].get(key)
        return None if name is None or name.endswith(FEATURES) else name

    def picture(self, index: int) -> bytes | None:
        """The image of a product as people look at it; None where there is none."""
        name = self.media(index, "image")
        return None if name is None else self.read(name)

    def words(self, step: int = 1) -> Iterator[str]:
        for row in self._rows[::step]:
            yield row.get("title") or ""
            yield from (text for pair in row["table"] for text in pair)

    def _found(self, row: dict) -> tuple[str, ...]:
        """The modalities that a product has."""
        has = {"title": bool(row.get("title", "").strip()),
               "table": any(value for _, value in row["table"])}
        for name, key in MEDIA.items():
            has[name] = row.get(key, "").endswith(FEATURES) or any(
                row["id"] in store for store in self._stores[name])
        return tuple(name for name in MODALITIES if has[name])

    def _features(self, index: int, name: str):
        """Features of a product, None where it has none; raises OSError."""
        row = self._rows[index]
        if name not in row["has"]:
            return None
        file = row.get(MEDIA[name], "")
        if file.endswith(FEATURES):
            return parse_features(self.read(file))
        return next(store for store in self._stores[name] if row["id"] in store).read(row["id"])

    def _class(self, row: dict) -> str:
        return row["names"][self._coarse]

    def _class_names(self, classes) -> list[str]:
        """The option `classes` as names."""
        if not isinstance(classes, str):
            return list(classes)
        try:
            rows = list(read_rows(classes, len, '"shoes"', self.row_keys))
            return list(dict.fromkeys(row for row in rows if isinstance(row, str))) or sorted(
                {_names(_named(row))[self._coarse] for row in rows})
        except (UserError, ValueError, IndexError) as error:
            self._wrong.append(f"The classes {classes} cannot be used: {first_line(error)}.")
            return []

    def _opened(self, open_one, paths) -> list:
        """What is at one or several paths; what is wrong with them is kept for the end."""
        opened, wrong = open_all(open_one, paths)
        self._wrong += wrong
        return opened


def _names(row: dict) -> list[str]:
    """The names of class and instance of a row, from coarse to fine."""
    category = row.get("category", [])
    names = [category] if isinstance(category, str) else list(category)
    if not all(isinstance(name, str) for name in names):
        raise ValueError('has a "category" that is neither a text nor a list of texts')
    return [*names, *filter(None, [row.get("instance")])]


def _named(row) -> dict:
    """A row under our names of its keys; raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object such as {ROW_FORMAT}, but is {str(row)[:99]}")
    ours = {key: next((row[name] for name in (key, *others) if row.get(name) is not None), None)
            for key, others in ROW_KEYS.items()}
    ours = {key: value for key, value in ours.items() if value is not None}
    for key in {"title", "image", "video", "audio", "instance"} & ours.keys():
        if not isinstance(ours[key], str):
            raise ValueError(f'must have a text as "{key}", but has {str(ours[key])[:99]}')
    if "id" not in ours and "image" not in ours:
        raise ValueError('must have an "id", or an "image" to be named after')
    name = ours.get("id", os.path.splitext(os.path.basename(ours.get("image", "")))[0])
    return ours | {"id": str(name)}


def checked_row(product) -> dict:
    """A product that is given in Python as the row of a manifest, under our names and with its
    table parsed. Of `image`, `video` and `audio` it has the names of files of features, or these.

    Raises:
        UserError: it is no such row.
    """
    held = {key: value for key, value in product.items()
            if key in MEDIA.values() and not isinstance(value, (str, type(None)))}
    try:
        row = _named({"id": "", **product, **dict.fromkeys(held)}) | held
        table = parse_table(row.get("table"))
    except ValueError as error:
        raise UserError(f"A product cannot be used: it {error}.") from None
    if not row.keys() & {"title", "table", *MEDIA.values()}:
        raise UserError(f"A product has no modality but {', '.join(product) or 'nothing'}; give "
                        f"it some of title, table, {', '.join(MEDIA.values())}.")
    return row | {"table": table}


def raw_value(row: dict, field: str):
    """The raw value of a modality of a `checked_row`.

    Raises:
        UserError: a file holds no features. OSError: it cannot be read.
    """
    if field == "title":
        return [row["title"]] if "title" in row else []
    if field == "table":
        return row["table"] or None
    value = row.get(MEDIA[field])
    if not isinstance(value, str):
        return value
    if not value.endswith(FEATURES):
        raise UserError(f"A product has the file {value} as its {MEDIA[field]}, which holds no "
                        f"features; make them with `albef features {MEDIA[field]}`.")
    return parse_features(read_bytes(value))
