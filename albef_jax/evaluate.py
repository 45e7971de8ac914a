"""Evaluates a finished or running training from its work directory alone."""

import hashlib
import json

from etils import epath
import jax

from albef_jax.config import apply_overrides, check_config, to_json
from albef_jax.core.build import build
from albef_jax.errors import UserError
from albef_jax.evaluators import make_evaluators
from albef_jax.evaluators.base import Forward
from albef_jax.files import write
from albef_jax.parallel.mesh import use_compile_cache
from albef_jax.run.restore import mesh_of, read_tokenizer, restore_params
from albef_jax.run.tables import values_table
from albef_jax.run.workdir import read_config


def evaluate(workdir, step=None, overrides=(), evals=None):
    """Runs every evaluator of a run's config, or others, once on one of its checkpoints.

    Prints a table and writes `results/<evaluator>.json`, and `results/<evaluator>_predictions.json`
    where an evaluator keeps what the model said. Training data is not touched.

    Args:
      workdir: with `config.json`, `checkpoints/` and, of a task with texts, `tokenizer/`.
      step: which checkpoint; None for the latest. overrides: as of `config.apply_overrides`.
      evals: evaluators to run instead, the `evals` of another config, or None.

    Returns:
      evaluator -> {name: value}.

    Raises:
      UserError: the work directory is incomplete, an override does not fit the config, or an
        evaluator cannot use its data.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if evals is not None:  # how texts are read stays the run's own
        config = config.copy_and_resolve_references().unlock()
        config.evals = evals
        config.lock()
    config = apply_overrides(config, overrides)
    if overrides:  # the rest is what the run was started with
        check_config(config)
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if not config.evals:
        raise UserError(f"config.evals of {workdir} is empty, so there is nothing to evaluate; "
                        "train with an evals block in the config.")
    evaluators = make_evaluators(config, read_tokenizer(workdir, config))
    parts = build(config, mesh_of(config))
    params, step = restore_params(workdir, parts, step)
    forward, results = Forward(params, parts.task.predict_fns(), parts.mesh), {}
    for name, evaluator in evaluators.items():
        results[name] = dict(evaluator.run(forward))
        if jax.process_index() == 0:
            print(values_table(f"{name} at step {step} ({evaluator.description})", results[name]))
            write_result(workdir, name, {
                "evaluator": name, "step": step, "checkpoint": f"checkpoints/{step}",
                "config_fingerprint": fingerprint(config), "data": evaluator.description,
                "values": results[name]})
            if evaluator.predictions is not None:
                write_result(workdir, f"{name}_predictions", evaluator.predictions)
    return results


def fingerprint(config):
    """Short hash of all values of a config; equal configs have equal ones."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def write_result(workdir, name, result):
    """Writes `results/<name>.json`, complete or not at all."""
    folder = epath.Path(workdir) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{name}.json", json.dumps(result, indent=2) + "\n")
