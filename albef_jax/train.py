"""The only training loop: phases in order, then one screen of loop."""

import contextlib
import sys

import jax
import jax.numpy as jnp
from etils import epath

from albef_jax.config import check_config, of_stages, stages_of
from albef_jax.data.fields import check_fields
from albef_jax.data.fields.image import engine_name
from albef_jax.data.sources import make_source
from albef_jax.data.text import load_tokenizer, make_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import check_best_metric, check_measured, make_evaluators
from albef_jax.evaluators.base import Forward
from albef_jax.files import aside, uploaded
from albef_jax.models.flops import peak_flops
from albef_jax.parallel.mesh import (
    check_groups, groups_of, make_mesh, shard_batch, unsplit_axes, use_compile_cache,
)
from albef_jax.parallel.processes import wait_for_all
from albef_jax.parallel.signals import Stopped, stop_signals
from albef_jax.report import report_at_end
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.goodput import Clock
from albef_jax.run.guards import (
    check_finite, check_restored, parameter_norm, readable_out_of_memory, saved_on_error,
)
from albef_jax.run.lock import held
from albef_jax.run.metrics import MetricsWriter, Pending, StepTimer, Throughput
from albef_jax.run.profiling import Tracer
from albef_jax.run.stages import batches, first_metrics, make_stages, stage_at
from albef_jax.run.workdir import (
    compare_config, make_writable, mend, owe, owed, record_of, stored_config, write_config,
)
from albef_jax.tasks import task_class
from albef_jax.weights import pretrained
from albef_jax.weights.start import check_tokenizers, read_init, take_weights


