"""Traces of training steps: of those that the command line names, or of the next ones on request."""

import contextlib
import json
import sys

from etils import epath
import jax

from albef_jax.errors import UserError
from albef_jax.files import is_remote, read_bytes, uploaded, write
from albef_jax.run import lock

FOLDER = "profile"  # of a work directory, for TensorBoard's profile plugin or XProf
REQUEST = "profile.json"  # in it a training finds how many steps to trace


def request(workdir, steps: int) -> str:
    """Asks the training in a work directory to trace its next steps; what will come, in words.

    Raises:
      UserError: nothing trains there, or the request cannot be written.
    """
    workdir = epath.Path(workdir)
    held = lock.read(workdir / lock.FILE)
    if held is None or not lock.may_live(held):
        raise UserError(f"Nothing trains in {workdir} now; start `albef train` with --profile N:M, "
                        "or give the --workdir of a training that runs.")
    try:
        write(workdir / REQUEST, json.dumps({"steps": steps}))
    except OSError as error:
        raise UserError(f"The request {workdir / REQUEST} cannot be written "
                        f"({error.strerror}); mend the cause.") from error
    return f"the next {steps} steps are traced into {workdir / FOLDER}"


class Tracer:
    """Traces the steps of one process of a run; `close` ends a trace that is not complete."""

    def __init__(self, workdir, steps=None, every: int = 1):
        """`steps`: `(first, last)`, or None. `every`: how often an object store is asked."""
        self._workdir, self._every = workdir, every if is_remote(workdir) else 1
        self._first, self._last = steps or (1, 0)
        self._trace = None

    def before(self, step: int, previous) -> None:
        """Starts or ends a trace before a step; `previous` is what the step before it gave."""
        if step % self._every == 0 and (count := self._requested()):
            self._first, self._last = step, step + count - 1
        wanted = self._first <= step <= self._last
        if wanted and self._trace is None:
            self._trace = contextlib.ExitStack()
            # The profiler knows no object store.
            folder = self._trace.enter_context(uploaded(self._workdir / FOLDER))
            jax.profiler.start_trace(folder)
            self._trace.callback(jax.profiler.stop_trace)
        elif self._trace is not None and not wanted:
            jax.block_until_ready(previous)
            self.close()

    def close(self) -> None:
        """Writes the trace that is being made, if there is one."""
        if self._trace is not None:
            trace, self._trace = self._trace, None
            trace.close()
            print(f"a trace is in {self._workdir / FOLDER}", file=sys.stderr, flush=True)

    def _requested(self):
        """Steps that somebody has asked for since; a request that says nothing of use is none."""
        path = self._workdir / REQUEST
        try:
            steps = json.loads(read_bytes(path))["steps"]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError):
            steps = 0
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return steps if isinstance(steps, int) and steps > 0 else 0
