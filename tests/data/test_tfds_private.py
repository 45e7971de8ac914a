"""What we use of TFDS without a public name is still there, and does what we think it does."""

import inspect

import numpy as np
import pytest
import tensorflow_datasets as tfds

from albef_jax.data.sources import tfds_private
from albef_jax.data.sources.tfds_convert import write_records


@pytest.fixture
def numbers(tmp_path):
    """The folder of a set of three examples, of which TFDS has no code."""
    features = tfds.features.FeaturesDict({"number": np.int64})
    folder = tmp_path / "numbers" / "1.0.0"
    folder.mkdir(parents=True)
    names = tfds.core.ShardedFileTemplate(
        dataset_name="numbers", data_dir=folder, split="train", filetype_suffix="array_record")
    size = write_records(names.sharded_filepath(shard_index=0, num_shards=1),
                         [features.serialize_example({"number": i}) for i in range(3)])
    split = tfds.core.SplitInfo(name="train", shard_lengths=[3], num_bytes=size,
                                filename_template=names)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], version="1.0.0",
        filename_template=names, check_data=False)
    return tmp_path


@pytest.mark.parametrize("name", ["numbers", "numbers:1.0.0", "numbers:1.*.*"])
def test_builder_from_files(numbers, name):
    builder = tfds_private.builder_from_files(name, data_dir=str(numbers))
    assert builder.data_dir == str(numbers / "numbers" / "1.0.0")
    assert [row["number"] for row in builder.as_data_source("train")] == [0, 1, 2]
    with pytest.raises(tfds.core.DatasetNotFoundError):
        tfds_private.builder_from_files("letters", data_dir=str(numbers))


def test_adapters_read_records_as_they_are(tmp_path):
    tf = pytest.importorskip("tensorflow")
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for record in (b"one", b"", b"\0\xff"):
            writer.write(record)
    adapter = tfds_private.ADAPTER_FOR_FORMAT[tfds.core.FileFormat.TFRECORD]
    assert list(inspect.signature(adapter.make_tf_data).parameters)[0] == "filename"
    found = [record.numpy() for record in adapter.make_tf_data(tmp_path / "records")]
    assert found == [b"one", b"", b"\0\xff"]


def test_our_records_are_those_of_tfds(tmp_path):
    adapter = tfds_private.ADAPTER_FOR_FORMAT[tfds.core.FileFormat.ARRAY_RECORD]
    records = [b"one" * 100, b"", b"\0\xff"]
    adapter.write_examples(tmp_path / "theirs", enumerate(records))
    assert write_records(tmp_path / "ours", records) == 302
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_full_disk_is_an_os_error():
    with pytest.raises(OSError, match="No space left on device"):
        write_records("/dev/full", [b"x" * 100_000] * 99)
