"""Embedded products: what modalities say is drawn and sounded; what they tell at most."""

import itertools

import numpy as np
import pytest

from albef_jax.data.sources import make_source
from albef_jax.errors import UserError
from albef_jax.scenes import products
from albef_jax.scenes.__main__ import main

ALL = (1.0,) * 5


@pytest.fixture(scope="module")
def held_out():
    return products.Products("heldout", 240, presence=ALL)


def says(modality, **values):
    """What a modality says of some instance, with these values."""
    instance = products.Products("train", 1).instances[0]
    return {name: instance[name] for name in products.SAID[modality]} | values


def rng():
    return np.random.default_rng(0)


def test_near_duplicates_differ_in_their_own_properties_alone(held_out):
    for family in range(3):
        alike = held_out.instances[family * 12:(family + 1) * 12]
        assert len({tuple(one.values()) for one in alike}) == 12
        for name in alike[0]:
            values = {one[name] for one in alike}
            assert len(values) == 2 if name in products.OWN else len(values) == 1


def test_each_own_property_is_said_by_one_modality():
    for name, modality in zip(products.OWN, products.SAID):
        assert products.SAID[modality][name] == 1
        assert sum(name in shares for shares in products.SAID.values()) == 1


def test_modalities_together_tell_the_instance_and_no_pair_does(held_out):
    fine = {subset: products.ceilings(held_out, subset)["fine"] for length in range(1, 6)
            for subset in itertools.combinations(products.SAID, length)}
    most = [max(value for subset, value in fine.items() if len(subset) == length)
            for length in range(1, 6)]
    assert most[0] < 20 and most[1] < 35 and most[2] < 65 and most[3] < 90 and most[4] == 100
    for subset, value in fine.items():  # each modality that is added tells more
        assert all(fine[other] > value for other in fine
                   if len(other) == len(subset) + 1 and set(subset) < set(other))


def test_ceilings_fall_with_missing_and_with_wrong_modalities():
    subset, values = tuple(products.SAID), []
    for options in ({"presence": ALL}, {}, {"wrong": 0.4}):
        some = products.Products("heldout", 240, **options)
        values.append(products.ceilings(some, subset))
    for name in ("accuracy", "fine"):
        assert values[0][name] > values[1][name] > values[2][name], name
    assert values[0]["coarse"] >= values[1]["coarse"] > values[2]["coarse"]


def test_a_ceiling_by_hand():
    two = products.Products("train", 4, copies=2, presence=ALL)
    instances = [dict(two.instances[0]), dict(two.instances[0])]
    two.instances = [instances[0] | {"way": "forth"}, instances[1] | {"way": "back"}]
    # The four are alike to the title: one of three others is the same instance.
    assert products.ceilings(two, ("audio",))["fine"] == pytest.approx(100 / 3)
    assert products.ceilings(two, ("video",))["fine"] == 100


def test_wrong_modalities_say_what_another_instance_is():
    some = products.Products("train", 400, presence=ALL, wrong=0.4)
    graphs = [some.graph(index) for index in range(400)]
    share = np.mean([len(graph["wrong"]) / 5 for graph in graphs])
    assert 0.35 < share < 0.45
    for graph in graphs:
        for modality, said in graph["says"].items():
            true = all(graph["values"][name] == value for name, value in said.items())
            assert true or modality in graph["wrong"]
    assert not any(products.Products("train", 400).graph(i)["wrong"] for i in range(40))


def test_presence_is_long_tailed_and_never_nothing():
    some = products.Products("train", 500, presence=(0.2, 0.2, 0.1, 0.1, 0.1))
    counts = [len(some.graph(index)["says"]) for index in range(500)]
    assert min(counts) == 1 and counts.count(1) > counts.count(2) > counts.count(3)


def test_the_image_shows_the_object_and_something_small_beside_it():
    pixels, boxes = products.image(says("regions", colour="red", texture="plain"), rng())
    assert pixels.shape == (48, 48, 3) and pixels.dtype == np.uint8
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 90)
    y, x = np.nonzero(red)
    x0, y0, x1, y1 = boxes[0]
    assert x.min() >= x0 and x.max() < x1 and y.min() >= y0 and y.max() < y1
    x0, y0, x1, y1 = boxes[1]
    assert (pixels[y0:y1, x0:x1].min(axis=-1) > 130).mean() > 0.2  # grey


def moved(frames):
    """Of each frame: where the bright object is, how large and how bright it is, how it is turned.
    """
    light = np.maximum(frames.astype(float).mean(-1) - 60, 0)
    y, x = np.mgrid[:16, :16]
    total = np.maximum(light.sum((1, 2)), 1)
    place = (light * x).sum((1, 2)) / total
    upper = ((light * (x - place[:, None, None]))[:, :7]).sum((1, 2))  # where its upper half leans
    return {"slides": place, "grows": (light > 0).sum((1, 2)), "blinks": light.max((1, 2)),
            "turns": upper}


