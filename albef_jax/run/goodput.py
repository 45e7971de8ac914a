"""Where the wall time of a run went: the parts of each start, in metrics.jsonl.

Every line of a run has `wall`: when its process began, and the seconds of each part since. What a
kill or an older checkpoint made worthless is `lost`, which the next start finds out.
"""

import contextlib
import os
import time
from typing import NamedTuple

from albef_jax.run.lock import started

PARTS = {"start": "start", "restore": "restore", "compile": "compile", "data": "data wait",
         "steps": "steps", "evaluation": "evaluation", "saves": "saves", "lost": "lost to kills"}
WORK = ("data", "steps", "evaluation", "saves")  # what is lost where a run goes back


class Clock:
    """Counts the seconds of this process, each for one part."""

    def __init__(self):
        """Starts with what the process has taken so far."""
        age = age_of_process()
        self.began = time.time() - age
        self._seconds = dict.fromkeys(PARTS, 0.0) | {"start": age}
        self._part, self._since = "start", time.perf_counter()

    @contextlib.contextmanager
    def doing(self, part: str):
        """Counts the time inside for a part, unless something inside says otherwise."""
        before = self._turn_to(part)
        try:
            yield
        finally:
            self._turn_to(before)

    def seconds(self) -> dict[str, float]:
        """Of every part so far."""
        self._turn_to(self._part)
        return dict(self._seconds)

    def row(self) -> dict[str, float]:
        """`began`, in seconds since 1970, and the seconds of the parts that took any."""
        return {"began": round(self.began, 3)} | {
            part: round(seconds, 3) for part, seconds in self.seconds().items() if seconds}

    def _turn_to(self, part):
        now, before = time.perf_counter(), self._part
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before


def age_of_process() -> float:
    """Seconds since the kernel started this process; 0 where it does not say."""
    try:
        ticks = int(started(os.getpid()))
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (ValueError, AttributeError, OSError):
        return 0.0


def of_ended(rows, step: int) -> list[dict]:
    """What is to be written of the starts whose last lines a run forgets that goes on at `step`.

    Args:
      rows: of metrics.jsonl, all of them, dicts with `step`.
    """
    starts = {}
    for row in rows:
        if "wall" in row:
            starts.setdefault(row["wall"]["began"], []).append(row)
    found = []
    for own in starts.values():
        last, kept = own[-1], [row["wall"] for row in own if row["step"] <= step]
        if last["step"] > step:
            base = kept[-1] if kept else {}
            work = {part: base[part] for part in WORK if part in base}
            lost = sum(last["wall"].get(part, 0.0) - work.get(part, 0.0) for part in WORK)
            rest = {key: value for key, value in last["wall"].items() if key not in WORK}
            found.append({"step": step, "wall": {
                **rest, **work, "lost": round(lost + rest.get("lost", 0.0), 3)}})
    return found


class Start(NamedTuple):
    """One start of a run."""

    began: float  # seconds since 1970
    first: int  # step that it began after
    last: int  # step whose work is there
    seconds: dict[str, float]  # by part


def starts_of(rows) -> list[Start]:
    """The starts of a run in their order, from `(step, values)` of metrics.jsonl."""
    found = {}
    for step, values in rows:
        if wall := values.get("wall"):
            before = found.get(wall["began"])
            found[wall["began"]] = Start(
                wall["began"], min(before.first, step) if before else step, step,
                {part: wall[part] for part in PARTS if part in wall})
    return sorted(found.values())
