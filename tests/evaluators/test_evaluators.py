"""What all evaluators share: blocks, names, one forward path, images that are encoded once."""

from collections import Counter
import json

import jax
import numpy as np
from PIL import Image
import pytest

from albef_jax.config import check_config
from albef_jax.errors import UserError
from albef_jax.evaluators import (
    KINDS,
    check_best_metric,
    check_measured,
    embeddings,
    evaluator_class,
    make_evaluators,
)
from albef_jax.evaluators.base import Evaluator, Forward
from albef_jax.evaluators.batches import Rows
from albef_jax.parallel.mesh import make_mesh


@pytest.fixture
def counted(predict_fns, params):
    """Functions that count what they encode, and the counts: (model, images or texts) -> rows."""
    counts = Counter()

    def counting(name):
        def encode(params, **arrays):
            jax.debug.callback(lambda model, rows: counts.update({(int(model), name): len(rows)}),
                               params["model"], next(iter(arrays.values())))
            return predict_fns[name](params, **arrays)

        return encode

    functions = predict_fns | {name: counting(name) for name in ("encode_image", "encode_text")}
    online = Forward(params | {"model": np.int32(0), "temp": np.float32(0.07)}, functions,
                     make_mesh())
    return online, online.with_params(online.params | {"model": np.int32(1)}), counts


def run_all(evaluators, forward):
    values = {name: dict(evaluator.run(forward)) for name, evaluator in evaluators.items()}
    jax.effects_barrier()
    return values


def blocks(source, **options):
    return {kind: dict(kind=kind, source=dict(source), batch_size=8) | options.get(kind, {})
            for kind in ("retrieval", "matching", "masked")}


def test_images_and_texts_are_encoded_once_for_all_evaluators_and_the_page(
        make_source_block, config, tokenizer, counted):
    forward, teacher, counts = counted
    config.evals.update(blocks(make_source_block(24)))
    evaluators = make_evaluators(config, tokenizer)
    assert len({id(evaluator.source) for evaluator in evaluators.values()}) == 1
    together = run_all(evaluators, forward)
    assert counts == {(0, "encode_image"): 24, (0, "encode_text"): 48}
    for evaluator in evaluators.values():
        evaluator.examples(forward, teacher)
    jax.effects_barrier()
    assert counts == {(model, f"encode_{what}"): rows for model in (0, 1)
                      for what, rows in (("image", 24), ("text", 48))}
    for name, evaluator in evaluators.items():  # alone, on what each encodes itself
        fresh = forward.with_params(forward.params)
        assert dict(evaluator.run(fresh)) == together[name]


def test_fewer_images_are_the_first_of_those_that_are_there(make_source_block, config, tokenizer,
                                                            counted):
    forward, _, counts = counted
    config.evals.update(blocks(make_source_block(24), matching=dict(max_images=16),
                               retrieval=dict(max_images=8)))
    assert [*config.evals] == ["masked", "matching", "retrieval"]  # they run in this order
    evaluators = make_evaluators(config, tokenizer)
    together = run_all(evaluators, forward)
    assert counts == {(0, "encode_image"): 24, (0, "encode_text"): 32}
    for name, evaluator in evaluators.items():
        assert dict(evaluator.run(forward.with_params(forward.params))) == together[name]
    counts.clear()
    fresh = forward.with_params(forward.params)
    run_all({name: evaluators[name] for name in ("retrieval", "masked")}, fresh)
    assert counts[0, "encode_image"] == 8 + 24  # too few are no help


