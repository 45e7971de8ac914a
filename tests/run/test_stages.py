"""Stages of a run: what they may be, what goes from one to the next, and where the borders are."""

from pathlib import Path
import re

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax import train
from albef_jax.config import (
    apply_overrides,
    borders,
    check_config,
    differences,
    from_json,
    load_config,
    of_stages,
    stages_of,
    to_json,
)
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.check import check
from albef_jax.report import panels
from albef_jax.run.stages import batches, first_metrics, make_stages, stage_at
from albef_jax.run.workdir import compare_config, read_config, write_config

TESTS = Path(__file__).parents[1]
TINY, ALBEF = TESTS / "tiny_imagebert.py", TESTS / "tiny.py"


def staged(*overrides, path=TINY):
    return load_config(f"{path}:stages" if path == TINY else path,
                       [f"--config.{value}" for value in overrides])


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """Tokenizer, sources, the config with everything filled in, and its stages."""
    config, workdir = staged(), epath.Path(tmp_path_factory.mktemp("run"))
    sources = train.open_sources(config)
    tokenizer = train.run_tokenizer(config, workdir, sources, True)
    filled = [stage._replace(config=train.resolve(stage.config, source, tokenizer, workdir))
              for stage, source in zip(stages_of(config), sources)]
    return of_stages(filled), make_stages(filled, sources, tokenizer, make_mesh())


def test_a_stage_is_the_config_with_its_own_values():
    noisy, clean = (stage.config for stage in stages_of(staged()))
    assert (noisy.steps, clean.steps) == (12, 8) and noisy.stages == clean.stages == ()
    assert (noisy.data.source.wrong, clean.data.source.size) == (0.4, 48)
    assert (noisy.optimizer.peak_lr, clean.optimizer.peak_lr) == (2e-3, 5e-4)
    assert (noisy.objective.masking, clean.objective.masking) == ("joint", "conditional")
    assert noisy.data.source.kind == clean.data.source.kind == f"{TINY}:Shelves"
    (whole,) = stages_of(staged("stages=()"))
    assert whole.name == "" and whole.config.steps == 20


def test_epochs_of_a_stage_count_where_it_has_no_steps():
    config = staged("stages=({'name': 'a', 'epochs': 3},)")
    (stage,) = stages_of(config)
    assert (config.steps, stage.config.steps, stage.config.epochs) == (20, 0, 3)


def test_the_filled_in_config_says_it_all(resolved):
    """It is the last stage's, with all steps, and gives the same stages again after a round trip
    through the file."""
    config, stages = resolved
    again = from_json(to_json(config))
    assert config.steps == 20 and config.objective.masking == "conditional"
    assert not differences(config, again)
    for ours, stage in zip(stages_of(again), stages, strict=True):
        assert not differences(ours.config, stage.config)
    assert borders(again) == {"noisy": 0, "clean": 12}
    assert [one.name for one in first_metrics(again)] == ["loss", "mlm", "moc", "mrfr", "itm"]


@pytest.mark.parametrize("override, sentence", [
    ("stages=(3,)", r"config.stages\[0\] is 3; give a dict with keys of name, steps"),
    ("stages=({'seed': 3},)", "give a dict with keys of"),
    ("stages=({'optimizer': {'rate': 3}},)", r"stages\[0\].optimizer.rate does not exist"),
    ("stages.0.optimizer.peak_lr=fast", "peak_lr is a float; 'fast' is not"),
    ("stages.1.data=3", "data is a ConfigDict; 3 is not"),
    ("stages.2.steps=3", "has no '2'; it has 2 stages"),
    ("stages.1.name=noisy", "have the names noisy, noisy; give each its own"),
    ("stages.1.objective.masking=both", "In the stage 'clean': config.objective.masking is 'both'"),
    ("stages.0.optimizer.peak_lr=-1.0", "In the stage 'noisy': config.optimizer.peak_lr is -1.0"),
])
def test_stages_that_make_no_sense(override, sentence):
    with pytest.raises(UserError, match=sentence):
        check_config(staged(override))


def test_a_value_of_one_stage_from_the_command_line():
    config = staged("stages.0.steps=3", "stages.1.objective.negative_share=0.25")
    first, second = (stage.config for stage in stages_of(config))
    assert (first.steps, first.objective.negative_share) == (3, 0.5)
    assert (second.steps, second.objective.negative_share) == (8, 0.25)
    apply_overrides(config, ["--config.stages=()"])
    assert len(stages_of(config)) == 1


def test_the_border_belongs_to_the_stage_that_ends_there(resolved):
    _, stages = resolved
    assert [(stage.begin, stage.end) for stage in stages] == [(0, 12), (12, 20)]
    assert [stage_at(stages, step).name for step in (0, 1, 12, 13, 20, 99)] == [
        "noisy", "noisy", "noisy", "clean", "clean", "clean"]


