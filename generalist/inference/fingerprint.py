"""A fingerprint of weights: one short text that equal weights share, wherever they were loaded from."""

import hashlib

import numpy as np

from generalist.inference.weights import Weights


def fingerprint(generalist: Weights) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every parameter as float32, sorted by name, and over the fingerprint of
    the frozen encoder, if the model has one.

    A run's checkpoint and a folder saved from it in float32 have the same fingerprint. Saved in bfloat16 the weights are
    rounded, so their fingerprint differs.
    """
    digest = hashlib.sha256()
    for path, array in generalist.arrays():
        # The name, dtype and shape too: equal bytes may be other numbers in another shape.
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    # The encoder's own fingerprint includes the hash of its files.
    if generalist.encoder is not None:
        digest.update(f"encoder {generalist.encoder.fingerprint}\n".encode())
    return digest.hexdigest()