def test_texts_that_are_not_the_first_ones_are_not_confused(tmp_path, config, tokenizer, counted):
    """The text of the last row is of the first image, so two images have the texts 0, 1 and 3."""
    forward, _, counts = counted
    np.savez(tmp_path / "rows.npz", image=np.random.default_rng(0).integers(
        0, 256, (4, 16, 16, 3), np.uint8), image_id=np.array([4, 5, 6, 4]),
        caption=np.array(["red dog", "blue cat", "boat", "small green house"]))
    source = dict(kind="arrays", path=str(tmp_path / "rows.npz"))
    config.evals.all = dict(kind="retrieval", source=source, batch_size=1)
    config.evals.some = dict(kind="retrieval", source=source, batch_size=1, max_images=2)
    evaluators = make_evaluators(config, tokenizer)
    together = run_all(evaluators, forward)
    assert counts == {(0, "encode_image"): 3, (0, "encode_text"): 4 + 3}
    for name, evaluator in evaluators.items():
        assert dict(evaluator.run(forward.with_params(forward.params))) == together[name]


def test_sources_of_one_fingerprint_may_have_other_images(tmp_path, config, tokenizer, params,
                                                          predict_fns):
    """The same manifest with other image roots: nothing of the one may be used for the other."""
    rng = np.random.default_rng(0)
    rows = [{"image": f"{i}.png", "caption": f"{word} dog"} for i, word in enumerate(
        "red green blue small large round flat cat".split())]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
        for row in rows:
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / root / row["image"])
        config.evals[root] = dict(kind="retrieval", batch_size=8, source=dict(
            kind="json", files=(str(tmp_path / "dev.json"),), image_roots=(str(tmp_path / root),)))
    evaluators = make_evaluators(config, tokenizer)
    assert evaluators["one"].source.fingerprint == evaluators["two"].source.fingerprint
    forward = Forward(params, predict_fns, make_mesh())
    together = run_all(evaluators, forward)
    assert together["one"] != together["two"]
    for name, evaluator in evaluators.items():
        assert dict(evaluator.run(forward.with_params(params))) == together[name]


def test_kept_tables_leave_room_for_the_rest(make_source_block, config, tokenizer, params,
                                             predict_fns, monkeypatch):
    """Of tables that fit one by one only as many stay on the devices as fit together."""
    for number in range(4):
        config.evals[f"set{number}"] = dict(kind="retrieval", batch_size=8,
                                            source=make_source_block(8 * (number + 1), 1))
    evaluators = make_evaluators(config, tokenizer)
    largest = 32 * 4 * 12 * 4 + 1  # bytes of the largest table of images
    monkeypatch.setattr(embeddings, "table_bytes", lambda: largest)
    forward = Forward(params, predict_fns, make_mesh())
    values = run_all(evaluators, forward)
    assert 0 < forward.kept_bytes() <= 2 * largest
    assert any(isinstance(rows, np.ndarray) for _, rows, _ in forward.kept.values())
    monkeypatch.undo()
    assert values == run_all(evaluators, forward.with_params(params))


def test_once_makes_anew_what_is_not_enough():
    forward, made = Forward({}, {}, None), []

    def make():
        made.append(1)
        return np.zeros(len(made))

    assert len(forward.once("key", make)) == len(forward.once("key", make)) == 1
    assert len(forward.once("key", make, enough=lambda kept: len(kept) >= 2)) == 2
    assert len(forward.once("other", make)) == 3 and len(made) == 3
    assert not forward.with_params({}).kept


def test_functions_get_the_arrays_that_they_name(make_source_block, config, tokenizer):
    """Whatever else is asked of the source, and in whatever order."""
    class Lengths(Evaluator):
        asks = ("image_id", "text", "image")
        options = Rows.options

    evaluator = Lengths(make_source_block(5), dict(max_examples=0, batch_size=2), config, tokenizer)
    rows = Rows(evaluator)
    forward = Forward({"one": np.int32(1)}, {}, make_mesh())

    def lengths(params, text_mask, image):
        return text_mask.sum(axis=1) + 0 * image[:, 0, 0, 0]

    def sums(params, **arrays):
        return {name: array.reshape(len(array), -1).sum(axis=1) for name, array in arrays.items()}

    np.testing.assert_array_equal(rows.run(forward, lengths), rows.data.light["text_mask"].sum(1))
    np.testing.assert_array_equal(rows.some(forward, lengths, [3, 1]),
                                  rows.data.light["text_mask"][[3, 1]].sum(axis=1))
    every = rows.run(forward, sums)
    assert every.keys() == {"image_id", "text_ids", "text_mask", "image"}
    np.testing.assert_array_equal(every["image_id"], np.arange(5))


