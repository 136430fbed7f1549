"""Presets: functions that return a `Config`, by name. The first line of a docstring is what `train.py --help` shows."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from generalist.config.data import DataConfig, mixed
from generalist.config.run import Config, TokenConfig, TrainingConfig
from generalist.data.source import Source
from generalist.data.sources.control import Atari, BabyAI, Classic, ControlSource, Fetch, MetaWorld
from generalist.data.sources.documents import OwnDocuments
from generalist.data.sources.drawing import TextToImage
from generalist.data.sources.emoji import Emoji
from generalist.data.sources.infilling import Infilling
from generalist.data.sources.new_words import NewWords
from generalist.data.sources.prose import Prose
from generalist.data.sources.scenes import Scenes
from generalist.model.config import REQUIRED, ModelConfig, RopeConfig, VisionConfig
from generalist.model.tuning import LoraConfig
from generalist.tokenizers.locations import BINS


def pocket() -> Config:
    """For a laptop: one set of weights for control, images and text, trained in about a quarter of an hour on two cores."""
    return Config(
        name="pocket",
        # Drawings enter twice, through the frame network and through the frozen encoder: docs/vision.md compares the paths.
        model=ModelConfig(vision=VisionConfig(encoder="efficientnet_lite0", size=96, hidden_factor=1, every=2)),
        tokens=TokenConfig(documents="frame+encoder"),
        data=DataConfig(
            sources=mixed(
                metaworld=MetaWorld(weight=0.28, steps=8),
                # Fewer episodes than the suites' own numbers, which take a quarter of an hour to record.
                babyai=BabyAI(weight=0.25, steps=32, temperature=0.3, episodes=150),
                atari=Atari(weight=0.17, steps=8, temperature=1.0, episodes=3),
                classic=Classic(weight=0.10, steps=8),
                fetch=Fetch(weight=0.04, steps=8),
                emoji=Emoji(weight=0.06),
                prose=Prose(weight=0.14),
            ),
        ),
        # docs/experiments/training.md compares Muon and AdamW on this preset.
        training=TrainingConfig(optimizer="muon"),
    )


def pocket_all() -> Config:
    """`pocket` that also draws, points, matches, answers questions about images and fills in: two hours on two cores."""
    base = pocket()
    return dataclasses.replace(
        base,
        name="pocket_all",
        # Cells of the frozen encoder's features, since a frame in one embedding tells hardly where a thing is, and patches tell
        # slowly what it is (docs/pointing.md). Half of each head is not rotated, to compare a name with a look at any distance.
        model=dataclasses.replace(
            base.model,
            rope=dataclasses.replace(base.model.rope, share=0.5),
            vision=VisionConfig(encoder="efficientnet_lite0_pyramid", size=192, positions=36, projector_places=True),
        ),
        tokens=dataclasses.replace(base.tokens, documents="projected", locations=BINS, image_tokenizer="learned"),
        # Longer rows than those of `pocket`, as many positions in all: more than one scene fits into a row.
        data=dataclasses.replace(
            base.data.with_sources(
                # An image takes 36 positions here, one in `pocket`: as many drawings are named only with a larger share, and
                # their names are a hundredth of all targets.
                emoji=dataclasses.replace(base.data.sources["emoji"], weight=0.12, loss_weight=4.0),
                # Of the targets, answers and what prepares them are a sixth without the factor: boxes stay coarse.
                scenes=Scenes(weight=0.7, loss_weight=3.0, things=24, detections=0.1, asked_first=0.8),
                infilling=Infilling(weight=0.07),
                drawing=TextToImage(weight=0.6),
            ),
            rows=base.data.rows // 2,
            length=2 * base.data.length,
            images=16,
        ),
        training=dataclasses.replace(base.training, steps=9_000, learning_rate=3e-3),
    )


def pocket_long() -> Config:
    """`pocket` for hours rather than minutes, with all episodes of the suites: the settings of the shipped weights."""

    def suite(kind: type[ControlSource], weight: float, steps: int, **changed: Any) -> ControlSource:
        # Some training windows begin with demonstrations, so that the weights can use demonstrations in evaluation.
        how = {"prompt_fraction": 0.1, "prompt_demonstrations": 3, "evaluation_episodes": 20} | changed
        return kind(weight=weight, steps=steps, **how)

    base = pocket()
    return dataclasses.replace(
        base,
        name="pocket_long",
        # The shipped weights began with `pocket`'s four layers and were deepened (`training.start`). Three times as many layers
        # need three times the `every`, so that the gated layers stay in place.
        model=dataclasses.replace(base.model, layers=12, vision=dataclasses.replace(base.model.vision, every=6)),
        data=dataclasses.replace(
            base.data,
            sources=mixed(
                metaworld=suite(MetaWorld, 0.12, 8, episodes=60),
                # 96 steps, to remember which parts of an instruction with several parts are done.
                babyai=suite(BabyAI, 0.40, 96, temperature=0.3, recast=True),
                atari=suite(Atari, 0.33, 16, temperature=0.2, shift=3),
                classic=suite(Classic, 0.04, 8),
                fetch=suite(Fetch, 0.03, 8),
                emoji=Emoji(weight=0.02, variants=10),
                fewshot=NewWords(weight=0.045, images=41, ways=6, variants=10),
                prose=Prose(weight=0.015),
            ),
            rows=8,
            length=256,
            frames=380,
            images=64,
            row_images=48,
            features="stored",
        ),
        training=dataclasses.replace(base.training, steps=10_000),
    )


def gato_pocket() -> Config:
    """Gato's scheme on `pocket`'s data and model: one token per number, patches, separators, prompts; slow on two cores."""

    def suite(
        kind: type[ControlSource], weight: float, steps: int, prompt_steps: int, episodes: int | None = None
    ) -> ControlSource:
        return kind(
            weight=weight,
            episodes=episodes,
            steps=steps,
            hide_actions=0.0,
            prompt_fraction=0.25,
            prompt_steps=prompt_steps,
            temperature=1.0,
        )

    return dataclasses.replace(
        pocket(),
        name="gato_pocket",
        model=ModelConfig(),
        training=TrainingConfig(),
        tokens=TokenConfig(
            continuous_bins=1024, discrete_values=1024, separator=True, tensors="tokens", images="patches"
        ),
        # Windows of up to about a thousand tokens together with their prompts, as in Gato.
        data=DataConfig(
            sources=mixed(
                metaworld=suite(MetaWorld, 0.28, 16, 4),
                babyai=suite(BabyAI, 0.25, 5, 1),
                atari=suite(Atari, 0.17, 20, 4, episodes=6),
                classic=suite(Classic, 0.10, 40, 8),
                fetch=suite(Fetch, 0.04, 16, 4),
                emoji=Emoji(weight=0.06),
                prose=Prose(weight=0.14),
            ),
            rows=4,
            length=1024,
            patches=1024,
        ),
    )


def gato_79m() -> Config:
    """Gato's smallest published model (appendix C.1, table 5), with Gato's scheme and optimisation; for accelerators."""
    model = ModelConfig(width=768, layers=8, heads=24, kv_heads=24, head_size=32, hidden=1536)
    # Weights and moments take 1 GiB: gathering divided ones in every layer would take longer than one sum of the gradients.
    return _gato("gato_79m", model, 1e-4, data_axis=-1, fsdp_axis=1)


def gato_364m() -> Config:
    """Gato's middle published model, otherwise like `gato_79m`."""
    return _gato(
        "gato_364m", ModelConfig(width=1536, layers=12, heads=12, kv_heads=12, head_size=128, hidden=3328), 2e-4
    )


