"""ImageBERT on Flickr8k without a detector: regions are tokens of a ViT that ALBEF trained.

    albef train --config configs/flickr8k.py:FOLDER --workdir runs/flickr8k
    for split in train dev; do
      albef features regions FOLDER/$split.json --image-roots FOLDER/images.tar \\
        --model runs/flickr8k --classes 200 --out runs/flickr8k_regions; done
    albef train --config configs/flickr8k_imagebert.py:pretrain,FOLDER --workdir runs/words_and_grid
    albef train --config configs/flickr8k_imagebert.py:retrieval,FOLDER --init runs/words_and_grid \\
      --workdir runs/words_and_grid_retrieval

Model: Qi et al., https://arxiv.org/abs/2001.07966, made small. FOLDER as in flickr8k.py, whose ViT
gives 6 x 6 regions of an image; REGIONS, a third word after the task and FOLDER, is where they
are (runs/flickr8k_regions). Hardware: sized for two CPU cores. Expected: docs/results.md; not to be
compared with what a detector's regions give.
"""

from albef_jax.config import default_config
from albef_jax.errors import UserError

TASKS = ("pretrain", "retrieval")


def get_config(variant=None):
    """`variant`: 'pretrain' or 'retrieval', and FOLDER and REGIONS after commas."""
    name, folder, regions = [*(variant or "pretrain").split(","), "", ""][:3]
    if name not in TASKS:
        raise UserError("configs/flickr8k_imagebert.py needs the name of a task, such as "
                        "configs/flickr8k_imagebert.py:pretrain,FOLDER; it has "
                        f"{', '.join(TASKS)}.")
    folder, regions = folder or "data/flickr8k", regions or "runs/flickr8k_regions"
    retrieval = name == "retrieval"
    config = default_config("imagebert_retrieval" if retrieval else "imagebert_pretrain")
    config.batch_size = config.group_size = 64
    config.model.update(
        text_width=192, text_layers=4, text_heads=3, text_mlp_width=768, max_positions=32,
        dropout=0.0, attention_dropout=0.0, dtype="float32", init_std=0.04,
        classes=200)
    config.data.update(text_length=20, vocab_size=4000, regions_length=36, regions_width=192)
    config.optimizer.update(peak_lr=1e-3, b2=0.98)

    def pairs(split, **options):
        return dict(kind="regions", files=(f"{folder}/{split}.json",), regions=(regions,),
                    image_roots=(f"{folder}/images.tar",), **options)

    config.data.source = pairs("train", merge_images=True)
    # A million pairs take long: 82,000 of the first 128 images are enough for a figure.
    config.evals.retrieval = dict(kind="pair_retrieval", source=pairs("dev"), max_images=128,
                                  every=0)
    if retrieval:
        config.steps, config.optimizer.peak_lr = 300, 2e-4
        config.objective.negatives_per_pair = 3
        return config
    config.epochs = 10
    config.evals.masked = dict(kind="masked_regions", source=pairs("dev"), max_examples=500,
                               every=0)
    return config
