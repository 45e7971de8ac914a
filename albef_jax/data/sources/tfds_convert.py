"""TFDS data sets that are stored as TFRecord get a copy with random access, once."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, file_adapters
from tqdm import tqdm

from albef_jax.errors import UserError

ARRAY_RECORD = file_adapters.FileFormat.ARRAY_RECORD


def with_random_access(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """The builder, or that of a copy as ArrayRecord, which is made if it is not there.

    The copy of `.../1.0.0` is `.../1.0.0.array_record`, complete or absent; the original is only
    read.

    Raises:
        UserError: TensorFlow, which reads TFRecord, is missing; the original is damaged, or
            differs from an earlier copy; the folder cannot be written.
    """
    if ARRAY_RECORD in builder.info.available_file_formats():
        return builder
    original = epath.Path(builder.data_dir)
    copy = original.parent / f"{original.name}.array_record"
    if not copy.exists():
        _convert(builder, original, copy)
    converted = tfds.builder_from_directory(copy)
    if _sizes(converted) != _sizes(builder):
        raise UserError(
            f"{copy} is a copy of other data than {original} holds now; delete it, and it is made "
            "anew."
        )
    return converted


def _sizes(builder) -> dict:
    return {name: (s.shard_lengths, s.num_bytes) for name, s in builder.info.splits.items()}


def _convert(builder, original: epath.Path, copy: epath.Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{original} is stored as {builder.info.file_format.value}, which only TensorFlow "
            "reads; install tensorflow-cpu for the conversion, or prepare the set with "
            "file_format='array_record'."
        )
    size = sum(split.num_bytes for split in builder.info.splits.values())
    print(
        f"converting {original} ({size / 1e9:.2f} GB) to ArrayRecord, once; the copy is {copy}",
        file=sys.stderr,
        flush=True,
    )
    unfinished = copy.parent / f"{copy.name}.unfinished.{os.getpid()}"
    try:
        unfinished.mkdir()
        _write(builder, original, unfinished)
        if not copy.exists():  # another process may have been faster
            unfinished.rename(copy)
    except OSError as error:
        raise UserError(
            f"The copy {copy} cannot be written ({error.strerror or error}); free some space or "
            "set data_dir to a copy of the data that may be written to."
        ) from None
    finally:
        if unfinished.exists():
            unfinished.rmtree()


def _write(builder, original: epath.Path, folder: epath.Path) -> None:
    """All shards under their names, the other files as they are, and the new format's name."""
    info, write = builder.info, file_adapters.ADAPTER_FOR_FORMAT[ARRAY_RECORD].write_examples
    total = sum(split.num_examples for split in info.splits.values())
    with tqdm(total=total, desc="convert", unit="example", disable=None) as bar:
        for split in info.splits.values():
            name = split.filename_template.replace(
                data_dir=folder, filetype_suffix=ARRAY_RECORD.file_suffix
            )
            for shard, (path, length) in enumerate(zip(split.filepaths, split.shard_lengths)):
                target = name.sharded_filepath(shard_index=shard, num_shards=split.num_shards)
                write(target, _records(info.file_format, path, length, bar))
    for path in original.iterdir():
        if f".{info.file_format.file_suffix}" not in path.name and not path.is_dir():
            path.copy(folder / path.name)
    proto = dataset_info.read_proto_from_builder_dir(original)
    proto.file_format = ARRAY_RECORD.value
    dataset_info.write_dataset_info_proto(proto, folder)


def _records(file_format, path: epath.Path, length: int, bar) -> Iterator[tuple[int, bytes]]:
    """The numbered records of a shard.

    Raises:
        UserError: the shard is missing, damaged, or has another number of records.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow already runs: its settings stay
        tf.config.set_visible_devices([], "GPU")
    count = 0
    try:
        for record in file_adapters.ADAPTER_FOR_FORMAT[file_format].make_tf_data(path):
            yield count, record.numpy()
            count += 1
            bar.update()
        problem = f"it has {count} records" if count != length else ""
    except tf.errors.OpError as error:
        problem = str(error.message).splitlines()[0]
    if problem:
        raise UserError(
            f"The shard {path} of {length} records cannot be converted ({problem}); prepare the "
            "data set again."
        )
