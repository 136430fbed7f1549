"""Gated cross-attention to visual tokens, before a block of the language model (Flamingo, section 2.2: GATED XATTN-DENSE).

Dimension key: B rows, L positions, I images per row, K visual tokens per image, D width, V visual width, H heads, E head size.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from generalist.model.attend import by_blocks
from generalist.model.blocked_attention import MASKED, shown_attention
from generalist.model.config import Activation
from generalist.model.layers import NORMS, Linear, NormedFeedForward

AttendTo = Literal["last", "all"]


def image_mask(
    image: Int[Array, "B L"], first: Int[Array, "B L"], number: Int[Array, "#B I"], attend_to: AttendTo
) -> Bool[Array, "B L I"]:
    """Which images a position sees. A row's images are numbered from 1 in order; 0 means none.

    Two packed examples, the first with text before its image, the second with two images (section 2.4):

        image   0 1 1 2 2 3 3
        first   1 1 1 2 2 2 2
                              last                  all
        image 1   . x x . . . .         . x x . . . .
        image 2   . . . x x . .         . . . x x x x
        image 3   . . . . . x x         . . . . . x x

    Args:
        image: the image each position belongs to.
        first: number of the first image of the position's segment.
        number: numbers of the images that are present, in any order.
        attend_to: the position's own image alone (Flamingo's choice), or all of its segment up to it.
    """
    number, image = number[:, None], image[..., None]
    # Empty slots of the cache have number 0, which must not match text without an image.
    if attend_to == "last":
        return (number == image) & (number > 0)
    return (number <= image) & (number >= first[..., None])


def first_image(is_image: Bool[Array, "B L"], position: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """1 + the number of the row's images before the position's segment, which begins where `position` is 0."""
    counted = jnp.cumsum(is_image, axis=1) - is_image
    # Image counts never decrease along a row, so a running maximum carries the segment's first one to all its positions.
    return jax.lax.cummax(jnp.where(position == 0, counted, 0), axis=1) + 1


class VisualKeys(NamedTuple):
    """Keys and values of a row's images in one layer: computed once, used by every position and every decoding step."""

    # Heads first, as in `Cache`: the products take each head's keys as they are.
    key: Float[Array, "B H I K E"]
    value: Float[Array, "B H I K E"]


class GatedCrossAttention(nnx.Module):
    """`y += tanh(α) · attention(y, images)`, then `y += tanh(β) · feed-forward(y)`, with α = β = 0 initially: the language
    model is unchanged until training opens the gates."""

    def __init__(
        self,
        width: int,
        visual_width: int,
        *,
        heads: int,
        head_size: int,
        hidden: int,
        activation: Activation = "squared_relu",
        norm: Literal["layer", "rms"] = "layer",
        epsilon: float = 1e-5,
        qk_norm: bool = False,
        gate: Literal["scalar", "vector"] = "scalar",
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_size = heads, head_size
        self.norm = NORMS[norm](width, rngs=rngs, epsilon=epsilon)
        self.query = Linear(width, heads * head_size, rngs=rngs)
        self.key_value = Linear(visual_width, 2 * heads * head_size, rngs=rngs)
        self.query_norm = NORMS[norm](head_size, rngs=rngs, epsilon=epsilon) if qk_norm else None
        self.key_norm = NORMS[norm](head_size, rngs=rngs, epsilon=epsilon) if qk_norm else None
        self.out = Linear(heads * head_size, width, rngs=rngs)
        self.feed_forward = NormedFeedForward(
            width, hidden, activation=activation, norm=norm, epsilon=epsilon, rngs=rngs
        )
        shape = (width,) if gate == "vector" else ()
        self.attention_gate, self.feed_forward_gate = nnx.Param(jnp.zeros(shape)), nnx.Param(jnp.zeros(shape))

    def keys(self, visual: Float[Array, "B I K V"]) -> VisualKeys:
        """Keys and values of the images, which positions attend to."""
        rows, images, tokens, _ = visual.shape
        both = self.key_value(visual).reshape(rows, images, tokens, 2 * self.heads, self.head_size)
        key, value = jnp.split(both.transpose(0, 3, 1, 2, 4), 2, axis=1)  # (B, H, I, K, E) each
        return VisualKeys(key if self.key_norm is None else self.key_norm(key), value)

    def __call__(
        self, x: Float[Array, "B L D"], keys: VisualKeys | None, mask: Bool[Array, "B L I"] | None
    ) -> Float[Array, "B L D"]:
        """Adds attention and feed-forward to `x`. Without images (None) the attention adds nothing and costs nothing."""
        if keys is not None and mask is not None and mask.shape[-1]:
            x = x + gate(self.attention_gate, x) * self._attend(x, keys, mask)
        return x + gate(self.feed_forward_gate, x) * self.feed_forward(x)

    def weights(
        self, x: Float[Array, "B L D"], keys: VisualKeys, mask: Bool[Array, "B L I"]
    ) -> Float[Array, "B H L I K"]:
        """The attention weights by head, in float32. Of a position that sees no image they mean nothing: its attention adds 0."""
        rows, length, _ = x.shape
        images, tokens = keys.key.shape[2:4]
        scores = jnp.einsum("blhe,bhike->bhlik", self._queries(x), keys.key).astype(jnp.float32) * self.head_size**-0.5
        scores = jnp.where(mask[:, None, :, :, None], scores, MASKED)
        # One softmax over the tokens of all visible images together.
        weights = jax.nn.softmax(scores.reshape(rows, self.heads, length, images * tokens), axis=-1)
        return weights.reshape(scores.shape)

    def _queries(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H E"]:
        # Without rotary positions: which images a position sees is a matter of the mask alone.
        query = self.query(self.norm(x)).reshape(*x.shape[:2], self.heads, self.head_size)
        return query if self.query_norm is None else self.query_norm(query)

    def _attend(self, x: Float[Array, "B L D"], keys: VisualKeys, mask: Bool[Array, "B L I"]) -> Float[Array, "B L D"]:
        rows, length, _ = x.shape
        if by_blocks(rows, length, self.heads):
            key, value = (one.reshape(rows, self.heads, -1, self.head_size).swapaxes(1, 2) for one in keys)
            shown = jnp.repeat(mask, keys.key.shape[3], axis=2)
            mixed = shown_attention(self._queries(x), key, value, shown, scale=self.head_size**-0.5)
        else:
            weights = self.weights(x, keys, mask).astype(keys.value.dtype)
            mixed = jnp.einsum("bhlik,bhike->blhe", weights, keys.value)
        mixed = mixed.reshape(rows, length, -1)  # (B, L, H · E)
        # Without a visible image the softmax of equal masked scores would be the mean of all images.
        return jnp.where(mask.any(axis=-1)[..., None], self.out(mixed), 0)


def gate(alpha: nnx.Param, x: Float[Array, "B L D"]) -> Float[Array, "1 1 #D"]:
    """The opening of a gate or, with one per channel, of each, in (-1, 1), in the dtype of `x`."""
    return jnp.tanh(alpha[...].astype(jnp.float32)).astype(x.dtype).reshape(1, 1, -1)
