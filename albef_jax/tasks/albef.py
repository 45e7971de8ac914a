"""What the six ALBEF tasks share: a model on images and texts, and its part of the config."""

import jax.numpy as jnp

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.number import NumberField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.models.fused import CHOICES
from albef_jax.models.layers import initial_std
from albef_jax.models.stack import REMAT_POINTS
from albef_jax.objectives import distillation
from albef_jax.tasks.base import Task

MODEL = dict(
    image_size=256, patch_size=16, vit_width=768, vit_depth=12, vit_heads=12, vit_mlp_ratio=4.0,
    text_width=768, text_layers=6, fusion_layers=6, text_heads=12, text_mlp_width=3072,
    max_positions=512, embed_dim=256, dropout=0.1, attention_dropout=0.1, dtype="bfloat16",
    init_std=0.02,  # of fresh encoder weights; narrow models want 0.02 sqrt(768 / width)
    scan=False,  # layers as a loop: compiles sooner
    remat=False,  # less memory: activations inside a layer are computed twice
    remat_save=(),  # but not these of REMAT_POINTS
    attention="auto",  # to image tokens, see `models.fused`; 'plain', 'fused'
    # Set from the tokenizer when training starts.
    vocab_size=30522, pad_id=0, cls_id=101, mask_id=103)
INIT = dict(  # weights that a fresh run starts from; a resumed one has its own
    bert="",  # a folder or a Hugging Face name; the tokenizer must be that model's
    bert_layers=(),  # its layer for each text and fusion layer, -1: fresh; (): one to one
    bert_tie=False,  # where its decoder of words differs from its word embeddings, take the latter
    vit="")  # a file, a folder or a Hugging Face name; positions are interpolated
REMAT = {"model.remat": True, "model.remat_save": ()}


