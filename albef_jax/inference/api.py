"""A trained model in Python: `albef_jax.load(PATH)`, then what its task offers.

| functions of the task | methods |
|---|---|
| `encode_image`, `encode_text`, `match` | `encode_*`, `match`, `index_*`, `search`, `explain` |
| `encode`, `rank`, `generate` | `answer` |
| `classify`, of images and texts | `classify` |
| `encode`, of products | `encode`, `index_products`, `search` |
| `embed_image`, `match`, of regions and texts | `match` |
| any | `predict` |
"""

import itertools

from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
import jax

from albef_jax.errors import UserError
from albef_jax.inference.answers import AnswerModel, ClassModel
from albef_jax.inference.features import FeatureModel
from albef_jax.inference.model import Model
from albef_jax.inference.products import ProductModel
from albef_jax.inference.regions import RegionModel
from albef_jax.run.restore import read_tokenizer
from albef_jax.run.workdir import read_config
from albef_jax.tasks import make_task, task_class
from albef_jax.weights.hub import PREFIX, Address, downloaded
from albef_jax.weights.report import Report
from albef_jax.weights.stored import is_export, read_export, read_parts

WEIGHTS = ("online", "momentum")
# The first that a task has all for.
MODELS = (FeatureModel, AnswerModel, ClassModel, ProductModel, RegionModel, Model)


def load(path, weights="online", dtype="float32", batch_size=32, facts=None, text_length=None):
    """Loads a trained model, ready for what its task offers (see this module's table).

    Args:
      path: a work directory (its latest checkpoint) or a folder of `albef export --format
        safetensors`; local or any path that epath knows; or `hf://ORG/NAME@REVISION` on the
        Hugging Face hub, the newest without a revision.
      weights: 'online', or 'momentum' for the teacher (heads without a teacher stay online).
      dtype: of the matrix products, 'float32' or 'bfloat16'. Results are float32.
      batch_size: images, texts or pairs that run at once.
      facts: field name -> facts of a data source that the field is opened with, where it wants
        other ones than those of captions.
      text_length: tokens of a text that are read, and as many words; None: as in evaluation.

    Returns:
      A `Model`; a method that its task does not offer says so.

    Raises:
      UserError: the path holds no complete model, or an argument has no meaning.
    """
    if weights not in WEIGHTS or dtype not in ("float32", "bfloat16"):
        raise UserError(f"load got weights={weights!r} and dtype={dtype!r}; choose 'online' or "
                        "'momentum', and 'float32' or 'bfloat16'.")
    if str(path).startswith(PREFIX):
        path = downloaded(Address.of(str(path)))
    stored = read_export(path, Report(str(path))) if is_export(path) else None
    config = for_use(stored.config if stored else read_config(epath.Path(path)), dtype, path,
                     text_length)
    task, folder = make_task(config), epath.Path(path)
    tokenizer = read_tokenizer(folder if folder.is_dir() else folder.parent, config)
    wanted = ("params", "teacher") if weights == "momentum" else ("params",)
    leaves = stored.leaves if stored else flatten_dict(read_parts(path, config, wanted))
    params = unflatten_dict({leaf[1:]: value for part in wanted
                             for leaf, value in leaves.items() if leaf[0] == part})
    return model_class(task.predict_fns(), task.fields(config))(
        config, jax.device_put(params, jax.devices()[0]), tokenizer, batch_size, facts)


def for_use(config, dtype, path, text_length=None):
    """A run's config for matrix products of this type, and for texts of this length.

    UserError if its model has no type, or reads no texts of this length. Images may be in any form, and are seen also by a model that was trained without.
    """
    config = config.copy_and_resolve_references().unlock()
    if "engine" in config.data:
        config.data.update(engine="pillow", blind=False)  # TensorFlow takes seconds to import
    if "dtype" in config.model:
        config.model.dtype = dtype
    elif dtype != "float32":
        raise UserError(f"{path} is a run of the task {config.task!r}, whose model has no dtype; "
                        f"leave out dtype={dtype!r}.")
    if text_length is not None:
        if "eval_text_length" not in config.data or text_length < 2:
            raise UserError(f"{path} cannot be loaded with text_length={text_length}: "
                            f"{'its task reads no texts' if text_length > 1 else 'give 2 or more'}"
                            "; or leave it out.")
        config.data.update(eval_text_length=text_length, eval_max_words=text_length)
        task_class(config.task).check(config)
    return config.lock()


def model_class(functions, fields):
    """The class of `MODELS` for a task with these functions and fields, both by name."""
    def has(name, wanted):
        return isinstance(fields.get(name), wanted)

    return next(kind for kind in MODELS if set(kind.calls) <= set(functions)
                and all(itertools.starmap(has, kind.asks.items()))
                and (not kind.asks_some or any(itertools.starmap(has, kind.asks_some.items()))))
