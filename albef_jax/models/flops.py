"""Analytic cost of the parts of a training step, and the peak rates it is held against.

The count is the *model* count: what the public ALBEF code computes (Li et al. 2021,
arXiv:2107.07651, and its `model_*.py`), one fusion pass after another, the MLM head on every
position. Ways of computing the same numbers with less work (shared keys and values, the head on
masked positions only) therefore show up as speed, not as a lower MFU.

Conventions: one multiply-add is 2 FLOPs, matmuls only, backward = 2 x forward. The projections
to the embedding space, the ITM head and classifiers are left out: together below 0.01% of a step.
SCALE (arXiv:2109.04275) is counted by the same rules.
"""

BACKWARD = 3  # a forward pass plus a backward pass of twice its cost

# Dense bfloat16 FLOP/s of one JAX device, by `device_kind`. One device of TPU v2, v3 and 7x is a
# core, half a chip; of v4 and v5p a whole chip. Volta has no bfloat16 units, so V100 is not here.
PEAK_BF16 = {
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12, "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "TPU v2": 23e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
    "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
    "TPU v6e": 918e12, "TPU7x": 1153.5e12}


def peak_flops(device) -> float | None:
    """Returns the peak dense bfloat16 FLOP/s of a `jax.Device`, None where it is not known."""
    return PEAK_BF16.get(device.device_kind)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Returns the forward FLOPs of scores and weighted values, all heads together."""
    return 4 * queries * keys * width


def layer_flops(length: int, width: int, mlp_width: int) -> int:
    """Returns the forward FLOPs of a self-attention layer (q, k, v, o, scores, values, MLP)."""
    projections, mlp = 8 * length * width**2, 4 * length * width * mlp_width
    return projections + attention_flops(length, length, width) + mlp


def image_tokens(model) -> int:
    """Returns the number of tokens of one image: its patches and [CLS]."""
    return (model.image_size // model.patch_size) ** 2 + 1


def vit_flops(model) -> int:
    """Returns the forward FLOPs of the image encoder on one image."""
    length, width = image_tokens(model), model.vit_width
    patch_embedding = 2 * (length - 1) * 3 * model.patch_size**2 * width
    layer = layer_flops(length, width, int(width * model.vit_mlp_ratio))
    return patch_embedding + model.vit_depth * layer


def text_flops(model, length: int) -> int:
    """Returns the forward FLOPs of the text encoder (the layers below fusion) on one text."""
    return model.text_layers * layer_flops(length, model.text_width, model.text_mlp_width)


def cross_flops(model, length: int, tokens: int, token_width: int) -> int:
    """Returns the forward FLOPs of a layer with self- and cross-attention to some tokens."""
    width = model.text_width
    query_and_output = 4 * length * width**2
    keys_values = 4 * tokens * token_width * width
    cross = query_and_output + keys_values + attention_flops(length, tokens, width)
    return layer_flops(length, width, model.text_mlp_width) + cross


def fusion_flops(model, length: int) -> int:
    """Returns the forward FLOPs of one pass of the fusion layers over one image-text pair."""
    return model.fusion_layers * cross_flops(model, length, image_tokens(model), model.vit_width)


def decoder_flops(model, length: int, question_length: int) -> int:
    """Returns the forward FLOPs of the answer decoder with its word logits, for one answer."""
    layer = cross_flops(model, length, question_length, model.text_width)
    return model.fusion_layers * layer + mlm_head_flops(model, length)


def mlm_head_flops(model, length: int) -> int:
    """Returns the forward FLOPs of the MLM head (transform and tied decoder) on every position."""
    return length * 2 * model.text_width * (model.text_width + model.vocab_size)


def retrieval_step(model, objective, text_length: int, group_size: int) -> dict[str, float]:
    """Returns the FLOPs by term of one step of retrieval per image-text pair.

    Args:
      model, objective: blocks of a config. text_length: tokens of a padded text.
      group_size: pairs whose features are in-batch columns of the ITC similarities.
    """
    forward = {"vit": vit_flops(model), "text": text_flops(model, text_length)}
    similarities = 2 * 2 * model.embed_dim * (objective.queue_size + group_size)  # of both sides
    return distilled_step(forward, alpha=1) | {
        "fusion_itm": BACKWARD * 3 * fusion_flops(model, text_length),  # a negative each way
        # Student forward, its gradient (none flows into the queue), and the teacher's targets.
        "itc": 3 * similarities}


def pretrain_step(model, objective, text_length: int, group_size: int) -> dict[str, float]:
    """As `retrieval_step`, of pre-training: every text is masked too, the switch `itc` counts."""
    words = {"text": 2 * text_flops(model, text_length),
             "fusion_mlm": fusion_flops(model, text_length),
             "mlm_head": mlm_head_flops(model, text_length)}
    terms = retrieval_step(model, objective, text_length, group_size)
    return terms | distilled_step(words, alpha=1) | ({} if objective.itc else {"itc": 0})


def scale_trunk(model, sizes) -> dict[str, int]:
    """Counts the forward FLOPs of SCALE's encoders and Joint Co-Transformer on one product.

    Args:
      model: `config.model`. sizes: a `models.scale.Size` of each modality.

    Returns:
      FLOPs by modality, and `jct`.
    """
    there = [size for size in sizes if size.letter in model.modalities]
    terms = {}
    for letter, tokens, width in there:
        mlp = model.visual_mlp_width if width else model.text_mlp_width
        places = 5 if letter == "i" else 0  # a box
        terms[f"encoder_{letter}"] = (2 * tokens * (width + places) * model.width
                                      + model.layers * layer_flops(tokens, model.width, mlp))
    total = sum(size.tokens for size in there)
    terms["jct"] = model.jct_layers * layer_flops(total, model.width, model.jct_mlp_width)
    return terms


def scale_step(model, sizes, group_size: int) -> dict[str, float]:
    """As `scale_trunk`, of a training step with masked heads on every token and all contrasts.

    Args:
      group_size: products that are compared with each other.
    """
    terms = scale_trunk(model, sizes)
    there = [size for size in sizes if size.letter in model.modalities]
    for letter, tokens, width in there:
        terms[f"head_{letter}"] = 2 * tokens * model.width * (
            model.width + (width or model.vocab_size))
    # Each modality's feature with those of all modalities, its own included.
    terms["contrast"] = 2 * len(there) ** 2 * group_size * model.embed_dim
    return {name: BACKWARD * value for name, value in terms.items()}


def imagebert_columns(data, final_sep: bool) -> int:
    """Returns the columns of ImageBERT's sequence. `data`: `config.data`."""
    return data.text_length + (data.global_width > 0) + data.regions_length + final_sep


