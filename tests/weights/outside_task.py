"""A task, its field and its source as somebody else would write them: no image, text or tokenizer.

It is the config file of its own runs: `albef train --config tests/weights/outside_task.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.config import default_config
from albef_jax.data.fields import Field
from albef_jax.data.sources.base import Source
from albef_jax.tasks.base import Aux, Task


class VectorField(Field):
    """Array `vector` float32 `[n]`, from a list of numbers; a source says by what to divide."""

    def __init__(self, size):
        self._size, self._unit = size, None

    def open(self, facts, tokenizer):
        self._unit = facts["unit"]

    def spec(self):
        return {"vector": jax.ShapeDtypeStruct((self._size,), np.float32)}

    def load_one(self, value, rng, train):
        if len(value) != self._size:
            raise OSError(f"{len(value)} numbers")
        return {"vector": np.asarray(value, np.float32) / self._unit}


class Vectors(Source):
    """Sixteen vectors."""

    fields = {"vector": {"unit": 2.0}}
    fingerprint = "vectors"

    def __len__(self):
        return 16

    def name(self, index):
        return f"vector {index}"

    def vector(self, index):
        return [index, 1.0, -index]


class Linear(Task):
    """Learns the sum of a vector; half of its parameters have a teacher, and it counts batches."""

    def __init__(self, config):
        self._size, self._outputs = config.model.size, config.model.outputs

    @classmethod
    def defaults(cls):
        return dict(model=dict(size=3, outputs=2, name="linear"), objective=dict(momentum=0.5))

    @classmethod
    def fields(cls, config):
        return {"vector": VectorField(config.model.size)}

    def init_boxed(self, rng):
        kernel = jax.random.normal(rng, (self._size, self._outputs))
        return {"linear": {"kernel": kernel, "bias": jnp.ones(self._outputs)}}

    def teacher_of(self, params):
        return {"linear": {"kernel": params["linear"]["kernel"]}}

    def init_memory(self, rng):
        return {"batches": jnp.zeros((), jnp.int32)}

    def update_memory(self, memory, enqueue):
        return {"batches": memory["batches"] + 1}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        error = project(params, group["vector"]) - jnp.sum(group["vector"], axis=1)[:, None]
        return (loss := jnp.mean(error**2)), Aux({"loss": loss}, {}, {})

    def predict_fns(self):
        return {"project": project}


def project(params, vector):
    """Vectors `[b, n]` -> `[b, outputs]`."""
    return vector @ params["linear"]["kernel"] + params["linear"]["bias"]


def get_config(variant=None):
    """Two steps of 8 vectors."""
    config = default_config(f"{__file__}:Linear")
    config.batch_size, config.group_size, config.steps = 8, 4, 2
    config.data.source = dict(kind=f"{__file__}:Vectors")
    return config
