"""The only training loop: phases in order, then one screen of loop."""

import contextlib
import sys

import jax
import jax.numpy as jnp
import optax
from etils import epath

from albef_jax.models import flops
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.config import check_model, check_values
from albef_jax.data.pipeline import TrainPipeline
from albef_jax.data.sources import make_source
from albef_jax.data.text import load_tokenizer, make_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import check_task, make_evaluator
from albef_jax.files import uploaded
from albef_jax.run.guards import check_finite, readable_out_of_memory, saved_on_error
from albef_jax.run.metrics import MetricsWriter, Pending, StepTimer, Throughput
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.parallel.processes import wait_for_all
from albef_jax.report import report_at_end
from albef_jax.core.state import abstract_state, create_state
from albef_jax.parallel.mesh import (
    batch_shards,
    check_groups,
    local_rows,
    make_mesh,
    shard_batch,
    use_compile_cache,
)
from albef_jax.parallel.signals import Stopped, stop_signals
from albef_jax.core.step import step_of
from albef_jax.tasks import check_fields, make_task, task_class
from albef_jax.weights import pretrained
from albef_jax.weights.start import check_tokenizers, read_init, take_weights
from albef_jax.run.workdir import compare_config, make_writable, write_config


def train(config, workdir, profile=None, init=None):
    """Trains until `config.steps`, from scratch or from the work directory's last checkpoint.

    Args:
      config: from `config.load_config`.
      workdir: holds everything the run writes; local or any path that epath knows.
      profile: `(first, last)` steps to trace into `workdir/profile`, or None.
      init: a work directory or export to take the first weights from, or None; a run that has a
        checkpoint goes on from it.

    Returns:
      True when the run is complete, False when a signal stopped it (its state is saved).

    Raises:
      UserError: a config, data set or checkpoint that cannot be used; a non-finite loss.
    """
    # ---- start -----------------------------------------------------------------------------
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    check_values(config)
    check_model(config)
    workdir, mesh = epath.Path(workdir), make_mesh(config.mesh)
    is_writer = jax.process_index() == 0
    check_groups(config.batch_size, config.group_size, config.accumulation, batch_shards(mesh))

    # ---- data ------------------------------------------------------------------------------
    source = make_source(config.data.source)
    check_fields(config, source)
    make_writable(workdir, is_writer)
    stored = read_init(init, workdir)
    tokenizer = run_tokenizer(config, workdir, source, is_writer, stored)
    pipeline = TrainPipeline(source, tokenizer, config.data, config.batch_size, config.seed,
                             local_rows(mesh, config.batch_size), task_class(config).needs)
    config = resolve(config, source, tokenizer, pipeline.steps_per_epoch)
    evaluators = {name: make_evaluator(block, config.data, tokenizer, config.seed)
                  for name, block in config.evals.items()}
    compare_config(config, workdir, is_writer)

    # ---- task, state, step -----------------------------------------------------------------
    task = make_task(config)
    check_task(config.evals, config.task, task.predict_fns())
    learning_rate = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, learning_rate)
    checkpointer = Checkpointer(workdir, config.checkpoint, config.to_dict())
    state, start = initial_state(config, task, optimizer, mesh, checkpointer, tokenizer)
    if stored:
        state = take_weights(stored, state, config, workdir, is_writer)
    elif init:
        say(is_writer, f"--init {init} is ignored: {workdir} goes on from its own checkpoint")
    train_step = step_of(config, task, optimizer, mesh)
    if start >= config.steps:
        say(is_writer, f"{workdir} holds step {start} of {config.steps}: nothing is left to train; "
            f"`albef report {workdir}` shows it, and more config.steps or config.epochs go on")
        checkpointer.close()
        return True
    write_config(config, workdir, is_writer)
    say(is_writer, describe(config, state, mesh, source, pipeline, start))

    # ---- loop ------------------------------------------------------------------------------
    timer, pending = StepTimer(start, throughput_of(config, mesh)), Pending()
    writer = MetricsWriter(workdir, config.steps, config, start_step=start, is_writer=is_writer)
    predict_fns, parameter_norm = task.predict_fns(), jax.jit(optax.tree.norm)
    with contextlib.ExitStack() as stack:
        stack.callback(checkpointer.close)
        stack.callback(writer.close)
        stop = stack.enter_context(stop_signals())
        batches = stack.enter_context(contextlib.closing(
            pipeline.iterate(start, config.steps)))
        trace = stack.enter_context(tracing(profile if is_writer else None, workdir))
        stack.enter_context(readable_out_of_memory(config))

        step, previous = start, None
        for step in range(start + 1, config.steps + 1):  # the number of steps after this one
            trace(step, previous)
            with timer.waiting_for_data(), saved_on_error(checkpointer, step - 1, state):
                batch = next(batches)
            state, metrics = train_step(state, shard_batch(batch, mesh), None)
            # One step behind: the device is never idle, the host never far ahead of a signal.
            jax.block_until_ready(previous)
            previous = metrics
            if step == start + 1:
                jax.block_until_ready(metrics)
                timer.lap(step)  # the first step compiles: it is no measure of speed
            writer.advance(step)

            # Asked once a step: a signal that comes later is seen after the next step.
            last, stopping = step == config.steps, stop.is_set()
            if is_due(step, config.log_every) or last or stopping:
                log(writer, checkpointer, pending.push(step, {
                    **metrics, "lr": learning_rate(step - 1), "bad_images": pipeline.bad.count,
                    **timer.lap(step)}))

            due = {} if stopping else {
                name: evaluator for name, evaluator in evaluators.items()
                if last or is_due(step, config.evals[name].get("every", 0))}
            save = last or stopping or is_due(step, config.checkpoint.every)
            if due or save:
                with timer.paused():
                    log(writer, checkpointer, pending.flush())
                    check_finite(step, jax.device_get(
                        {**metrics, "parameters": parameter_norm(state.params)}), checkpointer)
                    with saved_on_error(checkpointer, step, state):
                        measured = run_evaluators(
                            due, state.params, predict_fns, mesh, stop) if due else {}
                    if measured:
                        writer.log(step, measured)
                    stopping = stopping or stop.is_set()
                    if save or stopping:
                        checkpointer.save(step, state, measured, wait=last or stopping)
            if stopping:
                break
        log(writer, checkpointer, pending.flush())
    report_skipped(pipeline, is_writer)
    if step == config.steps:
        report_at_end(workdir, config, tokenizer, state, predict_fns, mesh)
    say(is_writer, f"finished {step} of {config.steps} steps; the run is in {workdir}"
        + ("" if step == config.steps else ", start the same command again to go on"))
    return step == config.steps


