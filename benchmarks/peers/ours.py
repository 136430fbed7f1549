"""Our side of benchmarks/peers/compare.py: fresh weights that train, act and write.

Each case gives a function that does one run of the work, and how many units of each kind a run has.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import jax
import numpy as np
import sizes
from flax import nnx

from generalist.config.presets import debug
from generalist.config.run import Config, TokenConfig, TrainingConfig
from generalist.data.batch import Batch
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.inference.rows import stack_rows
from generalist.model.config import REQUIRED, ModelConfig, VisionConfig
from generalist.model.transformer import create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.sequence import Sequence
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.training.token_trainer import make_trainer
from generalist.vision.encoder import VisionEncoder
from generalist.vision.load import load_encoder

Work = dict[str, float]
Case = tuple[Callable[[], Any], Work]
LAYOUT = "peers"
OBSERVATION = gym.spaces.Box(-10.0, 10.0, (sizes.OBSERVED,), np.float32)
ACTION = gym.spaces.Box(-1.0, 1.0, (sizes.ACTED,), np.float32)
BACKBONE = ModelConfig(
    width=sizes.WIDTH,
    layers=sizes.LAYERS,
    heads=sizes.HEADS,
    kv_heads=sizes.HEADS,
    head_size=sizes.WIDTH // sizes.HEADS,
    hidden=sizes.HIDDEN,
    activation="gelu",
)


BINS = 1024  # with them the vocabulary has as many ids as the peers'


def settings(
    model: ModelConfig,
    tensors: Literal["tokens", "projected"],
    *,
    separator: bool,
    parallel: bool = False,
    bins: int = BINS,
) -> Config:
    """Every setting."""
    base = debug()
    tokens = dataclasses.replace(
        base.tokens,
        text_pieces=1984,
        continuous_bins=bins,
        discrete_values=56,
        tensors=tensors,
        separator=separator,
        actions="parallel" if parallel else "sequential",
        images="frame",
        documents="encoder" if model.vision.encoder != "none" else "frame",
    )
    return dataclasses.replace(base, model=model, tokens=tokens)


def tokenizers(config: Config, acting: Acting) -> Tokenizers:
    """One layout of an observation and an action, both of numbers."""
    vocabulary = config.tokens.vocabulary()
    observation = SpaceTokenizer.from_space(OBSERVATION, vocabulary=vocabulary, tensors=config.tokens.tensors)
    action = SpaceTokenizer.from_space(ACTION, vocabulary=vocabulary)
    layout = TaskLayout(LAYOUT, observation, action, acting)
    text = TextTokenizer.train([" "], config.tokens.text_pieces)
    return Tokenizers(config=config, text=text, layouts={LAYOUT: layout}, projection_width=observation.projection_size)


def trained(tokenizers: Tokenizers, batch: Batch, encoder: VisionEncoder | None = None) -> Callable[[], Any]:
    """A training step on one batch, which is placed anew each time, as a run does."""
    training = TrainingConfig(
        learning_rate=sizes.RATE,
        beta1=sizes.BETAS[0],
        beta2=sizes.BETAS[1],
        weight_decay=sizes.DECAY,
        clip=sizes.CLIP,
        z_loss=0.0,
    )
    trainer = make_trainer(tokenizers.model_spec(), training, weights=[1.0], encoder=encoder)
    state, key = trainer.initialize({}), jax.random.key(0)

    def run() -> None:
        nonlocal state
        with jax.set_mesh(trainer.mesh):
            state, metrics = trainer.step(state, trainer.place(batch), key)
        jax.block_until_ready((state, metrics))

    return run


def rows_of(tokenizers: Tokenizers, sequences: list[Sequence], length: int) -> Batch:
    """One sequence in each row."""
    return stack_rows(sequences, length, pad=tokenizers.config.tokens.vocabulary().pad)


def train_control(
    tensors: Literal["tokens", "projected"], steps: int, parallel: bool = False, bins: int = BINS
) -> Case:
    """Behaviour cloning: numbers as tokens with actions fed back, or observations as embeddings with hidden actions."""
    hide = tensors == "projected"
    made = tokenizers(
        settings(BACKBONE, tensors, separator=not hide, parallel=parallel, bins=bins),
        Acting(steps=steps, hide_actions=hide, parallel=parallel),
    )
    layout, random = made.layouts[LAYOUT], np.random.default_rng(0)
    sequences = []
    for _ in range(sizes.ROWS):
        observed = layout.observation.stack(list(random.uniform(-1, 1, (steps, sizes.OBSERVED)).astype(np.float32)))
        acted = layout.action.stack(list(random.uniform(-1, 1, (steps, sizes.ACTED)).astype(np.float32)))
        sequences.append(made.assembler.control(layout, "", observed, acted, hide_actions=hide))
    batch = rows_of(made, sequences, len(sequences[0]))
    return trained(made, batch), {"environment steps": sizes.ROWS * steps, "positions": batch.tokens.size}


def train_images(folder: str) -> Case:
    """Text with images through a frozen encoder; the language model is frozen too, its weights are drawn."""
    vision = VisionConfig(
        encoder=folder,
        width=sizes.WIDTH,
        latents=sizes.LATENTS,
        layers=sizes.RESAMPLER_LAYERS,
        heads=sizes.GATED_HEADS,
        head_size=sizes.GATED_SIZE,
    )
    # A trunk that only its user can name: its sizes are those above, and it is frozen like any other.
    config = settings(dataclasses.replace(BACKBONE, trunk=REQUIRED, vision=vision), "projected", separator=False)
    encoder = load_encoder(folder, sizes.PIXELS)
    assert encoder is not None
    made = dataclasses.replace(tokenizers(config, Acting()), visual=encoder, channels=encoder.channels)
    random, each = np.random.default_rng(0), sizes.TEXT // sizes.IMAGES
    sequences = []
    for _ in range(sizes.ROWS):
        parts: list[Any] = []
        for _ in range(sizes.IMAGES):
            parts.append(random.integers(0, 256, (sizes.PIXELS, sizes.PIXELS, 3), np.uint8))
            # With the marker of the image and the end of its chunk, a part of the row has its share of positions.
            parts.append(random.integers(0, 256, each - 2).astype(np.int32))
        sequences.append(made.assembler.document(parts))
    batch = rows_of(made, sequences, sizes.TEXT)
    return trained(made, batch, encoder), {"text tokens": batch.tokens.size}


def act(tensors: Literal["tokens", "projected"], steps: int, lanes: int, parallel: bool = False) -> Case:
    """Chooses an action in each of some environments, whose observations are drawn."""
    hide = tensors == "projected"
    made = tokenizers(
        settings(BACKBONE, tensors, separator=not hide, parallel=parallel),
        Acting(steps=steps, hide_actions=hide, parallel=parallel),
    )
    graph, params = nnx.split(create_separate(made.model_spec(), 0), nnx.Param)
    policy = ControlPolicy(Generalist(made, graph, nnx.to_pure_dict(params), 0), [LAYOUT] * lanes)
    policy.reset(range(lanes), [""] * lanes, range(lanes))
    observed = list(np.random.default_rng(0).uniform(-1, 1, (lanes, sizes.OBSERVED)).astype(np.float32))
    for _ in range(steps):
        policy.act(observed)
    return lambda: policy.act(observed), {"environment steps": lanes}


def write(rows: int, folder: str) -> Case:
    """Continues prompts greedily."""
    model = Generalist.load(folder)
    # Each character is a token.
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz "), (rows, sizes.PROMPT))
    prompts = [["".join(row)] for row in letters]
    return lambda: model.prompt(prompts, tokens=sizes.WRITTEN), {"text tokens": rows * sizes.WRITTEN}


CASES: dict[str, Callable[..., Case]] = {
    "gato": functools.partial(train_control, "tokens", sizes.GATO_STEPS),
    "embedded": functools.partial(train_control, "projected", sizes.EMBEDDED_STEPS),
    "parallel": functools.partial(train_control, "projected", sizes.EMBEDDED_STEPS, parallel=True),
    # `TokenConfig.continuous_bins` where nothing is set, as in RT-1, RT-2 and OpenVLA.
    "parallel 256": functools.partial(
        train_control, "projected", sizes.EMBEDDED_STEPS, parallel=True, bins=TokenConfig().continuous_bins
    ),
    "images": train_images,
    "act gato": functools.partial(act, "tokens", sizes.WINDOW, 1),
    "act": functools.partial(act, "projected", sizes.WINDOW, 1),
    "act parallel": functools.partial(act, "projected", sizes.WINDOW, 1, parallel=True),
    "act 16": functools.partial(act, "projected", sizes.WINDOW, 16),
    "act parallel 16": functools.partial(act, "projected", sizes.WINDOW, 16, parallel=True),
    "write": functools.partial(write, 1),
    "write 8": functools.partial(write, 8),
}