@pytest.mark.parametrize("start", [0, 5, 11, 12, 17])
def test_batches_of_the_stages_one_after_the_other(resolved, start):
    """From anywhere: those of a stage's own pipeline, by its own steps."""
    _, stages = resolved
    made = list(batches(stages, start))
    assert [stage.name for stage, _ in made] == [
        "noisy" if step < 12 else "clean" for step in range(start, 20)]
    for step, (stage, batch) in zip(range(start, 20), made):
        expected = stage.pipeline.batch(step - stage.begin)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_what_goes_from_one_stage_to_the_next(resolved):
    """Weights and step; the optimizer and its schedule begin again."""
    _, (noisy, clean) = resolved
    state = noisy.parts.create_state()
    batch = noisy.pipeline.batch(0)
    for _ in range(3):
        state, _ = noisy.parts.step(state, batch, None)
    entered = clean.entered(state)
    jax.tree.map(np.testing.assert_array_equal, entered.params, state.params)
    assert entered.step == state.step == 3
    assert all(int(jnp.sum(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(entered.opt_state))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert clean.rate(12) == pytest.approx(5e-4) and noisy.rate(0) == 0
    # The first update has the second stage's first rate: Adam's first step is that long.
    before = jax.tree.map(np.array, state.params)  # the step donates them
    after, _ = clean.parts.step(entered, clean.pipeline.batch(0), None)
    moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y), after.params, before)
    longest = max(leaf.max() for leaf in jax.tree.leaves(moved))
    assert longest == pytest.approx(5e-4, rel=0.02)


def test_image_ids_of_other_data_are_forgotten(tiny_run):
    task, _, state, _ = tiny_run("objective.positives=image")
    memory = dict(state.memory) | {"id_queue": state.memory["id_queue"] + 7}
    fresh = task.with_new_data(memory)
    assert np.all(np.asarray(fresh["id_queue"]) == -1)
    assert fresh.keys() == memory.keys() and fresh["pointer"] is memory["pointer"]


def test_stages_share_one_shape(tmp_path):
    config = staged("stages=({'name': 'a', 'steps': 2}, {'name': 'b', 'steps': 2, "
                    "'objective': {'queue_size': 32}})", path=ALBEF)
    with pytest.raises(UserError, match="'b' has memory/.*queue of shape .*32.*; give both"):
        train.train(config, tmp_path)


def test_a_run_that_goes_on_has_the_same_borders(resolved, tmp_path):
    config, _ = resolved
    workdir = epath.Path(tmp_path)
    write_config(config, workdir, is_writer=True)

    def changed(*overrides):
        other = apply_overrides(from_json(to_json(config)), [f"--config.{o}" for o in overrides])
        compare_config(other.lock(), workdir, is_writer=True)

    changed("stages.1.steps=80", "steps=92")
    for override in ("stages.0.steps=13", "stages=()"):
        with pytest.raises(UserError, match="run in other stages .noisy .12 steps., clean"):
            changed(override)
    with pytest.raises(UserError, match="run on other data"):
        changed("stages.0.data.fingerprint=other")
    third = from_json(to_json(config)).unlock()
    third.stages = (*third.stages, dict(name="third", steps=4))
    compare_config(third.lock(), workdir, is_writer=True)  # a run may get another stage
    assert "clean" in to_json(read_config(workdir))


def test_curves_have_the_borders(resolved):
    config, _ = resolved
    rows = [(step, {"loss": 1.0, "mlm": 2.0, "step_time": 0.1, "data_wait": 0.0, "lr": 1e-3})
            for step in range(1, 21)]
    drawn = [*panels.loss_panels(rows, first_metrics(config), [*borders(config).items()]),
             *panels.speed_panels(rows, config, [*borders(config).items()])]
    assert len(drawn) >= 3
    for panel in drawn:
        assert re.search("noisy", panel["svg"]) and re.search("clean", panel["svg"])
    (plain, *_) = panels.loss_panels(rows, first_metrics(config))
    assert "noisy" not in plain["svg"]


def test_data_check_reads_the_data_of_every_stage(capsys):
    assert check([], (), staged()) == []
    printed = capsys.readouterr().out
    assert "data.source of the stage 'noisy': 80 rows" in printed
    assert "data.source of the stage 'clean': 48 rows" in printed
    few = staged("stages.1.data.source={'kind': '%s:Shelves', 'size': 3}" % TINY)
    (problem,) = check([], (), few)
    assert "3 examples, fewer than one batch of 16" in problem
    capsys.readouterr()


def test_a_plan_has_the_steps_of_all_stages():
    planned = assumed(staged())
    assert planned.steps == 20 and borders(planned) == {"noisy": 0, "clean": 12}
    assert planned.optimizer.peak_lr == 5e-4
