"""Evaluates a finished or running training from its work directory alone."""

import hashlib
import json

from etils import epath
import jax

from albef_jax.config import apply_overrides, to_json
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import check_task, make_evaluator
from albef_jax.parallel.mesh import use_compile_cache
from albef_jax.run.restore import mesh_of, restore_params
from albef_jax.run.tables import values_table
from albef_jax.tasks import make_task
from albef_jax.run.workdir import read_config


def evaluate(workdir, step=None, overrides=(), evals=None):
    """Runs every evaluator of a run's config, or others, once on one of its checkpoints.

    Prints a table and writes `results/<evaluator>.json`, and `results/<evaluator>_predictions.json`
    where an evaluator keeps what the model said. Training data is not touched.

    Args:
      workdir: a work directory with `config.json`, `tokenizer/` and `checkpoints/`.
      step: which checkpoint; None for the latest.
      overrides: strings `--config.key=value`, for example `--config.evals.dev.batch_size=128`.
      evals: evaluators to run instead, the `evals` of another config, or None.

    Returns:
      evaluator -> {name: value}.

    Raises:
      UserError: the work directory is incomplete, an override does not fit the config, or an
        evaluator cannot use its data.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if evals is not None:
        config = with_evals(config, evals)
    config = apply_overrides(config, overrides)
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if not config.evals:
        raise UserError(f"config.evals of {workdir} is empty, so there is nothing to evaluate; "
                        "train with an evals block in the config.")
    if not (workdir / "tokenizer").is_dir():
        raise UserError(f"{workdir} has no folder tokenizer; copy it from where the run was "
                        "trained.")
    tokenizer = load_tokenizer(str(workdir / "tokenizer"))
    evaluators = {name: make_evaluator(block, config.data, tokenizer, config.seed)
                  for name, block in config.evals.items()}
    task, mesh = make_task(config), mesh_of(config)
    predict_fns = task.predict_fns()
    check_task(config.evals, config.task, predict_fns)
    params, step = restore_params(workdir, config, task, mesh, step)
    results = {}
    for name, evaluator in evaluators.items():
        results[name] = dict(evaluator.run(params, predict_fns, mesh))
        if jax.process_index() == 0:
            print(values_table(f"{name} at step {step} ({evaluator.description})", results[name]))
            write_result(workdir, name, {
                "evaluator": name, "step": step, "checkpoint": f"checkpoints/{step}",
                "config_fingerprint": fingerprint(config), "data": evaluator.description,
                "values": results[name]})
            if hasattr(evaluator, "predictions"):
                write_result(workdir, f"{name}_predictions", evaluator.predictions)
    return results


def with_evals(config, evals):
    """A run's config with the evaluators of another: how texts are read stays the run's own."""
    config = config.copy_and_resolve_references().unlock()
    config.evals = evals
    return config.lock()


def fingerprint(config):
    """Short hash of all values of a config; equal configs have equal ones."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def write_result(workdir, name, result):
    """Writes `results/<name>.json`, complete or not at all."""
    folder = epath.Path(workdir) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.json.unfinished"
    unfinished.write_text(json.dumps(result, indent=2) + "\n")
    unfinished.replace(folder / f"{name}.json")
