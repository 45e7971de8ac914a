"""Sounds and texts: a task, a source and an evaluator from outside, as in docs/extending.md."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from albef_jax.data.fields.base import Field
from albef_jax.data.fields.text import TextField
from albef_jax.data.sources.base import Source
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.batches import Rows, percent
from albef_jax.tasks.base import Aux, Shown, Task

PITCHES = {"low": 4, "middle": 10, "high": 16}  # the band of 20 that is loudest
MOTIONS = {"falling": -0.15, "steady": 0.0, "rising": 0.15}  # bands per frame
BANDS = 20


class Tones(Source):
    """Made-up tones as spectrograms float32 `[frames, 20]` of 10 to 24 frames, and what they are.

    Args:
        size: number of examples. seed: of the tones.
    """

    fields = {"sound": {"bands": BANDS}, "text": {"cleaning": "caption"}}

    def __init__(self, size: int, seed: int = 0):
        self._size, self._seed = size, seed
        self.fingerprint = f"tones size={size} seed={seed}"

    def __len__(self):
        return self._size

    def name(self, index):
        return f"tone {index}"

    def kind(self, index):
        return list(PITCHES)[index % 3], list(MOTIONS)[index // 3 % 3]

    def text(self, index):
        pitch, motion = self.kind(index)
        return [f"A {pitch}, {motion} tone.", f"a tone that is {pitch} and {motion}"]

    def sound(self, index):
        rng = np.random.default_rng([self._seed, index])
        pitch, motion = self.kind(index)
        frames = np.arange(rng.integers(10, 25))[:, None]
        centre = PITCHES[pitch] + MOTIONS[motion] * frames + rng.normal(0, 0.5)
        loud = np.exp(-0.5 * (np.arange(BANDS) - centre) ** 2)
        return (loud + 0.1 * rng.normal(size=loud.shape)).astype(np.float32)


class SoundField(Field):
    """Arrays `sound` float32 `[t, bands]`, cut or filled up with zeros, and `sound_mask` `[t]`."""

    defaults = dict(sound_length=20)  # frames
    limits = dict(sound_length=(1, None))

    def __init__(self, data):
        self._length = data.sound_length

    def spec(self):
        return {"sound": jax.ShapeDtypeStruct((self._length, BANDS), np.float32),
                "sound_mask": jax.ShapeDtypeStruct((self._length,), np.float32)}

    def load_one(self, value, rng, train):
        value = np.asarray(value)
        if value.ndim != 2 or value.shape[1] != BANDS or not len(value):
            raise OSError(f"shape {list(value.shape)}, not [frames, {BANDS}]")
        value = value[:self._length]
        empty = self._length - len(value)
        return {"sound": np.pad(value, [(0, empty), (0, 0)]),
                "sound_mask": np.arange(self._length) < len(value)}


class SoundModel(nn.Module):
    """Sounds `[b, t, bands]` and texts `[b, l]` as unit vectors `[b, embed_dim]`.

    Attributes:
      config: the block `model` of a config.
    """

    config: object

    def setup(self):
        c = self.config
        self.frame = nn.Dense(c.width)
        self.change = nn.Dense(c.width)  # of the loudest band over time
        self.sound_out = nn.Dense(c.embed_dim)
        self.word = nn.Embed(c.vocab_size, c.width)
        self.text_out = nn.Dense(c.embed_dim)
        self.temp = self.param("temp", nn.initializers.constant(0.1), ())

    def __call__(self, sound, sound_mask, text_ids, text_mask):
        return self.encode_sound(sound, sound_mask), self.encode_text(text_ids, text_mask), (
            self.temp)

    def encode_sound(self, sound, sound_mask):
        time = jnp.cumsum(sound_mask, axis=1)[..., None] / sound.shape[1]
        frames = nn.gelu(self.frame(sound)) + nn.gelu(self.change(sound * time))
        return unit(self.sound_out(mean(frames, sound_mask)))

    def encode_text(self, text_ids, text_mask):
        return unit(self.text_out(nn.gelu(mean(self.word(text_ids), text_mask))))


def mean(x, mask):
    """Over the real rows of `[b, n, d]`."""
    weight = mask[..., None].astype(x.dtype)
    return jnp.sum(x * weight, axis=1) / jnp.sum(weight, axis=1)


def unit(x):
    """Unit vectors along the last axis."""
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class SoundText(Task):
    """Which sound belongs to which text? Symmetric InfoNCE inside the group."""

    def __init__(self, config):
        self.example = {name: one for field in self.fields(config).values()
                        for name, one in field.spec().items()}
        self.model = SoundModel(config.model)

    @classmethod
    def defaults(cls):
        return dict(
            # The words are the tokenizer's: see `Task.resolve`.
            model=dict(width=32, embed_dim=16, vocab_size=100, pad_id=0, cls_id=2, mask_id=4),
            data={**SoundField.defaults, **TextField.defaults, "text_length": 12})

    @classmethod
    def fields(cls, config):
        return {"sound": SoundField(config.data), "text": TextField(config.data, config.model)}

    @classmethod
    def shown(cls, config):
        return [Shown("loss", "loss", "Contrastive loss", blind=float(np.log(config.group_size)),
                      note="dashed: all texts of the group alike"),
                Shown("accuracy", "accuracy", "Accuracy in training, %", share=True)]

    @classmethod
    def flops(cls, config):
        m, data = config.model, config.data
        frames = 2 * 2 * data.sound_length * BANDS * m.width
        return {"sound": 3 * (frames + 2 * m.width * m.embed_dim),
                "text": 3 * 2 * m.width * m.embed_dim}

    def init_boxed(self, rng):
        blank = {name: jnp.ones((1, *one.shape), one.dtype) for name, one in self.example.items()}
        return self.model.init(rng, **blank)["params"]

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        sound, text, temp = self.model.apply({"params": params}, **group)
        logits = sound @ text.T / jnp.maximum(temp, 0.01)
        own = jnp.arange(len(logits))
        each = [optax.softmax_cross_entropy_with_integer_labels(x, own) for x in (logits, logits.T)]
        total = (each[0].mean() + each[1].mean()) / 2
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == own)
        return total, Aux({"loss": total, "accuracy": accuracy}, {}, {})

    def predict_fns(self):
        def encode_sound(params, sound, sound_mask):
            return self.model.apply({"params": params}, sound, sound_mask,
                                    method=SoundModel.encode_sound)

        def encode_text(params, text_ids, text_mask):
            return self.model.apply({"params": params}, text_ids, text_mask,
                                    method=SoundModel.encode_text)

        return {"encode_sound": encode_sound, "encode_text": encode_text}


class KindEvaluator(Evaluator):
    """Share of sounds whose most similar text means the same, in percent."""

    options = Rows.options
    calls = ("encode_sound", "encode_text")
    asks = ("sound", "text")
    labels = {"kind": "right pitch and motion", "chance": "guessing"}
    headline = {"kind": "sounds that find their text"}
    charts = (Chart("Held-out sounds, %", {"kind": "right"}, blind="chance",
                    note="dashed: guessing", top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows = Rows(self)
        self.description = f"{len(self._rows)} sounds of 9 kinds"

    def names(self):
        return ("kind", "chance")

    def run(self, forward):
        sounds = self._rows.run(forward, forward["encode_sound"], "sounds")
        texts = self._rows.run(forward, forward["encode_text"], "texts")
        nearest = np.argmax(sounds @ texts.T, axis=1)
        kinds = [self.source.kind(index) for index in range(len(sounds))]
        yield "kind", percent(kinds[i] == kinds[j] for i, j in enumerate(nearest))
        yield "chance", 100 / 9
