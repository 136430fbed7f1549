"""Cross-entropy over several tables: values and gradients of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.training.cross_entropy import partition

SHAPE = (2, 5)


def plain(logits, targets, bound: float):
    """The same by JAX's own functions, on the tables side by side."""
    whole = jnp.concatenate(logits, axis=-1).astype(jnp.float32)
    whole = bound * jnp.tanh(whole / bound) if bound else whole
    picked = jnp.take_along_axis(whole, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(whole, axis=-1), picked, whole.max(axis=-1)


@pytest.mark.parametrize(("dtype", "close"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bound", [0.0, 3.0])
@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
def test_it_is_the_plain_formula(sizes: tuple[int, ...], bound: float, dtype, close: float):
    rng = np.random.default_rng(0)
    # Large ones too, whose exponentials overflow if nothing is subtracted.
    logits = tuple(jnp.asarray(rng.normal(size=(*SHAPE, size)) * 40, dtype) for size in sizes)
    targets = jnp.asarray(rng.integers(0, 7, SHAPE))
    toward = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32)

    def with_gradients(formula):
        values, pull = jax.vjp(lambda logits: formula(logits, targets, bound), logits)
        return values, pull((*toward, jnp.zeros(SHAPE)))[0]

    (values, gradients), (right, right_gradients) = (
        jax.jit(with_gradients, static_argnums=0)(f) for f in (partition, plain)
    )
    for value, wanted in zip(values, right, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for gradient, wanted in zip(gradients, right_gradients, strict=True):
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient.astype(jnp.float32), wanted.astype(jnp.float32), atol=close, rtol=close)
