"""The analytic cost against the published accounting of ALBEF's step, and XLA's own count."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict
import pytest

from albef_jax.models import flops
from albef_jax.config import default_config
from albef_jax.models.albef import normalise_image
from albef_jax.models.classification import Nlvr
from albef_jax.models.imagebert import ImageBert, region_part, text_part
from albef_jax.models.scale import Scale
from albef_jax.models.vqa import Vqa
from albef_jax.tasks import make_task, task_class
from albef_jax.tasks.scale import sizes_of

OFFICIAL = SimpleNamespace(
    image_size=256, patch_size=16, vit_width=768, vit_depth=12, vit_heads=12, vit_mlp_ratio=4,
    text_width=768, text_layers=6, fusion_layers=6, text_heads=12, text_mlp_width=3072,
    vocab_size=30522, embed_dim=256)
OBJECTIVE = SimpleNamespace(queue_size=65536, itc=True)
BATCH = 512

# GFLOP per sample, rows as in the accounting: length 25 (the official truncation) and 30.
TABLE = {
    "vit_student": (139.18, 139.18),
    "vit_teacher": (46.39, 46.39),
    "text_student": (12.81, 15.39),
    "text_teacher": (4.27, 5.13),
    "fusion_itm": (56.21, 60.93),
    "fusion_mlm_student": (18.74, 20.31),
    "fusion_mlm_teacher": (6.25, 6.77),
    "mlm_head": (4.81, 5.77),
    "itc": (0.20, 0.20),
}


def with_total(terms):
    return terms | {"total": sum(terms.values())}


def gflop(length):
    counted = with_total(flops.pretrain_step(OFFICIAL, OBJECTIVE, length, BATCH))
    counted["mlm_head"] = counted.pop("mlm_head_student") + counted.pop("mlm_head_teacher")
    return {name: value / 1e9 for name, value in counted.items()}


@pytest.mark.parametrize("column,length", [(0, 25), (1, 30)])
def test_every_row_of_the_official_accounting(column, length):
    counted = gflop(length)
    assert set(counted) == set(TABLE) | {"total"}
    for name, row in TABLE.items():
        assert counted[name] == pytest.approx(row[column], abs=0.0051), name


def test_totals_of_the_official_accounting():
    assert gflop(25)["total"] == pytest.approx(288.8, abs=0.1)
    assert gflop(30)["total"] == pytest.approx(300.1, abs=0.1)


def test_forward_blocks():
    assert flops.vit_flops(OFFICIAL) / 1e9 == pytest.approx(46.39, abs=0.005)
    assert flops.text_flops(OFFICIAL, 30) / 1e9 == pytest.approx(2.56, abs=0.006)
    assert flops.fusion_flops(OFFICIAL, 25) / 1e9 == pytest.approx(6.25, abs=0.006)
    assert flops.mlm_head_flops(OFFICIAL, 1) / 1e9 == pytest.approx(0.048, abs=0.0005)


def test_vit_b16_at_224_agrees_with_open_clip():
    at_224 = SimpleNamespace(**{**vars(OFFICIAL), "image_size": 224})
    # open_clip's model profile lists 35.13 GFLOP for this tower.
    assert flops.vit_flops(at_224) / 1e9 == pytest.approx(35.13, abs=0.01)


def test_unequal_widths_match_the_compiled_matmuls():
    """One tiny cross-attention's image keys and values, against XLA's own count."""
    tiny = SimpleNamespace(
        image_size=32, patch_size=16, vit_width=24, vit_depth=1, vit_mlp_ratio=2,
        text_width=16, text_layers=0, fusion_layers=1, text_mlp_width=32, vocab_size=50,
        embed_dim=8)
    tokens, length, heads = 5, 7, 2

    def layer(x_ld, image_nd, weights):
        def attend(q, k, v):
            split = lambda a: a.reshape(a.shape[0], heads, -1)
            scores = jax.numpy.einsum("qhd,khd->hqk", split(q), split(k))
            return jax.numpy.einsum("hqk,khd->qhd", scores, split(v)).reshape(q.shape)

        q, k, v, o, cross_q, cross_k, cross_v, cross_o, up, down = weights
        x_ld = attend(x_ld @ q, x_ld @ k, x_ld @ v) @ o
        x_ld = attend(x_ld @ cross_q, image_nd @ cross_k, image_nd @ cross_v) @ cross_o
        return x_ld @ up @ down

    square, image = (16, 16), (24, 16)
    shapes = [square] * 4 + [square, image, image, square, (16, 32), (32, 16)]
    arrays = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    compiled = jax.jit(layer).lower(
        jax.ShapeDtypeStruct((length, 16), "float32"),
        jax.ShapeDtypeStruct((tokens, 24), "float32"), arrays).compile()
    assert flops.image_tokens(tiny) == tokens
    assert flops.fusion_flops(tiny, length) == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.02)


SMALL = FrozenConfigDict(default_config().model.to_dict() | dict(
    image_size=96, vit_width=512, vit_heads=8, vit_depth=2, text_width=384, text_heads=6,
    text_mlp_width=1536, text_layers=1, fusion_layers=2, vocab_size=3000, dtype="float32"))
QUESTION, ANSWER = 12, 7


def xla_flops(model, method, *inputs):
    """XLA's count of a method of a model on one example."""
    def shape(*sizes, kind=jnp.int32):
        return jax.ShapeDtypeStruct((1, *sizes), kind)

    named = {"image": shape(96, 96, 3, kind=jnp.uint8), "question": shape(QUESTION),
             "answer": jax.ShapeDtypeStruct((1, 1, ANSWER), jnp.int32),
             "states": shape(QUESTION, 384, kind=jnp.float32)}
    images = [jnp.zeros((1, 96, 96, 3), jnp.uint8)] * (2 if isinstance(model, Nlvr) else 1)
    ids = jnp.ones((1, 3), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *images, ids, ids))
    apply = jax.jit(lambda *args: model.apply(*args, method=method))
    return apply.lower(params, *(named[name] for name in inputs)).cost_analysis()["flops"]


