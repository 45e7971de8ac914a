"""How long a compiled step takes at best: datasheets of devices, and a roofline over instructions.

    seconds = sum over instructions of max(FLOPs / peak, bytes / bandwidth)
              + sum over collectives of bytes sent / link bandwidth
    expected = the first sum / EFFICIENCY + the second

The first line is a bound: every instruction at the peak of what limits it, one after another, no
collective hidden behind work. Not in it: what an instruction does besides products and moving
data (dropout's random bits, softmax), time between instructions, waiting for data. `EFFICIENCY`
stands for these; it is an assumption and not a measurement.

Sources: peaks as in flops.py. TPU memory and bandwidth, and the links of the inter-chip network
(ICI, per link and direction): cloud.google.com/tpu/docs (system architecture of each version) and
jax-ml.github.io/scaling-book. NVIDIA: datasheets; links are NVLink, per GPU and direction.
"""

import math
from typing import NamedTuple

from albef_jax.models import flops

# Share of the roofline that large transformer steps reach; 0.6 is a careful middle of the 0.5 to
# 0.7 that training frameworks publish for TPUs and GPUs.
EFFICIENCY = 0.6
GIB = 2**30


class Chip(NamedTuple):
    """What limits one device."""

    kind: str  # `jax.Device.device_kind`
    memory: float  # bytes of main memory
    bandwidth: float  # bytes/s of it
    link: float  # bytes/s of one link (TPU) or of all (GPU), one direction
    ring: int = 0  # chips along an axis of the slice from which the axis is closed to a ring

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return flops.PEAK_BF16[self.kind]

    def network(self, shape: tuple[int, ...]) -> float:
        """Bytes/s that a chip of a slice sends in a collective over all of it.

        Each axis of the slice with more than one chip carries a share, in both directions where
        it is a ring. Axes of GPUs do not matter: NVLink switches connect all with all.
        """
        if not self.ring:
            return self.link
        return self.link * sum(2 if size % self.ring == 0 else 1 for size in shape if size > 1)


TPUS = {
    "v4": Chip("TPU v4", 32 * GIB, 1.228e12, 4.5e10, ring=4),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 8.19e11, 4.5e10, ring=16),
    "v5p": Chip("TPU v5", 95 * GIB, 2.765e12, 9e10, ring=4),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1.638e12, 9e10, ring=16),
}
GPUS = {
    "a100": Chip("NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 3e11),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 4.5e11),
    "h200": Chip("NVIDIA H200", 141e9, 4.8e12, 4.5e11),
}


class Prediction(NamedTuple):
    """Seconds of a step."""

    compute: float  # of instructions that the matrix units limit
    memory: float  # of those that memory limits
    network: float  # of collectives
    efficiency: float = EFFICIENCY  # of the first two

    @property
    def bound(self) -> float:
        """At the peaks of the datasheets."""
        return self.compute + self.memory + self.network

    @property
    def expected(self) -> float:
        """With `efficiency`."""
        return (self.compute + self.memory) / self.efficiency + self.network


def predict(work, collectives, peak: float, bandwidth: float, network: float) -> Prediction:
    """The roofline of the module's docstring.

    Args:
      work: pairs of FLOPs and bytes, one for each instruction that runs.
      collectives: bytes sent by a device, one for each collective that runs.
      peak: FLOP/s. bandwidth: bytes/s of memory. network: bytes/s of the links, inf for none.
    """
    compute = memory = 0.0
    for operations, moved in work:
        if operations / peak > moved / bandwidth:
            compute += operations / peak
        else:
            memory += moved / bandwidth
    sent = math.fsum(collectives)
    return Prediction(compute, memory, sent / network if sent else 0.0)
