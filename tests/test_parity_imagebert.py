"""ImageBERT in tests/parity.py: no size is built in, and a wrong value is a miss."""

import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from official import write_tensors
import parity
import pytest

from albef_jax.config import default_config
from albef_jax.models.imagebert import ImageBert
from albef_jax.tasks import make_task
from albef_jax.weights.foreign.kinds import KINDS

GOLDEN = Path(__file__).parent / "golden" / "imagebert"
# Sizes that no recording has; the sequence has 6 + 3 + 1 columns.
OTHER = dict(hidden=20, layers=1, heads=5, inter=28, vocab=61, max_pos=11, feature_dim=7,
             classes=4, text_len=6, regions=3, batch=5)


def random_inputs(c, rng):
    b, t, n, k = c["batch"], c["text_len"], c["regions"], c["classes"]
    lengths, counts = rng.integers(3, t + 1, b), rng.integers(1, n + 1, b)
    text_mask = (np.arange(t) < lengths[:, None]).astype(np.int32)
    region_mask = (np.arange(n) < counts[:, None]).astype(np.int32)
    ids = np.where(text_mask, rng.integers(5, c["vocab"], (b, t)), 0)
    ids[:, 0], ids[np.arange(b), lengths - 1] = 2, 3
    size = rng.integers(20, 90, (b, 2))
    corners = np.sort(rng.random((b, n, 2, 2)), axis=2) * size[:, None, None]
    boxes = corners.reshape(b, n, 4).astype(np.float32) * region_mask[..., None]
    prob = rng.dirichlet(np.ones(k + 1), (b, n)).astype(np.float32)
    w, h = size[:, :1], size[:, 1:]
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    location = np.stack([x1 / w, y1 / h, x2 / w, y2 / h, (x2 - x1) * (y2 - y1) / (w * h)], -1)
    own = np.arange(b)
    draws = {name: rng.integers(0, 2, (b, t)) for name in ("mask_draw", "replace_draw",
                                                           "random_draw")}
    return {
        "text_ids": ids, "text_mask": text_mask, "boxes": boxes, "image_wh": size,
        "num_boxes": counts, "region_mask": region_mask, "location": location.astype(np.float32),
        "region_features": rng.normal(size=(b, n, c["feature_dim"])).astype(np.float32)
        * region_mask[..., None], "region_class_prob": prob,
        "region_class": np.where(region_mask, prob[..., 1:].argmax(-1), -1),
        "text_idx": np.where(own == 1, 2, own), "image_idx": np.where(own == 3, 0, own),
        "all_negative_text_idx": (own + 1) % b, "all_negative_image_idx": own,
        "random_words": rng.integers(5, c["vocab"], (b, t)), "mask_text_only": own % 2, **draws,
        "region_mask_draw": rng.integers(0, 2, (b, n)),
        "region_zero_draw": rng.integers(0, 2, (b, n))}


def losses_by_hand(task, params, inputs, counted_on):
    """The five losses written out on the model's outputs, a row at a time."""
    rows, negatives = range(len(inputs["text_idx"])), []
    words, classes, features = [], [], []
    for row in rows:
        text, image = inputs["text_idx"][row], inputs["image_idx"][row]
        ids, mask = inputs["text_ids"][text], inputs["text_mask"][text]
        chosen = (inputs["mask_draw"][row] > 0) & (mask > 0) & ~np.isin(ids, (2, 3))
        written = np.where(inputs["replace_draw"][row] > 0, 4, np.where(
            inputs["random_draw"][row] > 0, inputs["random_words"][row], ids))
        there = inputs["region_mask"][image] > 0
        hidden = (inputs["region_mask_draw"][row] > 0) & there
        zeroed = hidden & (inputs["region_zero_draw"][row] > 0)
        target = inputs["region_features"][image]
        arrays = {"text_ids": jnp.where(chosen, written, ids), "text_mask": mask,
                  "regions": jnp.where(zeroed[:, None], 0, target),
                  "regions_box": inputs["location"][image], "regions_mask": there}
        states = task.model.apply({"params": params}, {
            name: jnp.asarray(array)[None] for name, array in arrays.items()},
            method=ImageBert.encode)

        def head(method, states=states):
            return task.model.apply({"params": params}, states, method=method)[0]

        score, matched, t = head(ImageBert.score_states), text == image, len(ids)
        negatives.append(jnp.logaddexp(0, -score if matched else score))
        if matched or counted_on == "all":
            words += [-jax.nn.log_softmax(head(ImageBert.words)[i])[ids[i]]
                      for i in np.flatnonzero(chosen)]
            label = inputs["region_class"][image]
            classes += [-jax.nn.log_softmax(head(ImageBert.classes)[t + i])[label[i]]
                        for i in np.flatnonzero(hidden)]
            features += [jnp.mean((head(ImageBert.features)[t + i] - target[i]) ** 2)
                         for i in np.flatnonzero(hidden)]
    losses = [jnp.mean(jnp.stack(part)) for part in (words, classes, features, negatives)]
    return jnp.stack([*losses, sum(losses)]), (len(words), len(features))


