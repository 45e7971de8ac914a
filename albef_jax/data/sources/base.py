"""What every data source offers: random access, so that order is a function and not a history."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np

from albef_jax.errors import UserError


class Source(abc.ABC):
    """`len(source)` examples, each one image with one or more captions.

    The parts of an example can be read one by one: captions cost nothing, images cost a disk read.

    Attributes:
        fingerprint: hash of the contents and options; a resumed run compares it.
        fields: what an example has besides image and text: 'label', 'answers', 'box', 'proposals'.
        views: images of an example; with several, `view` gives them.
        cleaning: of its texts, 'caption' or 'question' (see `data.text.clean`).
        class_names: what the labels mean, for sources with the field 'label'.
    """

    fingerprint: str
    fields: tuple[str, ...] = ()
    views: int = 1
    cleaning: str = "caption"
    class_names: tuple[str, ...] = ()

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
        """A name of the image that a person can find it by."""

    @abc.abstractmethod
    def captions(self, index: int) -> list[str]:
        """The captions of the image, at least one, as written (not cleaned)."""

    @abc.abstractmethod
    def image_id(self, index: int) -> int:
        """A number that two examples share if and only if they show the same image."""

    def image_ids(self) -> np.ndarray:
        """`image_id` of all examples, integer [n]."""
        return np.fromiter(map(self.image_id, range(len(self))), np.int64, len(self))

    @abc.abstractmethod
    def image(self, index: int) -> bytes | np.ndarray:
        """The encoded file, or pixels uint8 [h, w, 3]; raises OSError if it cannot be read."""

    def view(self, index: int, number: int) -> bytes | np.ndarray:
        """As `image`, of the image with this number, below `views`."""
        del number
        return self.image(index)

    def view_name(self, index: int, number: int) -> str:
        """A name of the image with this number."""
        return f"{self.name(index)} (image {number})"

    def label(self, index: int) -> int:
        """The class of an example, for sources with the field 'label'."""
        raise NotImplementedError

    def group(self, index: int) -> str | None:
        """What an example is consistent with others about; None if examples stand alone."""
        del index

    def answers(self, index: int) -> list[tuple[str, float]]:
        """Right answers and their weights, for sources with the field 'answers'."""
        raise NotImplementedError

    def annotators(self, index: int) -> list[str]:
        """Every answer that a person gave to a question, with repetitions; [] if unknown."""
        del index
        return []

    def answer_list(self) -> list[str]:
        """The answers to choose from, without repetition, for sources with the field 'answers'.

        Here: all right answers, in order of first appearance.
        """
        return list(dict.fromkeys(
            answer for index in range(len(self)) for answer, _ in self.answers(index)))

    def question_type(self, index: int) -> str:
        """What kind of question an example asks, to tell scores apart; '' if nothing is known."""
        del index
        return ""

    def question_id(self, index: int) -> int | str:
        """The name of a question in a file of results; here its number in the source."""
        return index

    def box(self, index: int) -> tuple[float, float, float, float]:
        """What the text is about: x, y, width, height, in pixels of the image as it was annotated.

        x and y are the upper left corner, counted from that of the image; for sources with the
        field 'box'. The image at hand may have another size: see `size`.
        """
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the image that boxes are measured in, with the field 'box'."""
        raise NotImplementedError

    def proposals(self, index: int) -> list[tuple[float, float, float, float]]:
        """Boxes to choose from, as `box`; may be empty; for sources with the field 'proposals'."""
        raise NotImplementedError

    def words(self, step: int = 1) -> Iterator[str]:
        """Every text that a tokenizer should know, not cleaned; of every `step`-th example."""
        for index in range(0, len(self), step):
            yield from self.captions(index)
            if "answers" in self.fields:
                yield from (answer for answer, _ in self.answers(index))

    def describes(self, owner: int, caption: int, index: int) -> bool:
        """Whether a caption is true of an image, as far as the source knows.

        Here: if it is the image's own, or of another example with the same image.

        Args:
            owner, caption: the example of the caption, and its number there.
            index: the example of the image.
        """
        del caption
        return self.image_id(owner) == self.image_id(index)

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

    def __getitem__(self, index: int) -> dict:
        return {
            "image": self.image(index),
            "captions": self.captions(index),
            "image_id": self.image_id(index),
            "name": self.name(index),
        }
