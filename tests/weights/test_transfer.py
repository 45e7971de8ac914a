"""Starting one task from another; which tensors the public code loads is in golden/manifests."""

import jax
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.tasks import TASKS
from albef_jax.weights.report import Report
from albef_jax.weights.stored import Stored, state_shapes
from albef_jax.weights.transfer import lost_memory, rule_for, rule_of, transfer

# Every pair of which the second can start from the first, by the tasks' own word.
STARTS = {(source, target): rule for source in TASKS for target in TASKS
          if (rule := rule_of(source, target))}


SIZES = dict(image_size=32, patch_size=8, vit_width=8, vit_depth=1, vit_heads=2, vit_mlp_ratio=2.0,
             text_width=8, text_layers=2, fusion_layers=2, text_heads=2, text_mlp_width=16,
             max_positions=10, embed_dim=4, vocab_size=20,
             # of SCALE, those with which it can start from the ALBEF of these sizes
             width=8, layers=2, visual_heads=2, visual_mlp_width=12, jct_layers=1, jct_heads=2,
             jct_mlp_width=16, classes=3)


def config_of(kind, **model):
    """Few and narrow layers, four of six fusion layers as in no default."""
    config = default_config(kind).unlock()
    config.batch_size = 8
    config.model.update({name: value for name, value in SIZES.items() if name in config.model})
    config.model.update(model)
    if kind.startswith("scale_"):
        config.data.update(text_length=5, table_length=5)
    if "queue_size" in config.objective:
        config.objective.queue_size = 16
    return config


def stored_of(kind, **model):
    """Weights whose every entry is different."""
    config, counter, leaves = config_of(kind, **model), 0, {}
    for path, leaf in state_shapes(config).items():
        size = int(np.prod(leaf.shape))
        leaves[path] = np.arange(counter, counter + size).reshape(leaf.shape).astype(leaf.dtype)
        counter += size
    if ("memory", "pointer") in leaves:
        leaves["memory", "pointer"] = np.array(8, np.int32)
    return Stored(config, leaves, None, "old")


def test_which_task_starts_from_which():
    """Each from itself, and as in the public code."""
    assert set(STARTS) == {(name, name) for name in TASKS} | {
        ("pretrain", "retrieval"), ("pretrain", "ve"), ("pretrain", "vqa"),
        ("pretrain", "nlvr_pretrain"), ("nlvr_pretrain", "nlvr"),
        ("pretrain", "scale_pretrain"), ("scale_pretrain", "scale_classify"),
        ("imagebert_pretrain", "imagebert_retrieval")}


@pytest.mark.parametrize("pair", STARTS, ids="-".join)
def test_every_rule_is_complete(pair):
    """Nothing is left over, and what is filled has the values of its origin."""
    source, target = pair
    stored, config, report = stored_of(source), config_of(target), Report("x")
    fresh = state_shapes(config)
    leaves = transfer(stored, config, fresh, report)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, stored.leaves[STARTS[pair].origin(path)])
    new = {path[:2] for path in fresh if path not in leaves}
    classifier = {("params", "cls_head"), ("teacher", "cls_head")}
    if pair == ("pretrain", "scale_pretrain"):
        assert {path[1] for path in leaves} == {
            "embeddings_title", "encoders_title_0", "encoders_title_1", "masked_heads_words",
            "jct_0"}
        return
    assert new == {("scale_pretrain", "scale_classify"): {("params", "hidden"),
                                                          ("params", "classes")},
                   ("pretrain", "ve"): classifier, ("nlvr_pretrain", "nlvr"): classifier,
                   ("pretrain", "nlvr_pretrain"): {("params", "ta_head")},
                   ("pretrain", "retrieval"): {("memory", "id_queue")},
                   ("retrieval", "retrieval"): {("memory", "id_queue")}}.get(pair, set())