def read_pair(model, first, second, ids, mask):
    """Nlvr without the short cut of its last layer, which needs [CLS] only."""
    images = model.visual_encoder(normalise_image(jnp.concatenate([first, second])))
    text = model.text_encoder.encode(ids, mask)
    return model.text_encoder.fuse_pairs(text, mask, *jnp.split(images, 2))


def write_answer(model, ids, mask, states, question_mask):
    """The answer decoder and its words."""
    decode = model.text_decoder
    return decode.predict_words(decode(ids, mask, states, question_mask))


def test_forward_passes_of_the_tasks_match_xla():
    """XLA counts elementwise work too, hence the tolerance."""
    one_image = flops.classification_forward(SMALL, QUESTION)
    assert sum(one_image.values()) == pytest.approx(
        xla_flops(Vqa(SMALL), Vqa.encode, "image", "question", "question"), rel=0.01)
    two_images = flops.classification_forward(SMALL, QUESTION, images=2)
    assert sum(two_images.values()) == pytest.approx(
        xla_flops(Nlvr(SMALL), read_pair, "image", "image", "question", "question"), rel=0.01)
    assert flops.decoder_flops(SMALL, ANSWER, QUESTION) == pytest.approx(
        xla_flops(Vqa(SMALL), write_answer, "answer", "answer", "states", "question"), rel=0.01)


def task_gflop(task, alpha=0.4, **data):
    """GFLOP per example at the official size, 384 px."""
    model = {**vars(OFFICIAL), "image_size": 384}
    config = SimpleNamespace(
        task=task, model=SimpleNamespace(**model), group_size=32,
        objective=SimpleNamespace(queue_size=65536, itc=True, alpha=alpha),
        data=SimpleNamespace(text_length=30, answer_length=10, max_answers=10, **data))
    return {name: value / 1e9 for name, value in with_total(
        task_class(task).flops(config)).items()}


def test_steps_of_the_tasks_by_hand():
    """577 tokens of an image, 30 of a text: 12 d^2 x 2 per token and layer, and the attention."""
    d, n, t = 768, 577, 30
    vit = (12 * (24 * n * d**2 + 4 * n**2 * d) + 2 * 576 * 768 * d) / 1e9
    text = 6 * (24 * t * d**2 + 4 * t**2 * d) / 1e9
    fusion = text + 6 * (4 * t * d**2 + 4 * n * d**2 + 4 * t * n * d) / 1e9
    answer = (6 * (24 * 10 * d**2 + 4 * 100 * d + 4 * 10 * d**2 + 4 * t * d**2 + 4 * 10 * t * d)
              + 10 * 2 * d * (d + 30522)) / 1e9
    itc = 3 * 4 * 256 * (65536 + 32) / 1e9
    assert vit == pytest.approx(110.97, abs=0.01)
    totals = {
        "retrieval": 4 * (vit + text) + 9 * fusion + itc,
        "ve": 4 * (vit + text + fusion), "nlvr": 4 * (2 * vit + text + 2 * fusion),
        "vqa": 4 * (vit + text + fusion + 10 * answer),
        "nlvr_pretrain": 3 * (vit + text + 2 * fusion)}
    for task, expected in totals.items():
        counted = task_gflop(task)
        assert counted["total"] == pytest.approx(expected, rel=1e-9), task
        assert sum(counted.values()) == pytest.approx(2 * counted["total"])


