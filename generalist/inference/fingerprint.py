"""Which weights are these? One short text that equal weights have in common, wherever they were loaded from."""

import hashlib

import jax
import numpy as np

from generalist.inference.weights import Weights
from generalist.training.sharding import flat


def fingerprint(generalist: Weights) -> str:
    """SHA-256 over every parameter's name, dtype, shape and bytes, in order of name; and over the frozen encoder's own
    fingerprint, where the model has one.

    A run's checkpoint and a folder saved from it in float32 have the same one. Saved in bfloat16 they are other weights:
    they were rounded.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flat(generalist.params).items()):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    if generalist.encoder is not None:
        digest.update(f"encoder {generalist.encoder.fingerprint}\n".encode())
    return digest.hexdigest()
