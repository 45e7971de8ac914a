"""The scenes as a TFDS data set: made once, stored as ArrayRecord, read without TensorFlow."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import io
import pathlib
import shutil
import sys

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from albef_jax.errors import UserError
from albef_jax.files import cache_folder, locked
from albef_jax.scenes.generate import VERSION, generate
from albef_jax.scenes.levels import LEVELS, get_level

DEFAULT_SIZES = {"train": 20_000, "heldout": 1_000}


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """Which scenes: `sizes` maps a split to the number of its scenes."""

    level: str = "demo"
    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: DEFAULT_SIZES)
    seed: int = 0


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Rendered objects on a quiet background, true captions with their logical forms, the graph.

    Scene i is record i of its split.
    """

    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    BUILDER_CONFIGS = [ScenesConfig(name=level, level=level) for level in LEVELS]

    def _info(self) -> tfds.core.DatasetInfo:
        side = get_level(self.builder_config.level).side
        # Raw pixels: ArrayRecord compresses them as well as PNG does, and they read faster.
        image = tfds.features.Tensor(shape=(side, side, 3), dtype=np.uint8,
                                     encoding=tfds.features.Encoding.BYTES)
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, description=Scenes.__doc__, disable_shuffling=True,
            features=tfds.features.FeaturesDict({
                "image": image, "captions": tfds.features.Sequence(text), "forms": text,
                "graph": text}))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        sizes = self.builder_config.sizes
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split: str, size: int):
        return enumerate(generate(self.builder_config.level, split, self.builder_config.seed, size))


def open_scenes(level: str, split: str, size: int, seed: int, data_dir: str = "") -> Sequence[dict]:
    """The stored scenes 0 .. size-1 of a split, made first if they are not there in full.

    Several processes may ask at once: one makes them, the others wait.

    Args:
        data_dir: folder for data sets (UserError); by default `albef_jax/tfds` in the user's cache.

    Returns:
        Random access to records as of `make_scene`, texts as bytes.
    """
    root = pathlib.Path(data_dir or cache_folder("tfds")).expanduser()
    config = ScenesConfig(name=f"{level}_{split}_{size}_seed{seed}", level=level,
                          sizes={split: size}, seed=seed)
    folder = root / "scenes" / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "records", "making the same scenes"):
            records = _read(folder / str(Scenes.VERSION), split, size)
            return _prepare(config, root, split) if records is None else records
    except OSError as error:
        raise UserError(f"The scenes cannot be stored in {root} ({error.strerror or error}); name "
                        "another folder with data_dir.") from None


def _read(folder, split, size):
    """The records, or None if they are not there or damaged."""
    if not folder.exists():
        return None
    try:
        records = tfds.builder_from_directory(folder).as_data_source(split)
        records[len(records) - 1]  # the end of the last file
        return records if len(records) == size else None
    except Exception as error:  # of many types, which TFDS does not name
        print(f"The scenes in {folder} are damaged ({type(error).__name__}) and made again.",
              file=sys.stderr)
        return None


def _prepare(config, root, split):
    """Makes the records in place of damaged ones and of what killed processes left behind."""
    folder = root / "scenes" / config.name
    for leftover in (folder / str(Scenes.VERSION), *folder.glob("incomplete.*")):
        shutil.rmtree(leftover, ignore_errors=True)
    print(f"Making {config.sizes[split]} {config.level} scenes in {root} (once).", file=sys.stderr)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # What TFDS says of downloads and of custom configurations is not for the users of scenes.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        builder = Scenes(config=config, data_dir=root, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()  # writes aside, then renames
    finally:
        logging.set_verbosity(verbosity)
    return builder.as_data_source(split)
