#!/usr/bin/env python3
"""Runs several processes of one command on this machine, for tests and debugging.

    python launch/local_processes.py --processes 2 --devices-per-process 4 -- \
        albef train --config configs/demo.py --workdir /tmp/run

They find each other over loopback: every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
and JAX_PROCESS_ID. Their lines are shown with the number of the process before them. SIGTERM,
Ctrl-C and the like go to all of them. When one fails, the others get a moment to end by themselves,
and what happened is said in one sentence. Exits with 0 if all processes do.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

# Exit codes of processes that ended because of another one: see
# `albef_jax/parallel/processes.py`, and SIGABRT, with which JAX's runtime ends a process that has
# lost the others.
FOLLOWERS = (os.EX_TEMPFAIL, -signal.SIGABRT)


def main(argv=None):
    """Returns the exit code."""
    args = parse(argv)
    environments = [environment_of(args, process) for process in range(args.processes)]
    if args.dry_run:
        for environment in environments:
            settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in environment.items())
            print(f"{settings} {shlex.join(args.command)}")
        return 0
    try:
        children = [subprocess.Popen(
            args.command, env=os.environ | environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)  # or Ctrl-C would come to them twice
            for environment in environments]
    except OSError as error:
        print(f"The command {args.command[0]!r} cannot be started ({error.strerror}); check how "
              "it is written, and that it is installed.", file=sys.stderr)
        return 127
    readers = [threading.Thread(target=show, args=(*pair, args.processes), daemon=True)
               for pair in enumerate(children)]
    for reader in readers:
        reader.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
                   signal.SIGUSR2):
        signal.signal(number, lambda number, _: send(children, number))
    sentence = watch(children, args.grace)
    for reader in readers:
        reader.join(timeout=5)
    if sentence:
        print(sentence, file=sys.stderr, flush=True)
    return 1 if sentence else 0


def parse(argv):
    """The arguments; the command is what follows them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=positive, default=2, metavar="N",
                        help="how many (%(default)s)")
    parser.add_argument("--devices-per-process", type=positive, default=1, metavar="N",
                        help="simulated CPU devices of each (%(default)s)")
    parser.add_argument("--grace", type=float, default=20, metavar="SECONDS",
                        help="that the others have to end when one has failed (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    args = parser.parse_args(argv)
    args.command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not args.command:
        parser.error("the command is missing; write it after --")
    args.address = f"localhost:{free_port()}"
    return args


def positive(text):
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment_of(args, process):
    """What the environment of a process has beside this one's."""
    return {"JAX_COORDINATOR_ADDRESS": args.address, "JAX_NUM_PROCESSES": str(args.processes),
            "JAX_PROCESS_ID": str(process), "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(args.devices_per_process), "PYTHONUNBUFFERED": "1"}


def show(process, child, count):
    """Prints the lines of a process, each with its number, until it ends."""
    width = len(str(count - 1))
    for line in child.stdout:
        print(f"[{process:{width}}] {line}", end="", flush=True)


def send(children, number):
    """Passes a signal on to every process that runs."""
    for child in children:
        child.send_signal(number)  # does nothing where it has ended


def watch(children, grace):
    """Waits for the end of all; returns None, or the sentence about the one that failed."""
    failed, deadline = {}, None  # process -> exit code, in the order of their end
    while True:
        for process, child in enumerate(children):
            if process not in failed and child.poll():
                failed[process] = child.returncode
                deadline = deadline or time.monotonic() + grace
        running = [p for p, child in enumerate(children) if child.poll() is None]
        if not running or deadline and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for process in running:
        os.killpg(children[process].pid, signal.SIGKILL)
        children[process].wait()
    return describe(failed, running, grace, len(children)) if failed else None


def describe(failed, running, grace, count):
    """One sentence: which process, what happened to it, what to do.

    Args:
      failed: process -> exit code, in the order of their end. running: those that had not ended
        after `grace` seconds. count: of all processes.
    """
    culprits = [process for process, code in failed.items() if code not in FOLLOWERS]
    if culprits:
        process = culprits[0]
        code = failed[process]
        happened = (f"was killed by {signal.Signals(-code).name}" if code < 0
                    else f"ended with exit code {code}")
        # Nobody but the kernel or a person sends it.
        todo = ("see if memory ran out (dmesg)" if code == -signal.SIGKILL
                else f"see its last lines above (those with [{process}])")
    elif running:
        process = running[0]
        happened = f"hangs: the others lost it, and it was still there {grace:g} s later"
        todo = f"see where its lines above end (those with [{process}])"
    else:
        process, code = next(iter(failed.items()))
        happened = f"was ended by the runtime, which lost another process (exit code {code})"
        todo = "see the lines above"
    return (f"local_processes: process {process} of {count} {happened}: {todo}, and start "
            "the same command again, which goes on from the last complete checkpoint.")


if __name__ == "__main__":
    sys.exit(main())
