"""Pixels: decoding, geometry and augmentation, in two engines."""
