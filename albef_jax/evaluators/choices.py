"""What evaluators share whose model chooses an answer: their page, and what stands beside it."""

import numpy as np

from albef_jax.evaluators.answer_scores import normalise_answer
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.queries import SHOWN

EXAMPLES = 8  # spread evenly over the held-out set: nothing is picked for looking good


class ChoiceEvaluator(Evaluator):
    """Values by name of a type or class are `accuracy_NAME`; `majority` needs no model."""

    labels = {"majority": "always the commonest answer"}

    @classmethod
    def label(cls, name):
        return super().label(name.replace("accuracy_", "accuracy: "))

    def beneath(self, name, values):
        return [f"always the commonest: {values['majority']:.1f}%"] if "majority" in values else []


def chart(lines):
    """The chart of these values (name -> legend) above always giving the commonest answer."""
    return Chart("Held-out {name}, %", lines, blind="majority",
                 note="dashed: always the commonest answer", top=100)


def choices(rows, example, texts, shares, truth):
    """One of the `rows` of `Evaluator.examples`.

    Args:
      rows: a `batches.Rows`. example: its number.
      texts, shares: what the model may answer, and how probable it finds it, float `[c]`.
      truth: right texts, best first.
    """
    right = set(map(normalise_answer, truth))
    best = [{"text": texts[i], "share": float(shares[i]),
             "right": normalise_answer(texts[i]) in right}
            for i in np.argsort(-shares, kind="stable")[:SHOWN]]
    return {**rows.shown(example), "choices": best, "truth": truth[0], "hit": best[0]["right"]}