def gato_1b() -> Config:
    """Gato's largest published model with 1.18 B parameters, otherwise like `gato_79m`."""
    # 4,608 = 36 · 128: sums of gradients of kernels with 37 or 38 times 128 hidden numbers are not scattered on a TPU v5e.
    return _gato("gato_1b", ModelConfig(width=2048, layers=24, heads=16, kv_heads=16, head_size=128, hidden=4608), 1e-4)


def _gato(name: str, model: ModelConfig, learning_rate: float, **axes: Any) -> Config:
    """A preset with a published model's width, layers and heads. `axes`: settings of the mesh other than the defaults."""
    # The published counts of parameters include one relative-position matrix per layer, which rotary positions do not need. The
    # feed-forwards are wider by as much, so that the counts agree (tests/config/test_presets.py).
    pocket_sized = gato_pocket()
    atari = dataclasses.replace(pocket_sized.data.control()["atari"], episodes=None)  # the suite's own number
    return dataclasses.replace(
        pocket_sized,
        name=name,
        model=dataclasses.replace(model, qk_norm=False, remat="products", stochastic_depth=0.1),
        tokens=dataclasses.replace(pocket_sized.tokens, text_pieces=32_000, documents="patches"),
        # 1,024 patches per shard of two rows: room for a window that consists of frames alone.
        data=dataclasses.replace(pocket_sized.data.with_sources(atari=atari), rows=512, patches=262_144, shards=256),
        training=TrainingConfig(
            steps=1_000_000,
            learning_rate=learning_rate,
            final_fraction=0.1,
            warmup=15_000,
            micro_batches="auto",
            checkpoint_every=5_000,
            **axes,
        ),
    )


