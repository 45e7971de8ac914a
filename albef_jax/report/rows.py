"""What the model answers in a few held-out examples of a task with classes or answers.

The examples are spread evenly over the held-out set: nothing is picked for looking good.
"""

import jax
import numpy as np

from albef_jax.data.answers import encode_answers, read_answer_list
from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.sources import make_source
from albef_jax.errors import UserError
from albef_jax.evaluators.answer_scores import normalise_answer
from albef_jax.report.examples import SHOWN, data_uri, spread

EXAMPLES = 8
RANKED = 32  # answers whose likelihood is compared


def find_rows(config, tokenizer, params, predict_fns):
    """Examples of the first evaluator of a kind in KINDS; None if there is no such evaluator.

    Args:
      config: of the run. tokenizer: of the run. params: online parameters, on the mesh.
      predict_fns: of the task.

    Returns:
      dicts with `pictures` (data URIs), `text`, `choices` (dicts with `text`, `share`, `right`;
      likeliest first), `truth` (a text) and `hit` (the first choice is right).

    Raises:
      UserError: the held-out data cannot be read.
    """
    blocks = [block for block in config.evals.values() if block.get("kind") in KINDS]
    if not blocks:
        return None
    block = blocks[0]
    data = EvalRows(make_source(block["source"]), tokenizer, config.data,
                    block.get("max_examples", 0))
    examples = spread(len(data), EXAMPLES)
    texts, shares, truths = KINDS[block["kind"]](
        block, config, tokenizer, params, predict_fns, data, examples)
    return [row(data, *values) for values in zip(examples, texts, shares, truths)]


def row(data, example, texts, shares, truth):
    """One example; `truth` is the list of right texts, best first."""
    right = set(map(normalise_answer, truth))
    choices = [{"text": texts[i], "share": float(shares[i]),
                "right": normalise_answer(texts[i]) in right}
               for i in np.argsort(-shares, kind="stable")[:SHOWN]]
    return {"pictures": [data_uri(picture) for picture in data.pictures(example)],
            "text": data.texts[example], "choices": choices, "truth": truth[0],
            "hit": choices[0]["right"]}


def of_classes(block, config, tokenizer, params, predict_fns, data, examples):
    """Names, probabilities and right ones of the classes, for each example."""
    del block, config, tokenizer
    names = data.source.class_names
    logits_nc = jax.jit(predict_fns["classify"])(params, *data.some(examples))
    if logits_nc.shape[1] != len(names):
        raise UserError(f"The task has {logits_nc.shape[1]} classes, but its evaluator's source "
                        f"has {len(names)}; give it the source of its task.")
    truths = [[names[data.source.label(i)]] for i in examples]
    return [names] * len(examples), np.asarray(jax.nn.softmax(logits_nc)), truths


def of_answers(block, config, tokenizer, params, predict_fns, data, examples):
    """Likeliest candidates, their share of the likelihood and right ones, for each question."""
    if "answers" not in data.source.fields:
        raise UserError("The questions of the evaluator of kind 'vqa' have no right answers to "
                        "show; give its source a split with answers.")
    listed = block.get("answers", "")
    answers = read_answer_list(listed) if listed else data.source.answer_list()
    candidates = encode_answers(answers, tokenizer, config.data.answer_length)
    k = min(RANKED, len(answers))

    def likeliest(params, image, text_ids, text_mask):
        states = predict_fns["encode"](params, image, text_ids, text_mask)
        return predict_fns["rank"](params, states, text_mask, candidates, k, False)

    chosen_nk, scores_nk = jax.device_get(jax.jit(likeliest)(params, *data.some(examples)))
    texts = [[answers[i] for i in chosen_k] for chosen_k in chosen_nk]
    truths = [right_answers(data.source, i) for i in examples]
    return texts, np.asarray(jax.nn.softmax(scores_nk)), truths


def right_answers(source, example):
    """The answers of a question, the one of greatest weight first."""
    return [text for text, _ in sorted(source.answers(example), key=lambda answer: -answer[1])]


KINDS = {"classification": of_classes, "vqa": of_answers}
