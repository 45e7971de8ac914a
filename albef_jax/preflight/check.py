"""Looks at every value of a data set before a run does: `albef data check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from albef_jax.config import check_config, default_config, stages_of
from albef_jax.data.fields import check_fields, open_fields
from albef_jax.data.fields.text import TextField
from albef_jax.data.pipeline import LISTED_BAD, Broken, TrainPipeline
from albef_jax.data.prefetch import num_workers
from albef_jax.data.sources import Source, resolve_source, source_block
from albef_jax.data.sources.manifest import ManifestSource
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError, listed
from albef_jax.evaluators import check_best_metric, make_evaluators
from albef_jax.preflight import look
from albef_jax.tasks import task_class

PAIR = ("image", "text", "image_id")  # other fields are counted, whatever they hold


class Part(NamedTuple):
    """One source to check."""

    name: str
    block: Mapping | str  # as given to `make_source`
    source: Source | None  # what of it can be read
    problems: list[str]  # what is wrong with it, a sentence each
    held_out: bool  # an evaluation reads it, and takes no broken value


def check(manifests: Sequence[str], image_roots: Sequence[str] = (), config=None,
          regions: Sequence[str] = ()) -> list[str]:
    """Prints what the data holds.

    Args:
        manifests: JSON manifests, or short forms of other sources such as `tfds:NAME:SPLIT`.
        image_roots: of the manifests; without any, their own folders.
        config: whose training and evaluation sources are checked too, by its own limits.
        regions: files and folders with those of the images of the manifests.

    Returns:
        Why training would not start, a sentence each; empty if it would.

    Raises:
        UserError: there is nothing to check.
    """
    parts = [_open(name, source_block(name, image_roots, regions))
             for name in dict.fromkeys(manifests)]
    own = _parts_of(config) if config else []
    parts += own
    if not parts:
        raise UserError("There is nothing to check; name manifests, or give a --config.")
    data_config = (config or default_config()).data
    problems, images = [], {}
    for part in parts:
        problems += part.problems
        if part.source is not None and len(part.source):
            seen, broken = _look_at(part, data_config)
            problems += broken
            images |= {part.name: seen} if seen else {}
    look.print_shared(images)
    return problems + (_refusals(config, own) if config else [])


def _open(name: str, block: Mapping | str, held_out: bool = False) -> Part:
    """A part; of manifests also what stands beside wrong rows."""
    try:
        kind, options = resolve_source(block)
        if issubclass(kind, ManifestSource):
            return Part(name, block, *kind.checked(**options), held_out)
        return Part(name, block, kind(**options), [], held_out)
    except UserError as error:
        return Part(name, block, None, [str(error)], held_out)


def _parts_of(config) -> list[Part]:
    """The training source of each stage of a config, and the different ones of its evaluations."""
    parts = [_open(f"data.source of the stage {name!r}" if name else "data.source",
                   own.data.source) for name, own in stages_of(config)]
    stages = len(parts)
    for name, block in config.evals.items():
        source = block.get("source")
        if source and source not in [part.block for part in parts[stages:]]:
            parts.append(_open(f"evals.{name}.source", source, held_out=True))
    return parts


def _look_at(part: Part, data_config) -> tuple[look.Images | None, list[str]]:
    """Reads and prints a part; what was seen of its images, and why a run would stop."""
    source, fields, workers = part.source, part.source.fields, num_workers(data_config)
    images = look.images_of(source, part.name, workers) if "image" in fields else None
    texts = look.texts_of(source) if "text" in fields else None
    others = {name: look.values_of(source, name, part.name, workers)
              for name in fields if name not in PAIR}
    print(f"{part.name}: {len(source)} rows"
          + (f", {images.count} images" if images else "")
          + (f", {len(texts.words)} captions" if texts else ""))
    if images:
        look.print_images(images)
    if texts:
        look.print_texts(texts, data_config.get("max_words", TextField.defaults["max_words"]))
    if images:
        look.print_sides(images)
    if any(facts.get("optional") for facts in fields.values()):
        look.print_modalities(source)
    for name, values in others.items():
        look.print_values(name, values, fields[name].get("class_names"))
    share, broken = data_config.max_bad_share, {}
    for values in others.values():
        broken |= values.broken
    return images, (_too_many(part, "rows", len(source), broken, share) + (
        _too_many(part, "images", images.count, images.broken_names(), share) if images else []))


def _too_many(part: Part, what: str, count: int, broken: dict[str, str], share: float) -> list[str]:
    """The sentence with which training or an evaluation would stop, if it would."""
    if part.held_out and broken:
        return [f"{part.name}: {len(broken)} of {count} {what} cannot be read, and an evaluation "
                f"needs all: {listed(look.reasons(broken), LISTED_BAD)}; mend them or remove "
                "their rows."]
    try:
        Broken(share).add(count, broken)
    except UserError as error:
        return [f"{part.name}: {error}"]
    if broken and len(broken) == count:  # so few are tolerated, but there are no others
        return [f"{part.name}: none of the {count} {what} can be read: "
                f"{listed(look.reasons(broken), LISTED_BAD)}; check the names and "
                "data.source.image_roots."]
    return []


def _refusals(config, parts: Sequence[Part]) -> list[str]:
    """What a run of this config says when it starts, as far as data decides it."""
    problems = []

    def attempt(make, *arguments):
        try:
            return make(*arguments)
        except UserError as error:
            problems.append(str(error))

    attempt(check_config, config)
    sources = [part.source for part in parts if not part.held_out]
    if not all(source and len(source) for source in sources):
        return problems
    tokenizer = None
    try:
        for (_, own), source in zip(stages_of(config), sources):
            fields = task_class(own.task).fields(own)
            check_fields(fields, source)
            if tokenizer is None and any(field.needs_tokenizer for field in fields.values()):
                tokenizer = make_tokenizer(config.data, *sources)
            open_fields(fields, source, tokenizer)
            attempt(TrainPipeline, source, fields, own.data, own.batch_size, own.seed)
    except UserError as error:
        return [*problems, str(error)]
    reported = [part.block for part in parts if part.held_out and part.problems]
    others = config.copy_and_resolve_references().unlock()
    others.evals = {name: block for name, block in config.evals.items()
                    if block.get("source") not in reported}
    evaluators = make_evaluators(others, tokenizer, problems)
    if set(evaluators) == set(config.evals):
        attempt(check_best_metric, config, evaluators)
    return list(dict.fromkeys(problems))
