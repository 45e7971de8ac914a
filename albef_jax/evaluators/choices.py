"""What a model chooses in an example, as the page about a run shows it."""

import numpy as np

from albef_jax.evaluators.answer_scores import normalise_answer
from albef_jax.evaluators.queries import SHOWN

EXAMPLES = 8  # spread evenly over the held-out set: nothing is picked for looking good


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
