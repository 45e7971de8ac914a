"""Recordings without a model in tests/parity.py: pictures, texts, positions, learning rates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from albef_jax.config import default_config
from albef_jax.core.optim import make_schedule
from albef_jax.data.images import randaugment
from albef_jax.data.text import SEP, clean_caption, clean_question, load_tokenizer
from albef_jax.models.resample import resize_positions
from parity_imagebert import run_location
from parity_pretrain import spelled
from parity_report import EXACT, OUTPUT, Limit
from parity_scale import run_scores

GREY = Limit("grey levels", 2, "README")  # where another library interpolates
GEOMETRIC = ("ShearX", "ShearY", "Rotate")  # these interpolate; translations are whole pixels
RATE = Limit("rate", 2e-6, "own")  # float32, of each rate
COUNTED = Limit("counted", 1e-12, "own")


def run_arrays(folder, meta, report):
    """Compares one case; `report` is a `parity_report.Report`."""
    arrays = dict(np.load(folder / "arrays.npz"))
    if "boxes" in arrays:
        run_location(arrays, report)
    elif any(name.endswith("/features") for name in arrays):
        run_scores(arrays, report)
    elif "op_args" in meta:
        run_operations(arrays, meta, report)
        run_sequences(arrays, meta, report)
    else:
        run_positions(arrays, report)


def run_positions(arrays, report):
    """Position embeddings `in_NAME` at the resolution of `out_NAME`."""
    for name in filter(lambda name: name.startswith("in_"), arrays):
        before, after = arrays[name], arrays[f"out_{name.removeprefix('in_')}"]
        ours = resize_positions(before, round((after.shape[1] - 1) ** 0.5))
        report.check(name, ours, after, OUTPUT)
        report.equal(f"{name} type", ours.dtype, after.dtype)


def run_operations(arrays, meta, report):
    """Every operation NAME_uDIGITS; the digits spell the draw that decides its sign."""
    image = arrays["image"]
    for case, arguments in meta["op_args"].items():
        name, draw = case.split("_u")
        operation = randaugment.operation(name, meta["M"], spelled(draw))
        if arguments:
            report.check(f"{case} value", operation[1], arguments[0], COUNTED)
        ours = np.asarray(randaugment.apply_operation(Image.fromarray(image), *operation))
        recorded = arrays[case]
        if name == "Sharpness":  # the recording wraps where we clip
            plain, kept = public_sharpness(image, operation[1])
            report.check(f"{case} wraps", plain, recorded, EXACT)
            ours, recorded = ours[kept], recorded[kept]
        report.check(case, ours, recorded, GREY if name in GEOMETRIC else EXACT, scale=1)


def run_sequences(arrays, meta, report):
    """Operations one after another, Sharpness as it is in the public code."""
    for number, sequence in enumerate(meta["sequences"]):
        pixels = arrays["image"]
        for name, *arguments in sequence["applied"]:
            value = arguments[0] if arguments else 0.0
            pixels = public_sharpness(pixels, value)[0] if name == "Sharpness" else np.asarray(
                randaugment.apply_operation(Image.fromarray(pixels), name, value))
        geometric = {name for name, *_ in sequence["applied"]} & set(GEOMETRIC)
        report.check(f"seq{number}", pixels, arrays[f"seq{number}"],
                     GREY if geometric else EXACT, scale=1)


def public_sharpness(pixels, factor):
    """The public code's Sharpness, which wraps outside 0..255, and where it does not."""
    around = np.lib.stride_tricks.sliding_window_view(pixels.astype(int), (3, 3), (0, 1))
    inner = pixels[1:-1, 1:-1].astype(np.float32)
    smooth = np.rint((around.sum((-2, -1)) + 4 * inner) / 13).astype(np.float32)
    sharp = (smooth + factor * (inner - smooth)).astype(int)
    sharpened, kept = pixels.copy(), np.ones(pixels.shape, bool)
    sharpened[1:-1, 1:-1], kept[1:-1, 1:-1] = sharp % 256, (sharp >= 0) & (sharp <= 255)
    return sharpened, kept


def run_cases(folder, meta, report):
    """Compares cleaned texts, or token ids."""
    del meta
    recorded = json.loads((folder / "cases.json").read_text())
    for name, clean in (("pre_caption", clean_caption), ("pre_question", clean_question)):
        for number, case in enumerate(recorded.get(name, ())):
            report.equal(f"{name}[{number}]", clean(case["input"], case["max_words"]),
                         case["output"])
    tokenizer = load_tokenizer(str(folder)) if "cases" in recorded else None
    for case in recorded.get("cases", ()):
        expected = np.array(case["input_ids"])
        # Their texts may end in a special token, to which ours is a switch: in a text it is text.
        ended = all(text.endswith(SEP) for text in case["texts"])
        texts = [text.removesuffix(SEP) for text in case["texts"]] if ended else case["texts"]
        ids, mask = tokenizer.encode(texts, expected.shape[1], sep=ended)
        report.check(f"{case['call']} input_ids", ids, expected, EXACT)
        report.check(f"{case['call']} attention_mask", mask, case["attention_mask"], EXACT)
        report.equal(f"{case['call']} types", {ids.dtype, mask.dtype}, {np.dtype(np.int32)})


def stepped_block(recorded, **values):
    """The `optimizer` block of a recorded schedule."""
    s, block = recorded["schedule"], default_config().optimizer
    block.update(peak_lr=s["lr"], min_lr=s["min_lr"], warmup_lr=s["warmup_lr"],
                 warmup_steps=100 * s["warmup_epochs"], schedule="albef_steps",
                 steps_per_epoch=recorded["epoch0_loader_len"])
    block.update(values)
    return block


def run_schedules(folder, meta, report):
    """Every iteration of epoch 0, and every later epoch at its first and last iteration."""
    del meta
    for name, recorded in json.loads((folder / "schedules.json").read_text()).items():
        length, epochs = recorded["epoch0_loader_len"], recorded["schedule"]["epochs"]
        schedule = jax.vmap(make_schedule(stepped_block(recorded), epochs * length))
        changes, expected = dict(map(tuple, recorded["epoch0_lr_changes_before_iteration"])), []
        for iteration in range(length):
            expected.append(changes.get(iteration, expected[-1] if expected else None))
        later = np.array(recorded["lr_of_epoch_1_and_later"])
        starts = length * jnp.arange(1, 1 + len(later))
        for part, steps, rates in (("epoch 0", jnp.arange(length), np.array(expected)),
                                   ("later epochs begin", starts, later),
                                   ("later epochs end", starts + length - 1, later)):
            report.check(f"{name}, {part}", schedule(steps) / rates, np.ones_like(rates), RATE)
