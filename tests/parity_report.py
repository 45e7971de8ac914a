"""What parity allows, prints and counts."""

from typing import NamedTuple

import numpy as np


class Limit(NamedTuple):
    """An error that is allowed, as a share of the largest entry of what was recorded."""

    name: str
    value: float
    source: str = "README"


# Limits of the recordings' README, section Tolerances; not to be relaxed silently.
OUTPUT, LOSS, GRADIENT = Limit("output", 5e-6), Limit("loss", 5e-6), Limit("gradient", 2e-5)
GRAD_NORM, STATE, TRAINED = Limit("norm", 1e-5), Limit("state", 2e-6), Limit("trained", 3e-5)
EXACT = Limit("exact", 0.0)
# A recording may say how far its float32 is from float64. Its own noise times this is allowed if
# that is more: the README's limit for gradients is five times the noise of the worst of them.
NOISE = 5
KEY_BIASES = (".key.bias", "attn.qkv.bias")


class Noise:
    """`float32_vs_float64` of a meta.json.

    Noise of a tensor with attention key biases is not read: nearly all of it is theirs, and they
    are left out of every comparison.
    """

    def __init__(self, meta):
        said = meta.get("float32_vs_float64")
        said = said if isinstance(said, dict) else {}  # where it is one number, limits are fixed
        gradients = meta.get("grad_worst_rel_excl_key_bias", said.get("grad_worst_rel"))
        self._relative = {
            limit: NOISE * worst[0]
            for limit, worst in ((OUTPUT, said.get("out_worst_rel")), (GRADIENT, gradients))
            if worst and not worst[1].endswith(KEY_BIASES)}
        losses = said.get("loss_diff", said.get("losses_diff", 0.0))
        # Of all trained tensors but those of a list, which have theirs. It is once allowed: the
        # README says that it is mostly that of key biases' momentum copies.
        rest = said.get("max_abs_param_diff_excl_noisy", 0.0)
        self._absolute = {LOSS: NOISE * np.max(losses), TRAINED: rest}
        self._tensors = {
            name: NOISE * value
            for name, value in said.get("tensors_with_max_abs_diff_above_2e_5", {}).items()
            if not name.endswith(KEY_BIASES)}

    def of(self, limit, name, scale):
        """What it allows, relative to `scale`; the last word of `name` may name a tensor."""
        absolute = self._absolute.get(limit, 0.0)
        if limit == TRAINED:
            absolute = self._tensors.get(name.split()[-1], absolute)
        return max(self._relative.get(limit, 0.0), absolute / scale)


class Report:
    """Prints one line per comparison and counts the misses."""

    def __init__(self, meta=None):
        self.compared, self.missed = 0, 0
        self._noise = Noise(meta or {})

    def check(self, name, ours, recorded, limit, scale=None):
        """Compares two arrays; another shape or a NaN is a miss.

        Args:
          name: for people. ours, recorded: arrays. limit: a `Limit`.
          scale: what errors are relative to; None: the largest entry of `recorded`.
        """
        ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        scale = scale or max(np.max(np.abs(recorded), initial=0.0), np.finfo(np.float32).tiny)
        noise = self._noise.of(limit, name, scale)
        allowed, source = (noise, "noise") if noise > limit.value else limit[1:]
        same_shape = ours.shape == recorded.shape
        error = np.max(np.abs(ours - recorded), initial=0.0) / scale if same_shape else np.nan
        note = "" if same_shape else f"SHAPE {ours.shape} {recorded.shape}"
        self._line(name, error, allowed, source, note)

    def equal(self, name, ours, recorded):
        """Compares anything else: texts, names, sets of them."""
        same = ours == recorded
        self._line(name, float(not same), 0.0, EXACT.source,
                   "" if same else f"MISS {ours!r:.200} {recorded!r:.200}")

    def _line(self, name, error, allowed, source, note):
        good = bool(error <= allowed)
        note = "ok" if good else note or "MISS"
        print(f"{name:85s} error {error:.2e}  limit {allowed:.0e} {source:6s}  {note}")
        self.compared += 1
        self.missed += not good
