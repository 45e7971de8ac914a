"""Raw products through the fields of SCALE, beside what the released loader made of them.

The recorded batch is masked; what it was before follows from its labels. Which tokens are masked
is the objective's part: `parity_scale`.
"""

import json

from ml_collections import ConfigDict
import numpy as np

from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.title import TitleField
from albef_jax.data.sources.regions import Regions
from albef_jax.data.text import load_tokenizer
from parity_report import EXACT, Limit

FEATURE = Limit("feature", 1e-6, "own")  # float32


def read_products(folder):
    """The arrays, the recorded batch and the texts of a case, by product."""
    raw = dict(np.load(folder / "inputs.npz"))
    recorded = dict(np.load(folder / "outputs.npz"))
    return raw, recorded, json.loads((folder / "draws.json").read_text())["samples"]


def load_fields(raw, recorded, samples, tokenizer):
    """The arrays of all fields, by name, at the recorded sizes.

    Args:
      raw, recorded, samples: see `read_products`. tokenizer: of the case.
    """
    lengths = {name: recorded[f"{name}_target"].shape[1:] for name in ("image", "video", "audio")}
    data = ConfigDict({
        "text_length": recorded["input_ids"].shape[1], "sep": True, "max_words": 30,
        "eval_text_length": 0, "eval_max_words": 0,
        "table_length": recorded["pv_input_ids"].shape[1],
        "regions_length": lengths["image"][0], "regions_width": lengths["image"][1],
        "video_length": lengths["video"][0], "video_width": lengths["video"][1],
        "audio_length": lengths["audio"][0], "audio_width": lengths["audio"][1],
        "audio_axis": "mel", "audio_pool": 1})
    counts = raw["raw_num_boxes"]
    clips = [None if sample["clips_in_file"] is None else min(sample["clips_in_file"], len(video))
             for sample, video in zip(samples, raw["raw_video"])]
    values = {
        TitleField(data, None): [[sample["title"]] for sample in samples],
        TableField(data, None): [sample["pv"] for sample in samples],
        RegionsField(data): [
            Regions(raw["raw_region_features"][i, :n], raw["raw_boxes_pixel"][i, :n],
                    tuple(raw["raw_image_wh"][i])) for i, n in enumerate(counts)],
        VideoField(data): [None if n is None else raw["raw_video"][i, :n]
                           for i, n in enumerate(clips)],
        AudioField(data): [raw["raw_audio"][i] if sample["audio_in_file"] else None
                           for i, sample in enumerate(samples)]}
    arrays = {}
    for field, of_products in values.items():
        field.open({"cleaning": "none"}, tokenizer)
        loaded, problems = field.load([lambda value=value: value for value in of_products],
                                      [None] * len(of_products), False)
        assert problems == [None] * len(of_products)
        arrays |= loaded
    return arrays


def unmasked(ids, labels):
    """Recorded ids as they were before masking."""
    return np.where(labels == -1, ids, labels)


def run_fields(folder, meta, report):
    """Compares one case; `report` is a `parity_report.Report`."""
    del meta
    raw, recorded, samples = read_products(folder)
    ours = load_fields(raw, recorded, samples, load_tokenizer(str(folder)))
    for name, ids, labels in (("title", "input", "lm_label"), ("table", "pv_input", "em_label")):
        report.check(f"{name} ids", ours[f"{name}_ids"],
                     unmasked(recorded[f"{ids}_ids"], recorded[f"{labels}_ids"]), EXACT)
        report.check(f"{name} mask", ours[f"{name}_mask"], recorded[f"{ids}_mask"], EXACT)
    for name, theirs in (("regions", "image"), ("video", "video"), ("audio", "audio")):
        report.check(name, ours[name], recorded[f"{theirs}_target"], FEATURE)
        report.check(f"{name} mask", ours[f"{name}_mask"], recorded[f"{theirs}_mask"][:, 1:], EXACT)
    report.check("boxes", ours["regions_box"], recorded["image_loc"][:, 1:], FEATURE)
    check_entities(ours, recorded, samples, report)


def check_entities(ours, recorded, samples, report):
    """The tokens that a recorded draw selects are those of the entity that it names."""
    for row, sample in enumerate(samples):
        chosen = [2 * number + (1 if part < 0.5 else 2)
                  for number, (draw, part) in enumerate(sample["draws"]["table"]) if draw < 0.15]
        report.check(f"product {row} masked entities", np.isin(ours["table_entity"][row], chosen),
                     recorded["em_label_ids"][row] != -1, EXACT)