@pytest.fixture(scope="module")
def other_case(tmp_path_factory):
    """A case of other sizes, written from `losses_by_hand` and `jax.grad`."""
    folder, kind = tmp_path_factory.mktemp("case") / "other", KINDS["imagebert_pretrain"]
    folder.mkdir()
    inputs, c = random_inputs(OTHER, np.random.default_rng(0)), OTHER
    config = default_config(kind.name).unlock()
    config.model.update(
        text_width=c["hidden"], text_layers=c["layers"], text_heads=c["heads"],
        text_mlp_width=c["inter"], vocab_size=c["vocab"], max_positions=c["max_pos"],
        classes=c["classes"], dtype="float32", init_std=0.2, pad_id=0, cls_id=2, sep_id=3,
        mask_id=4)
    config.data.update(regions_width=c["feature_dim"], regions_length=c["regions"],
                       text_length=c["text_len"])
    task = make_task(config.lock())
    params = task.init(jax.random.key(1))

    def official(tree):
        return write_tensors(kind.table(config), {"params": jax.tree.map(np.array, tree)}, None)

    def recorded(counted_on):
        def total(params):
            losses, counts = losses_by_hand(task, params, inputs, counted_on)
            return losses[-1], (losses, counts)

        (_, (losses, counts)), grads = jax.value_and_grad(total, has_aux=True)(params)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads)))
        values = {"losses": losses, "counts": np.array(counts), "grad_norm": norm}
        return jax.tree.map(np.asarray, values), official(grads)

    outputs, grads = recorded("positives")
    variant, variant_grads = recorded("all")
    tensors = official(params)
    tensors |= {name: tensors[first] for name, first in kind.tied(config).items()}
    (folder / "meta.json").write_text(json.dumps({"config": c}))
    arrays = {"inputs": inputs, "state_dict": tensors, "outputs": outputs, "outputs_f64": outputs,
              "grads": grads, "grads_all": variant_grads,
              "variants": {f"all/{name}": array for name, array in variant.items()},
              "grad_pad_row": {"dropped": grads["bert.embeddings.word_embeddings.weight"][0]}}
    for name, array in arrays.items():
        np.savez(folder / f"{name}.npz", **array)
    return folder


@pytest.mark.slow
def test_a_case_of_other_sizes(other_case, capsys):
    report = parity.run_case(other_case)
    assert report.missed == 0, capsys.readouterr().out
    assert report.compared > 80


def spoiled(folder, tmp_path, file, name):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    arrays = dict(np.load(copy / file))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] += 1
    np.savez(copy / file, **arrays)
    return copy


@pytest.mark.parametrize("case, file, name, missed", [
    ("metrics", "arrays.npz", "small_rank_image_retrieval", "small rank_image_retrieval"),
    ("location", "arrays.npz", "location", "location"),
    ("location", "arrays.npz", "valid", "valid")])
def test_a_wrong_value_is_a_miss(tmp_path, capsys, case, file, name, missed):
    report = parity.run_case(spoiled(GOLDEN / case, tmp_path, file, name))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert report.missed == 1 and line.startswith(missed)


@pytest.mark.slow
def test_a_wrong_gradient_of_a_variant_is_a_miss(tmp_path, other_case, capsys):
    report = parity.run_case(spoiled(other_case, tmp_path, "grads_all.npz", "mrfr_head.bias"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert report.missed == 1 and line.startswith("all/grad mrfr_head.bias")