@pytest.mark.parametrize("motion", ["slides", "grows", "blinks", "turns"])
def test_the_clip_moves_as_it_is_said(motion):
    seen = {}
    for way in ("forth", "back"):
        frames = products.clip(says("video", motion=motion, way=way, tempo="slow", shape="triangle",
                                    colour="white"), rng())
        assert frames.shape == (8, 16, 16, 3) and frames.dtype == np.uint8
        first, second = moved(frames)[motion][1:4], moved(frames)[motion][5:]
        seen[way] = first.mean() - second.mean()  # of the halves of the cycle
        quick = moved(products.clip(says("video", motion=motion, way=way, tempo="quick",
                                         shape="triangle", colour="white"), rng()))[motion]
        slow = moved(frames)[motion]
        assert np.abs(np.diff(quick)).mean() > 1.3 * np.abs(np.diff(slow)).mean()
    assert seen["forth"] * seen["back"] < 0 and abs(seen["forth"]) > 0.5


def test_the_sound_has_pitch_rhythm_timbre_and_melody():
    def loudest(samples):
        return np.argmax(np.abs(np.fft.rfft(samples))) * products.SOUND_RATE / len(samples)

    base = dict(material="wood", melody="rising", tempo="slow")
    pitches = [loudest(products.sound(says("audio", size=size, **base), rng())[:4000])
               for size in ("giant", "large", "small", "tiny")]
    assert np.all(np.diff(pitches) > 0.5 * np.array(pitches[:-1]))
    for tempo, beats in (("slow", 2), ("brisk", 4), ("quick", 6)):
        sound = products.sound(says("audio", size="large", **base | {"tempo": tempo}), rng())
        envelope = np.abs(sound).reshape(-1, 100).mean(1)
        assert np.sum((envelope[1:] > 3 * envelope[:-1]) & (envelope[1:] > 0.05)) + 1 == beats
    for melody, sign in (("rising", 1), ("falling", -1)):
        sound = products.sound(says("audio", size="large", **base | {"melody": melody}), rng())
        assert sign * (loudest(sound[4000:]) - loudest(sound[:4000])) > 50
    sounds = {name: np.abs(np.fft.rfft(products.sound(says(
        "audio", size="giant", **base | {"material": name}), rng())[:4000]))
        for name in products.TIMBRES}
    for one, other in itertools.combinations(sounds.values(), 2):
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) < 0.97


def test_the_source_gives_what_products_say():
    source = make_source("scenes:products:heldout")
    assert len(source) == 2400
    source = make_source(dict(kind="scenes_products", split="heldout", size=60))
    again = make_source(dict(kind="scenes_products", split="heldout", size=60))
    for index in range(60):
        graph = source.graph(index)
        assert source.modalities(index) == tuple(graph["says"])
        for name in products.SAID:
            assert bool(name in graph["says"]) == (source.get(index, name) not in (None, []) if
                                                   name in ("title", "table") else
                                                   source.get(index, name) is not None)
        if "title" in graph["says"]:
            assert graph["says"]["title"]["series"] in source.title(index)[0]
        if "table" in graph["says"]:
            assert dict(source.table(index)) == graph["says"]["table"]
        if "regions" in graph["says"]:
            found, same = source.regions(index), again.regions(index)
            assert found.features.shape == (3, source.fields["regions"]["width"])
            np.testing.assert_array_equal(found.features, same.features)
        if "video" in graph["says"]:
            assert source.video(index).shape == (8, source.fields["video"]["width"])
        if "audio" in graph["says"]:
            assert source.audio(index).shape == (24, source.fields["audio"]["width"])
            assert np.all(np.isfinite(source.audio(index)))
        assert source.fields["label"]["class_names"][source.label(index)] == source.coarse(index)


def test_complete_products_only():
    source = make_source(dict(kind="scenes_products", size=100, complete=True))
    assert 5 < len(source) < 60
    assert all(len(source.modalities(index)) == 5 for index in range(len(source)))


@pytest.mark.parametrize("options, sentence", [
    (dict(split="dev"), "The split 'dev' of products is unknown"),
    (dict(size=0), "Products need size >= 1"),
    (dict(presence=(1, 1)), "Products need 5 shares of presence"),
    (dict(wrong=1.5), "all between 0 and 1"),
])
def test_options_out_of_range(options, sentence):
    with pytest.raises(UserError, match=sentence):
        make_source(dict(kind="scenes_products", **options))


def test_the_command_prints_the_ceilings(capsys):
    main(["products", "--scenes", "96"])
    lines = capsys.readouterr().out.splitlines()
    assert "96 products, 24 instances in 2 families" in lines[0] and len(lines) == 2 + 31
    assert lines[-1].startswith("title + regions + table + video + audio")
