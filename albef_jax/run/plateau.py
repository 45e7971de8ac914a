"""A loss that stays where a model has it that knows nothing: found in what was logged, said once."""

import collections

import numpy as np

PATIENCE = 1000  # steps on the plateau before anybody is told; half of the run if that is less
NEAR = 0.01  # mean loss from that of knowing nothing, as a share of it
NEAR_ACCURACY = 0.01  # mean accuracy from that of knowing nothing


class Plateaus:
    """Watches the metrics of a task that say what to do then (`tasks.base.Shown.advice`).

    A run that learns passes its plateau sooner: PATIENCE is twice what configs/demo.py takes.
    """

    def __init__(self, shown, total_steps: int):
        self._watched = [one for one in shown if one.advice]
        self._patience = min(PATIENCE, max(total_steps // 2, 1))
        self._first = None  # step that was logged
        self._seen = {one.name: collections.deque() for one in self._watched}
        self._on, self._told = {}, set()  # name -> sentence, and names

    def add(self, step: int, values) -> list[str]:
        """Takes what was logged at a step; sentences about plateaus, each once."""
        # A value that was not finite is None.
        watched = [one for one in self._watched if values.get(one.name) is not None
                   and values.get(one.blind_accuracy[0], 0.0) is not None]
        if watched and self._first is None:
            self._first = step
        news = []
        for one in watched:
            self._on.pop(one.name, None)
            if self._is_on(one, step, values):
                self._on[one.name] = (
                    f"the {one.label} loss has stayed at {one.blind:.3f} for {self._patience:,} "
                    f"steps, that of a model that knows nothing: {one.advice}")
                news += [self._on[one.name]] if one.name not in self._told else []
                self._told.add(one.name)
        return news

    @property
    def sentences(self) -> list[str]:
        """Of the plateaus that the last added step is on."""
        return list(self._on.values())

    def _is_on(self, one, step, values):
        accuracy, blind_accuracy = one.blind_accuracy
        seen = self._seen[one.name]
        seen.append((step, values[one.name], values.get(accuracy, blind_accuracy)))
        while seen[0][0] < step - self._patience:
            seen.popleft()
        if step - self._first < self._patience:
            return False
        rows = np.array(seen)
        lately = rows[rows[:, 0] > step - self._patience / 4]  # one that begins to learn
        return all(abs(loss / one.blind - 1) <= NEAR
                   and abs(share - blind_accuracy) <= NEAR_ACCURACY
                   for _, loss, share in (rows.mean(axis=0), lately.mean(axis=0)))
