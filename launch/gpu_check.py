#!/usr/bin/env python3
"""What a GPU does with this project: parity, speed, memory, the flags of its compiler, resuming.

    python launch/gpu_check.py --out gpu.json [--seconds 540] [--tiny]

Every check is a process of its own, so that one that runs out of memory or time takes nothing with
it; those whose time does not count run side by side. FILE is written after each, and says of those
that failed or did not fit into the time why. Started again with the same FILE, it does those that are missing. `--tiny` checks the same on a CPU
with a model of a few thousand parameters: that the checks work, not the machine.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALBEF = (sys.executable, "-m", "albef_jax")
PAPER = ("--config", "configs/pretrain_14m.py:paper")
TINY = ("--config", "tests/tiny.py")
AS_A_LOOP = ("--config.model.scan=True",)  # compiles in a fraction of the time
GROUP = 64  # pairs, of the paper on each of its GPUs
PARITY = ("pretrain_forward", "pretrain_train")
NO_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="
FLAGS = {"Triton products off": "--xla_gpu_enable_triton_gemm=false",
         "cuBLASLt products": "--xla_gpu_enable_cublaslt=true",
         "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true"}
# Of what is not timed: kernels that are not tried out compile sooner.
UNTUNED = "--xla_gpu_autotune_level=0"
# Of the GPU's memory: what a process takes that has it to itself, and one of several.
ALL, AS_NEEDED = {"XLA_CLIENT_MEM_FRACTION": "0.92"}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
STOPPED_AT = 24  # of the 60 steps of tests/tiny.py


def main():
    """Does the checks that FILE does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=540, help="for all (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, on the CPU")
    args = parser.parse_args()
    if not args.out.resolve().parent.is_dir():
        parser.error(f"the folder of {args.out} does not exist; give --out the name of a file")
    end = time.monotonic() + args.seconds
    found = json.loads(args.out.read_text()) if args.out.exists() else {}

    def do(item):
        name, check = item
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = outcome(check, end - time.monotonic())
        args.out.write_text(json.dumps(dict(found), indent=1))
        print(f"{name}: {found[name].get('failed') or 'done'}", file=sys.stderr, flush=True)

    for checks, at_once in (untimed(args.tiny), len(PARITY) + 1), (timed(args.tiny), 1):
        missing = [(name, check) for name, check in checks.items()
                   if "failed" in found.get(name, {"failed": ""})]
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            list(pool.map(do, missing))
    return 1 if any("failed" in one for one in found.values()) else 0


def outcome(check, left):
    """What a check finds in the seconds that are left, or why it finds nothing."""
    try:
        if left <= 0:
            raise subprocess.TimeoutExpired("", left)
        return check(left)
    except subprocess.TimeoutExpired:
        return {"failed": "the time of --seconds was over"}
    except subprocess.CalledProcessError as error:
        return {"failed": last_line(error.stderr)}


def untimed(tiny):
    """Name -> a function of the seconds that are left, of checks that may run side by side."""
    return {**{f"parity: {case}": lambda left, case=case: parity(case, left, tiny)
               for case in PARITY},
            "resumed run": lambda left: resumed(left, tiny)}


def timed(tiny):
    """Those that have the machine to themselves; what matters most comes first."""
    config = (*TINY, "--config.model.dtype=bfloat16") if tiny else (*PAPER, *AS_A_LOOP)
    group = 8 if tiny else GROUP

    def bench(*options, groups=1, config=config, flags=""):
        options = (*config, f"--config.batch_size={groups * group}", *options)
        return lambda left: benched(options, flags, left, tiny)

    most = 2 if tiny else 8
    own = {} if tiny else {
        f"{most} groups, layers one by one": bench(groups=most, config=PAPER),
        "bench_tiny": bench(config=("--config", "configs/bench_tiny.py")),
        "4 groups": bench(groups=4), "12 groups": bench(groups=12)}
    return {
        f"{most} groups": bench(groups=most),
        "one group, fused": bench("--config.model.attention=auto"),
        "one group, plain": bench("--config.model.attention=plain"),
        # The operations of a command buffer are one to the profiler.
        "flags: command buffers off": bench("--breakdown", flags=NO_COMMAND_BUFFERS),
        **own,
        **{f"flags: {name}": bench(flags=flag) for name, flag in FLAGS.items() if not tiny}}


def run(command, left, tiny, flags="", memory=ALL):
    """Runs a command on the machine's GPU, or with `tiny` on its CPU; returns what it did."""
    return subprocess.run(command, cwd=ROOT, env=environment(tiny, flags, memory), timeout=left,
                          check=True, text=True, capture_output=True)


def environment(tiny, flags, memory=ALL):
    """The variables of a process that is checked."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path.rstrip(os.pathsep), **memory}
    if flags:
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if tiny:
        variables["JAX_PLATFORMS"] = "cpu"
    return os.environ | variables


def benched(options, flags, left, tiny):
    """What `albef bench` measures, with which flags, and what it could not do, in its words."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "bench.json")
        said = run((*ALBEF, "bench", *options, "--steps", "10", "--json", str(file)), left, tiny,
                   flags).stderr
        return {"flags": flags, **json.loads(file.read_text()), "said": [
            line for line in said.splitlines() if line.startswith(("attention: ", "breakdown: "))]}


def parity(case, left, tiny):
    """How many values of a recorded case of the public code were compared and equal it."""
    said = run((sys.executable, "tests/parity.py", f"tests/golden/{case}"), left, tiny, UNTUNED,
               AS_NEEDED).stdout
    words = said.splitlines()[-1].replace(":", "").replace(",", "").split()
    return {"compared": int(words[words.index("compared") - 1])}


def resumed(left, tiny):
    """The steps of a run that SIGTERM stops and the same command ends, against those of another.

    Sums of a GPU depend on the order of its threads unless it is told to keep it.
    """
    end = time.monotonic() + left
    flags = f"--xla_gpu_deterministic_ops=true {UNTUNED}"
    with tempfile.TemporaryDirectory() as folder:
        straight, stopped = pathlib.Path(folder, "straight"), pathlib.Path(folder, "stopped")
        command = (*ALBEF, "train", *TINY, "--workdir")
        run((*command, str(straight)), left, tiny, flags, AS_NEEDED)
        with subprocess.Popen((*command, str(stopped)), cwd=ROOT, text=True,
                              env=environment(tiny, flags, AS_NEEDED),
                              stderr=subprocess.PIPE) as process:
            at_the_end = threading.Timer(end - time.monotonic(), process.kill)
            at_the_end.start()
            for line in process.stderr:
                if line.startswith(f"step {STOPPED_AT}/"):
                    process.send_signal(signal.SIGTERM)
            at_the_end.cancel()
        first = len(losses(stopped))
        run((*command, str(stopped)), end - time.monotonic(), tiny, flags, memory=AS_NEEDED)
        one, other = losses(straight), losses(stopped)
    return {"stopped after": first, "steps": len(one),
            "equal": sum(a == b for a, b in zip(one, other, strict=True))}


def losses(workdir):
    """Loss and gradient norm of every step of a run."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def last_line(text):
    """What a process that failed said last: our own sentence, or the error's name."""
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


if __name__ == "__main__":
    sys.exit(main())
