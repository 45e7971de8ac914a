"""Our trees in the public code's names and layouts, and back."""

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from albef_jax.weights.foreign.salesforce import to_leaf, to_tensors


def read_tree(table, tensors):
    """Official name -> array, as our nested dict of numpy arrays."""
    return unflatten_dict({
        entry.path: to_leaf(entry, [tensors[name] for name in entry.sources]) for entry in table})


def write_tensors(table, tree, patch_size):
    """The inverse of `read_tree`."""
    flat, tensors = flatten_dict(tree), {}
    for entry in table:
        parts = to_tensors(entry, np.asarray(flat[entry.path]), patch_size)
        tensors.update(zip(entry.sources, parts))
    return tensors
