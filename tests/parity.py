"""Compares this project with values recorded from the public PyTorch code.

    python tests/parity.py CASE_DIR [CASE_DIR ...]

A case folder is known by what it holds, whatever its name and sizes:

| it holds | what is compared | where |
|---|---|---|
| `inputs.npz`, a state | a task: outputs, losses, gradients, optimizer steps | `parity_case` |
| `load_map_*.json` | tensors of checkpoints, and what is loaded from which | `parity_weights` |
| `hidden_states.npz` | BERT with the weights of an installed package | `parity_weights` |
| `arrays.npz` | interpolated positions, or RandAugment | `parity_data` |
| `cases.json` | cleaned texts, or token ids | `parity_data` |
| `schedules.json` | learning rates | `parity_data` |
| `variants.npz`, `optimizer_unit.npz` | ImageBERT: variants, steps | `parity_imagebert` |
| `grads_binary.npz`, `state_stage*.npz` | ImageBERT: fine-tuning, stages | the same |
| `imagebert.json`, `metrics.json` | ImageBERT: tensors, recalls | `parity_imagebert` |
| `features.npz` | SCALE: ranked lists of products and their scores | `parity_scale_metrics` |
| `vocab.txt`, raw products | SCALE: the fields, and masking | `parity_scale` |
| `outputs_released.npz`, `outputs_seed.npz` and others | SCALE: variants of outputs, losses, gradients, steps | `parity_scale` |
| `*.info.json` | SCALE: tensors of checkpoints, and which nothing reads | `parity_scale` |

All is under the official names and layouts. Recorded random draws are injected; model, objectives,
step and optimizer are those that train, and the initial weights (`state_dict.pth`, or `.npz` where
there is none) come in as `albef import` reads them.

One line per compared array: its name, the largest difference relative to the largest entry of the
recording, the limit and where it is from (the recordings' README, the noise that the recording
states, or this project), and whether it holds. Exits with 1 on a miss, and with 2 when nothing was
compared.
"""

import argparse
import importlib
import json
import pathlib
import sys

import jax

from parity_report import Report

# The first file found in a folder -> the function for it.
RUNNERS = (("variants.npz", "parity_imagebert.run_forward"),
           ("optimizer_unit.npz", "parity_imagebert.run_train"),
           ("grads_binary.npz", "parity_imagebert.run_retrieval"),
           ("state_stage*.npz", "parity_imagebert.run_stages"),
           ("imagebert.json", "parity_imagebert.run_manifests"),
           ("features.npz", "parity_scale_metrics.run_metrics"),
           ("metrics.json", "parity_imagebert.run_metrics"),
           ("load_map_*.json", "parity_weights.run_load_maps"),
           ("hidden_states.npz", "parity_weights.run_bert"),
           ("arrays.npz", "parity_data.run_arrays"), ("cases.json", "parity_data.run_cases"),
           ("schedules.json", "parity_data.run_schedules"),
           ("vocab.txt", "parity_scale.run_masking"),
           ("outputs_released*.npz", "parity_scale.run"), ("outputs_seed*.npz", "parity_scale.run"),
           ("*.info.json", "parity_scale.run_manifests"),
           ("inputs.npz", "parity_case.run"))


def run_case(folder):
    """Runs one case folder; returns its Report."""
    folder = pathlib.Path(folder)
    meta = folder / "meta.json"
    meta = json.loads(meta.read_text()) if meta.exists() else {}
    report = Report(meta)
    for pattern, runner in RUNNERS:
        if any(folder.glob(pattern)):
            module, function = runner.split(".")
            getattr(importlib.import_module(module), function)(folder, meta, report)
            break
    print(f"{folder.name}: {report.compared} compared, {report.missed} missed")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case_dir", nargs="+")
    jax.config.update("jax_default_matmul_precision", "highest")
    reports = [run_case(folder) for folder in parser.parse_args().case_dir]
    if any(report.compared == 0 for report in reports):
        print("nothing was compared: no comparison fits this case")
        sys.exit(2)
    sys.exit(1 if any(report.missed for report in reports) else 0)


if __name__ == "__main__":
    main()