def test_values_of_the_special_rules():
    old = stored_of("pretrain").leaves

    def moved(stored, target):
        config = config_of(target)
        return transfer(stored, config, state_shapes(config), Report("x"))

    vqa = moved(stored_of("pretrain"), "vqa")
    for part in ("params", "teacher"):
        np.testing.assert_array_equal(
            vqa[part, "text_decoder", "layer_1", "cross", "query", "dense", "kernel"],
            old[part, "text_encoder", "fusion_1", "cross", "query", "dense", "kernel"])
        np.testing.assert_array_equal(vqa[part, "text_decoder", "head", "bias"],
                                      old[part, "text_encoder", "head", "bias"])
    pairs = moved(stored_of("pretrain"), "nlvr_pretrain")
    leaf = ("ffn", "mlp", "fc1", "kernel")
    for number in range(4):
        np.testing.assert_array_equal(
            pairs["params", "text_encoder", f"fusion_{number}", *leaf],
            old["params", "text_encoder", f"fusion_{number // 2}", *leaf])
    assert not any(path[0] == "teacher" for path in pairs)
    nlvr = moved(stored_of("nlvr_pretrain"), "nlvr")
    copied = [path for path in nlvr if path[0] == "teacher"]
    assert len(copied) > 50
    for path in copied:
        np.testing.assert_array_equal(nlvr[path], nlvr["params", *path[1:]])


def test_another_resolution():
    config, report = config_of("retrieval"), Report("x")
    config.model.image_size = 48
    fresh = state_shapes(config)
    leaves = transfer(stored_of("pretrain"), config, fresh, report)
    for part in ("params", "teacher"):
        assert leaves[part, "visual_encoder", "pos_embed"].shape == (1, 37, 8)
        assert f"{part}/visual_encoder/pos_embed from 32 px to 48 px" in str(report)


def test_queues():
    stored, config = stored_of("pretrain"), config_of("pretrain")
    fresh = state_shapes(config)
    rule = rule_for("pretrain", "pretrain")
    assert lost_memory(stored, config, fresh, rule) == {}
    config.batch_size = 16  # the pointer is at 8
    assert set(lost_memory(stored, config, fresh, rule)) == {("memory", "pointer")}
    config.objective.queue_size = 32
    fresh = state_shapes(config)
    report = Report("x")
    leaves = transfer(stored, config, fresh, report)
    assert not any(path[0] == "memory" for path in leaves)
    assert "fresh: memory" in str(report) and "a queue of another size" in str(report)
    config.objective.queue_size = 0
    leaves = transfer(stored, config, state_shapes(config), Report("x"))
    assert not any(path[0] == "memory" for path in leaves)


@pytest.mark.parametrize("model, match", [
    (dict(text_heads=4), "model.text_heads=2, but the config has 4; set it to the former"),
    (dict(text_layers=3), r"missing \(params/text_encoder/text_2/"),
    (dict(vit_depth=2), r"missing \(params/visual_encoder/block_1/"),
    (dict(vocab_size=21), r"word has shape \[20, 8\], not \[21, 8\]")])
def test_weights_that_do_not_fit(model, match):
    config = config_of("pretrain")
    config.model.update(model)
    with pytest.raises(UserError, match=match):
        transfer(stored_of("pretrain"), config, state_shapes(config), Report("x"))


def test_heads_of_other_names():
    """The JCT's are compared with the ViT's, whose blocks it takes."""
    config = config_of("scale_pretrain", jct_heads=4)
    with pytest.raises(UserError, match="old has model.vit_heads=2, but the config has 4; set "
                                        "model.jct_heads to the former"):
        transfer(stored_of("pretrain"), config, state_shapes(config), Report("x"))


def test_too_many_layers_are_no_shrug():
    config = config_of("pretrain")
    config.model.fusion_layers = 1
    with pytest.raises(UserError, match=r"unknown \(params/text_encoder/fusion_1/"):
        transfer(stored_of("pretrain"), config, state_shapes(config), Report("x"))


def test_no_rule():
    with pytest.raises(UserError, match="A nlvr run cannot start from vqa weights; it can start "
                                        "from nlvr, nlvr_pretrain"):
        rule_for("vqa", "nlvr")


def test_fresh_leaves_need_no_values():
    """The state of a run is given as it is, on devices."""
    config = config_of("ve")
    fresh = {path: jax.numpy.zeros(leaf.shape, leaf.dtype)
             for path, leaf in state_shapes(config).items()}
    leaves = transfer(stored_of("pretrain"), config, fresh, Report("x"))
    assert ("params", "cls_head", "fc1", "dense", "kernel") not in leaves
