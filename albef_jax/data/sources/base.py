"""What every data source offers: random access, so that order is a function and not a history."""

import abc
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from albef_jax.errors import UserError

Value = Callable[[], Any]  # reads the raw value of an example; raises OSError where it cannot


class Source(abc.ABC):
    """`len(source)` examples, each with the values of some fields, which are read one by one.

    A subclass has a method for each of its fields, of the same name, from the number of an example
    to its raw value. Names and raw values of the fields that this project reads:

    | field | raw value | facts |
    |---|---|---|
    | image | an encoded file, or pixels uint8 [h, w, 3] | views: with several, a list of images |
    | text | a list of texts, at least one, as written | cleaning: see `data.text.clean` |
    | image_id | a number that two examples share if and only if they show the same image | |
    | label | the number of a class | class_names |
    | answers | a list of (right answer, weight) | choices, where not all right ones |
    | annotators | every answer that a person gave, with repetitions | |
    | question_id | the name of a question in a file of results | |
    | question_type | what kind of question it is, to tell scores apart | |
    | foil | a text that is nearly true of the image, and false | |
    | kind | what is false about it, to tell scores apart | |
    | group | what an example is consistent with others about | |
    | box | x, y (upper left corner), width, height in pixels of an image of `size` | |
    | proposals | a list of boxes to choose from, maybe empty | |
    | size | width and height of the image as it was annotated | |
    | title | a list of texts as written; empty where there is none | cleaning |
    | table | properties and values, see `data.table.parse_table`; None where there are none | |
    | regions | a `sources.regions.Regions` of the image; None where there is none | width |
    | video, audio | float [n, width], a row per clip or band; None where there is none | width |
    | coarse, fine | names of the class, and of the one that is retrieved or distinguished | |

    Attributes:
        fingerprint: hash of the contents and options; a resumed run compares it.
        fields: field name -> its facts, which hold for all examples; `views` is 1 and `cleaning`
            'caption' where they are left out. Of `optional` fields examples may lack the value.
        limits, choices: of its options, as of a `Field` and of a `Task`; types are those of the
            constructor's annotations.
    """

    fingerprint: str
    fields: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, tuple] = {}
    choices: Mapping[str, tuple] = {}

    @classmethod
    def check(cls, **options) -> None:
        """Checks of its options what `limits` and `choices` do not say, before anything is read.

        Raises:
            UserError: an option is wrong, or does not go with another.
        """

    @classmethod
    def options(cls, text: str) -> dict:
        """The options that the short form `kind:text` stands for.

        Raises:
            UserError: the text is not understood, or the kind has no short form.
        """
        raise UserError(f"{cls.__name__} has no short form (':{text}'); give it as a block.")

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """A name that a person can find an example by."""

    def get(self, index: int, field: str) -> Any:
        """The raw value of a field of an example; raises OSError if it cannot be read."""
        return getattr(self, field)(index)

    def views(self, index: int) -> list[tuple[str, Value]]:
        """The images of an example one by one: the name of each, by which it is known wherever it
        is shown again, and what reads it."""
        read, name = functools.partial(self.get, index, "image"), self.name(index)
        count = self.fields["image"].get("views", 1)
        if count == 1:
            return [(name, read)]
        return [(f"{name} (image {number})", view)
                for number, view in enumerate(of_views(read, count))]

    def modalities(self, index: int) -> tuple[str, ...]:
        """The fields that an example does not lack, of those with the fact `optional`."""
        return tuple(name for name, facts in self.fields.items() if facts.get("optional"))

    def image_ids(self) -> np.ndarray:
        """The field `image_id` of all examples, integer [n]."""
        ids = (self.get(index, "image_id") for index in range(len(self)))
        return np.fromiter(ids, np.int64, len(self))

    def words(self, step: int = 1) -> Iterator[str]:
        """Every text that a tokenizer should know, not cleaned; of every `step`-th example."""
        for index in range(0, len(self), step):
            yield from self.get(index, "text")
            if "answers" in self.fields:
                yield from (answer for answer, _ in self.get(index, "answers"))

    def describes(self, owner: int, text: int, index: int) -> bool:
        """Whether text number `text` of an example `owner` is true of the image of another.

        Here: if it is the image's own, or of another example with the same image.
        """
        return self.get(owner, "image_id") == self.get(index, "image_id")

    def truth(self, index: int, text: str) -> bool | None:
        """Whether any text is true of the image of an example, for sources that know what it shows;
        None for a text that they do not understand."""
        raise NotImplementedError(f"{type(self).__name__} does not know what its images show")

    def order(self, seed: int, epoch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples that an epoch shows, in order: a function, so that any step can be resumed.

        Here: a permutation of all examples, cut short.

        Args:
            seed, epoch: what the order depends on; epochs count from 0.
            rows: length of the epoch, at most `len(self)`.

        Returns:
            indices int64 [rows], and passes int64 [rows]: how often each was shown before. An
            example is cropped, augmented and captioned anew in every pass.
        """
        generator = np.random.Generator(np.random.Philox([seed, epoch]))
        return generator.permutation(len(self))[:rows], np.broadcast_to(epoch, rows)


def of_views(value: Value, views: int) -> list[Value]:
    """Functions for the images of an example, which is read once, whichever is called first."""
    if views == 1:
        return [value]
    lock, read = threading.Lock(), functools.cache(value)

    def view(number: int):
        with lock:
            return read()[number]

    return [functools.partial(view, number) for number in range(views)]


def reason(error: OSError) -> str:
    """Why a value cannot be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    return error.strerror or str(error) or type(error).__name__


def readable(text: str) -> str:
    """A text whose half characters (lone surrogates, as of a cut emoji) are replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pairs(cleaning: str = "caption", views: int = 1) -> dict[str, dict]:
    """The fields of examples with an image and texts, and their facts."""
    return {"image": {"views": views}, "text": {"cleaning": cleaning}, "image_id": {}}
