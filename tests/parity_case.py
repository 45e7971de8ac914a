"""A recorded task as a run of this project, and what is compared for every task.

All that parity asks of tasks, steps and optimizers is asked here.
"""

import importlib
import pathlib

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import optax

from albef_jax.core.build import build
from albef_jax.core.state import TrainState
from albef_jax.core.step import split_groups
from albef_jax.objectives.masking import MaskingDraws
from albef_jax.parallel import mesh as sharding
from albef_jax.tasks import make_task
from albef_jax.tasks.pretrain import PretrainDraws
from albef_jax.tasks.retrieval import RetrievalDraws
from albef_jax.tasks.text_assignment import AssignmentDraws
from albef_jax.weights import importer
from albef_jax.weights import report as imports
from albef_jax.weights.foreign.kinds import KINDS, detect
from albef_jax.weights.foreign.torch_file import read_tensors
from official import write_tensors
from parity_report import EXACT, GRADIENT, KEY_BIASES, STATE

RUNNERS = {"pretrain": "parity_pretrain", "retrieval": "parity_retrieval", "vqa": "parity_vqa",
           "ve": "parity_classes", "nlvr": "parity_classes", "nlvr_pretrain": "parity_classes"}
# Unlike any default, so that a number which is not read from the config shows.
RATES, SETTINGS = (1e-2, 2e-2), dict(weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-6)


def run(folder, meta, report):
    """Compares the case of a task; its kind is told by the names of its tensors."""
    if "runs" in meta:
        importlib.import_module("parity_scale").run_optimizer(folder, meta, report)
    elif state_file(folder, meta):
        case = Case(folder, meta)
        importlib.import_module(RUNNERS[case.kind.name]).run(case, report)


def state_file(folder, meta):
    """The initial weights, `.pth` before `.npz`; None if there are none."""
    place = meta.get("initial_state", meta.get("state", "state_dict.npz")).split()[0]
    files = ((folder / place).with_suffix(suffix) for suffix in (".pth", ".npz"))
    return next((file for file in files if file.exists()), None)


