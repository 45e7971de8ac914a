#!/usr/bin/env python3
"""What a GPU does with this project: parity, speed, memory, the flags of its compiler, resuming.

    python launch/gpu_check.py --out gpu.json [--seconds 540] [--tiny]

Every check is a process of its own, so that one that runs out of memory or time takes nothing with
it; FILE is written after each, and says of those that failed or did not fit into the time why.
Started again with the same FILE, it does those that are missing. `--tiny` checks the same on a CPU
with a model of a few thousand parameters: that the checks work, not the machine.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALBEF = (sys.executable, "-m", "albef_jax")
PAPER = ("--config", "configs/pretrain_14m.py:paper")
TINY = ("--config", "tests/tiny.py")
GROUP = 64  # pairs, of the paper on each of its GPUs
PARITY = ("pretrain_forward", "pretrain_train")
FLAGS = {"command buffers off": "--xla_gpu_enable_command_buffer=",
         "Triton products off": "--xla_gpu_enable_triton_gemm=false",
         "cuBLASLt products": "--xla_gpu_enable_cublaslt=true",
         "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true"}
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
    for name, check in checks(args.tiny).items():
        if "failed" not in found.get(name, {"failed": ""}):
            continue
        left = end - time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            if left <= 0:
                raise subprocess.TimeoutExpired(name, args.seconds)
            found[name] = check(left)
        except subprocess.TimeoutExpired:
            found[name] = {"failed": f"the {args.seconds:.0f} seconds of --seconds were over"}
        except subprocess.CalledProcessError as error:
            found[name] = {"failed": last_line(error.stderr)}
        print(f"  {found[name].get('failed') or 'done'}", file=sys.stderr, flush=True)
        args.out.write_text(json.dumps(found, indent=1))
    return 1 if any("failed" in one for one in found.values()) else 0


def checks(tiny):
    """Name -> a function of the seconds that are left; what matters most comes first."""
    config = (*TINY, "--config.model.dtype=bfloat16") if tiny else PAPER
    group = 8 if tiny else GROUP

    def bench(*options, groups=1, config=config, flags=""):
        options = (*config, f"--config.batch_size={groups * group}", *options)
        return lambda left: benched(options, flags, left, tiny)

    own = {} if tiny else {"bench_tiny": bench(config=("--config", "configs/bench_tiny.py"))}
    return {
        **{f"parity: {case}": lambda left, case=case: parity(case, left, tiny) for case in PARITY},
        "one group, fused": bench("--config.model.attention=auto", "--breakdown"),
        "one group, plain": bench("--config.model.attention=plain"),
        "resumed run": lambda left: resumed(left, tiny),
        **{f"{groups} groups": bench(groups=groups) for groups in ((2,) if tiny else (4, 8, 6))},
        **own,
        **({"flags: none": bench(flags="--xla_cpu_enable_fast_math=false")} if tiny else
           {f"flags: {name}": bench(flags=flag) for name, flag in FLAGS.items()})}


def run(command, left, tiny, flags=""):
    """Runs a command on the machine's GPU, or with `tiny` on its CPU; returns what it did."""
    return subprocess.run(command, cwd=ROOT, env=environment(tiny, flags), timeout=left, check=True,
                          text=True, capture_output=True)


def environment(tiny, flags):
    """The variables of a process that is checked."""
    variables = {"PYTHONPATH": str(ROOT), "XLA_CLIENT_MEM_FRACTION": "0.92"}
    if flags:
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if tiny:
        variables["JAX_PLATFORMS"] = "cpu"
    return os.environ | variables


def benched(options, flags, left, tiny):
    """What `albef bench` measures, with which flags, and whether it fell back on plain attention."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "bench.json")
        said = run((*ALBEF, "bench", *options, "--steps", "10", "--json", str(file)), left, tiny,
                   flags).stderr
        return {"flags": flags, **json.loads(file.read_text()), "said": [
            line for line in said.splitlines() if line.startswith("attention: ")]}


def parity(case, left, tiny):
    """How many values of a recorded case of the public code were compared and equal it."""
    said = run((sys.executable, "tests/parity.py", f"tests/golden/{case}"), left, tiny).stdout
    words = said.splitlines()[-1].replace(":", "").replace(",", "").split()
    return {"compared": int(words[words.index("compared") - 1])}


def resumed(left, tiny):
    """The steps of a run that SIGTERM stops and the same command ends, against those of another.

    Sums of a GPU depend on the order of its threads unless it is told to keep it.
    """
    end = time.monotonic() + left
    flags = "" if tiny else "--xla_gpu_deterministic_ops=true"
    with tempfile.TemporaryDirectory() as folder:
        straight, stopped = pathlib.Path(folder, "straight"), pathlib.Path(folder, "stopped")
        command = (*ALBEF, "train", *TINY, "--workdir")
        run((*command, str(straight)), left, tiny, flags)
        with subprocess.Popen((*command, str(stopped)), cwd=ROOT, text=True,
                              env=environment(tiny, flags), stderr=subprocess.PIPE) as process:
            for line in process.stderr:
                if line.startswith(f"step {STOPPED_AT}/"):
                    process.send_signal(signal.SIGTERM)
        first = len(losses(stopped))
        run((*command, str(stopped)), end - time.monotonic(), tiny, flags)
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
