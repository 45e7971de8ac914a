"""Several sources in fixed shares."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from albef_jax.data.sources.base import Source
from albef_jax.data.sources.numbering import NumberedSource, number
from albef_jax.errors import UserError, shown, wanted


class Mixture(NumberedSource):
    """The examples of all parts, one part after the other; an epoch shows them in shares.

    An epoch has as many rows as there are examples. The rows of a part are spread evenly over it,
    so any stretch of an epoch, a batch or a group, holds the parts in their shares. A part goes on
    in the next epoch where it stopped in the last one: each of its examples is shown once before
    one is shown again, whether its share makes that several passes per epoch or several epochs per
    pass. All of this is a function of the epoch; nothing needs to be remembered.

    It has the fields that all parts have, and they must be of the same facts.

    Args:
        parts: blocks `dict(source=..., weight=...)`; `source` as for `make_source`, the weights
            are relative to each other.

    Raises:
        UserError: no parts, a wrong block, a weight that is no positive number or so small that it
            gives no rows, a part that cannot be used, or parts that do not fit each other.
    """

    def __init__(self, parts: Sequence[Mapping]):
        from albef_jax.data.sources import make_source  # it imports this file

        self.check(parts)
        weights = np.array([_weight(place, part) for place, part in enumerate(parts)])
        self._parts = [make_source(part["source"]) for part in parts]
        self._shares = weights / weights.sum()
        self._ends = np.cumsum([len(part) for part in self._parts])
        self._starts = self._ends - [len(part) for part in self._parts]
        for place, share in enumerate(self._shares):
            if share * len(self) < 2:  # an epoch cut to whole batches has at least half its rows
                raise UserError(f"Part {place} of the mixture (counted from 0) gets {share:.2g} of "
                                f"{len(self)} rows, less than two; raise its weight or leave it "
                                "out.")
        self.fields = _shared_fields(self._parts)
        self._image_ids = _number(self._parts) if "image_id" in self.fields else None
        digest = hashlib.blake2b(b"mixture", digest_size=16)
        for part, share in zip(self._parts, self._shares):
            digest.update(f" {float(share)!r} {part.fingerprint}".encode())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def check(cls, parts):
        """Every part is a block with a weight and a source; see `Source.check`."""
        from albef_jax.data.sources import check_source  # it imports this file

        if not isinstance(parts, tuple | list) or not parts:
            raise UserError("A mixture has no parts; give it some, such as "
                            "parts=(dict(source='json:a.json', weight=1.0),).")
        for place, part in enumerate(parts):
            _weight(place, part)
            check_source(part["source"], f"The source of part {place} of the mixture")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        part, local = self._locate(index)
        return self._parts[part].name(local)

    def get(self, index: int, field: str):
        if field == "image_id":
            return self.image_id(index)
        part, local = self._locate(index)
        return self._parts[part].get(local, field)

    def views(self, index: int) -> list:
        part, local = self._locate(index)
        return self._parts[part].views(local)

    def words(self, step: int = 1) -> Iterator[str]:
        for part in self._parts:
            yield from part.words(step)

    def describes(self, owner: int, text: int, index: int) -> bool:
        (part, local_owner), (other, local) = self._locate(owner), self._locate(index)
        return part == other and self._parts[part].describes(local_owner, text, local)

    def order(self, seed: int, epoch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        counts = _split(self._shares, rows)
        streams = [self._stream(seed, part, epoch * count, count)
                   for part, count in enumerate(counts)]
        place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        mixed = np.argsort(place, kind="stable")
        indices, passes = (np.concatenate(columns)[mixed] for columns in zip(*streams))
        return indices, passes

    def _locate(self, index: int) -> tuple[int, int]:
        """The part of an example, and its index there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._starts[part])

    def _stream(self, seed: int, part: int, start: int, count: int):
        """`count` rows of a part from row `start` of its endless sequence of passes."""
        source = self._parts[part]
        size, own_seed = len(source), (seed << 16) + part + 1  # parts of one size differ in order
        first, last = start // size, (start + count - 1) // size
        orders = [source.order(own_seed, epoch, size) for epoch in range(first, last + 1)]
        rows = slice(start - first * size, start - first * size + count)
        indices, passes = (np.concatenate(columns)[rows] for columns in zip(*orders))
        return indices + self._starts[part], passes


def _weight(place: int, part) -> float:
    where = f"Part {place} of the mixture (counted from 0)"
    if not isinstance(part, Mapping | ConfigDict) or set(part) != {"source", "weight"}:
        raise UserError(f"{where} must be dict(source=..., weight=...), but is {shown(part)}.")
    weight = part["weight"]
    if wanted(weight, 0.0) or weight <= 0:
        raise UserError(f"{where} has the weight {shown(weight)}; give it a positive number.")
    return float(weight)


def _shared_fields(parts: Sequence[Source]) -> dict[str, Mapping]:
    """The fields that all parts have, with their facts."""
    shared = [field for field in parts[0].fields if all(field in part.fields for part in parts)]
    if not shared:
        raise UserError("The parts of the mixture have no field in common; mix sources of the "
                        "same task.")
    for field, (place, part) in itertools.product(shared, enumerate(parts)):
        facts, other = parts[0].fields[field], part.fields[field]
        for fact in {**facts, **other}:
            if facts.get(fact) != other.get(fact):
                raise UserError(
                    f"Parts 0 and {place} of the mixture (counted from 0) do not fit each other: "
                    f"{fact!r} of their field {field!r} is {facts.get(fact)!r} and "
                    f"{other.get(fact)!r}; mix sources of the same task.")
    return {field: parts[0].fields[field] for field in shared}


def _split(shares: np.ndarray, rows: int) -> list[int]:
    """Whole numbers in these shares that sum to `rows`: the largest remainders are rounded up."""
    exact = shares * rows
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: rows - counts.sum()]] += 1
    return counts.tolist()


def _number(parts: Sequence[Source]) -> np.ndarray:
    """Image ids int32 of all examples; those of different parts differ."""
    numbered, start = [], 0
    for part in parts:
        numbered.append(number(part.image_ids()) + start)
        start = numbered[-1].max() + 1
    return np.concatenate(numbered)
