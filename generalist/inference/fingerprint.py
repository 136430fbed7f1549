"""A fingerprint of weights: one short text that equal weights share, wherever they were loaded from."""

import hashlib

import jax
import numpy as np

from generalist.inference.weights import Weights
from generalist.model.params import flat


def fingerprint(generalist: Weights) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every parameter, sorted by name, and over the fingerprint of the frozen
    encoder, if the model has one.

    A run's checkpoint and a folder saved from it in float32 have the same fingerprint. Saved in bfloat16 the weights are
    rounded, so their fingerprint differs.
    """
    digest = hashlib.sha256()
    # Sorted, since the order of a tree's leaves may change between versions of the libraries.
    for path, leaf in sorted(flat(generalist.params).items()):
        array = np.asarray(jax.device_get(leaf))
        # The name, dtype and shape too: equal bytes may be other numbers in another shape.
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    # The encoder's own fingerprint includes the hash of its files.
    if generalist.encoder is not None:
        digest.update(f"encoder {generalist.encoder.fingerprint}\n".encode())
    return digest.hexdigest()
