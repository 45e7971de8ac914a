"""ImageBERT on rendered scenes with detected regions, from nothing to retrieval: `make demo-imagebert`.

    albef train --config configs/demo_imagebert.py --workdir runs/imagebert/stages
    albef train --config configs/demo_imagebert.py:retrieval --init runs/imagebert/stages \
      --workdir runs/imagebert/retrieval

Model: Qi et al., https://arxiv.org/abs/2001.07966, made tiny; data: `albef_jax/scenes`, with what a
simulated detector finds in them. Two stages: many scenes of whose captions 40% have wrong words,
then few whose captions are right; `many` and `few` are one of the stages alone, `mixed` as many
steps as both of both at once. Held-out scenes hold kinds of objects that training never shows.
Hardware: sized for two CPU cores. Expected: docs/results.md.
"""

from albef_jax.config import default_config
from albef_jax.scenes.detector import WIDTH
from albef_jax.scenes.levels import DEMO

VARIANTS = ("retrieval", "many", "few", "mixed")
STEPS = {"many": 2500, "few": 500}  # of the stages


def get_config(variant=None):
    """`variant`: None for both stages, or one of `VARIANTS`."""
    retrieval = variant == "retrieval"
    config = default_config("imagebert_retrieval" if retrieval else "imagebert_pretrain")
    config.batch_size = config.group_size = 32
    config.log_every = 20
    config.model.update(
        text_width=128, text_layers=3, text_heads=4, text_mlp_width=256, max_positions=32,
        dropout=0.0, attention_dropout=0.0, dtype="float32", init_std=0.05,
        classes=len(DEMO.shapes))
    config.data.update(text_length=DEMO.max_words + 2, max_words=DEMO.max_words, vocab_size=400,
                       regions_length=10, regions_width=WIDTH)
    config.optimizer.update(peak_lr=3e-3, b2=0.98)

    def scenes(split, size, seed=0, **noise):
        return dict(kind="scenes_regions", level="demo", split=split, size=size, seed=seed, **noise)

    sources = {"many": scenes("train", 20_000, damaged=0.4),
               "few": scenes("train", 2_000, seed=1)}
    config.evals.retrieval = dict(kind="pair_retrieval", source=scenes("heldout", 128), every=0)
    if retrieval:
        config.steps, config.optimizer.peak_lr = 300, 1e-3
        config.data.source = sources["few"]
        config.objective.update(binary=1.0, multiclass=0.0, triplet=0.0, negatives_per_pair=3)
        return config
    config.evals.masked = dict(kind="masked_regions", source=scenes("heldout", 128), every=0)
    config.objective.update(mask_rate=0.25, mrfr=1.0)
    config.steps = sum(STEPS.values())
    config.data.source = dict(kind="mixture", parts=tuple(
        dict(source=sources[name], weight=steps) for name, steps in STEPS.items()))
    if variant in sources:
        config.data.source, config.steps = sources[variant], STEPS[variant]
    if variant is None:
        config.stages = tuple(dict(name=name, steps=steps, data=dict(source=sources[name]))
                              for name, steps in STEPS.items())
    return config