def run_tokenizer(config, workdir, source, is_writer, stored=None):
    """The tokenizer of this run: its own, the config's, that of `stored` weights, or a new one.

    Of several processes the first one chooses and saves it, and the others read what it saved.
    """
    folder = workdir / "tokenizer"
    if not is_writer:
        wait_for_all("tokenizer")
        if not folder.is_dir():
            raise UserError(f"This process does not see {folder}, which process 0 has written; "
                            "give all processes a --workdir that they share.")
    if folder.is_dir():
        tokenizer = load_tokenizer(str(folder))
    elif stored and stored.tokenizer and not config.data.tokenizer:
        tokenizer = load_tokenizer(stored.tokenizer)
    else:
        tokenizer = make_tokenizer(config.data, source)
    if stored:
        check_tokenizers(tokenizer, stored)
    if is_writer and not folder.is_dir():
        unfinished = workdir / "tokenizer.unfinished"
        tokenizer.save(str(unfinished))
        unfinished.rename(folder)  # complete or not at all
    if is_writer:
        wait_for_all("tokenizer")
    return tokenizer


def resolve(config, source, tokenizer, steps_per_epoch):
    """The config with everything filled in that depends on data and tokenizer.

    Raises:
      UserError: fewer than one step.
    """
    config = config.copy_and_resolve_references().unlock()
    config.steps = config.steps or config.epochs * steps_per_epoch
    if config.steps < 1:
        raise UserError("config.steps and config.epochs are both 0; set one of them.")
    config.data.fingerprint = source.fingerprint
    config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                        cls_id=tokenizer.cls_id, mask_id=tokenizer.mask_id)
    if config.objective.alpha_ramp_steps < 0:
        config.objective.alpha_ramp_steps = steps_per_epoch
    config.optimizer.steps_per_epoch = config.optimizer.steps_per_epoch or steps_per_epoch
    return config.lock()