def test_without_distillation_no_teacher_runs():
    for task in ("ve", "nlvr", "vqa"):
        assert task_gflop(task, alpha=0)["total"] == pytest.approx(
            0.75 * task_gflop(task)["total"])
    assert task_gflop("retrieval", alpha=0) == task_gflop("retrieval")  # its keys


def test_without_itc_only_the_similarities_fall_away():
    without = SimpleNamespace(queue_size=65536, itc=False)
    whole = with_total(flops.pretrain_step(OFFICIAL, OBJECTIVE, 25, BATCH))
    part = with_total(flops.pretrain_step(OFFICIAL, without, 25, BATCH))
    assert part["itc"] == 0
    assert whole["total"] - part["total"] == whole["itc"] > 0


@pytest.mark.parametrize("kind,peak", [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v6 lite", 918e12),
    ("cpu", None), ("NVIDIA GeForce RTX 9999", None)])
def test_peak_flops(kind, peak):
    assert flops.peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_no_peak_is_claimed_for_this_cpu():
    assert flops.peak_flops(jax.devices("cpu")[0]) is None


@pytest.mark.parametrize("modalities", ["tipva", "iv"])
def test_scale_is_what_its_products_are(modalities):
    """Every product of the traced trunk and heads, at the official sizes, of any modalities."""
    config = default_config("scale_pretrain").unlock()
    config.model.update(modalities=modalities, dtype="float32")
    model = Scale(config.model, sizes_of(config.data))
    fields = task_class("scale_pretrain").fields(config)
    arrays = {name: jax.ShapeDtypeStruct((2, *one.shape), one.dtype)
              for field in fields.values() for name, one in field.spec().items()}
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), arrays)
    traced = jax.make_jaxpr(model.apply)(params, arrays).jaxpr
    terms = flops.scale_step(config.model, sizes_of(config.data), 64)
    counted = sum(value for name, value in terms.items() if name != "contrast") / flops.BACKWARD
    projections = 2 * len(modalities) * 768 * 1024
    assert products(traced) / 2 == pytest.approx(counted + projections, rel=1e-6)
    assert terms["contrast"] == 3 * 2 * len(modalities)**2 * 64 * 1024


def products(jaxpr):
    """FLOPs of the matrix products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        for inside in jax.core.jaxprs_in_params(equation.params):
            total += products(inside)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(sizes) * equation.outvars[0].aval.size
    return total


def imagebert(**values):
    config = default_config("imagebert_pretrain").unlock()
    config.update_from_flattened_dict(values)
    return config


def test_imagebert_by_hand():
    """144 columns through 12 layers, 100 regions of 2048 numbers, heads on all columns."""
    d, n = 768, 144
    stream = 12 * (24 * n * d**2 + 4 * n**2 * d)
    regions = 2 * 100 * 2053 * d
    heads = 43 * 2 * d * (d + 30522) + 2 * 100 * d * (1600 + 2048)
    config = imagebert()
    counted = task_class("imagebert_pretrain").flops(config)
    assert sum(counted.values()) == 3 * (stream + regions + heads)
    assert counted["stream"] / 3e9 == pytest.approx(25.23, abs=0.01)
    config.objective = dict(negatives_per_pair=3)
    counted = task_class("imagebert_retrieval").flops(config)
    assert sum(counted.values()) == 3 * 4 * (stream + regions)


def test_imagebert_matches_xla():
    config = imagebert(**{
        "model.text_width": 384, "model.text_heads": 6, "model.text_mlp_width": 1536,
        "model.text_layers": 2, "model.vocab_size": 3000, "model.dtype": "float32",
        "data.regions_width": 512, "data.global_width": 64})
    task = make_task(config)
    batch = {name: jax.ShapeDtypeStruct((1, *one.shape), one.dtype)
             for field in task.fields(config).values() for name, one in field.spec().items()}
    params = jax.eval_shape(task.init, jax.random.key(0))

    def outputs(params, arrays):
        states = task.model.apply({"params": params}, arrays, method=ImageBert.encode)
        texts = text_part(states, config.data.text_length)
        regions = region_part(states, config.data.regions_length, True)
        return [task.model.apply({"params": params}, part, method=head) for part, head in (
            (texts, ImageBert.words), (regions, ImageBert.classes), (regions, ImageBert.features))]

    counted = jax.jit(outputs).lower(params, batch).cost_analysis()["flops"]
    assert sum(flops.imagebert_pretrain_step(config.model, config.data).values()) / 3 == (
        pytest.approx(counted, rel=0.015))
