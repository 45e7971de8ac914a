"""Traces on request: by the command, while a training holds the work directory."""

import json

import jax
import jax.numpy as jnp
import pytest

from albef_jax.cli import main
from albef_jax.errors import UserError
from albef_jax.run import lock
from albef_jax.run.profiling import REQUEST, Tracer, request


def run(tracer, steps, at=()):
    """Runs steps; `at`: functions by the step before which they are called."""
    step = jax.jit(lambda x: x @ x)
    x = jnp.eye(4)
    for number in steps:
        dict(at).get(number, lambda: None)()
        tracer.before(number, x)
        x = step(x)
    tracer.close()


def traces(workdir):
    return sorted(workdir.rglob("*.xplane.pb"))


def test_the_next_steps_are_traced_on_request(tmp_path, capsys):
    with lock.held(tmp_path, True):
        def ask():
            assert main(["profile", str(tmp_path), "--steps", "2"]) == 0

        run(Tracer(tmp_path), range(1, 8), {3: ask})
    out, err = capsys.readouterr()
    assert "the next 2 steps are traced into" in out and err.count("a trace is in") == 1
    (trace,) = traces(tmp_path)
    assert trace.stat().st_size > 1000 and not (tmp_path / REQUEST).exists()


def test_steps_of_the_command_line_and_a_request_after_them(tmp_path):
    def ask():
        (tmp_path / REQUEST).write_text('{"steps": 1}')

    tracer, seen = Tracer(tmp_path, (2, 3)), []
    run(tracer, range(1, 5))
    assert len(traces(tmp_path)) == 1
    ask()
    for number in (5, 6):
        tracer.before(number, None)
        seen.append(tracer._trace is not None)
    assert seen == [True, False]


def test_a_run_that_ends_keeps_the_trace_that_is_being_made(tmp_path):
    run(Tracer(tmp_path, (2, 100)), range(1, 4))
    assert len(traces(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"steps": "many"}', '{"steps": -1}', "{}"])
def test_a_request_that_says_nothing_is_forgotten(tmp_path, text):
    (tmp_path / REQUEST).write_text(text)
    run(Tracer(tmp_path), range(1, 3))
    assert not traces(tmp_path) and not (tmp_path / REQUEST).exists()


def test_nothing_trains_there(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert f"Nothing trains in {tmp_path} now" in capsys.readouterr().err
    gone = lock.new_lock() | {"process": 2**22 + 1}  # no process has such a number
    (tmp_path / lock.FILE).write_text(json.dumps(gone))
    with pytest.raises(UserError, match="Nothing trains"):
        request(tmp_path, 3)
    assert not (tmp_path / REQUEST).exists()
