"""albef_jax: vision-language pre-training (ALBEF and relatives) in JAX/Flax."""

__version__ = "0.1.0"
