"""Ids and trained vocabularies; recordings of the public code are in tests/test_parity.py."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from albef_jax.data.text import PREFIX, SPECIAL_TOKENS, load_tokenizer, train_tokenizer
from albef_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CAPTIONS = ["a small dog runs", "the dogs are running in the snow", "a snowman and a dog"] * 3


def test_sep_ends_every_text_also_a_cut_one():
    tokenizer = load_tokenizer(str(GOLDEN / "tokenizer"))
    ids, mask = tokenizer.encode(["two dogs", "a man riding a wave on a surfboard"], 5, sep=True)
    assert ids[0].tolist() == [tokenizer.cls_id, 81, 82, tokenizer.sep_id, tokenizer.pad_id]
    assert ids[1, -1] == tokenizer.sep_id and mask[1].all()


def test_training_gives_the_same_ids_in_every_process(tmp_path):
    script = (
        "import sys; from albef_jax.data.text import train_tokenizer;"
        f"train_tokenizer({CAPTIONS!r}, 60).save(sys.argv[1])"
    )
    saved = set()
    for run in ("a", "b", "c"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / run)], check=True)
        saved.add((tmp_path / run / "tokenizer.json").read_text())
    assert len(saved) == 1


def test_trained_vocabulary_learns_words_and_keeps_special_ids_first():
    tokenizer = train_tokenizer(CAPTIONS, 70)
    assert tokenizer.special_ids == tuple(range(len(SPECIAL_TOKENS)))
    assert tokenizer.vocab_size <= 70
    ids, mask = tokenizer.encode(["a dog"], 8)
    assert mask.sum() == 3, "[CLS], 'a' and 'dog' as whole words"
    assert tokenizer.decode(ids[0]) == "a dog"


def test_saved_tokenizer_is_read_back_identically(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 60)
    tokenizer.save(str(tmp_path / "all"))
    (tmp_path / "vocab").mkdir()
    shutil.copy(tmp_path / "all/vocab.txt", tmp_path / "vocab/vocab.txt")
    texts = ["a Dog, running[SEP]", "snowdogs \u2603", ""]
    expected = tokenizer.encode(texts, 12)
    for folder in ("all", "vocab"):
        again = load_tokenizer(str(tmp_path / folder))
        assert again.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(again.encode(texts, 12), expected)


def test_errors_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_tokenizer(str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no/such-name.*check data.tokenizer"):
        load_tokenizer("no/such-name")
    with pytest.raises(UserError, match="data.vocab_size=7 is too small"):
        train_tokenizer(CAPTIONS, 7)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(UserError, match=r"no \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a readable tokenizer file"):
        load_tokenizer(str(tmp_path))


def test_a_hub_name_is_found_in_the_hubs_cache(tmp_path):
    """A repository without tokenizer.json, as the hub's own cache lays it out, and no network."""
    revision = "0" * 40
    repository = tmp_path / "hub/models--someone--bert"
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    train_tokenizer(CAPTIONS, 60).save(str(tmp_path / "trained"))
    for name, contents in (
        ("vocab.txt", (tmp_path / "trained/vocab.txt").read_text()),
        ("config.json", '{"model_type": "bert"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}'),
    ):
        (repository / "snapshots" / revision / name).write_text(contents)
    program = (
        "import sys; from albef_jax.data.text import load_tokenizer\n"
        "print(*load_tokenizer(sys.argv[1]).encode(['a dog running'], 8)[0][0])"
    )
    ids = [
        subprocess.run(
            [sys.executable, "-c", program, name],
            env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in ("someone/bert", str(tmp_path / "trained"))
    ]
    assert ids[0] == ids[1] != ""


def test_special_words_in_a_text_are_text(tmp_path):
    """Whether the vocabulary was trained, loaded from its file, or saved and loaded."""
    text = "a [MASK] dog[SEP] [pad] [CLS]"
    tokenizer = train_tokenizer([*CAPTIONS, "[mask] sep pad cls"], 100)
    tokenizer.save(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    for one in (tokenizer, loaded, load_tokenizer(str(tmp_path))):
        (ids,) = one.pieces([text])
        assert not {one.pad_id, one.cls_id, one.sep_id, one.mask_id} & {*ids}
        assert one.decode(ids) == "a [ mask ] dog [ sep ] [ pad ] [ cls ]"


HARD = ["Möchte schön", "naïve CAFÉ Zürich", "中文 text 日本語かな", "한국어 ÅNGSTRÖM", "e\u0301 \u00e9 İstanbul",
        "tab\there\u00a0nbsp", "ﬁne ﬂag ½ ²", "a\u200bb", "🙂 smile", "ΑΒΓ ß ẞ", "don't-stop/it", ""]


@pytest.mark.parametrize("lower", [None, True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [None, True, False])
def test_every_option_of_a_folder_gives_the_ids_of_transformers(tmp_path, lower, accents, chinese):
    """And a byte order mark before the vocabulary or the options changes nothing."""
    transformers = pytest.importorskip("transformers")
    characters = sorted({c for text in HARD for form in (text, text.lower(), unicodedata.normalize(
        "NFD", text.lower()), unicodedata.normalize("NFD", text)) for c in form if not c.isspace()})
    pieces = [*SPECIAL_TOKENS, "schon", "schön", "cafe", "mochte", *characters,
              *(PREFIX + c for c in characters)]
    options = {name: value for name, value in (
        ("do_lower_case", lower), ("strip_accents", accents), ("tokenize_chinese_chars", chinese))
        if value is not None}
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    theirs = transformers.BertTokenizerFast(str(folder / "vocab.txt"), **options)
    (folder / "tokenizer_config.json").write_text(json.dumps(options), "utf-8-sig")
    (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8-sig")
    ours = load_tokenizer(str(folder))
    for text, ids in zip(HARD, ours.pieces(HARD), strict=True):
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], (text, options)


@pytest.mark.parametrize("text, words", [
    ("{", "is not valid JSON"), ("[1]", "is not valid JSON"), ('{"do_lower_case": 3}', "neither"),
    ('{"wordpieces_prefix": "@@"}', "only '##' exists here")])
def test_damaged_options_are_a_sentence(tmp_path, text, words):
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS))
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_tokenizer(str(tmp_path))