class Case:
    """A case folder: its recordings, the sizes they show, and the task with their weights."""

    def __init__(self, folder, meta, kind=None):
        """`kind`: of weights; None: by the names of the tensors."""
        self.folder, self.meta = pathlib.Path(folder), meta
        self.inputs, self.outputs = self.arrays("inputs"), self.arrays("outputs")
        file = state_file(self.folder, meta)
        tensors = dict(read_tensors(file) if file.suffix == ".pth" else np.load(file))
        self.tensors = tensors | {k: v for k, v in self.inputs.items() if k in tensors}
        self.kind = KINDS[kind or detect(self.tensors, folder)]
        self.config = self._config()
        self.task = self.make_task()

    def arrays(self, name):
        """The npz of that name as a dict, empty when the case has none."""
        path = self.folder / f"{name}.npz"
        return dict(np.load(path)) if path.exists() else {}

    def _config(self):
        c, special = self.meta["config"], self.meta.get("special_tokens", {})
        found = self.kind.sizes(self.tensors, self.folder)
        config = importer.fitted_config(None, self.kind, *found, heads=1, path=self.folder)
        config.group_size = c["batch"]
        config.batch_size = c["batch"] * self.meta.get("world_size", 1)
        config.model.update(
            vit_heads=c["vit_heads"], text_heads=c["bert_heads"], dtype="float32", dropout=0.0,
            attention_dropout=0.0, pad_id=special.get("pad", 0), cls_id=special.get("cls", 2),
            mask_id=special.get("mask", 4))
        recorded = dict(
            temperature=c["temp"], momentum=c["momentum"], alpha=c["alpha"],
            mask_rate=c["mlm_probability"], alpha_ramp_steps=0,
            mlm_budget=c["batch"] * self.inputs.get("mask_draw", np.zeros(0)).shape[-1])
        config.objective.update({k: v for k, v in recorded.items() if k in config.objective})
        config.data.update(text_length=2, **(
            {"answer_length": 3, "max_answers": 1} if "answer_length" in config.data else {}))
        return config.lock()

    def make_task(self, **objective):
        """The task, with the recorded weights of the teacher per step.

        Args:
          **objective: of the config, if not as recorded.
        """
        config = self.config.copy_and_resolve_references()
        config.objective.update(objective)
        task = make_task(config)
        alphas = jnp.ravel(jnp.asarray(self.inputs.get("alpha", 0.0), jnp.float32))
        names = tuple(task.schedule(0))
        task.schedule = lambda step: dict.fromkeys(names, alphas[step])
        return task

    def trainer(self, rates, mesh=None, **settings):
        """The training step as the loop builds it, and its optimizer, which keeps the gradients.

        Args:
          rates: learning rate of each step. mesh: None: of one device.
          **settings: of the config's `optimizer` block.
        """
        config, rates = self.config.copy_and_resolve_references(), jnp.asarray(rates)
        config.optimizer.update(settings)
        parts = build(config, mesh or one_device())
        parts.task, parts.schedule = self.task, lambda step: rates[step]
        parts.optimizer = keeping_gradients(parts.optimizer)
        return parts.step, parts.optimizer

    def state(self, optimizer=optax.identity(), **replaced):
        """The imported state, other tensors in the place of some; steps donate it."""
        report = imports.Report(str(self.folder))
        leaves = importer.read_official(self.tensors | replaced, self.kind, self.config, report)
        tree = {"teacher": {}, "memory": {}} | jax.tree.map(jnp.array, unflatten_dict(leaves))
        state = TrainState(step=jnp.zeros((), jnp.int32),
                           opt_state=optimizer.init(tree["params"]), **tree)
        return jax.device_put(state, sharding.replicated(one_device()))

    def batch(self, index=...):
        """Recorded inputs, of one of several steps, as a batch of ours (channels last)."""
        images = [np.moveaxis(self.inputs[name][index], -3, -1)
                  for name in ("image", "image0", "image1") if name in self.inputs]
        names = {"text_ids": ("input_ids", "question_ids"), "label": ("targets",),
                 "text_mask": ("attention_mask", "question_mask"), "image_id": ("idx",)}
        batch = {ours: np.asarray(self.inputs[name][index], np.int32)
                 for ours, theirs in names.items() for name in theirs if name in self.inputs}
        unique = np.arange(len(batch["text_ids"]), dtype=np.int32)
        answers = packed_answers(self.inputs) if "answer_ids" in self.inputs else {}
        return {"image": images[0] if len(images) == 1 else np.stack(images, axis=1),
                "image_id": unique, **batch, **answers}

    def draws(self, index=...):
        """Recorded random choices `[groups, ...]`; None where nothing is drawn."""
        def take(name, dtype=jnp.int32):
            x = self.inputs[name][index]
            words = x.shape[-1:] if name.endswith(("_draw", "_words")) else ()
            return jnp.asarray(x.reshape(-1, self.config.group_size, *words), dtype)

        if "labels" in self.inputs:
            return AssignmentDraws(*map(take, ("image0_idx", "image1_idx", "labels")))
        if "neg_image_idx" not in self.inputs:
            return None
        negatives = take("neg_image_idx"), take("neg_text_idx")
        if "mask_draw" not in self.inputs:
            return RetrievalDraws(*negatives)
        chosen = (take(f"{name}_draw", bool) for name in ("mask", "replace", "random"))
        return PretrainDraws(MaskingDraws(*chosen, take("random_words")), *negatives)

    def forward(self, task=None):
        """A compiled `run(state, alpha)`: the task's loss of the recorded batch, by group.

        It returns prepared parameters, teacher, and losses, metrics and intermediates
        `[groups, ...]`.
        """
        task, draws = task or self.task, self.draws()
        groups = split_groups(self.batch(), self.config.group_size)

        @jax.jit
        def run(state, alpha):
            params, schedule = task.prepare(state.params), dict.fromkeys(task.schedule(0), alpha)
            teacher = optax.incremental_update(
                task.teacher_of(params), state.teacher,
                1 - self.config.objective.get("momentum", 1.0))
            losses, aux = jax.vmap(lambda group, drawn: task.loss(
                params, teacher, state.memory, group, jax.random.key(0), schedule, drawn))(
                    groups, draws)
            return params, teacher, losses, aux.metrics, aux.record

        return lambda state, alpha: run(state, jnp.float32(alpha))

    def official(self, params):
        """Parameters, or something of their shape, under official names; copies."""
        return write_tensors(self.kind.params_table(self.config.model),
                             jax.tree.map(np.array, params), self.config.model.patch_size)

    def official_state(self, params, state):
        """Parameters, teacher and queues under official names, and their second names; copies."""
        tree = {"params": params, "teacher": state.teacher, "memory": state.memory}
        tensors = write_tensors(self.kind.table(self.config), jax.tree.map(np.array, tree),
                                self.config.model.patch_size)
        second = self.kind.tied(self.config)
        return tensors | {name: tensors[first] for name, first in second.items()}


