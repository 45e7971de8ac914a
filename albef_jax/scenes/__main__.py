"""`python -m albef_jax.scenes [LEVEL]`: what a level is like, and how fast it is made."""

import argparse
import itertools
import json
import os
import sys
import time

from albef_jax.errors import UserError
from albef_jax.scenes.generate import generate
from albef_jax.scenes.levels import get_level
from albef_jax.scenes.products import Products, describe
from albef_jax.scenes.survey import contact_sheet, describe_tasks, oracle

MADE = 4096  # scenes, to measure the speed of several processes


def main(arguments=None) -> None:
    """Prints the survey of a level; writes a sheet of scenes if asked."""
    parser = argparse.ArgumentParser("python -m albef_jax.scenes", description=__doc__)
    parser.add_argument("level", nargs="?", default="demo", help="demo, full or products (demo)")
    parser.add_argument("--scenes", type=int, default=512, help="held-out scenes or products (512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", metavar="FILE.png", help="write a sheet of held-out scenes")
    options = parser.parse_args(arguments)
    try:
        survey_products(options) if options.level == "products" else survey(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def survey_products(options) -> None:
    """Prints what each subset of the modalities of held-out products tells at most."""
    for line in describe(Products("heldout", options.scenes, options.seed)):
        print(line)


def survey(options) -> None:
    """Prints one line per fact."""
    level = get_level(options.level)
    print(f"level {level.name}: {level.side} px, {level.objects[0]} to {level.objects[1]} objects, "
          f"{len(level.colours)} colours, {len(level.shapes)} shapes, {len(level.sizes)} sizes, "
          f"{len(level.textures)} textures; {len(level.held_out_kinds)} of {len(level.kinds)} "
          "kinds (colour, shape, texture) held out")
    start = time.process_time()
    scenes = list(generate(level.name, "heldout", options.seed, options.scenes, workers=1))
    each = (time.process_time() - start) / len(scenes)
    start = time.perf_counter()
    made = sum(1 for _ in generate(level.name, "train", options.seed, MADE))
    speed = made / (time.perf_counter() - start)
    print(f"speed: {1000 * each:.2f} ms of one core per scene with its captions; "
          f"{speed:,.0f} scenes/s with {os.cpu_count()} processes")

    true_of = oracle(scenes)
    print(f"oracle: {100 * (true_of == 1).mean():.1f}% of {len(true_of)} captions are true of one "
          f"of {len(scenes)} held-out scenes; best possible text-to-image R@1 "
          f"{100 * (1 / true_of).mean():.1f}%")
    texts = [text.split() for scene in scenes for text in scene["captions"]]
    lengths, words = [*map(len, texts)], {*itertools.chain(*texts)}
    forms = list(itertools.chain(*(json.loads(scene["forms"]) for scene in scenes)))
    related = sum(bool(form["relations"]) for form in forms) / len(forms)
    counted = sum(any(m["count"] > 1 for m in form["mentions"]) for form in forms) / len(forms)
    print(f"captions: {sum(lengths) / len(lengths):.1f} words, {max(lengths)} at most, "
          f"{len(words)} different; {100 * related:.0f}% with a relation, "
          f"{100 * counted:.0f}% with a count")
    for line in describe_tasks(level.name, options.seed, options.scenes):
        print(line)
    if options.sheet:
        contact_sheet(level.name, "heldout", options.seed).save(options.sheet)
        print(f"sheet: {options.sheet}")


if __name__ == "__main__":
    main()