def imagebert_pair(model, data) -> dict[str, int]:
    """Counts the forward FLOPs of ImageBERT's stream on one pair; the match logit is free.

    Args:
      model: `config.model`. data: `config.data`.
    """
    columns = imagebert_columns(data, model.final_sep)
    visual = data.regions_length * (data.regions_width + 5) + data.global_width
    return {"region_embeddings": 2 * visual * model.text_width,
            "stream": model.text_layers * layer_flops(columns, model.text_width,
                                                      model.text_mlp_width)}


def imagebert_pretrain_step(model, data) -> dict[str, float]:
    """As `imagebert_pair`, of a training step with the masked heads on every column."""
    regions = 2 * data.regions_length * model.text_width
    terms = imagebert_pair(model, data) | {
        "mlm_head": mlm_head_flops(model, data.text_length),
        "moc_head": regions * model.classes, "mrfr_head": regions * data.regions_width}
    return {name: BACKWARD * value for name, value in terms.items()}


def imagebert_retrieval_step(model, data, negatives: int) -> dict[str, float]:
    """As `imagebert_pair`, of a training step with so many negatives of every pair."""
    return {name: BACKWARD * (1 + negatives) * value
            for name, value in imagebert_pair(model, data).items()}


def distilled_step(forward: dict[str, int], alpha: float) -> dict[str, float]:
    """The parts of a forward pass as those of a step; without distillation no teacher runs."""
    student = {f"{name}_student": BACKWARD * value for name, value in forward.items()}
    teacher = {f"{name}_teacher": value for name, value in forward.items()} if alpha else {}
    return student | teacher


def classification_forward(model, text_length: int, images: int = 1) -> dict[str, int]:
    """FLOPs of classifying a text about images: every fusion layer exists once per image."""
    return {"vit": images * vit_flops(model), "text": text_flops(model, text_length),
            "fusion": images * fusion_flops(model, text_length)}
