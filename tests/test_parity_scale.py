"""SCALE in tests/parity.py: no size is built in, and a wrong value is a miss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from official import write_tensors
import parity
from parity_scale import set_sizes
import pytest
from test_parity_imagebert import spoiled

from albef_jax.config import default_config
from albef_jax.models.scale import MODALITIES, Scale
from albef_jax.tasks import make_task
from albef_jax.weights.foreign.kinds import KINDS

# Sizes that no recording has; the JCT has 6 + 7 + 4 + 3 + 5 tokens.
OTHER = dict(hidden=24, layers=1, text_heads=3, vis_heads=4, jct_heads=6, jct_layers=3, text_ffn=20,
             vis_ffn=28, proj=14, vocab=47, max_pos=9, max_video=5, max_audio=6, jct_pos=31,
             text_len=6, table_len=7, regions=3, image_dim=8, clips=2, video_dim=9, audio_len=4,
             audio_dim=5, batch=5, classes=3)
LABELS = {"t": "lm_label_ids", "p": "em_label_ids", "i": "image_label", "v": "video_label",
          "a": "audio_label"}
THEIRS = {"i": "image", "v": "video", "a": "audio"}
LENGTHS = {"i": "regions", "v": "clips", "a": "audio_len"}


def random_inputs(c, rng):
    """A batch with something to predict in every modality, as the released loader would give it."""
    b, x = c["batch"], {}
    for name, labels, length in (("input", "lm", c["text_len"]), ("pv_input", "em",
                                                                 c["table_len"])):
        number = rng.integers(3, length + 1, b)
        real = np.arange(length) < number[:, None]
        ids = np.where(real, rng.integers(5, c["vocab"], (b, length)), 0)
        ids[:, 0], ids[np.arange(b), number - 1] = 2, 3
        chosen = (ids > 4) & (rng.random((b, length)) < 0.4)
        chosen[0, 1] = True
        x |= {f"{name}_ids": np.where(chosen, 4, ids), f"{name}_mask": real.astype(int),
              f"{labels}_label_ids": np.where(chosen, ids, -1)}
    for m, name in THEIRS.items():
        n, width = c[LENGTHS[m]], c[f"{name}_dim"]
        real = np.arange(n) < rng.integers(1, n + 1, b)[:, None]
        target = (rng.normal(size=(b, n, width)) * real[..., None]).astype(np.float32)
        chosen = real & (rng.random((b, n)) < 0.5)
        chosen[0, 0] = True
        masked = np.where(chosen[..., None], 0, target)
        mean = masked.sum(axis=1, keepdims=True) / real.sum(axis=1)[:, None, None]
        x |= {f"{name}_feat": np.concatenate([mean, masked], axis=1).astype(np.float32),
              f"{name}_target": target, f"{name}_label": np.where(chosen, 1, -1),
              f"{name}_mask": np.pad(real.astype(int), ((0, 0), (1, 0)), constant_values=1)}
    box = rng.random((b, c["regions"], 5)).astype(np.float32)
    whole = np.broadcast_to(np.float32([0, 0, 1, 1, 1]), (b, 1, 5))
    return x | {"image_loc": np.concatenate([whole, box], axis=1)}


def scores_by_hand(features):
    """S, S' and S'' of the features of one product, `[m, p]`."""
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    similarity = unit @ unit.T
    harmonised = similarity * jax.nn.softmax(similarity, axis=-1)
    return similarity, harmonised, harmonised / jnp.linalg.norm(harmonised, axis=-1, keepdims=True)


def pair_by_hand(first, second, weights):
    """The logits of one pair of modalities `[2b, 2b - 1]`, the positive first."""
    both = jnp.concatenate([first, second])
    both = both / jnp.linalg.norm(both, axis=-1, keepdims=True)
    cosines, b = both @ both.T / 0.07, len(first)
    rows = []
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        others = [j for j in range(2 * b) if j not in (i, positive)]
        rows.append(cosines[i, jnp.array([positive, *others])] * weights[i % b])
    return jnp.stack(rows)


