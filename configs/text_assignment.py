"""Text assignment: one epoch that prepares the pairs of fusion layers of NLVR2.

    albef train --config configs/text_assignment.py:FOLDER --init runs/albef \\
      --workdir runs/text_assignment

then configs/nlvr.py with --init runs/text_assignment.

Paper: Li et al., https://arxiv.org/abs/2107.07651, appendix; values as in the public code. --init
is a run of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out) holds the manifests of pretrain_4m.py.

Hardware: the paper used 8 A100 GPUs, 64 pairs each. Any number of devices that divides 8 gives the
same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected: no figure is published. Guessing gives a loss of log 3 = 1.10.
"""

from albef_jax.config import default_config

MANIFESTS = ("coco", "vg", "cc3m_train", "cc3m_val", "sbu")


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/albef"
    config = default_config("nlvr_pretrain")
    config.batch_size, config.group_size = 512, 64
    config.epochs = 1
    config.objective.temperature = 0.07
    config.optimizer.update(peak_lr=2e-5, min_lr=1e-5, warmup_lr=1e-5, warmup_steps=100,
                            weight_decay=0.02, schedule="albef_steps")
    config.data.source.update(files=tuple(f"{folder}/{name}.json" for name in MANIFESTS),
                              image_roots=(f"{folder}/images",))
    config.data.update(tokenizer="bert-base-uncased", text_length=25)
    return config
