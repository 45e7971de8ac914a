"""The words that tasks need beyond those of captions."""

import itertools
import re

from albef_jax.scenes import captions, hypotheses, phrases, questions, statements
from albef_jax.scenes.levels import Level

_TEMPLATES = (
    phrases.NOUNS, *phrases.PLACES.values(), questions.EXIST_FRAMES, questions.COLOUR_FRAMES,
    questions.SHAPE_FRAMES, questions.COUNT_FRAMES, questions.SIDE_FRAMES,
    *statements.FRAMES.values(), statements.TOGETHER_FRAMES, statements.MORE_FRAMES,
    captions.NUMBERS, hypotheses.FRAMES, hypotheses.NEGATED, hypotheses.COUNT_FRAMES.values(),
)


def task_words(level: Level) -> list[str]:
    """Texts that hold every word of the questions, statements, hypotheses and answers of a level.

    A tokenizer that is trained on captions and on these knows each of them as one piece.
    """
    plurals = map(captions.plural, (*level.shapes, *phrases.NOUNS))
    texts = [*questions.answer_list(level), *level.sizes, *level.textures, *plurals,
             *itertools.chain(*_TEMPLATES)]
    return [re.sub(r"{.*?}", " ", text) for text in texts]
