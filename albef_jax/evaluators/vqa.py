"""Answers to held-out questions: chosen from a list, or written freely."""

from collections import Counter

import jax.numpy as jnp

from albef_jax.data.answers import encode_answers, read_answer_list
from albef_jax.errors import UserError
from albef_jax.evaluators.answer_scores import RightAnswers, answer_type, normalise_answer
from albef_jax.evaluators.batches import Rows, percent


class VqaEvaluator:
    """VQA accuracy and exact match, in percent, over all questions and by type.

    Yields `vqa_accuracy` (see `RightAnswers.accuracy`) and `exact_match` (with an answer of the
    greatest weight); `accuracy_TYPE` for yes/no, number and other, by the right answer, and for
    the types of questions that the source knows; and what needs no model: `majority`, the accuracy
    of the commonest answer of this data, and `majority_per_type`, of that of each type of question
    (where the source knows none, of answer). Nothing if the questions have no answers.

    Attributes:
      predictions: after a run, `{question_id, answer}` for each question, the format of the
        evaluation server.
    """

    fields = Rows.fields | {
        "answers": ("", ""),  # path of an answer_list.json; '': the right answers of the source
        "k": (128, 1),
        "rank": ("official", ("official", "likelihood")),
        "mode": ("rank", ("rank", "greedy", "beam")),
        "beams": (3, 1)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        del seed
        self._rows = Rows(source, settings, data_config, tokenizer)
        self._tokenizer, self._length = tokenizer, data_config.answer_length
        self._settings, self._bound = settings, None
        data = self._rows.data
        answered = "answers" in data.source.fields
        self._right = [RightAnswers(data.source.answers(i), data.source.annotators(i))
                       for i in range(len(data))] if answered else None
        self.description = f"{len(data)} questions"
        self.predictions = []
        if settings["mode"] == "rank":
            self._candidates = self._answer_list(data.source if answered else None)
            self._encoded = encode_answers(self._candidates, tokenizer, self._length)
            self.description += f", {len(self._candidates)} answers to choose from"

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        data = self._rows.data
        results = self._rows.run(self._function(predict_fns), params, mesh, "questions")
        answers = ([self._candidates[i] for i in results] if self._settings["mode"] == "rank"
                   else [self._tokenizer.decode(ids) for ids in results])
        self.predictions = [{"question_id": data.source.question_id(i), "answer": answer}
                            for i, answer in enumerate(answers)]
        if self._right:
            types = [data.source.question_type(i) for i in range(len(data))]
            yield from scores(list(map(normalise_answer, answers)), self._right, types)

    def _answer_list(self, source):
        if self._settings["answers"]:
            return read_answer_list(self._settings["answers"])
        if source is None:
            raise UserError("The evals block of kind 'vqa' has questions without answers and no "
                            "list to choose from; set answers='answer_list.json', or mode='beam'.")
        return source.answer_list()

    def _function(self, predict_fns):
        """From a batch to the number of each best candidate, or to the ids of a free answer.

        The same one for the same `predict_fns`, so that it is compiled once.
        """
        if self._bound is None or self._bound[0] is not predict_fns:
            make = self._choosing if self._settings["mode"] == "rank" else self._writing
            self._bound = predict_fns, make(**predict_fns)
        return self._bound[1]

    def _choosing(self, encode, rank, **_):
        candidates = tuple(map(jnp.asarray, self._encoded))
        k = min(self._settings["k"], len(self._candidates))
        first_twice = self._settings["rank"] == "official"

        def choose(params, image, text_ids, text_mask):
            states = encode(params, image, text_ids, text_mask)
            return rank(params, states, text_mask, candidates, k, first_twice)[0][:, 0]

        return choose

    def _writing(self, encode, generate, **_):
        beams = self._settings["beams"] if self._settings["mode"] == "beam" else 1

        def write(params, image, text_ids, text_mask):
            states = encode(params, image, text_ids, text_mask)
            return generate(params, states, text_mask, self._tokenizer.sep_id, self._length,
                            beams)[0][:, 0]

        return write


def scores(answers, right, types):
    """Yields (name, percent) of normalised answers; see `VqaEvaluator`.

    Args:
      answers: n normalised answers. right: n `RightAnswers`.
      types: n types of questions, '' where it is not known.
    """
    accuracy = [truth.accuracy(answer) for truth, answer in zip(right, answers)]
    yield "vqa_accuracy", percent(accuracy)
    yield "exact_match", percent([answer in truth.best for truth, answer in zip(right, answers)])
    answer_types = [answer_type(truth.best[0]) for truth in right]
    for of_type in (answer_types, types):
        for name, rows in by_type(of_type).items():
            yield f"accuracy_{name}", percent([accuracy[i] for i in rows])
    groups = by_type(types) or by_type(answer_types)
    yield "majority", percent(majority_accuracy(right))
    yield "majority_per_type", percent([
        value for rows in groups.values() for value in majority_accuracy([right[i] for i in rows])])


def by_type(types):
    """Type -> the rows that have it, most frequent first, without ''."""
    rows = {name: [i for i, t in enumerate(types) if t == name]
            for name, _ in Counter(types).most_common()}
    rows.pop("", None)
    return rows


def majority_accuracy(right):
    """The accuracies of the answer that has the greatest weight over all of these questions."""
    total = Counter()
    for truth in right:
        total.update(truth.weights)
    commonest = total.most_common(1)[0][0]
    return [truth.accuracy(commonest) for truth in right]
