"""The models of all tasks, with imported weights, against recordings of the public code."""

from pathlib import Path

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.models.albef import Albef
from albef_jax.models.classification import TextAssignment
from albef_jax.models.vqa import Vqa
from albef_jax.tasks import make_task
from albef_jax.weights.importer import fitted_config, read_official
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
LIMIT = 5e-6  # of the recordings' README, for outputs


@pytest.fixture(scope="module", autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


class Golden:
    """A recorded case and its model in float32 with the imported weights."""

    def __init__(self, kind):
        folder, self.kind = GOLDEN / kind, KINDS[kind]
        self.tensors = dict(np.load(folder / "state_dict.npz"))
        self.inputs, self.outputs = (dict(np.load(folder / f"{name}.npz"))
                                     for name in ("inputs", "outputs"))
        evaluation = folder / "eval.npz"
        self.eval = dict(np.load(evaluation)) if evaluation.exists() else {}
        config = fitted_config(None, self.kind, *self.sizes(), heads=4, path=folder)
        config.model.update(dtype="float32", dropout=0.0, attention_dropout=0.0)
        self.state = unflatten_dict(read_official(self.tensors, self.kind, config, Report(kind)))
        self.module = make_task(config.lock()).model

    def sizes(self):
        return self.kind.sizes(self.tensors, "state_dict.npz")

    def __call__(self, part, *args, method=None):
        """Applies the online model ('params') or its teacher."""
        run = jax.jit(lambda params, *args: self.module.apply({"params": params}, *args,
                                                              method=method))
        return run(self.state[part], *args)

    def image(self, name="image", inputs=None):
        return jnp.moveaxis((inputs or self.inputs)[name], -3, -1)

    def text(self, name="input", inputs=None):
        inputs = inputs or self.inputs
        mask = inputs["attention_mask" if name == "input" else f"{name}_mask"]
        return jnp.asarray(inputs[f"{name}_ids"], jnp.int32), jnp.asarray(mask, jnp.int32)


def close(ours, recorded):
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape
    assert np.max(np.abs(ours - recorded)) <= LIMIT * np.max(np.abs(recorded))
    assert np.max(np.abs(recorded)) > 1e-3


def ema(golden):
    """The teacher that the recorded forward used: moved by the online weights first."""
    online = {part: golden.state["params"][part] for part in golden.state["teacher"]}
    return jax.tree.map(lambda m, p: 0.995 * m + 0.005 * p, golden.state["teacher"], online)


def test_entailment():
    golden = Golden("ve")
    args = golden.image(), *golden.text()
    close(golden("params", *args), golden.outputs["prediction_eval"])
    golden.state["teacher"] = ema(golden)
    close(golden("teacher", *args), golden.outputs["prediction_m"])


def test_nlvr():
    golden = Golden("nlvr")
    first, second, text = golden.image("image0"), golden.image("image1"), golden.text()
    close(golden("params", first, second, *text), golden.outputs["prediction_eval"])
    close(golden("params", second, first, *text), golden.outputs["prediction_eval_swapped"])
    golden.state["teacher"] = ema(golden)
    close(golden("teacher", first, second, *text), golden.outputs["prediction_m"])


def test_text_assignment():
    golden = Golden("nlvr_pretrain")
    text = golden.text()
    image_bnd, feat_be = golden("params", golden.image(), method=TextAssignment.encode_image)
    text_bld = golden("params", *text, method=TextAssignment.encode_text)
    first, second = (image_bnd[golden.inputs[name]] for name in ("image0_idx", "image1_idx"))
    logits = golden("params", first, second, text_bld, text[1], method=TextAssignment.assign)
    close(feat_be, golden.outputs["image_feat"])
    close(logits, golden.outputs["pred"])


def next_words(golden, part, ids_bl, mask_bl, states, question_mask):
    """Word logits of one answer per question."""
    hidden = golden(part, ids_bl[None], mask_bl[None], states, question_mask,
                    method=lambda model, *args: model.text_decoder(*args))
    return golden(part, hidden[0], method=lambda model, x: model.text_decoder.predict_words(x))


def test_vqa():
    golden = Golden("vqa")
    question, answer = golden.text("question"), golden.text("answer")
    rows = np.repeat(np.arange(len(question[0])), golden.inputs["k"])

    def run(part):
        states = golden(part, golden.image(), *question, method=Vqa.encode)
        return states, next_words(golden, part, *answer, states[rows], question[1][rows])

    states, logits = run("params")
    close(states, golden.outputs["question_states"])
    close(logits, golden.outputs["decoder_logits"])
    golden.state["teacher"] = ema(golden)
    states, logits = run("teacher")
    close(states, golden.outputs["question_states_m"])
    close(logits[:, :-1], golden.outputs["decoder_logits_m_shifted"])


def test_vqa_start():
    golden = Golden("vqa")
    question = golden.text("question")
    states = golden("params", golden.image(), *question, method=Vqa.encode)
    cls = jnp.asarray(golden.eval["candidate_ids"][:1, :1], jnp.int32)
    start = jnp.tile(cls, (len(states), 1))
    logits = next_words(golden, "params", start, jnp.ones_like(start), states, question[1])
    close(logits[:, 0], golden.eval["start_logits"])


def test_retrieval():
    golden = Golden("retrieval")
    inputs = golden.eval
    ids, mask = golden.text(inputs=inputs)
    image_bnd, image_be = golden("params", golden.image(inputs=inputs),
                                 method=Albef.encode_image)
    text_bld, text_be = golden("params", ids, mask, method=Albef.encode_text)
    close(image_be, inputs["image_embed"])
    close(text_be, inputs["text_embed"])
    scores = inputs["score_i2t"]
    image, text = np.nonzero(scores > -100)
    logits = golden("params", image_bnd[image], text_bld[text], mask[text], method=Albef.match)
    close(logits[:, 1], scores[image, text])
