"""A made-up BERT in Hugging Face's layout, which tests start models from."""

import numpy as np

LAYER = {  # Hugging Face's names and shapes of one layer, width 32 and MLP 64
    "attention.self.query": (32, 32), "attention.self.key": (32, 32),
    "attention.self.value": (32, 32), "attention.output.dense": (32, 32),
    "intermediate.dense": (64, 32), "output.dense": (32, 64),
    "attention.output.LayerNorm": (32,), "output.LayerNorm": (32,)}
SETTINGS = dict(model_type="bert", hidden_act="gelu", num_attention_heads=2,
                num_hidden_layers=2, position_embedding_type="absolute")


def hugging_face(vocab_size, layers=2, head=True):
    """A state dict of BertForPreTraining with random values, PyTorch layout."""
    shapes = {"bert.embeddings.word_embeddings.weight": (vocab_size, 32),
              "bert.embeddings.position_embeddings.weight": (32, 32),
              "bert.embeddings.token_type_embeddings.weight": (2, 32)}
    modules = {"bert.embeddings.LayerNorm": (32,), "bert.pooler.dense": (32, 32)}
    for i in range(layers):
        modules |= {f"bert.encoder.layer.{i}.{name}": shape for name, shape in LAYER.items()}
    if head:
        modules |= {"cls.predictions.transform.dense": (32, 32),
                    "cls.predictions.transform.LayerNorm": (32,), "cls.seq_relationship": (2, 32)}
        shapes["cls.predictions.bias"] = (vocab_size,)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["bert.embeddings.position_ids"] = np.arange(32)[None]
    if head:
        words = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = words.copy()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    return tensors
