"""Checks whether a task's spaces can be learned and acted in, before anything is recorded."""

import gymnasium as gym
import numpy as np

from generalist.tokenizers.part_rules import WIDEST, is_image
from generalist.tokenizers.space_tree import leaves_of
from generalist.tokenizers.space_values import LARGEST
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary

IMAGE_SIDE = 16
"""Pixels per side from which an array of bytes counts as an image rather than a board or a table."""


def check_learnable(name: str, observation: gym.Space, action: gym.Space) -> None:
    """Builds the task's layout as training would, with the largest vocabulary that any run may have.

    Raises:
        ValueError: a part of a space can't be learned; the message names the part and the remedy.
    """
    # text=1: Text spaces are refused below, so no tokenizer is needed; discrete=WIDEST accepts whatever a run could be set to.
    vocabulary, made = Vocabulary(text=1, discrete=WIDEST), {}
    # Observations are tried in the way that always fits (frames and projections); actions must become tokens.
    for kind, space, projected in (("observation", observation, True), ("action", action, False)):
        try:
            for path, leaf in leaves_of(space, ()):
                _check_leaf("/".join(path), leaf)
            made[kind] = SpaceTokenizer.from_space(
                space, vocabulary=vocabulary, images="frame", tensors="projected" if projected else "tokens"
            )
        except ValueError as error:
            raise ValueError(f"{name}: the {kind} space can't be learned: {error}") from None
    # Its own checks: an action must have tokens for all of its parts.
    TaskLayout(name, made["observation"], made["action"])


def _check_leaf(key: str, space: gym.Space) -> None:
    """Refuses texts, whose length varies, and images whose axes are not those of an image: they would be read as
    thousands of unrelated numbers.

    Raises:
        ValueError: the message names the part and the remedy.
    """
    if isinstance(space, gym.spaces.Text):
        raise ValueError(
            f"the part {key!r} is a Text, whose length varies, but acting needs steps of one length: put instructions into "
            'info["instruction"] of reset, or encode the text as a MultiDiscrete in a wrapper'
        )
    if isinstance(space, gym.spaces.Box) and int(np.prod(space.shape, dtype=np.int64)) > WIDEST and not is_image(space):
        raise ValueError(
            f"the part {key!r} of shape {space.shape} has more than {WIDEST} numbers: reduce it in a wrapper"
        )
    if isinstance(space, gym.spaces.Box):
        if space.dtype.itemsize > 8 or space.dtype.kind not in "fiub":
            raise ValueError(f"the part {key!r} is of type {space.dtype}, which is not stored: use float64 at most")
        # Bounds such as the largest float64 would overflow in a bin's width; infinity says the same and is handled.
        finite = np.concatenate([bound[np.isfinite(bound)].reshape(-1) for bound in (space.low, space.high)])
        if space.dtype.kind == "f" and (np.abs(finite.astype(np.float64)) > LARGEST).any():
            raise ValueError(f"the part {key!r} has bounds beyond {LARGEST:g}: use real bounds, or infinity")
    # The rest looks for images in a layout that `is_image` does not recognise. Only bytes are suspicious.
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8 or len(space.shape) < 2:
        return
    shape = space.shape
    if len(shape) == 2:
        if min(shape) >= IMAGE_SIDE:
            remedy = f"ReshapeObservation(env, {(*shape, 1)})"
            raise ValueError(
                f"the part {key!r} of shape {shape} looks like a grey image without an axis of channels: add one, as by "
                f"gymnasium.wrappers.{remedy}; if it is a table, give it another type than uint8"
            )
        return
    if len(shape) == 3 and shape[-1] in (1, 3, 4) and min(shape[:2]) >= shape[-1]:
        return
    # Channels first, as PyTorch has them, or several frames stacked along an axis, as gymnasium's FrameStack does.
    if len(shape) > 3:
        if sorted(shape)[-2] < IMAGE_SIDE:
            return
        kind = "a stack of images"
    elif shape[0] <= IMAGE_SIDE and min(shape[1:]) >= IMAGE_SIDE:
        kind = "an image with its channels first" if shape[0] in (1, 3) else f"a stack of {shape[0]} frames"
    elif shape[-1] <= IMAGE_SIDE and min(shape[:2]) >= IMAGE_SIDE:
        kind = f"a stack of frames ({shape[-1]} channels)"
    else:
        return
    raise ValueError(
        f"the part {key!r} of shape {shape} looks like {kind}: use (height, width, 1 or 3), for a stack a Dict of them, "
        "with gymnasium.wrappers.TransformObservation"
    )
