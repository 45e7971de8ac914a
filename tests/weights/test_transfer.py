"""Starting one task from another: exactly the tensors that the public code would load."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.report import Report
from albef_jax.weights.stored import Stored
from albef_jax.weights.transfer import RULES, lost_memory, reason_to_ignore, rule_for, transfer

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


def config_of(kind, **model):
    """Few and narrow layers, four of six fusion layers as in no default."""
    config = default_config().unlock()
    config.task, config.batch_size = kind, 8
    config.model.update(image_size=32, patch_size=8, vit_width=8, vit_depth=1, vit_heads=2,
                        vit_mlp_ratio=2.0, text_width=8, text_layers=2, fusion_layers=2,
                        text_heads=2, text_mlp_width=16, max_positions=10, embed_dim=4,
                        vocab_size=20, **model)
    config.objective.update(queue_size=16, positives="image" if kind == "retrieval" else "pair")
    return config


def full_size(kind):
    config = default_config().unlock()
    config.task = kind
    config.objective.positives = "image" if kind == "retrieval" else "pair"
    return config


def stored_of(kind, **model):
    """Weights whose every entry is different."""
    config, counter, leaves = config_of(kind, **model), 0, {}
    for path, leaf in KINDS[kind].shapes(config).items():
        size = int(np.prod(leaf.shape))
        leaves[path] = np.arange(counter, counter + size).reshape(leaf.shape).astype(leaf.dtype)
        counter += size
    if ("memory", "pointer") in leaves:
        leaves["memory", "pointer"] = np.array(8, np.int32)
    return Stored(config, leaves, None, "old")


def official_names(kind, config):
    """Path -> official names, second names of tied tensors included."""
    tied = {}
    for second, first in kind.tied(config.model).items():
        tied.setdefault(first, []).append(second)
    return {entry.path: (entry.sources, [[s, *tied.get(s, [])] for s in entry.sources])
            for entry in kind.table(config)}


@pytest.mark.parametrize("source, target", [
    ("pretrain", "retrieval"), ("pretrain", "ve"), ("pretrain", "vqa"),
    ("pretrain", "nlvr_pretrain"), ("nlvr_pretrain", "nlvr")])
def test_the_mapping_of_the_public_code(source, target):
    recorded = json.loads((MANIFESTS / f"load_map_{target}.json").read_text())
    assert recorded["source"] == source
    old, new = full_size(source), full_size(target)
    there, here = official_names(KINDS[source], old), official_names(KINDS[target], new)
    fresh = KINDS[target].shapes(new)
    stored = Stored(old, KINDS[source].shapes(old), None, "old")
    rule = rule_for(source, target)

    expected = {name: name for name in recorded["loaded_same_name"]} | recorded["loaded_renamed"]
    missing, tied = set(recorded["missing"]), KINDS[source].tied(old.model)
    used = set()
    for path in fresh:
        origin = rule.origin(path) if path != ("memory", "id_queue") else "fresh"
        if isinstance(origin, str):
            for names in here[path][1]:
                assert set(names) <= missing, path
                missing -= set(names)
            continue
        used.add(origin)
        for names, (old_name, *_) in zip(here[path][1], there[origin][1], strict=True):
            for name in names:
                if target == "nlvr" and path[0] == "teacher":
                    # There it starts at random, a mistake; here it is a copy.
                    missing.remove(name)
                    assert old_name == names[0].replace("_m.", ".", 1)
                    continue
                loaded = expected.pop(name)
                assert tied.get(loaded, loaded) == tied.get(old_name, old_name)
    buffers = KINDS[target].buffers(new.model)
    assert set(expected) <= set(buffers) and missing <= set(buffers)

    ignored = {path for path in stored.leaves if path not in used}
    left_out = {name for path in ignored for names in there[path][1] for name in names}
    unexpected = {name for name in recorded["unexpected"]
                  if name not in tied and "position_ids" not in name}
    if target == "nlvr_pretrain":  # recorded after names of momentum layers were changed, too
        left_out, unexpected = ({name for name in names if "_m." not in name}
                                for names in (left_out, unexpected))
        assert {path for path in stored.leaves if path[0] == "teacher"} <= ignored
    assert left_out - set(tied) == unexpected
    for path in ignored:
        assert reason_to_ignore(path, rule, fresh, {}), path
    assert set(recorded["shape_changes"]) <= {
        "visual_encoder.pos_embed", "visual_encoder_m.pos_embed"}


@pytest.mark.parametrize("pair", RULES, ids="-".join)
def test_every_rule_is_complete(pair):
    """Nothing is left over, and what is filled has the values of its origin."""
    source, target = pair
    stored, config, report = stored_of(source), config_of(target), Report("x")
    fresh = KINDS[target].shapes(config)
    leaves = transfer(stored, config, fresh, report)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, stored.leaves[RULES[pair].origin(path)])
    new = {path[:2] for path in fresh if path not in leaves}
    classifier = {("params", "cls_head"), ("teacher", "cls_head")}
    assert new == {("pretrain", "ve"): classifier, ("nlvr_pretrain", "nlvr"): classifier,
                   ("pretrain", "nlvr_pretrain"): {("params", "ta_head")},
                   ("pretrain", "retrieval"): {("memory", "id_queue")},
                   ("retrieval", "retrieval"): {("memory", "id_queue")}}.get(pair, set())


def test_values_of_the_special_rules():
    old = stored_of("pretrain").leaves

    def moved(stored, target):
        config = config_of(target)
        return transfer(stored, config, KINDS[target].shapes(config), Report("x"))

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
    fresh = KINDS["retrieval"].shapes(config)
    leaves = transfer(stored_of("pretrain"), config, fresh, report)
    for part in ("params", "teacher"):
        assert leaves[part, "visual_encoder", "pos_embed"].shape == (1, 37, 8)
        assert f"{part}/visual_encoder/pos_embed from 32 px to 48 px" in str(report)


def test_queues():
    stored, config = stored_of("pretrain"), config_of("pretrain")
    fresh = KINDS["pretrain"].shapes(config)
    assert lost_memory(stored, config, fresh) == {}
    config.batch_size = 16  # the pointer is at 8
    assert set(lost_memory(stored, config, fresh)) == {("memory", "pointer")}
    config.objective.queue_size = 32
    fresh = KINDS["pretrain"].shapes(config)
    report = Report("x")
    leaves = transfer(stored, config, fresh, report)
    assert not any(path[0] == "memory" for path in leaves)
    assert "fresh: memory" in str(report) and "a queue of another size" in str(report)
    config.objective.queue_size = 0
    leaves = transfer(stored, config, KINDS["pretrain"].shapes(config), Report("x"))
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
        transfer(stored_of("pretrain"), config, KINDS["pretrain"].shapes(config), Report("x"))


def test_too_many_layers_are_no_shrug():
    config = config_of("pretrain")
    config.model.fusion_layers = 1
    with pytest.raises(UserError, match=r"unknown \(params/text_encoder/fusion_1/"):
        transfer(stored_of("pretrain"), config, KINDS["pretrain"].shapes(config), Report("x"))


def test_no_rule():
    with pytest.raises(UserError, match="A nlvr run cannot start from vqa weights; it can start "
                                        "from nlvr, nlvr_pretrain"):
        rule_for("vqa", "nlvr")


def test_fresh_leaves_need_no_values():
    """The state of a run is given as it is, on devices."""
    config = config_of("ve")
    fresh = {path: jax.numpy.zeros(leaf.shape, leaf.dtype)
             for path, leaf in KINDS["ve"].shapes(config).items()}
    leaves = transfer(stored_of("pretrain"), config, fresh, Report("x"))
    assert ("params", "cls_head", "fc1", "dense", "kernel") not in leaves
