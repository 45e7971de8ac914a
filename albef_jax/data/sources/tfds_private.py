"""What we need of TFDS and has no public name: here alone; test_tfds_private sees it change.

`builder_from_files` opens a set on disk by name, config and version without its code, which
`tfds.builder` would import and prefer. `ADAPTER_FOR_FORMAT` reads the records of a file in any
format as they are, for the conversion to ArrayRecord: TFDS's own, `tfds convert_format`, is no
public function either, goes on past damaged shards, and leaves half a copy when it is stopped.
"""

from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT
from tensorflow_datasets.core.read_only_builder import builder_from_files

__all__ = ["ADAPTER_FOR_FORMAT", "builder_from_files"]
