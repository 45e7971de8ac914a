"""ImageBERT pre-training in two stages: LAIT, then Conceptual Captions and SBU.

    albef train --config configs/imagebert_pretrain.py:FOLDER --workdir runs/imagebert

Paper: Qi et al., https://arxiv.org/abs/2001.07966; there is no public code, and LAIT was not
published: any large set of noisy captions stands for it. FOLDER (data/imagebert if left out) holds
lait.json, cc3m_train.json, sbu.json and flickr30k_val.json, in the format of pretrain_4m.py, and in
FOLDER/regions a file NAME.npz for each image NAME.jpg: see albef_jax/data/sources/regions_json.py.

Hardware: the paper used 4 V100 GPUs for batches of 48.

Expected, published by the authors, not measured here: zero-shot on the 1,000 test images of
Flickr30K, R@1/5/10, texts 70.7/90.2/94.0 and images 54.3/79.6/87.5 (table 1).
"""

from albef_jax.config import default_config


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/imagebert"
    config = default_config("imagebert_pretrain")
    config.batch_size, config.group_size = 48, 12
    config.epochs = 17
    config.optimizer.update(peak_lr=1e-4, warmup_share=0.1, schedule="linear")
    config.init.bert = config.data.tokenizer = "bert-base-uncased"

    def pairs(*names):
        return dict(kind="regions", files=tuple(f"{folder}/{name}.json" for name in names),
                    image_roots=(folder,), regions=(f"{folder}/regions",))

    config.data.source = pairs("lait", "cc3m_train", "sbu")
    config.stages = (
        dict(name="LAIT", data=dict(source=pairs("lait"), examples=10_000_000)),
        dict(name="CC and SBU", data=dict(source=pairs("cc3m_train", "sbu"), examples=4_000_000)))
    # A million pairs take long: the 1,000 captions of 200 images are enough for a curve.
    config.evals.flickr30k = dict(kind="pair_retrieval", source=pairs("flickr30k_val"),
                                  max_images=200, every=50_000)
    config.checkpoint.update(every=10_000, keep_every=500_000)
    return config
