"""Captions to token ids: cleaning, word pieces, training a vocabulary."""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from albef_jax.data.sources.base import Source, readable
from albef_jax.errors import UserError, first_line
from albef_jax.files import local_copy, uploaded

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TRAINED_ON = 500_000  # examples, evenly spread over the source, that a tokenizer is trained on
PREFIX = "##"  # marks a piece that continues a word
BOM = "\ufeff"  # what some editors put before a text
# Settings of tokenizers in the layout of Hugging Face -> ours; null is the default.
RULES = {"do_lower_case": "lower_case", "strip_accents": "strip_accents",
         "tokenize_chinese_chars": "chinese"}

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int) -> str:
    """Cleans a caption exactly as the public ALBEF code does before its tokenizer.

    Lower case, no punctuation, hyphens and slashes opened up, the first `max_words` words.
    """
    text = _DELETED.sub("", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int) -> str:
    """Cleans a question exactly as the public code does: spaces stay as they are within."""
    text = _DELETED.sub("", text.lower()).replace("-", " ").replace("/", " ").rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean(text: str, cleaning: str, max_words: int) -> str:
    """Cleans a text in one of the two ways of the public code, 'caption' or 'question'; or 'none'.
    """
    if cleaning == "none":
        return text
    return {"caption": clean_caption, "question": clean_question}[cleaning](text, max_words)


