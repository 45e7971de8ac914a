"""TFDS data sets that are stored as TFRecord get a copy with random access, once."""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from albef_jax.data.sources.tfds_private import ADAPTER_FOR_FORMAT
from albef_jax.errors import UserError, first_line
from albef_jax.files import completed, locked

ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
INFO = "dataset_info.json"


def with_random_access(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """The builder, or that of a copy as ArrayRecord, which is made if it is not there.

    The copy of `.../1.0.0` is `.../1.0.0.array_record`, complete or absent; the original is only
    read. Of several processes one makes it.

    Raises:
        UserError: TensorFlow, which reads TFRecord, is missing; the original is damaged, or
            differs from an earlier copy; the folder cannot be written.
    """
    if ARRAY_RECORD in builder.info.available_file_formats():
        return builder
    original = epath.Path(builder.data_dir)
    copy = original.parent / f"{original.name}.array_record"
    try:
        if not copy.exists():
            with locked(copy, "converting the same data set"):
                if not copy.exists():
                    _convert(builder, original, copy)
    except OSError as error:
        raise UserError(f"The copy {copy} cannot be written ({error.strerror or error}); free some "
                        "space or set data_dir to a copy of the data that may be written "
                        "to.") from None
    converted = tfds.builder_from_directory(copy)
    if _sizes(converted) != _sizes(builder):
        raise UserError(f"{copy} is a copy of other data than {original} holds now; delete it, and "
                        "it is made anew.")
    return converted


def write_records(path, records: Iterable[bytes]) -> int:
    """Writes a shard as TFDS does; returns the bytes of its records, raises OSError."""
    writer, size = ArrayRecordWriter(os.fspath(path), "group_size:1"), 0
    for record in records:
        _checked(writer.write, record)
        size += len(record)
    _checked(writer.close)
    return size


def _checked(write, *record: bytes) -> None:
    try:
        write(*record)
    except RuntimeError as error:
        raise OSError(first_line(error)) from None


def _sizes(builder) -> dict:
    return {name: (s.shard_lengths, s.num_bytes) for name, s in builder.info.splits.items()}


def _convert(builder, original: epath.Path, copy: epath.Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{original} is stored as {builder.info.file_format.value}, which only "
                        "TensorFlow reads; install tensorflow-cpu for the conversion, or prepare "
                        "the set with file_format='array_record'.")
    size = sum(split.num_bytes for split in builder.info.splits.values())
    print(f"converting {original} ({size / 1e9:.2f} GB) to ArrayRecord, once; the copy is {copy}",
          file=sys.stderr, flush=True)
    with completed(copy) as folder:
        _write(builder.info, original, epath.Path(folder))


def _write(info: tfds.core.DatasetInfo, original: epath.Path, folder: epath.Path) -> None:
    """All shards under their names, the other files as they are, and the new format's name."""
    folder.mkdir()
    total = sum(split.num_examples for split in info.splits.values())
    with tqdm(total=total, desc="convert", unit="example", disable=None) as bar:
        for split in info.splits.values():
            name = split.filename_template.replace(data_dir=folder,
                                                   filetype_suffix=ARRAY_RECORD.file_suffix)
            for shard, (path, length) in enumerate(zip(split.filepaths, split.shard_lengths)):
                target = name.sharded_filepath(shard_index=shard, num_shards=split.num_shards)
                write_records(target, _records(info.file_format, path, length, bar))
    for path in original.iterdir():
        if f".{info.file_format.file_suffix}" not in path.name and not path.is_dir():
            path.copy(folder / path.name)
    described = json.loads((original / INFO).read_text())
    (folder / INFO).write_text(json.dumps(described | {"fileFormat": ARRAY_RECORD.value}, indent=2))


def _records(file_format, path: epath.Path, length: int, bar) -> Iterator[bytes]:
    """The records of a shard; raises a UserError if it is damaged or has another number."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow already runs: its settings stay
        tf.config.set_visible_devices([], "GPU")
    count = 0
    try:
        for count, record in enumerate(ADAPTER_FOR_FORMAT[file_format].make_tf_data(path), 1):
            yield record.numpy()
            bar.update()
        problem = f"it has {count} records" if count != length else ""
    except tf.errors.OpError as error:
        problem = first_line(error)
    if problem:
        raise UserError(f"The shard {path} of {length} records cannot be converted ({problem}); "
                        "prepare the data set again.")
