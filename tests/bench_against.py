"""Times `albef bench` and another script alternately, on an otherwise idle machine.

    python tests/bench_against.py SCRIPT [--rounds 3] [--steps 10] [--config CONFIG]

SCRIPT is a program that prints its step time in seconds after the word `median`, and takes the
dropout rate and the number of steps as arguments. Prints both medians and their ratio per round.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys


def median_of(command):
    """Runs a command and returns the number after the word 'median' in what it prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return float(re.search(r"median ([\d.]+)", done.stdout).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--config", default="configs/bench_tiny.py")
    args = parser.parse_args()
    albef = [sys.executable, "-c", "import sys; from albef_jax.cli import main; sys.exit(main())",
             "bench", "--config", args.config, "--steps", str(args.steps)]
    other = [sys.executable, args.script, "0.1", str(args.steps + 2)]
    ratios = []
    for number in range(1, args.rounds + 1):
        ours, theirs = median_of(albef), median_of(other)
        ratios.append(ours / theirs)
        print(f"round {number}: albef {ours:.3f} s, {args.script} {theirs:.3f} s, "
              f"ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
