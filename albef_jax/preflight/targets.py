"""What a plan is for: a TPU slice that need not exist, GPUs, or this CPU."""

import contextlib
import os
import re
import timeit
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.errors import UserError, first_line
from albef_jax.preflight.bench import measured_peak
from albef_jax.preflight.roofline import GPUS, TPUS, Chip

FORMS = ("v5e:2x4, v6e:4x4 (two sizes), v4:2x2x2, v5p:2x2x2 (three sizes), gpu[:N] (A100), "
         "a100[:N], h100[:N], h200[:N] or cpu[:N]")


class Target(NamedTuple):
    """Devices and what limits each of them."""

    name: str  # as given
    devices: list | None  # of `jax`, to compile for; None: not at hand, estimate
    count: int
    kind: str  # as a person calls one
    memory: float  # bytes
    peak: float  # FLOP/s
    bandwidth: float  # bytes/s to memory
    network: float  # bytes/s to the others

    @property
    def rates(self) -> tuple[float, float, float]:
        """As `roofline.predict` takes them."""
        return self.peak, self.bandwidth, self.network

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler is asked."""
        return self.devices is not None and self.devices[0].platform == "tpu"


def find_target(text: str, slices: int = 1, dtype: str = "bfloat16") -> Target:
    """The target that a text such as 'v5e:2x4' names.

    Args:
      text: see `FORMS`. slices: of a TPU target, each of this shape. dtype: of products; a CPU's
        rate is measured with it.

    Raises:
      UserError: the text names none, libtpu is missing, or this machine has fewer CPU devices.
    """
    name, _, size = text.partition(":")
    if name in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", size):
        return tpu_target(text, TPUS[name], tuple(map(int, size.split("x"))), slices)
    if re.fullmatch(r"([1-9]\d*)?", size):
        count = int(size or 1)
        if name == "cpu":
            return cpu_target(text, count, dtype)
        if name in ("gpu", *GPUS):
            chip = GPUS["a100" if name == "gpu" else name]
            return Target(text, None, count, chip.kind, chip.memory, chip.peak, chip.bandwidth,
                          chip.network((count,)))
    raise UserError(f"--target {text!r} is not understood; give {FORMS}.")


def tpu_target(text: str, chip: Chip, shape: tuple[int, ...], slices: int) -> Target:
    """Slices of TPUs as the TPU compiler knows them; no TPU is touched."""
    from jax.experimental import topologies

    # libtpu asks nobody on the network, takes no lock, and finds nothing to warn about.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    bounds = tuple(min(size, 2) for size in shape[:2]) + (1,)
    options = {"chips_per_host_bounds": bounds}
    if slices > 1:
        options["num_slices"] = slices
    if text.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # as in training: a device is a chip
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=text, **options)
    except RuntimeError as error:  # also of a missing library
        if "not installed" in str(error):
            raise UserError(f"--target {text} needs the TPU compiler, which is not installed; "
                            'run pip install "jax[tpu]" (Linux on x86_64; no TPU needed).'
                            ) from error
        raise UserError(f"--target {text} is no slice that the TPU compiler knows "
                        f"({first_line(error)}); give {FORMS}.") from error
    devices = topology.devices
    return Target(text, devices, len(devices), chip.kind, chip.memory, chip.peak, chip.bandwidth,
                  chip.network(shape))


def cpu_target(text: str, count: int, dtype: str) -> Target:
    """This machine, seen as so many devices that share its cores and memory."""
    with contextlib.suppress(RuntimeError):  # JAX has started: it has the devices that it has
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--target {text} wants {count} CPU devices, but JAX started with "
                        f"{len(devices)}; unset XLA_FLAGS or ask for {len(devices)}.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bandwidth = copy_rate()
    return Target(text, devices[:count], count, devices[0].device_kind, memory / count,
                  measured_peak(jnp.dtype(dtype)) / count, bandwidth / count, bandwidth / count)


def copy_rate(size: int = 2**27) -> float:
    """Bytes/s that this machine reads and writes in the best of a few copies."""
    source, target = np.ones((2, size), np.uint8)
    return 2 * size / min(timeit.repeat(lambda: np.copyto(target, source), number=1, repeat=3))