class AlbefTask(Task):
    """See `tasks.base.Task`.

    Attributes:
      TEXTS: how the public code reads texts, at official size: values of the block `data`.
    """

    TEXTS: dict = {}

    module = None  # linen class of a `model` block, called with images, text ids and mask
    OBJECTIVE: dict = {}  # defaults of the block `objective`
    RULES: dict = {}  # name of a task -> the `Rule` for starting from its weights
    views = 1  # images per text; with several, a batch's images are `[b, views, s, s, 3]`
    limits = {
        **{f"model.{name}": (1, 2**20) for name in (
            "patch_size", "vit_width", "vit_heads", "text_width", "text_heads", "text_mlp_width",
            "max_positions", "embed_dim", "vocab_size")},
        **{f"model.{name}": (1, 1024) for name in ("vit_depth", "text_layers", "fusion_layers")},
        **{f"model.{name}": (0, None) for name in ("pad_id", "cls_id", "mask_id")},
        "model.image_size": (1, 16384), "model.vit_mlp_ratio": (1.0, 64.0),
        "model.init_std": (0.0, 1.0), "init.bert_layers": (-1, None),
        "objective.temperature": (0.001, None), "objective.alpha_ramp_steps": (-1, None),
        "objective.mask_replace": (0.0, 1.0),
        **{name: (0.0, 1.0) for name in (
            "model.dropout", "model.attention_dropout", "objective.momentum", "objective.alpha",
            "objective.alpha_itc", "objective.alpha_mlm", "objective.mask_rate",
            "objective.text_budget")},
        "objective.match_weight": (0.001, 1000.0),
        "objective.random_negatives": (0.0, 1.0), "objective.random_steps": (0, None),
        "objective.queue_size": (0, None), "objective.mlm_budget": (0, None)}
    choices = {"model.dtype": ("float32", "bfloat16"), "model.remat_save": REMAT_POINTS,
               "model.attention": CHOICES, "objective.negatives": ("hard", "random"),
               "objective.positives": ("pair", "image")}
    # How the same is computed.
    free_keys = ("model.scan", "model.remat", "model.remat_save", "model.attention")
    lighter = (
        {"model.remat": True, "model.remat_save": ("qkv", "attention")},
        REMAT,
        {"accumulation": 2}, REMAT | {"accumulation": 2},
        {"accumulation": 4}, REMAT | {"accumulation": 4},
        REMAT | {"mesh.fsdp": 4}, REMAT | {"mesh.fsdp": 8}, REMAT | {"mesh.fsdp": 16},
        {"model.dtype": "bfloat16"})
    smaller = ("model.image_size", "batch_size")

    def __init__(self, config):
        self.objective, self.model = config.objective, self.module(config.model)

    @classmethod
    def defaults(cls):
        return dict(model=MODEL, init=INIT, objective=cls.OBJECTIVE,
                    data={**ImageField.defaults, **TextField.defaults})

    @classmethod
    def fields(cls, config):
        return {"image": ImageField(config.data, config.model.image_size, cls.views),
                "text": TextField(config.data, config.model), "image_id": NumberField("image_id")}

    @classmethod
    def check(cls, config):
        m, data = config.model, config.data
        if m.image_size % m.patch_size:
            raise UserError(
                f"model.image_size {m.image_size} is not a multiple of model.patch_size "
                f"{m.patch_size}; set it to {m.image_size // m.patch_size * m.patch_size}.")
        for tower in ("vit", "text"):
            width, heads = m[f"{tower}_width"], m[f"{tower}_heads"]
            if width % heads:
                raise UserError(f"model.{tower}_width {width} is not a multiple of "
                                f"model.{tower}_heads {heads}; change one of them.")
        for name in ("text_length", "eval_text_length", "answer_length"):  # those that a task has
            if data.get(name, 0) > m.max_positions:
                raise UserError(
                    f"data.{name} {data[name]} exceeds model.max_positions {m.max_positions}; "
                    "lower the first or raise the second.")

    @classmethod
    def resolve(cls, config, tokenizer, steps_per_epoch):
        super().resolve(config, tokenizer, steps_per_epoch)
        if config.objective.get("alpha_ramp_steps", 0) < 0:
            config.objective.alpha_ramp_steps = steps_per_epoch

    @classmethod
    def facts(cls, config):
        m = config.model
        return [f"{m.image_size} px images", f"{m.vit_depth} image, {m.text_layers} text and "
                f"{m.fusion_layers} fusion layers", m.dtype]

    @classmethod
    def from_other(cls, name):
        return cls.RULES.get(name)

    def init(self, rng):
        temperature = self.objective.get("temperature")
        temp = {} if temperature is None else {"temp": jnp.asarray(temperature, jnp.float32)}
        return {**super().init(rng), **temp}

    def init_boxed(self, rng):
        """The weights of the encoders are drawn with `model.init_std`."""
        m = self.model.config
        views = (self.views,) if self.views > 1 else ()
        image = jnp.zeros((1, *views, m.image_size, m.image_size, 3), jnp.uint8)
        ids_bl = jnp.full((1, 2), m.cls_id, jnp.int32)
        with initial_std(m.init_std):
            return self.model.init(
                rng, *self.images(image), ids_bl, jnp.ones_like(ids_bl))["params"]

    def images(self, image):
        """The images of a batch as the model takes them, a tuple."""
        return (image,)

    def apply(self, params, method, *args, part=None, key=None, **options):
        """A method of the model (None: its call) or of a part of it; with a key, with dropout."""
        def of_part(model, *args, **options):
            return method(getattr(model, part), *args, **options)

        if key is not None:
            options |= {"deterministic": False, "rngs": {"dropout": key}}
        return self.model.apply({"params": params}, *args, **options,
                                method=of_part if part else method)


class Distilled(AlbefTask):
    """A task whose answers or classes are softened by a teacher with a copy of every parameter."""

    OBJECTIVE = dict(momentum=0.995, alpha=0.4,
                     alpha_ramp_steps=-1)  # -1: one epoch

    def teacher_of(self, params):
        return params

    def schedule(self, step):
        """`alpha`, the weight of the teacher's prediction."""
        o = self.objective
        return {"alpha": distillation.alpha_at(step, o.alpha, o.alpha_ramp_steps)}
