"""Several processes that train as one: how they find each other, stop together, and end.

What the processes tell each other goes through the key-value store of JAX's coordination service,
which process 0 serves: no step waits for it. Nothing here does anything in a single process.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback

import jax

from albef_jax.errors import INTERRUPTED, UserError, first_line
from albef_jax.parallel.jax_private import cluster_size, store

# Of a process that ends because another one failed: schedulers read it as "try again".
ENDED_BY_ANOTHER = os.EX_TEMPFAIL
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process")
TIMEOUT, HANG_TIMEOUT = 100, 1800  # seconds

_watch = None  # of this process, while it is one of several


@contextlib.contextmanager
def joined(coordinator=None, processes=None, process=None, timeout=TIMEOUT,
           hang_timeout=HANG_TIMEOUT):
    """Makes this process one of several while the body runs; call it before anything of JAX.

    They are named by arguments, by the environment variables in `ENVIRONMENT`, or found by JAX in
    the environment of a TPU pod, SLURM or Open MPI. With one process nothing happens. An error in
    the body ends all processes, each with the sentence; this function then does not return.

    Args:
      coordinator: HOST:PORT of process 0. processes: how many. process: number of this one.
      timeout: seconds without a sign of life after which a process counts as dead, and all end;
        start and end may take three times as long.
      hang_timeout: seconds without a step or an evaluation batch after which all end; 0: never.

    Raises:
      UserError: the arguments do not fit, or the processes did not find each other in time.
    """
    global _watch
    if not _start(coordinator, processes, process, timeout):
        yield
        return
    _watch = watch = Watch(timeout, hang_timeout)
    try:
        yield
        wait_for_all("end")  # process 0 may still write its report
    except BaseException as error:
        watch.fail(error)
    watch.close()
    _watch = None
    jax.distributed.shutdown()


def agree(wanted):
    """Whether all processes stop at this point of the program; all call it, in the same order.

    The same in all of them: True within seconds of the wish of one, which `wanted` tells.
    """
    return _watch.tick(wanted) if _watch else wanted


def several():
    """Whether this process is one of several."""
    return _watch is not None


def count():
    """How many processes train as one."""
    return _watch.count if _watch else 1


def told(name, own):
    """A number of every process by its index, as last told by each; nobody is waited for."""
    if not _watch:
        return {0: own}
    _watch.tell(f"told/{name}/{jax.process_index()}", json.dumps(own))
    return {int(key.rpartition("/")[2]): json.loads(value)
            for key, value in store().key_value_dir_get(f"albef/told/{name}/")}


def total(name, own):
    """The sum of a whole number over all processes; see `told`."""
    return sum(told(name, own).values())


def wait_for_all(name):
    """Waits until every process is here; `name` is a different one for every place.

    Raises:
      UserError: they did not come in time.
    """
    if not _watch:
        return
    limit = _watch.hang_timeout or 7 * 24 * 3600
    try:
        store().wait_at_barrier(f"albef/{name}", int(1000 * limit))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"The processes did not all reach {name!r} within {limit} s "
                        f"({first_line(error)}); see the output of the others, and start all of "
                        "them again.") from None
    _watch.progress = time.monotonic()


def _start(coordinator, processes, process, timeout):
    """Connects to the other processes, if there are any; returns whether there are."""
    given = _given(coordinator, processes, process)
    if (given["num_processes"] if given else cluster_size()) == 1:
        return False
    # Signals come to `stop_signals`; JAX's own service would take SIGTERM away from it.
    jax.config.update("jax_enable_preemption_service", False)
    where, limit = given.get("coordinator_address", "the address that JAX found"), 3 * timeout
    sentence = (f"The {given.get('num_processes', 'other')} processes did not all meet at {where} "
                f"within {limit} s; see the output of the others, check that this is the address "
                "of process 0 with a free port, and start all of them again.")
    alarm = threading.Timer(limit, _give_up, [sentence])  # the runtime would abort with a dump
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=2 * limit, heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=limit)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"{sentence} ({first_line(error)})") from None
    finally:
        alarm.cancel()
    return True


def _give_up(sentence):
    print(f"albef: {sentence}", file=sys.stderr, flush=True)
    os._exit(ENDED_BY_ANOTHER)


def _given(coordinator, processes, process):
    """Arguments of `jax.distributed.initialize` from flags and environment, if any is given."""
    values = [os.environ.get(name) or None if flag is None else flag
              for name, flag in zip(ENVIRONMENT, (coordinator, processes, process))]
    # JAX itself takes the address alone, for clusters whose own choice does not suit.
    if values[1] is None and values[2] is None and coordinator is None:
        return {}
    missing = [f"{flag} (or {name})" for flag, name, value in zip(FLAGS, ENVIRONMENT, values)
               if value is None]
    try:
        address, count, index = values[0], int(values[1] or 0), int(values[2] or 0)
    except ValueError:
        raise UserError(f"The number of processes is {values[1]!r} and that of this process "
                        f"{values[2]!r}; give whole numbers.") from None
    if missing and not (count == 1 and index == 0):
        raise UserError(f"{' and '.join(missing)} is missing; give all of {', '.join(FLAGS)}, or "
                        "none for a single process.")
    if not 0 <= index < count:
        raise UserError(f"--process {index} of --processes {count} does not exist; number them "
                        f"from 0 to {max(count - 1, 0)}.")
    if address and not address.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {address} has no port; write HOST:PORT, such as "
                        f"{address}:1234, with the host of process 0.")
    return dict(coordinator_address=address, num_processes=count, process_id=index)


class Watch:
    """A thread that looks once a second what the other processes have to say.

    They say three things: stop, with the place in the program that they have reached; that they
    failed, and why; that they have made no progress for long.

    `stop`: the first process that wants to asks; then every process holds its main thread at the
    next tick, tells its number of ticks, and all stop at the tick after the largest. A process that
    is behind gets there, because the others have sent off everything before it.
    """

    def __init__(self, timeout, hang_timeout):
        self._timeout, self.hang_timeout = timeout, hang_timeout
        self._client = store()
        self._me, self.count = jax.process_index(), jax.process_count()
        self._every = min(1.0, timeout / 10)
        self._lock = threading.Lock()  # held while ticks must not go on
        self._ticks, self.progress = 0, time.monotonic()
        self._asked, self._stop_at, self._stuck_since = False, None, None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="albef-watch")
        self._thread.start()

    def tick(self, wanted):
        """See `agree`."""
        if wanted and not self._asked:
            self._asked = True
            self.tell("stop", str(self._me))
        with self._lock:
            self._ticks += 1
            self.progress = time.monotonic()
            return self._stop_at is not None and self._ticks >= self._stop_at

    def tell(self, key, value):
        """Tells the others; they find it in `albef/`."""
        self._client.key_value_set(f"albef/{key}", value, allow_overwrite=True)

    def fail(self, error):
        """Tells the others and ends this process at once; an orderly end would wait for them."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(3 * self._every)  # it may be another's failure, which its sentence tells
        if isinstance(error, UserError):
            code, sentence = 2, str(error)
            print(f"albef: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            code, sentence = 130, "It was interrupted."
            print(INTERRUPTED, file=sys.stderr)
        else:
            code, sentence = 1, f"{type(error).__name__}: {first_line(error)}"
            traceback.print_exception(error)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it may be the store that is gone
            self.tell(f"failed/{self._me}", sentence)
        self._exit(code)

    def close(self):
        """Ends the thread: this process is done."""
        self._closed.set()
        self._thread.join()

    def _run(self):
        # An error: process 0 is gone, and the runtime ends this one.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while not self._closed.wait(self._every):
                self._look()

    def _look(self):
        said = {key.removeprefix("albef/"): value
                for key, value in self._client.key_value_dir_get("albef/")}
        failed = sorted(key for key in said if key.startswith("failed/"))
        if failed:
            self._end_with(int(failed[0].removeprefix("failed/")), said[failed[0]])
        if "stop" in said and self._stop_at is None:
            self._agree_on_stop()
        if self.hang_timeout and time.monotonic() - self.progress > self.hang_timeout:
            self._say_stuck(said)
        elif self._stuck_since:  # it went on
            self._stuck_since = None
            self._client.key_value_delete(f"albef/stuck/{self._me}")

    def _agree_on_stop(self):
        with self._lock:
            self.tell(f"ticks/{self._me}", str(self._ticks))
            self._client.wait_at_barrier("albef/ticks", int(1000 * self._timeout))
            ticks = [int(value) for _, value in self._client.key_value_dir_get("albef/ticks/")]
            self._stop_at = max(ticks) + 1

    def _say_stuck(self, said):
        """Names the one that holds up the others, which wait for it inside JAX: it has the fewest
        ticks, and does not wait."""
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()
            waits, where = where_main_is()
            self.tell(f"stuck/{self._me}", f"{self._ticks} {waits:d} {where}")
        elif time.monotonic() - self._stuck_since > 5 * self._every:  # all have said it by now
            stuck = [(*map(int, value.split()[:2]), int(key.removeprefix("stuck/")), value)
                     for key, value in said.items() if key.startswith("stuck/")]
            *_, behind, value = min(stuck)
            self.tell(f"failed/{behind}", f"It made no progress for {self.hang_timeout:g} s, at "
                      f"{value.split(' ', 2)[2]}; mend what it waits for, or raise --hang-timeout.")

    def _end_with(self, process, sentence):
        print(f"albef: process {process} of {self.count} failed and ended all: {sentence}",
              file=sys.stderr, flush=True)
        self._exit(1 if process == self._me else ENDED_BY_ANOTHER)

    def _exit(self, code):
        sys.stderr.flush()
        if self._me == 0:  # it serves the store, where the others have to find the sentence
            time.sleep(3 * self._every)
        os._exit(code)


def where_main_is():
    """Whether the main thread waits for other processes, and its place in this package."""
    frame = innermost = sys._current_frames()[threading.main_thread().ident]
    while frame and "albef_jax" not in frame.f_code.co_filename:
        frame = frame.f_back
    place, code = frame or innermost, innermost.f_code
    return (f"{os.sep}jax{os.sep}" in code.co_filename or code.co_name == "wait_for_all",
            f"{os.path.basename(place.f_code.co_filename)}:{place.f_lineno} "
            f"({place.f_code.co_name})")
