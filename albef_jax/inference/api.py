"""A trained model in Python: `albef_jax.load(PATH)`, then what its task offers.

| task | methods |
|---|---|
| `pretrain`, `retrieval` | `encode_*`, `match`, `index_*`, `search`, `explain` |
| `vqa` | `answer` |
| `ve`, `nlvr` | `classify` |
"""

from etils import epath
import jax

from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.inference.answers import AnswerModel
from albef_jax.inference.classes import ClassModel
from albef_jax.inference.features import FeatureModel
from albef_jax.inference.model import Model
from albef_jax.weights.report import Report, unflatten
from albef_jax.weights.stored import is_export, read_export, read_parts
from albef_jax.run.workdir import read_config

WEIGHTS = ("online", "momentum")
MODELS = {"pretrain": FeatureModel, "retrieval": FeatureModel, "vqa": AnswerModel,
          "ve": ClassModel, "nlvr": ClassModel, "nlvr_pretrain": Model}


def load(path, weights="online", dtype="float32", batch_size=32):
    """Loads a trained model, ready for what its task offers (see this module's table).

    Args:
      path: a work directory (its latest checkpoint) or a folder of `albef export --format
        safetensors`; local or any path that epath knows.
      weights: 'online', or 'momentum' for the teacher (heads without a teacher stay online).
      dtype: of the matrix products, 'float32' or 'bfloat16'. Results are float32.
      batch_size: images, texts or pairs that run at once.

    Returns:
      A `Model`; a method that its task does not offer says so.

    Raises:
      UserError: the path holds no complete model, or an argument has no meaning.
    """
    if weights not in WEIGHTS or dtype not in ("float32", "bfloat16"):
        raise UserError(f"load got weights={weights!r} and dtype={dtype!r}; choose 'online' or "
                        "'momentum', and 'float32' or 'bfloat16'.")
    stored = read_export(path, Report(str(path))) if is_export(path) else None
    config, tokenizer = (stored.config, stored.tokenizer) if stored else (
        read_config(epath.Path(path)), epath.Path(path) / "tokenizer")
    if config.task not in MODELS:
        raise UserError(f"{path} is a run of the unknown task {config.task!r}; load one of "
                        f"{', '.join(MODELS)}.")
    if tokenizer is None or not epath.Path(tokenizer).is_dir():
        raise UserError(f"{path} has no folder tokenizer; copy it from where the model was "
                        "trained, or give albef import --tokenizer.")
    wanted = ("params", "teacher") if weights == "momentum" else ("params",)
    parts = unflatten(stored.leaves) if stored else read_parts(path, config, wanted)
    params = parts["params"] | (parts["teacher"] if weights == "momentum" else {})
    config = config.copy_and_resolve_references().unlock()
    config.model.dtype = dtype
    return MODELS[config.task](config.lock(), jax.device_put(params, jax.devices()[0]),
                               load_tokenizer(str(tokenizer)), batch_size)