def debug() -> Config:
    """Every stage of a run in seconds, with few tasks and a tiny model: for tests and for trying a change."""
    return Config(
        name="debug",
        model=ModelConfig(
            width=32, layers=2, heads=2, kv_heads=1, head_size=16, hidden=64, tensor_hidden=64, frame_channels=8
        ),
        tokens=TokenConfig(text_pieces=512),
        data=DataConfig(
            sources=mixed(
                metaworld=MetaWorld(weight=1.0, tasks="reach", episodes=2, evaluation_episodes=1),
                babyai=BabyAI(weight=1.0, tasks="GoToRedBall", episodes=4, steps=16, evaluation_episodes=2),
                atari=Atari(weight=1.0, tasks="freeway", episodes=1, evaluation_episodes=1),
                classic=Classic(weight=1.0, tasks="cartpole", episodes=2, evaluation_episodes=2),
                fetch=Fetch(weight=1.0, tasks="reach", episodes=2, evaluation_episodes=1),
                emoji=Emoji(naming_items=20),
                prose=Prose(megabytes=0.3, evaluation_windows=8),
            ),
            rows=8,
            tensors=512,
            frames=64,
        ),
        training=TrainingConfig(steps=20, warmup=5, checkpoint_every=10, log_every=5),
    )


def flamingo_3b() -> Config:
    """Flamingo's smallest published model (section 2 and table 5): trains only the layers added to a frozen language model."""
    model = ModelConfig(width=2048, layers=24, heads=16, kv_heads=16, hidden=9472)
    return _flamingo("flamingo_3b", model, every=1, gated_hidden=8704)


def flamingo_9b() -> Config:
    """Flamingo's middle published model, otherwise like `flamingo_3b`."""
    model = ModelConfig(width=4096, layers=40, heads=32, kv_heads=32, hidden=13_056)
    return _flamingo("flamingo_9b", model, every=4, gated_hidden=13_824)


def flamingo_80b() -> Config:
    """Flamingo's largest published model, otherwise like `flamingo_3b`."""
    model = ModelConfig(width=8192, layers=80, heads=64, kv_heads=64, hidden=36_864)
    # Whole matrices take longer to gather than to multiply with the few positions of a device; halves do not. What products
    # give is kept: a slice that holds the weights has the memory for it.
    return _flamingo("flamingo_80b", model, every=7, gated_hidden=41_216, remat="products", tensor_axis=2)


def _flamingo(
    name: str,
    model: ModelConfig,
    *,
    every: int,
    gated_hidden: int,
    remat: Literal["products", "block"] = "block",
    **axes: Any,
) -> Config:
    """A preset with a published model's layers, widths, heads, latents and distance of the gated layers. `axes`: settings of the
    mesh other than the defaults."""
    # The published counts of parameters do not follow from the published shapes (40 layers of width 4096 with a fourfold
    # feed-forward have 8.2 B, not 7.1 B): the hidden widths here are chosen to match the counts.
    return Config(
        name=name,
        model=dataclasses.replace(
            model,
            trunk=REQUIRED,
            head_size=128,
            activation="gelu",
            qk_norm=False,
            remat=remat,
            vision=VisionConfig(
                encoder=REQUIRED,
                width=1536,
                latents=64,
                layers=6,
                heads=16,
                head_size=96,
                gated_heads=model.heads,
                gated_head_size=128,
                resampler_hidden=7424,
                gated_hidden=gated_hidden,
                every=every,
            ),
        ),
        tokens=TokenConfig(text_pieces=32_000, images="encoder", documents="encoder"),
        data=DataConfig(
            sources=mixed(
                metaworld=MetaWorld(weight=0.0),
                babyai=BabyAI(weight=0.0),
                atari=Atari(weight=0.0),
                classic=Classic(weight=0.0),
                fetch=Fetch(weight=0.0),
                emoji=Emoji(weight=0.0),
                prose=Prose(weight=0.1),
                documents=OwnDocuments(weight=0.9, path=REQUIRED),
            ),
            # Rows as long as the published chunks of web pages. Their number is our choice: Flamingo has one per data set.
            rows=1024,
            length=256,
            images=2048,
            row_images=5,
            shards=256,
        ),
        training=TrainingConfig(
            steps=500_000,
            learning_rate=1e-4,
            final_fraction=1.0,
            warmup=5_000,
            micro_batches="auto",
            average="sources",
            checkpoint_every=5_000,
            **axes,
        ),
    )


