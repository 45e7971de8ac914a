"""Answers to held-out questions: chosen from a list, or written freely."""

from collections import Counter
import functools

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.data.fields.answers import answers_of, encode_answers, read_answer_list
from albef_jax.errors import UserError
from albef_jax.evaluators.answer_scores import RightAnswers, answer_type, normalise_answer
from albef_jax.evaluators.batches import Rows, percent
from albef_jax.evaluators.choices import EXAMPLES, ChoiceEvaluator, chart, choices
from albef_jax.evaluators.queries import spread

RANKED = 32  # answers whose likelihood the page compares


class VqaEvaluator(ChoiceEvaluator):
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

    options = Rows.options | {
        "answers": ("", ""),  # path of an answer_list.json; '': the right answers of the source
        "k": (128, 1),
        "rank": ("official", ("official", "likelihood")),
        "mode": ("rank", ("rank", "greedy", "beam")),
        "beams": (3, 1)}
    calls = ("encode", "rank", "generate")
    asks = ("image", "text")
    labels = ChoiceEvaluator.labels | {
        "vqa_accuracy": "VQA accuracy", "majority_per_type": "always the commonest of its type"}
    headline = {"vqa_accuracy": "VQA accuracy"}
    charts = (chart({"vqa_accuracy": "VQA accuracy", "exact_match": "exact match"}),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows, source = Rows(self), self.source
        questions = range(len(self._rows))
        self._types = self._read("question_type", [""] * len(questions))
        annotators = self._read("annotators", [()] * len(questions))
        self._right = [RightAnswers(source.get(i, "answers"), annotators[i]) for i in questions
                       ] if "answers" in source.fields else None
        self.description = f"{len(questions)} questions"
        self.predictions = []
        if self.settings["mode"] == "rank":  # what is wrong with the list is said at once
            self.description += f", {len(self._candidates[0])} answers to choose from"
        # The same function for the same model, so that it is compiled once.
        self._answering = functools.cache(self._answering)

    def names(self):
        if not self._right:
            return []
        return [name for name, _ in scores([""] * len(self._right), self._right, self._types)]

    def run(self, forward):
        ranked = self.settings["mode"] == "rank"
        answer = self._answering(forward["encode"], forward["rank" if ranked else "generate"])
        found = self._rows.run(forward, answer, "questions")
        answers = [self._answers[i] if ranked else self.tokenizer.decode(i) for i in found]
        ids = self._read("question_id", range(len(answers)))
        self.predictions = [{"question_id": question_id, "answer": answer}
                            for question_id, answer in zip(ids, answers)]
        if self._right:
            yield from scores(list(map(normalise_answer, answers)), self._right, self._types)

    def _answering(self, encode, decode):
        """A function of a batch: the number of each best candidate, or the ids of a free answer."""
        settings = self.settings
        if settings["mode"] == "rank":
            ranked = ranking(encode, decode, self._candidates,
                             min(settings["k"], len(self._answers)), settings["rank"] == "official")
        else:
            beams = settings["beams"] if settings["mode"] == "beam" else 1
            ranked = of_questions(encode, lambda *questions: decode(
                *questions, self.tokenizer.sep_id, self.config.data.answer_length, beams))

        def best(params, image, text_ids, text_mask):
            return ranked(params, image, text_ids, text_mask)[0][:, 0]

        return best

    def examples(self, forward, teacher):
        """The likeliest answers of the list, and their share of the likelihood."""
        if not self._right:
            raise UserError("The questions of the evaluator of kind 'vqa' have no right answers to "
                            "show; give its source a split with answers.")
        numbers, answers = spread(len(self._rows), EXAMPLES), self._answers
        likeliest = ranking(forward["encode"], forward["rank"], self._candidates,
                            min(RANKED, len(answers)), False)
        chosen_nk, scores_nk = self._rows.some(forward, likeliest, numbers)
        shares_nk = np.asarray(jax.nn.softmax(scores_nk))
        return {"rows": [choices(self._rows, number, [answers[i] for i in chosen], shares,
                                 self._right_texts(number))
                         for number, chosen, shares in zip(numbers, chosen_nk, shares_nk)]}

    def _right_texts(self, number):
        """The answers of a question, the one of greatest weight first."""
        given = self.source.get(number, "answers")
        return [text for text, _ in sorted(given, key=lambda answer: -answer[1])]

    @functools.cached_property
    def _answers(self):
        if self.settings["answers"]:
            return read_answer_list(self.settings["answers"])
        if self._right is None:
            raise UserError("The evals block of kind 'vqa' has questions without answers and no "
                            "list to choose from; set answers='answer_list.json', or mode='beam'.")
        return answers_of(self.source)

    @functools.cached_property
    def _candidates(self):
        return encode_answers(self._answers, self.tokenizer, self.config.data.answer_length)

    def _read(self, field, default):
        """A field of all questions, if the source has it."""
        if field not in self.source.fields:
            return default
        return [self.source.get(i, field) for i in range(len(self._rows))]


def of_questions(encode, decode):
    """`decode(params, states, text_mask)` of encoded questions, as a function of their batch."""
    def decoded(params, image, text_ids, text_mask):
        states = encode(params, image=image, text_ids=text_ids, text_mask=text_mask)
        return decode(params, states, text_mask)

    return decoded


def ranking(encode, rank, candidates, k, first_twice):
    """The best k candidates of each question, and their scores, both `[b, k]`; see `Vqa.rank`."""
    candidates = tuple(map(jnp.asarray, candidates))
    return of_questions(encode, lambda *questions: rank(*questions, candidates, k, first_twice))


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
    return {name: [i for i, of_row in enumerate(types) if of_row == name]
            for name, _ in Counter(types).most_common() if name}


def majority_accuracy(right):
    """The accuracies of the answer that has the greatest weight over all of these questions."""
    total = Counter()
    for truth in right:
        total.update(truth.weights)
    commonest = total.most_common(1)[0][0]
    return [truth.accuracy(commonest) for truth in right]
