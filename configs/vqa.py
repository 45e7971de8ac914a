"""Visual question answering on VQA v2, with Visual Genome questions: answers are generated.

    albef train --config configs/vqa.py:FOLDER --init runs/albef --workdir runs/vqa
    albef evaluate runs/vqa

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run
of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out) holds vqa_train.json, vqa_val.json, vg_qa.json, vqa_test.json and
answer_list.json, in the format of the public code; image names are relative to FOLDER/images/vqa
or FOLDER/images/vg. The test questions have no answers: `albef evaluate` writes those of the
model, chosen from answer_list.json, to results/vqa_predictions.json for the evaluation server.

Hardware: the paper used 8 A100 GPUs, 32 questions each. Any number of devices that divides 8 gives
the same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected, published by the authors (table 4), not measured here, VQA accuracy on test-dev and
test-std: 74.54 and 74.70 after 4M images, 75.84 and 76.04 after 14M.
"""

from albef_jax.config import default_config
from albef_jax.tasks.vqa import Vqa


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/albef"
    config = default_config("vqa")
    config.batch_size, config.group_size = 256, 32
    config.epochs = 8
    config.model.image_size = 384
    config.objective.update(momentum=0.995, alpha=0.4)
    config.optimizer.update(peak_lr=2e-5, min_lr=1e-6, warmup_lr=1e-5, warmup_steps=400,
                            weight_decay=0.02, schedule="albef_steps")
    images = (f"{folder}/images/vqa", f"{folder}/images/vg")
    config.data.source = dict(
        kind="vqa", image_roots=images,
        files=tuple(f"{folder}/{name}.json" for name in ("vqa_train", "vqa_val", "vg_qa")))
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(0.5, 1.0), **Vqa.TEXTS,
                       answer_length=16, max_answers=10)  # the public code cuts no answers
    test = dict(kind="vqa", files=(f"{folder}/vqa_test.json",), image_roots=images)
    config.evals.vqa = dict(kind="vqa", source=test, answers=f"{folder}/answer_list.json", k=128,
                            batch_size=16)
    config.checkpoint.update(every=5000)
    return config
