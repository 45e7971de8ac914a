"""albef_jax: vision-language pre-training (ALBEF and relatives) in JAX/Flax.

    model = albef_jax.load("runs/my_pairs")
    model.match("dog.jpg", "a dog runs on grass")

`load` is `albef_jax.inference.api.load`; importing the package alone imports nothing else.
"""

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name):
    if name == "load":
        from albef_jax.inference.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