def outputs_by_hand(task, params, x):
    """Everything that a recording holds, written out on what the model makes of the batch."""
    arrays = {"title_ids": x["input_ids"], "title_mask": x["input_mask"],
              "table_ids": x["pv_input_ids"], "table_mask": x["pv_input_mask"],
              "regions_box": x["image_loc"][:, 1:]}
    for m, name in THEIRS.items():
        arrays |= {MODALITIES[m]: x[f"{name}_feat"][:, 1:],
                   f"{MODALITIES[m]}_mask": x[f"{name}_mask"][:, 1:]}
    arrays |= {f"{name}_present": np.ones(len(x["input_ids"]), bool)
               for name in MODALITIES.values()}
    encoded = task.model.apply({"params": params}, arrays, method=Scale.encode)
    out, b = {}, len(x["input_ids"])
    for prefix, features in (("clr", encoded.projected),
                             ("mask", {m: joint[:, 0] for m, joint in encoded.joint.items()})):
        each = [scores_by_hand(jnp.stack([features[m][i] for m in MODALITIES])) for i in range(b)]
        out |= {f"{prefix}_{name}": jnp.stack(some)
                for name, some in zip(("S", "S1", "S2"), zip(*each))}
    pairs = [pair_by_hand(encoded.projected[first], encoded.projected[second],
                          out["clr_S2"][:, i, j])
             for i, first in enumerate(MODALITIES) for j, second in enumerate(MODALITIES) if i < j]
    out["pair_losses"] = jnp.stack([-jnp.mean(jax.nn.log_softmax(pair)[:, 0]) for pair in pairs])
    losses = {"cl": jnp.mean(out["pair_losses"])}
    for i, (m, task_name) in enumerate(zip(MODALITIES, ("mlm", "mrp", "mem", "mfp", "mam"))):
        weight = out["mask_S2"][:, i, i]
        head = task.predict_masked(params, m, encoded.joint[m])
        head = head[:, 1:] if m in THEIRS else head
        head, label = head * weight[:, None, None], x[LABELS[m]]
        if m in THEIRS:
            errors = [jnp.mean((head[at] - x[f"{THEIRS[m]}_target"][at]) ** 2)
                      for at in zip(*np.nonzero(label > 0))]
        else:
            errors = [-jax.nn.log_softmax(head[at])[label[at]]
                      for at in zip(*np.nonzero(label >= 0))]
        losses[task_name] = jnp.mean(jnp.stack(errors))
        out |= {f"z_{m}": encoded.projected[m], f"pred_weighted_{m}": head}
    out |= {f"loss_{name}": loss for name, loss in losses.items()}
    return out | {"loss_total": sum(losses.values()), "pair_logits": jnp.stack(pairs)}


@pytest.fixture(scope="module")
def other_case(tmp_path_factory):
    """A case of other sizes, written from `outputs_by_hand` and `jax.grad`."""
    folder, kind = tmp_path_factory.mktemp("case") / "other", KINDS["scale_pretrain"]
    folder.mkdir()
    config, rng = default_config(kind.name).unlock(), np.random.default_rng(0)
    set_sizes(config, OTHER)
    config.model.init_std = 0.2
    task, inputs = make_task(config.lock()), random_inputs(OTHER, rng)
    params = task.init(jax.random.key(1))

    def official(tree):
        return write_tensors(kind.table(config), {"params": jax.tree.map(np.array, tree)}, None)

    def total(params):
        outputs = outputs_by_hand(task, params, inputs)
        return outputs["loss_total"], outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    tensors = official(params)
    tensors |= {name: tensors[first] for name, first in kind.tied(config).items()}
    tensors |= {name: rng.normal(size=shape).astype(np.float32)
                for name, (shape, _) in kind.unused(config).items()}
    (folder / "meta.json").write_text(json.dumps({"config": OTHER}))
    for name, arrays in {"inputs": inputs, "state_dict": tensors, "outputs_seed": jax.tree.map(
            np.asarray, outputs), "grads_seed": official(grads)}.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.mark.slow
def test_a_case_of_other_sizes(other_case, capsys):
    report = parity.run_case(other_case)
    assert report.missed == 0, capsys.readouterr().out
    assert report.compared > 150


@pytest.mark.slow
@pytest.mark.parametrize("file, name, line", [
    ("outputs_seed", "pair_losses", "seed: pair_losses"),
    ("outputs_seed", "mask_S1", "seed: mask_S1"),
    ("grads_seed", "cls.audioPredictions.decoder.bias",
     "seed: grad cls.audioPredictions.decoder.bias")])
def test_a_wrong_value_is_a_miss(tmp_path, capsys, other_case, file, name, line):
    report = parity.run_case(spoiled(other_case, tmp_path, f"{file}.npz", name))
    (missed,) = [line for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert report.missed == 1 and missed.startswith(line)
