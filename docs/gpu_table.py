"""What launch/gpu_check.sh found on a GPU, as tables.

    python docs/gpu_table.py gpu.json [--write docs/results.md]
"""

import argparse
import json
import pathlib
import statistics

from runs import markdown, write_between_marks

LARGEST_PARTS = 12


def speeds(found):
    """The table of benchmarks: rates, times, memory; why one failed."""
    rows = []
    for name, one in found.items():
        if "samples_per_second" in one:
            rate = one["samples_per_second"]
            share = rate * one["flops_per_sample"] / one["peak_flops"] / one["devices"]
            rows.append([name, str(one["batch"]), f"{rate:,.0f}",
                         f"{1e3 * statistics.median(one['seconds']):.1f} ms", f"{share:.1%}",
                         f"{one['peak_bytes'] / 2**30:.1f} GiB", f"{one['compile_seconds']:.0f} s",
                         "; ".join(one["said"])])
        elif "failed" in one:
            rows.append([name, *[""] * 6, one["failed"]])
    return markdown(["", "batch", "samples/s", "step", "MFU", "peak memory", "compiling", ""], rows)


def parts(found):
    """The table of the parts of the model that take most of a step; '' where none was measured."""
    rows = next((one["parts"] for one in found.values() if one.get("parts")), [])
    if not rows:
        return ""
    total, sums = sum(row["seconds"] for row in rows), {}
    for row in rows:
        sums[row["part"]] = sums.get(row["part"], 0.0) + row["seconds"]
    most = sorted(sums.items(), key=lambda item: -item[1])[:LARGEST_PARTS]
    return markdown(["part", "ms of a step", "share"], [
        [part, f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}"] for part, seconds in most])


def exactness(found):
    """Lines on parity and on the resumed run."""
    lines = [f"- {name}: {one['compared']} values compared, all within their limits."
             for name, one in found.items() if "compared" in one]
    return "\n".join([*lines, *(
        f"- A run stopped after step {one['stopped after']} and started again: {one['equal']} of "
        f"{one['steps']} steps bit for bit those of one that was not."
        for one in found.values() if "equal" in one)])


def main():
    """Prints the tables, and writes them if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    found = json.loads(args.file.read_text())
    device = next((one["device"] for one in found.values() if "device" in one), "no device")
    text = "\n\n".join(filter(None, [
        f"{device}:", speeds(found), exactness(found), parts(found)]))
    print(text)
    if args.write:
        write_between_marks(args.write, "gpu_check", text)


if __name__ == "__main__":
    main()