def packed_answers(inputs):
    """Recorded answers by question and slot; slots that stay empty weigh 0."""
    row, slot = answer_places(inputs)

    def packed(name, dtype):
        values = inputs[name]
        array = np.zeros((row.max() + 1, slot.max() + 1, *values.shape[1:]), dtype)
        array[row, slot] = values
        return array

    return {"answer_ids": packed("answer_ids", np.int32),
            "answer_mask": packed("answer_mask", np.int32),
            "answer_weight": packed("weights", np.float32)}


def answer_places(inputs):
    """Question and slot of each recorded answer."""
    k = inputs["k"]
    return np.repeat(np.arange(len(k)), k), np.concatenate([np.arange(n) for n in k])


def one_device():
    """A mesh of one device of this process, however many there are."""
    return sharding.make_mesh(devices=jax.local_devices()[:1])


def first_group(record):
    return jax.tree.map(lambda x: np.asarray(x[0]), record)


def keeping_gradients(optimizer):
    """The optimizer, its state a pair: its own, and the gradients of the last step."""
    def update(grads, state, params):
        updates, own = optimizer.update(grads, state[0], params)
        return updates, (own, grads)

    return optax.GradientTransformation(
        lambda params: (optimizer.init(params), jax.tree.map(jnp.zeros_like, params)), update)


class AdamW:
    """`torch.optim.AdamW` written out: what has no gradient stays, decay included."""

    def __init__(self, rates, weight_decay, b1, b2, eps):
        self.rates, self.decay, self.betas, self.eps = rates, weight_decay, (b1, b2), eps
        self.moments, self.steps = {}, 0

    def step(self, params, grads):
        """Parameters after a step; both dicts by official name, `grads` without some."""
        rate, self.steps, after = self.rates[self.steps], self.steps + 1, dict(params)
        for name, grad in grads.items():
            powers, moments = (grad, grad**2), self.moments.get(name, (0.0, 0.0))
            self.moments[name] = moments = [
                b * moment + (1 - b) * power
                for b, moment, power in zip(self.betas, moments, powers)]
            mean, square = (moment / (1 - b**self.steps)
                            for b, moment in zip(self.betas, moments))
            kept = 1 - rate * self.decay * decays(name, params[name])
            after[name] = kept * params[name] - rate * mean / (np.sqrt(square) + self.eps)
        return after


def decays(name, tensor):
    """The public code's rule: all but vectors and biases."""
    return tensor.ndim != 1 and not name.endswith(".bias")


def check_steps(case, report):
    """Two steps of the real optimizer: the recorded gradients, and AdamW written out on them.

    What has no gradient in the recording must stay as it is.

    Returns:
      Metrics, and the official state of prepared parameters, teacher and queues, of the first.
    """
    train_step, optimizer = case.trainer(RATES, **SETTINGS)
    state, recorded = case.state(optimizer), case.arrays("grads")
    adamw, history = AdamW(RATES, **SETTINGS), []
    for _ in RATES:
        prepared = jax.tree.map(np.array, case.task.prepare(state.params))
        before = case.official(prepared)
        state, metrics = train_step(state, case.batch(), case.draws())
        grads = case.official(state.opt_state[1])
        used = {name: np.float64(grads[name]) for name in recorded if name in grads}
        history.append((case.official(state.params), adamw.step(before, used)))
        if len(history) == 1:
            check_gradients(report, grads, recorded)
            first = jax.device_get(metrics), case.official_state(prepared, state)
    for name in before:
        ours, expected = (np.stack(tensors) for tensors in zip(
            *((ours[name], expected[name]) for ours, expected in history)))
        report.check(f"two steps {name}", ours, expected, STATE if name in used else EXACT)
    return first


def check_gradients(report, grads, recorded):
    """The recorded gradients, and none where none is recorded."""
    check_tensors(report, "grad ", grads, recorded, GRADIENT)
    for name in grads.keys() - recorded.keys():
        report.check(f"no grad {name}", grads[name], 0 * grads[name], EXACT)


def check_tensors(report, prefix, ours, recorded, limit):
    """Compares every recorded parameter-like tensor; a name we do not have is a miss."""
    for name, reference in recorded.items():
        reference = without_key_bias(name, reference)
        if reference is not None and not name.endswith("position_ids"):
            mine = without_key_bias(name, ours[name]) if name in ours else np.zeros(0)
            exact = name in ("queue_ptr", "idx_queue")
            report.check(f"{prefix}{name}", mine, reference, EXACT if exact else limit)


def without_key_bias(name, tensor):
    """Leaves out attention key biases: their gradient is zero but for rounding."""
    if name.endswith("attn.qkv.bias"):
        first, _, last = np.split(tensor, 3)
        return np.concatenate([first, last])
    return None if name.endswith(KEY_BIASES) else tensor
