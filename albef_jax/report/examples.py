"""What the evaluators of a run show of a few examples, as plain values for the page."""

import base64
import io

from PIL import Image

from albef_jax.errors import UserError

THUMBNAIL = 192  # pixels of the longer side


def find_examples(evaluators, forward, teacher, problems=()):
    """The sections of all evaluators (see `Evaluator.examples`), of one class the first one's.

    Args:
      evaluators: in the order of the page. problems: sentences about what cannot be asked.
      forward: of the online parameters; None: nothing is asked. teacher: of the momentum copy.

    Returns:
      dict of sections, with pictures as data URIs; and `missing`, sentences about what cannot be
      shown, where there are any or nothing else.
    """
    sections, missing, asked = {}, list(problems), set()
    for evaluator in evaluators if forward else ():
        if type(evaluator) not in asked:
            try:
                sections |= evaluator.examples(forward, teacher)
                asked.add(type(evaluator))
            except UserError as error:
                missing.append(str(error))
    if not sections and not missing:
        missing.append("config.evals has no evaluator whose held-out examples would be shown here.")
    return embedded(sections) | ({"missing": missing} if missing else {})


def embedded(value):
    """A tree of dicts and lists with pictures as data URIs."""
    if isinstance(value, dict):
        return {key: embedded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [embedded(item) for item in value]
    return data_uri(value) if isinstance(value, Image.Image) else value


def data_uri(image):
    """A thumbnail as a data URI: PNG where it is small enough, as of drawings, else JPEG."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=82, optimize=True)  # PNG knows no quality
        encoded[kind] = buffer.getvalue()
    kind, data = min(encoded.items(), key=lambda item: len(item[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