@pytest.mark.parametrize("change, sentence", [
    (dict(kind="ranking"), "is 'ranking'; use one of retrieval, matching"),
    (dict(topk=5), "unknown field 'topk'; its fields are kind, source, every, batch_size"),
    (dict(k=0), "k=0; it must be a whole number, at least 1"),
    (dict(ks=(4, 0)), "ks=(4, 0); it must be a tuple, each item a whole number, at least 1"),
    (dict(k="many"), "k='many'; it must be a whole number, at least 1"),
    (dict(k=True), "k=True; it must be a whole number, at least 1"),
    (dict(batch_size=0), "batch_size=0; it must be a whole number, at least 1"),
    (dict(source=None), "has no source"),
    (dict(kind="vqa"), "evals.held is of kind 'vqa', which config.task 'pretrain' cannot do; it "
     "can do 'retrieval', 'matching', 'contrasts', 'masked', 'grounding'."),
])
def test_mistakes_in_a_block(make_source_block, build, change, sentence):
    block = dict(kind="retrieval", source=make_source_block(3)) | change
    with pytest.raises(UserError) as error:
        build(**block)
    assert sentence in str(error.value)


def test_a_block_that_cannot_be_used_leaves_the_others(make_source_block, config, tokenizer):
    config.evals.update(blocks(make_source_block(6), matching=dict(max_images=1)))
    problems = []
    assert make_evaluators(config, tokenizer, problems).keys() == {"retrieval", "masked"}
    assert len(problems) == 1 and "needs at least two different" in problems[0]
    with pytest.raises(UserError, match="needs at least two different"):
        make_evaluators(config, tokenizer)


class Unforeseen(Evaluator):
    """Knows only after a run what it yields."""

    def run(self, forward):
        yield "surprise", 1.0


def test_the_best_metric_is_checked_before_the_run_where_it_can_be(make_source_block, config,
                                                                   tokenizer):
    config.evals.update(blocks(make_source_block(6), retrieval=dict(ks=(2,))))
    config.evals.other = dict(kind=f"{__name__}:Unforeseen", source=make_source_block(6))
    evaluators = make_evaluators(config, tokenizer)
    for good in ("", "retrieval/r_mean", "retrieval/i2t_r5@2", "matching/itm_accuracy_hard",
                 "masked/mlm_top5", "other/anything"):
        config.checkpoint.best_metric = good
        check_config(config)
        check_best_metric(config, evaluators)
    for typo, names in (("retrieval/rmean", "t2i_r10, r_mean."), ("retrieval", "itc_i2t_r1, "),
                        ("masked/mlm_top1_words", "it has mlm_top1, mlm_top5.")):
        config.checkpoint.best_metric = typo
        with pytest.raises(UserError, match=f"checkpoint.best_metric is '{typo}'.*") as error:
            check_best_metric(config, evaluators)
        assert names in str(error.value)


def test_the_best_metric_of_an_evaluator_without_names_is_checked_after_its_run():
    check_measured("other/surprise", "other", ["surprise"])
    check_measured("other/typo", "dev", ["surprise"])  # another's
    with pytest.raises(UserError, match="evals.other has no value 'typo'; it has surprise."):
        check_measured("other/typo", "other", ["surprise"])
    with pytest.raises(UserError, match="it has none"):
        check_measured("other/typo", "other", [])


def test_every_kind_says_what_people_read():
    """Names in labels, headlines and charts are names of values; charts have colours for them."""
    for kind in KINDS:
        known = evaluator_class(kind)
        assert known.headline and known.charts and known.calls, kind
        for chart in known.charts:
            assert chart.colour + len(chart.lines) <= 4 and len(chart.dashed) in (
                0, len(chart.lines))
        assert set(known.headline) <= {name for chart in known.charts for name in chart.lines}