def gemma3_agent() -> Config:
    """An agent that begins with Gemma 3 4B, its images included, by adapters and rows of its own; the folder is yours to name."""
    # Five layers with a window, then one without; https://huggingface.co/google/gemma-3-4b-pt has these sizes.
    model = ModelConfig(
        width=2560,
        layers=34,
        heads=8,
        kv_heads=4,
        head_size=256,
        hidden=10_240,
        post_norms=True,
        window=1024,
        layer_kinds=(*("window",) * 5, "full"),
        rope=RopeConfig(base=1e6, scaling="linear", factor=8.0),
        query_scale=256**-0.5,
        blocks="windowed",
        # An image of the published model takes 256 positions, too many for every frame of an episode.
        vision=VisionConfig(encoder=REQUIRED, positions=16, projector_bias=False, projector_norm=True),
    )
    tokens = TokenConfig(text_pieces=262_208, images="projected", documents="projected")
    # Frames alone can be shifted. Demonstrations of a game would fill a row with images, as would a document of 41.
    long = pocket_long().data
    atari = dataclasses.replace(long.control()["atari"], shift=0, prompt_fraction=0.0)
    data = long.with_sources(atari=atari, fewshot=NewWords(weight=0.045, images=24, ways=6, variants=10))
    return _agent("gemma3_agent", model, tokens, data.sources, length=1024, images=16, learning_rate=1e-4)


def smollm_agent() -> Config:
    """An agent that begins with SmolLM2-360M, by adapters and rows of its own; the folder is yours to name."""
    model = ModelConfig(
        width=960,
        layers=32,
        heads=15,
        kv_heads=5,
        head_size=64,
        hidden=2560,
        activation="swiglu",
        norm_epsilon=1e-5,
        qk_norm=False,
        rope=RopeConfig(base=100_000.0),
    )
    tokens, sources = TokenConfig(text_pieces=49_152), pocket_long().data.sources
    # Images of weights with an encoder, which `training.start` may name instead.
    return _agent("smollm_agent", model, tokens, sources, length=512, images=24, learning_rate=2e-4)


def _agent(
    name: str,
    model: ModelConfig,
    tokens: TokenConfig,
    sources: Mapping[str, Source],
    *,
    length: int,
    images: int,
    learning_rate: float,
) -> Config:
    """A preset that trains adapters beside a published language model on `pocket_long`'s data: control, captions and prose.

    Args:
        model: with the published shape, for plans; training takes that of the folder.
        images: for the encoder, per row.
    """
    rows = 64
    return Config(
        name=name,
        model=dataclasses.replace(model, trunk=REQUIRED, remat="block"),
        tokens=tokens,
        # Per position as many payloads as `pocket_long` has.
        data=DataConfig(
            sources=dict(sources),
            rows=rows,
            length=length,
            tensors=rows * length * 5 // 8,
            frames=rows * length * 3 // 16,
            images=images * rows,
            row_images=48,
            shards=rows // 2,
        ),
        training=TrainingConfig(
            steps=20_000,
            learning_rate=learning_rate,
            warmup=500,
            micro_batches="auto",
            checkpoint_every=1_000,
            lora=LoraConfig(rank=32, alpha=64.0),
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        pocket,
        pocket_all,
        pocket_long,
        gato_pocket,
        gato_79m,
        gato_364m,
        gato_1b,
        flamingo_3b,
        flamingo_9b,
        flamingo_80b,
        gemma3_agent,
        smollm_agent,
        debug,
    )
}


def preset(name: str) -> Config:
    """The preset of that name.

    Raises:
        ValueError: no preset has that name; the message names the most similar one, and all there are.
    """
    if name in PRESETS:
        return PRESETS[name]()
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown preset {name!r}.{hint} There are: {', '.join(PRESETS)}.")