def initial_state(config, task, optimizer, mesh, checkpointer, tokenizer):
    """The restored state and its step, or a fresh one and 0; placed on the mesh."""
    with readable_out_of_memory(config):
        if checkpointer.latest_step() is None:
            state = create_state(task, optimizer, config.seed, mesh, config.rules)
            return start_from(config, state, task, tokenizer), 0
        return checkpointer.restore(abstract_state(task, optimizer, mesh, config.rules))


def start_from(config, state, task, tokenizer):
    """A fresh state with the weights of `config.init`; its teacher starts as their copy."""
    if not (config.init.bert or config.init.vit):
        return state
    params, report = pretrained.apply(config, state.params, tokenizer)
    say(jax.process_index() == 0, report)
    # Copies: steps donate their state, and files stay mapped.
    params = jax.tree.map(lambda new, old: jax.device_put(jnp.array(new), old.sharding),
                          params, state.params)
    return state.replace(params=params,
                         teacher=jax.tree.map(jnp.copy, task.teacher_of(params)))


def throughput_of(config, mesh):
    """Turns steps and seconds into samples/s, TFLOP/s and MFU."""
    return Throughput(config.batch_size, mesh.size, flops.step_flops(config)["total"],
                      flops.peak_flops(mesh.devices.flat[0]))


def describe(config, state, mesh, source, pipeline, start):
    """What is about to happen, in one line."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    begin = f"resuming at step {start}" if start else "starting"
    return (f"{begin}: {count / 1e6:.1f}M parameters, {len(source)} examples, "
            f"{config.steps} steps of {config.batch_size} "
            f"({config.steps / pipeline.steps_per_epoch:.1f} epochs) on {mesh.size} "
            f"{mesh.devices.flat[0].platform} device(s), images by {pipeline.engine_name}")


def say(is_writer, text):
    """Prints a line on the first process."""
    if is_writer:
        print(text, file=sys.stderr, flush=True)


def is_due(step, every):
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def log(writer, checkpointer, fetched):
    """Writes a fetched `(step, metrics)`, if there is one, and stops a run that has diverged."""
    if fetched is not None:
        writer.log(*fetched)
        check_finite(*fetched, checkpointer)


def run_evaluators(evaluators, params, predict_fns, mesh, stop):
    """`evaluator/name` -> value; empty when a signal came, which need not wait for the end."""
    measured = {}
    try:
        with stop.interrupting():
            for name, evaluator in evaluators.items():
                for key, value in evaluator.run(params, predict_fns, mesh):
                    measured[f"{name}/{key}"] = value
    except Stopped:
        say(jax.process_index() == 0,
            "gave up the evaluation at a signal; `albef evaluate` runs it")
        return {}
    return measured


@contextlib.contextmanager
def tracing(profile, workdir):
    """Yields a function to call before each step; the steps asked for are traced.

    A run may be resumed in the middle of them, or end there.
    """
    running = False

    def before(step, previous):
        nonlocal running
        wanted = profile is not None and profile[0] <= step <= profile[1]
        if wanted and not running:
            jax.profiler.start_trace(folder)
        elif running and not wanted:
            jax.block_until_ready(previous)
            jax.profiler.stop_trace()
        running = wanted

    with uploaded(workdir / "profile") as folder:  # the profiler knows no object store
        try:
            yield before
        finally:
            before(0, None)


def report_skipped(pipeline, is_writer):
    """Says at the end what of the data could not be used."""
    bad = pipeline.bad
    if bad.count:
        say(is_writer, f"{bad.count} of {bad.seen} image reads failed and were replaced: "
            f"{first_ten(bad.names)}")
    if pipeline.skipped_answers:
        say(is_writer, f"{len(pipeline.skipped_answers)} answers are longer than "
            f"data.answer_length and were left out: {first_ten(pipeline.skipped_answers)}")


def first_ten(names):
    """Some of many names, in order."""
    return ", ".join(sorted(names)[:10])
