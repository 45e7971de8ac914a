"""Fields: what examples have (an image, a text, a label), as fixed-shape arrays of a batch."""

from collections.abc import Mapping

from albef_jax.data.fields.base import Field
from albef_jax.errors import UserError

__all__ = ["Field", "check_fields", "open_fields"]


def check_fields(fields: Mapping[str, Field], source, where: str = "data.source") -> None:
    """Checks that a source has these fields, by name, and that its facts fit them.

    Raises:
        UserError: naming the field; the source is called `where`.
    """
    for name, field in fields.items():
        if name not in source.fields:
            raise UserError(f"{where} has no field {name!r}, which the task asks for; it has "
                            f"{', '.join(source.fields)}: give a source that is made for the task.")
        field.check_facts(source.fields[name], where)


def open_fields(fields: Mapping[str, Field], source, tokenizer, where: str = "data.source"):
    """Checks fields, connects them with a source and the tokenizer of the run, and returns them.

    The tokenizer may be None where no field reads texts.
    """
    check_fields(fields, source, where)
    for name, field in fields.items():
        field.open(source.fields[name], tokenizer)
    return fields