class Tokenizer:
    """BERT word pieces as ALBEF uses them: [CLS] and pieces, by default without [SEP].

    `pieces` of the `tokenizers` library must know the five special tokens.
    """

    def __init__(self, pieces: tokenizers.Tokenizer):
        missing = [token for token in SPECIAL_TOKENS if pieces.token_to_id(token) is None]
        if missing:
            raise UserError(f"The tokenizer has no {', '.join(missing)} in its vocabulary; use a "
                            "BERT word piece vocabulary.")
        pieces.no_padding()
        pieces.no_truncation()
        pieces.encode_special_tokens = True  # a "[MASK]" in a text is text, whoever wrote it
        self._pieces = pieces
        self.pad_id, _, self.cls_id, self.sep_id, self.mask_id = self.special_ids

    @property
    def vocab_size(self) -> int:
        return self._pieces.get_vocab_size()

    @property
    def vocabulary(self) -> dict[str, int]:
        """Word piece -> id."""
        return self._pieces.get_vocab()

    @property
    def rules(self) -> dict:
        """How texts become pieces beside the vocabulary, as plain values."""
        return json.loads(self._pieces.to_str())["normalizer"]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP], [MASK]."""
        return tuple(self._pieces.token_to_id(token) for token in SPECIAL_TOKENS)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the word pieces of each text, without special tokens."""
        encodings = self._pieces.encode_batch([*map(readable, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(
        self, texts: Sequence[str], length: int, sep: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of cleaned texts, cut and padded on the right to one length.

        Args:
            texts: b texts. length: number of tokens l, [CLS] included.
            sep: end each text with [SEP], as stock BERT does.

        Returns:
            ids and mask int32 [b, l], 1 for real tokens.
        """
        ids_bl = np.full((len(texts), length), self.pad_id, np.int32)
        mask_bl = np.zeros((len(texts), length), np.int32)
        end = [self.sep_id] if sep else []
        for row, pieces in enumerate(self.pieces(texts)):
            ids = [self.cls_id, *pieces[: length - 1 - len(end)], *end]
            ids_bl[row, : len(ids)] = ids
            mask_bl[row, : len(ids)] = 1
        return ids_bl, mask_bl

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids [l], special tokens left out."""
        tokens = (self._pieces.id_to_token(i) for i in map(int, ids) if i not in self.special_ids)
        return " ".join(tokens).replace(f" {PREFIX}", "")

    def save(self, folder: str) -> None:
        """Writes tokenizer.json (read by `load_tokenizer`) and vocab.txt (read by other tools)."""
        with uploaded(folder) as local:
            os.makedirs(local, exist_ok=True)
            self._pieces.save(os.path.join(local, "tokenizer.json"))
            self._pieces.model.save(local)


def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """Loads a tokenizer from a folder (tokenizer.json or vocab.txt) or the Hugging Face hub.

    Raises:
        UserError: there is neither such a folder nor such a name.
    """
    folder = Path(local_copy(name_or_folder))
    if not folder.is_dir():
        return Tokenizer(_from_hub(name_or_folder))
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} is not a readable tokenizer file: {error}.") from None
    if not (folder / "vocab.txt").is_file():
        raise UserError(f"The tokenizer folder {name_or_folder} holds neither tokenizer.json nor "
                        "vocab.txt.")
    vocab = models.WordPiece.read_file(str(folder / "vocab.txt"))
    vocab = {piece.removeprefix(BOM): number for piece, number in vocab.items()}
    return Tokenizer(_word_pieces(vocab, **_rules(folder / "tokenizer_config.json")))


def _rules(path: Path) -> dict:
    """How a folder splits texts, as arguments of `_word_pieces`; raises UserError."""
    if not path.is_file():
        return {}
    try:
        config = dict(json.loads(path.read_text("utf-8-sig")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again.") from None
    prefix = config.get("wordpieces_prefix", PREFIX)
    if prefix != PREFIX:
        raise UserError(f"{path} has the wordpieces_prefix {prefix!r}, and only {PREFIX!r} exists "
                        "here; use another vocabulary.")
    for name in RULES.keys() & config.keys():
        if not isinstance(config[name], (bool, type(None))):
            raise UserError(f"{path} has {name}={config[name]!r}, which is neither true, false nor "
                            "null; download it again.")
    return {ours: config[name] for name, ours in RULES.items() if config.get(name) is not None}


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains word pieces on cleaned captions; the same captions give the same ids.

    `vocab_size` is an upper limit; fewer pieces come out when the captions hold fewer.

    Raises:
        UserError: `vocab_size` cannot even hold the single characters.
    """
    pieces = _word_pieces({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    captions = [*map(readable, captions)]
    # The trainer numbers continued characters in the order of a hash map, which differs from run
    # to run, and breaks ties by number. Naming them up front makes the outcome a function.
    found = set(itertools.chain.from_iterable(map(pieces.normalizer.normalize_str, captions)))
    characters = sorted(character for character in found if not character.isspace())
    first = [*SPECIAL_TOKENS, *characters, *(PREFIX + c for c in characters)]
    if vocab_size < len(first):
        raise UserError(f"data.vocab_size={vocab_size} is too small: the captions need "
                        f"{len(first)} pieces for their single characters alone.")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first,
                                        continuing_subword_prefix=PREFIX, show_progress=False)
    pieces.train_from_iterator(captions, trainer)
    vocab = sorted(pieces.get_vocab().items(), key=lambda item: item[1])
    return Tokenizer(_word_pieces(dict(vocab)))


def make_tokenizer(data_config, *sources: Source) -> Tokenizer:
    """The tokenizer of a config: loaded by name or folder, or trained on the sources' texts.

    Of a large source, on those of every n-th example.
    """
    if data_config.tokenizer:
        return load_tokenizer(data_config.tokenizer)
    texts = itertools.chain.from_iterable(_words_of(source, data_config.max_words)
                                          for source in sources)
    return train_tokenizer(texts, data_config.vocab_size)


def _words_of(source: Source, max_words: int) -> Iterator[str]:
    """The cleaned texts of a source that a tokenizer is trained on."""
    cleaning = next((facts["cleaning"] for facts in source.fields.values() if "cleaning" in facts),
                    "caption")
    for text in source.words(step=-(-len(source) // TRAINED_ON)):
        yield clean(text, cleaning, max_words)


def _word_pieces(vocab: dict[str, int], lower_case: bool = True, strip_accents: bool | None = None,
                 chinese: bool = True) -> tokenizers.Tokenizer:
    """BERT's tokenizer: punctuation stands alone.

    Args:
        vocab: word piece -> id. lower_case: of texts. strip_accents: drop them; None: where letters
            become small ones. chinese: CJK characters stand alone too.
    """
    pieces = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token=UNK, continuing_subword_prefix=PREFIX))
    pieces.normalizer = normalizers.BertNormalizer(
        lowercase=lower_case, strip_accents=strip_accents, handle_chinese_chars=chinese)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    return pieces


def _from_hub(name: str) -> tokenizers.Tokenizer:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # no hub name looks like this
        raise UserError(f"The tokenizer folder {name} does not exist; check data.tokenizer.")
    from transformers import AutoTokenizer  # knows every layout of the hub; slow to import

    try:
        return AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:  # the library raises anything
        raise UserError(f"The tokenizer {name!r} is neither a folder nor a name that the Hugging "
                        f"Face hub gives us ({first_line(error)}); check data.tokenizer, or copy "
                        "its vocab.txt into a folder.") from None
