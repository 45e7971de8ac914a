"""Where models are on the Hugging Face hub: `ORG/NAME`, or `ORG/NAME@REVISION`, after `hf://`.

What comes from there is what `albef push` wrote: safetensors, JSON, a tokenizer and a model card.
Nothing else is downloaded, and nothing is unpickled.
"""

import contextlib
import re
from typing import NamedTuple

from albef_jax.errors import UserError, first_line

PREFIX = "hf://"
FILES = ("model.safetensors", "config.json", "README.md", "curves.png",
         "tokenizer/*.json", "tokenizer/*.txt")
FORM = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class Address(NamedTuple):
    """A model on the hub."""

    repo: str
    revision: str | None  # a branch, a tag or a commit; None: the newest

    @classmethod
    def of(cls, text: str):
        """UserError for what is none."""
        found = FORM.fullmatch(text)
        if not found:
            raise UserError(f"{text!r} names no model on the hub; write ORG/NAME or "
                            "ORG/NAME@REVISION.")
        return cls(*found.groups())


def downloaded(address: Address, folder=None) -> str:
    """The folder with a model: in the hub's own cache, or `folder`; UserError if it cannot be had."""
    from huggingface_hub import snapshot_download

    with readable(address):
        return snapshot_download(address.repo, revision=address.revision, local_dir=folder,
                                 allow_patterns=list(FILES))


@contextlib.contextmanager
def readable(address: Address):
    """Turns what the hub's client raises into sentences."""
    from huggingface_hub import constants
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError:
        raise UserError(f"The hub has no model {address.repo}, or does not show it; check the name, "
                        "and HF_TOKEN if it is private.") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"The model {address.repo} has no revision {address.revision}; see its "
                        "history on the hub.") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        what = ("the token in HF_TOKEN may not do this" if code in (401, 403)
                else f"the hub says {first_line(error)}")
        raise UserError(f"{address.repo}: {what} ({code}).") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{address.repo} is not on this machine, and the hub at "
                        f"{constants.ENDPOINT} cannot be reached; check the network.") from None
    except (errors.HFValidationError, OSError) as error:
        raise UserError(f"{address.repo} cannot be exchanged with the hub at {constants.ENDPOINT} "
                        f"({first_line(error)}).") from None