def train(config, workdir, profile=None, init=None):
    """Trains until `config.steps`, from scratch or from the work directory's last checkpoint.

    Args:
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
    clock = Clock()
    check_config(config)
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    workdir, mesh = epath.Path(workdir), make_mesh(config.mesh, groups=groups_of(config))
    is_writer = jax.process_index() == 0
    check_groups(config, mesh)
    sources = open_sources(config)
    make_writable(workdir, is_writer)
    with held(workdir, is_writer):
        mend(workdir, is_writer)
        return _train(config, workdir, mesh, sources, profile, init, clock)


def _train(config, workdir, mesh, sources, profile, init, clock):
    """As `train`, of a checked config whose sources are open, in a work directory that is held."""
    # ---- data ------------------------------------------------------------------------------
    is_writer = jax.process_index() == 0
    stored = read_init(init, workdir)
    tokenizer = run_tokenizer(config, workdir, sources, is_writer, stored)
    resolved = [stage._replace(config=resolve(stage.config, source, tokenizer, workdir))
                for stage, source in zip(stages_of(config), sources)]
    config = of_stages(resolved)
    stages = make_stages(resolved, sources, tokenizer, mesh)
    evaluators = make_evaluators(config, tokenizer)
    check_best_metric(config, evaluators)
    compare_config(config, workdir, is_writer)

    # ---- state -----------------------------------------------------------------------------
    checkpointer = Checkpointer(workdir, config.checkpoint, record_of(config, workdir))
    with clock.doing("start" if checkpointer.latest_step() is None else "restore"):
        state, start = initial_state(stages, checkpointer, tokenizer)
    if stored:
        state = take_weights(stored, state, config, workdir, is_writer)
    elif init:
        say(f"--init {init} is ignored: {workdir} goes on from its own checkpoint")
    late = {name: evaluators[name] for name in owed(workdir, start) if name in evaluators}
    if start >= config.steps and not late:
        say(f"{workdir} holds step {start} of {config.steps}: nothing is left to train; "
            f"`albef report {workdir}` shows it, and more config.steps or config.epochs go on")
        checkpointer.close()
        return True
    write_config(config, workdir, is_writer)
    say(describe(stages, state, sources, start))

    # ---- loop -------------------------------------------------------------------------------
    writer = MetricsWriter(workdir, config.steps, config, first_metrics(config), start_step=start,
                           is_writer=is_writer, clock=clock)
    writer.log_time(start)
    with stop_signals() as stop, clock.doing("steps"):
        step, state, forward = run_steps(config, workdir, mesh, stages, state, start, checkpointer,
                                         evaluators, late, stop, profile, writer, clock)
        for stage in stages:
            for note in stage.pipeline.notes():
                say(note)
        if step == config.steps:
            try:
                with stop.interrupting(), clock.doing("evaluation"):
                    report_at_end(workdir, config, evaluators, forward, state.teacher)
            except Stopped:
                say(f"no report was written, as a signal came; `albef report {workdir}` makes it")
    writer.log_time(step)
    say(f"finished {step} of {config.steps} steps; the run is in {workdir}"
        + ("" if step == config.steps else ", start the same command again to go on"))
    return step == config.steps


def run_steps(config, workdir, mesh, stages, state, start, checkpointer, evaluators, late, stop,
              profile, writer, clock):
    """The loop; closes the checkpointer and the writer.

    Args:
      stages: see `make_stages`. state: after step `start`; it is donated. evaluators: by name.
      late: those of them that are owed at `start`. stop: a `StopFlag`. profile: see `train`.
      writer: a `MetricsWriter`. clock: of the process; it counts steps.

    Returns:
      The last step that was made, the state after it, and the `Forward` of the last evaluation or
      None.
    """
    is_writer = jax.process_index() == 0
    task = stages[-1].parts.task
    throughput = Throughput(config.batch_size, mesh.size, sum(task.flops(config).values()),
                            peak_flops(mesh.devices.flat[0]))
    timer, pending = StepTimer(start, throughput, clock), Pending()
    # Before their sum, which says less.
    terms = [one.name for one in first_metrics(config) if one.name != "loss"]
    finite = [*terms, "loss", "grad_norm", "parameters"]
    predict_fns = task.predict_fns()
    forward = None  # of the last evaluation, with what it has encoded
    with contextlib.ExitStack() as stack:
        stack.callback(checkpointer.close)
        stack.callback(writer.close)
        data = stack.enter_context(contextlib.closing(batches(stages, start)))
        tracer = Tracer(workdir, profile, config.log_every or 1) if is_writer else None
        if tracer:
            stack.callback(tracer.close)
        stack.enter_context(readable_out_of_memory(config))

        step, previous, numbers = start, None, range(start + 1, config.steps + 1)
        if late:
            forward = Forward(state.params, predict_fns, mesh)
            with clock.doing("evaluation"):
                measured = run_evaluators(late, forward, stop, config)
            if measured:
                writer.log(start, measured)
                checkpointer.measured(start, measured)
                owe(workdir, start, (), is_writer)
            else:
                numbers = ()  # a signal again, and the next checkpoint would not owe it
        for step in numbers:  # how many steps there are after this one
            if tracer:
                tracer.before(step, previous)
            with clock.doing("data"), saved_on_error(
                    checkpointer, step - 1, state, finite, previous):
                stage, batch = next(data)
            if stage.begin == step - 1 > 0:
                state = stage.entered(state)
                say(f"after step {step - 1} the stage {stage.name!r} begins")
            compiles = step in (start + 1, stage.begin + 1)
            with clock.doing("compile" if compiles else "steps"):
                state, metrics = stage.parts.step(state, shard_batch(batch, mesh), None)
                # One step behind: the device is never idle, the host never far ahead of a signal.
                with timer.waiting_for_devices():
                    jax.block_until_ready(metrics if compiles else previous)
            previous = metrics
            if compiles:
                timer.lap(step)  # it is no measure of speed
            writer.advance(step)

            # Asked once a step: a signal that comes later is seen after the next step.
            ends, stopping = step == stage.end, stop.is_set()
            if is_due(step, config.log_every) or ends or stopping:
                log(writer, checkpointer, finite, pending.push(step, {
                    **metrics, "lr": stage.rate(step - 1), "broken": stage.pipeline.broken.count,
                    **timer.lap(step)}))

            due = {name: evaluator for name, evaluator in evaluators.items()
                   if ends or is_due(step, config.evals[name].get("every", 0))}
            save = ends or stopping or is_due(step, config.checkpoint.every)
            if due or save:
                with clock.doing("evaluation"):
                    log(writer, checkpointer, finite, pending.flush())
                    check_finite(step, {**metrics, "parameters": parameter_norm(state.params)},
                                 finite, checkpointer)
                    forward = Forward(state.params, predict_fns, mesh)
                    with saved_on_error(checkpointer, step, state, finite, metrics):
                        measured = run_evaluators(due, forward, stop, config)
                    if measured:
                        writer.log(step, measured)
                    stopping = stopping or stop.is_set()
                    if save or stopping:
                        with clock.doing("saves"):
                            checkpointer.save(step, state, measured, wait=ends or stopping)
                    if stopping and due and not measured:
                        owe(workdir, step, due, is_writer)
            if stopping:
                break
        log(writer, checkpointer, finite, pending.flush())
    return step, state, forward


def open_sources(config):
    """The source of each stage of a config, checked; equal ones are one.

    Raises:
      UserError: one cannot be opened, or has not what the task asks for.
    """
    opened, sources = {}, []
    for name, own in stages_of(config):
        block = str(own.data.source)
        opened[block] = source = opened.get(block) or make_source(own.data.source)
        check_fields(task_class(own.task).fields(own), source,
                     f"data.source of the stage {name!r}" if name else "data.source")
        sources.append(source)
    return sources


def run_tokenizer(config, workdir, sources, is_writer, stored=None):
    """The tokenizer of this run: its own, the config's, that of `stored` weights, or a new one.

    A new one is trained on the texts of all sources. Of several processes the first one chooses
    and saves it. None for a task without texts.
    """
    fields = task_class(config.task).fields(config).values()
    if not any(field.needs_tokenizer for field in fields):
        return None
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
        tokenizer = make_tokenizer(config.data, *dict.fromkeys(sources))
    if stored:
        check_tokenizers(tokenizer, stored)
    if is_writer and not folder.is_dir():
        with aside(folder) as unfinished:
            tokenizer.save(str(unfinished))
    if is_writer:
        wait_for_all("tokenizer")
    return tokenizer


def resolve(config, source, tokenizer, workdir):
    """The config with all that depends on data, tokenizer and machine; UserError if no steps."""
    config = config.copy_and_resolve_references().unlock()
    steps_per_epoch = max(len(source) // config.batch_size, 1)
    config.steps = config.steps or config.epochs * steps_per_epoch
    if config.steps < 1:
        raise UserError("config.steps and config.epochs are both 0; set one of them.")
    config.data.fingerprint = source.fingerprint
    config.optimizer.steps_per_epoch = config.optimizer.steps_per_epoch or steps_per_epoch
    if config.data.get("engine") == "auto":  # the run's, where it goes on: engines differ a little
        before = stored_config(workdir)
        try:
            config.data.engine = engine_name(before.data.engine if before else "auto")
        except UserError:  # this machine does not have it
            config.data.engine = engine_name("auto")
    task_class(config.task).resolve(config, tokenizer, steps_per_epoch)
    return config.lock()


def initial_state(stages, checkpointer, tokenizer):
    """The restored state and its step, or a fresh one and 0; placed on the mesh."""
    latest = checkpointer.latest_step()
    parts = stage_at(stages, latest or 0).parts
    with readable_out_of_memory(parts.config):
        if latest is not None:
            state, step = checkpointer.restore(parts.state)
            check_restored(step, state, checkpointer)
            return state, step
        state = parts.create_state()
        return start_from(parts, state, tokenizer) if pretrained.wanted(parts.config) else state, 0


def start_from(parts, state, tokenizer):
    """A fresh state with the weights of `config.init`; its teacher starts as their copy."""
    params, report = pretrained.apply(parts.config, state.params, tokenizer)
    say(report)
    # Copies: steps donate their state, and files stay mapped.
    params = jax.tree.map(lambda new, old: jax.device_put(jnp.array(new), old.sharding),
                          params, state.params)
    return state.replace(params=params,
                         teacher=jax.tree.map(jnp.copy, parts.task.teacher_of(params)))


def describe(stages, state, sources, start):
    """What is about to happen, in a line for each stage, and what of the mesh is not used."""
    parts = stages[-1].parts
    config, mesh = parts.config, parts.mesh
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    begin = f"resuming at step {start}" if start else "starting"
    engine = f", images by {config.data.engine}" if "engine" in config.data else ""
    lines = [f"{begin}: {count / 1e6:.1f}M parameters"]
    for stage, source in zip(stages, sources):
        steps = stage.end - stage.begin
        lines.append(f"{len(source)} examples, {steps} steps of {config.batch_size} "
                     f"({steps / stage.pipeline.steps_per_epoch:.1f} epochs)")
        if stage.name:
            lines[-1] = f"stage {stage.name!r}: {lines[-1]}"
    where = f"on {mesh.size} {mesh.devices.flat[0].platform} device(s){engine}"
    if len(stages) == 1:
        lines = [", ".join(lines)]
    lines[-1] += f" {where}"
    return "\n".join([*lines, *unsplit_axes(state.params, parts.task.axes(), mesh,
                                            config.rules)])


def say(text):
    """Prints a line on the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def is_due(step, every):
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def log(writer, checkpointer, finite, fetched):
    """Writes a fetched `(step, metrics)`, if there is one, and stops a run that has diverged."""
    if fetched is not None:
        writer.log(*fetched)
        check_finite(*fetched, finite, checkpointer)


def run_evaluators(evaluators, forward, stop, config):
    """`evaluator/name` -> value; empty when a signal came, which need not wait for the end.

    What is not evaluated then is owed: the run does it when it goes on.

    Raises:
      UserError: `checkpoint.best_metric` is not among the values of its evaluator.
    """
    measured = {}
    if not evaluators:
        return measured
    try:
        with stop.interrupting():
            for name, evaluator in evaluators.items():
                values = dict(evaluator.run(forward))
                check_measured(config.checkpoint.best_metric, name, values)
                measured |= {f"{name}/{key}": value for key, value in values.items()}
    except Stopped:
        say("gave up the evaluation at a signal; it is made when the run goes on")
        return {}
    return measured
