"""The batched policy: what it decodes from its cache is what a whole pass over the same steps gives."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.batch import Batch
from generalist.data.sources.control import Classic
from generalist.inference.decode import allow
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.inference.rows import stack_rows
from generalist.inference.sampling import confine, median
from generalist.inference.score import log_likelihood
from generalist.model.attend import attend
from generalist.model.config import VisionConfig
from generalist.model.cross_attention import AttendTo
from generalist.model.layers import unstacked
from generalist.model.positions import placement
from generalist.model.transformer import create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.pieces import Images, Modality
from generalist.tokenizers.sequence import Predicted
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.vision.load import load_encoder
from generalist.weights.folder import WeightsError

LAYOUT = "classic/test"
OBSERVATION = gym.spaces.Dict(
    {"camera": gym.spaces.Box(0, 255, (84, 84, 3), np.uint8), "state": gym.spaces.Box(-np.inf, np.inf, (3,))}
)
ACTION = gym.spaces.Box(-1, 1, (2,))


CLIP = Path(__file__).parent.parent / "fixtures" / "vision" / "clip"


def make_generalist(
    hide_actions: float,
    steps: int = 4,
    images: Images = "frame",
    encoder_name: str = "efficientnet_lite0",
    attend_to: AttendTo = "last",
    temperature: float = 0.0,
    alibi: float = 0.0,
) -> Generalist:
    """Random weights for one layout with a camera and a state; gates are open."""
    base: Config = debug()
    tokens = dataclasses.replace(base.tokens, images=images, documents=images)
    model = dataclasses.replace(base.model, alibi=alibi)
    if "encoder" in images:
        vision = VisionConfig(
            encoder=encoder_name, size=32, latents=2, layers=1, hidden_factor=1, every=2, attend_to=attend_to
        )
        model = dataclasses.replace(model, vision=vision)
    if images == "projected":  # 16 cells, averaged to 4 positions, which see each other
        vision = VisionConfig(encoder=encoder_name, size=128, positions=4)
        model = dataclasses.replace(model, vision=vision, blocks="whole")
    base = dataclasses.replace(base, tokens=tokens, model=model)
    encoder = load_encoder(base.model.vision.encoder, base.model.vision.size)
    data = base.data.with_sources(classic=Classic(steps=steps, hide_actions=hide_actions, temperature=temperature))
    config = dataclasses.replace(base, data=data)
    text = TextTokenizer.train(["push the red block to the left", "lift the blue block"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    layout = TaskLayout(
        LAYOUT,
        SpaceTokenizer.from_space(OBSERVATION, tensors="projected", images=images, image_positions=4, **settings),
        SpaceTokenizer.from_space(ACTION, **settings),
        config.data.suite_of(LAYOUT).acting,
    )
    tokenizers = Tokenizers(
        config=config,
        text=text,
        layouts={LAYOUT: layout},
        projection_width=3,
        visual=encoder,
        channels=encoder.channels if encoder is not None else 0,
    )
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    # Larger than at initialisation, so that the choices depend on what was seen.
    params = jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params))
    if encoder is not None and images != "projected":
        for gated in params["visual"]["gated"].values():
            gated["attention_gate"] += 1.0
    return Generalist(tokenizers, graph, params, 0, encoder=encoder)


def observe(rng: np.random.Generator, lanes: int) -> list[dict[str, np.ndarray]]:
    return [
        {"camera": rng.integers(0, 256, (84, 84, 3)).astype(np.uint8), "state": rng.normal(size=3).astype(np.float32)}
        for _ in range(lanes)
    ]


def episode_batch(
    generalist: Generalist, instruction: str, steps: list, chosen: list[np.ndarray], hidden: bool
) -> tuple[Batch, np.ndarray]:
    """One row with a whole episode up to the choice of its last step's action, and each position's step (-1: instruction)."""
    layout, assembler = generalist.layouts[LAYOUT], generalist.assembler
    parts, number = [assembler.instruction(instruction)], [-1]
    for index, observation in enumerate(steps):
        parts.append(assembler.step(layout, layout.observation.stack([observation]), hide_actions=hidden))
        number.append(index)
        if not hidden:
            action = chosen[index] if index < len(steps) - 1 else chosen[index][:-1]
            parts.append(assembler.action(layout, action))
            number.append(index)
    sequence = assembler.concatenate(parts)
    batch = generalist.on_device(stack_rows([sequence], len(sequence), pad=generalist.vocabulary.pad))
    return batch, np.repeat(number, [len(part) for part in parts])


def uncached_logits(generalist: Generalist, batch: Batch, step: np.ndarray, window: int, hidden: bool) -> np.ndarray:
    """Logits (L, V) of one row, computed without a cache as the window is defined: a position sees the prefix and the newest
    `window` steps up to the one it is fed with, and counts positions from the prefix on, as if older steps had never been."""
    length, prefix, newest = len(step), int((step < 0).sum()), step.max()
    begin = np.array([np.argmax(step == max(one, 0)) for one in step])  # where each position's step begins
    positions = np.argmax(step == 1) - np.argmax(step == 0) if newest else 0
    fed_with = step.copy()  # the last number of an action is fed with the next step
    if positions and not hidden:
        fed_with[np.flatnonzero(np.diff(step, append=newest) & (step >= 0))] += 1
    oldest = np.maximum(0, fed_with - window + 1)[:, None]  # of what each position sees
    place = prefix + (step[None] - oldest) * positions + np.arange(length) - begin
    place = np.where(step < 0, np.arange(length), place)  # (L, L): of every key, for each query
    sees = (np.arange(length) <= np.arange(length)[:, None]) & ((step < 0) | (step[None] >= oldest))
    block = np.asarray(batch.block[0])
    sees |= (block == block[:, None]) & (block > 0)
    is_image = np.asarray(batch.modality[0]) == Modality.IMAGE
    number, image = np.arange(1, is_image.sum() + 1), np.asarray(batch.image[0])[:, None]
    looks = number == image
    if generalist.config.model.vision.attend_to == "all":
        looks = (number <= image) & (step[is_image] >= oldest)

    @jax.jit
    def run(params: Any, batch: Batch) -> jax.Array:
        model = nnx.merge(generalist.graph, params)
        config = model.config
        keys = model.visual.keys(batch, jnp.float32) if model.visual is not None and is_image.any() else None
        x = model.embed(batch, jnp.float32)
        for layer in range(config.layers):
            if model.visual is not None and layer % config.vision.every == 0:
                gated = layer // config.vision.every
                seen = None if keys is None else keys[gated]
                x = unstacked(model.visual.gated)[gated](x, seen, jnp.asarray(looks)[None])
            block = model.blocks[layer]
            attention = block.attention
            inner, small = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
            parts = jnp.split(attention.qkv(block.attention_norm(x)), [inner, inner + small], axis=-1)
            query, key, value = (part.reshape(length, -1, attention.head_size) for part in parts)
            own = placement(jnp.asarray(np.diagonal(place))[:, None], config)
            query = own.query(attention.query_norm(query)[:, None])
            every = jnp.broadcast_to(attention.key_norm(key)[None], (length, *key.shape))
            key = placement(jnp.asarray(place), config).key(every)
            value = jnp.broadcast_to(value[None], (length, *value.shape))
            value = jnp.pad(value, ((0, 0),) * 3 + ((0, attention.wider),))
            mixed = attend(query, key, value, jnp.asarray(sees)[:, None], scale=attention.scale)
            mixed = mixed[..., : attention.head_size]
            x = x + attention.out(mixed.reshape(1, length, inner))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return model.logits(model.final_norm(x))[0]

    return np.asarray(run(generalist.params, batch))


WAYS = [
    (True, "frame", "last"),
    (False, "frame", "last"),
    (False, "patches", "last"),
    (False, "encoder", "last"),
    (True, "encoder", "all"),
    (True, "projected", "last"),
    (False, "projected", "last"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "images", "attend_to", "alibi", "told"),
    [
        *((*way, 0.0, True) for way in WAYS),
        (True, "frame", "last", 8.0, True),
        (False, "frame", "last", 0.0, False),
        (True, "frame", "last", 8.0, False),
    ],
)
def test_cached_equals_uncached_after_the_window_has_slid(
    hidden: bool, images: Images, attend_to: AttendTo, alibi: float, told: bool
):
    """Also in lanes that begin later, with another instruction, in a row that was used before; and where no lane is told
    anything, so that all slots slide."""
    generalist = make_generalist(float(hidden), images=images, attend_to=attend_to, alibi=alibi)
    layout = generalist.layouts[LAYOUT]
    instructions = ["push the red block", "", "lift the blue block to the left"] if told else [""] * 3
    policy, rng = ControlPolicy(generalist, [LAYOUT] * 3), np.random.default_rng(0)
    policy.reset(range(3), instructions, range(3))
    seen: list[list] = [[] for _ in range(3)]
    chosen: list[list] = [[] for _ in range(3)]
    for step in range(10):  # a window has 4
        if step == 3:
            another = "lift the red block to the left of the blue block" if told else ""
            instructions[1], seen[1], chosen[1] = another, [], []
            policy.reset([1], instructions[1:2], [7])
        observations = observe(rng, 3)
        actions = policy.act(observations)
        assert policy.logits is not None
        for lane in range(3):
            seen[lane].append(observations[lane])
            logits = np.asarray(policy.logits[lane])
            ids = taken(logits, layout.action.valid_ranges, generalist.vocabulary.range("continuous"))
            chosen[lane].append(ids)
            np.testing.assert_array_equal(actions[lane], layout.action.decode(ids))
            if (step == 9 and lane) or (step == 4 and lane == 1):
                batch, number = episode_batch(generalist, instructions[lane], seen[lane], chosen[lane], hidden)
                expected = uncached_logits(generalist, batch, number, 4, hidden)[-len(ids) :]
                np.testing.assert_allclose(logits, expected, atol=2e-4, err_msg=f"step {step} lane {lane}")
    assert len({tuple(np.ravel(ids)) for lane in chosen for ids in lane}) > 3  # the choices do depend on the input


def taken(logits: np.ndarray, ranges: np.ndarray, numbers: range) -> np.ndarray:
    """The likeliest id of each range, or of a number's the one at which half of the probability is reached."""
    ids = []
    for (low, high), row in zip(ranges, logits, strict=True):
        likely = np.exp(row[low:high].astype(np.float64) - row[low:high].max())
        middle = np.searchsorted(np.cumsum(likely), likely.sum() / 2)
        ids.append(low + (middle if low in numbers else likely.argmax()))
    return np.array(ids)


def test_of_a_number_the_median_is_taken():
    """Of two bounds and five bins between, the bounds are the likeliest, but most of the probability is between them."""
    likely = jnp.array([[0.28, 0.08, 0.1, 0.1, 0.1, 0.08, 0.26], [0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4]])
    assert median(jnp.log(likely)).tolist() == [3, 0]
    assert jnp.argmax(likely, axis=-1).tolist() == [0, 0]


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_episode_alone():
    generalist = make_generalist(1.0, temperature=1.0)
    observations = [observe(np.random.default_rng(step), 1)[0] for step in range(6)]

    def play(lanes: int, lane: int, seed: int) -> list[tuple]:
        policy, rng = ControlPolicy(generalist, [LAYOUT] * lanes), np.random.default_rng(9)
        policy.reset(range(lanes), ["push"] * lanes, [seed if one == lane else one for one in range(lanes)])
        acted = []
        for observation in observations:
            others = observe(rng, lanes)
            others[lane] = observation
            acted.append(tuple(np.ravel(policy.act(others)[lane])))
        return acted

    assert play(1, 0, 5) == play(3, 2, 5) != play(1, 0, 6)


def test_learnt_positions_do_not_slide():
    base = make_generalist(1.0)
    model = dataclasses.replace(base.config.model, learned_positions=256)
    with pytest.raises(ValueError, match="rotary positions"):
        ControlPolicy(base.with_config(dataclasses.replace(base.config, model=model)), [LAYOUT])


@pytest.mark.slow
@pytest.mark.parametrize("images", ["frame", "frame+encoder", "projected"])
def test_a_folder_is_the_model(tmp_path: Path, images: Images):
    generalist = make_generalist(1.0, images=images)
    generalist.save(tmp_path / "model")
    loaded = Generalist.load(tmp_path / "model")
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    documents = [[picture, "push", Predicted(" the red block")], ["lift", Predicted(" the block")]]
    scores = [
        log_likelihood(one, [one.assembler.document(parts) for parts in documents], 2) for one in (generalist, loaded)
    ]
    np.testing.assert_array_equal(*scores)
    assert loaded.config == generalist.config and loaded.layouts.keys() == generalist.layouts.keys()
    with pytest.raises(FileExistsError, match="name another folder"):
        generalist.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_folder_keeps_its_encoder_when_the_original_is_gone(tmp_path: Path):
    """Also when what was loaded is saved again."""
    original = Path(shutil.copytree(CLIP, tmp_path / "clip"))
    generalist = make_generalist(1.0, images="encoder", encoder_name=str(original))
    generalist.save(tmp_path / "first")
    shutil.rmtree(original)
    Generalist.load(tmp_path / "first").save(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    loaded = Generalist.load(tmp_path / "second")
    assert loaded.encoder is not None and generalist.encoder is not None
    assert loaded.encoder.fingerprint == generalist.encoder.fingerprint
    with pytest.raises(FileNotFoundError, match="encoder are gone from .*clip"):
        generalist.save(tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_damaged_folder_is_not_loaded(tmp_path: Path):
    generalist = make_generalist(1.0)
    generalist.save(tmp_path / "model", ml_dtypes.bfloat16)
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    for change, message in [
        ({"model": settings["model"] | {"width": 64}}, "wrong shapes: blocks/attention"),
        ({"model": settings["model"] | {"width": "64"}}, "model.width must be of type int, got '64'"),
        ({"model": settings["model"] | {"depth": 3}}, "unknown setting model.depth"),
        ({"model": settings["model"] | {"norm_epsilon": float("nan")}}, "model.norm_epsilon must be a number, got nan"),
    ]:
        path.write_text(json.dumps(settings | change))
        with pytest.raises(WeightsError, match=message):
            Generalist.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", r"config\.json: the settings: .*'name'"),
        ("model.json", "{}", r"model\.json does not give the step"),
        ("model.json", '{"step": "9", "encoder": null}', r"model\.json does not give the step"),
        (
            "model.json",
            '{"step": 9, "encoder": "0123"}',
            r"trained with the encoder 0123 \(none\), but the one here is None",
        ),
        ("tokenizers.json", "[]", r"tokenizers\.json is damaged \(TypeError"),
        ("tokenizers.json", "{}", r"tokenizers\.json is damaged \(KeyError: 'projection_width'"),
        ("tokenizers.json", b"\x80", r"tokenizers\.json is damaged \(UnicodeDecodeError"),
        ("tokenizers.json", '{"projection_width": 3, "layouts": [1]}', r"tokenizers\.json is damaged"),
        ("tokenizers.json", '{"projection_width": -3, "layouts": {}}', "projection_width is -3"),
        ("text.model", "", r"text\.model: the text model is damaged"),
        ("model.safetensors", b"\x80\x04.", r"model\.safetensors is truncated or not a safetensors file"),
    ],
)
def test_any_damaged_file_is_named(saved: Path, tmp_path: Path, name: str, content: str | bytes, message: str):
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Generalist.load(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    make_generalist(1.0).save(folder)
    return folder


def test_actions_are_always_of_the_space():
    generalist = make_generalist(1.0)
    ranges = generalist.layouts[LAYOUT].action.valid_ranges
    logits = jnp.zeros((1, 2, generalist.vocabulary.size)).at[:, :, 0].set(100.0)  # all for a text token
    ids = np.asarray(jnp.argmax(confine(logits, jnp.asarray(allow(ranges, logits.shape[-1]))[None]), -1))[0]
    assert ((ids >= ranges[:, 0]) & (ids < ranges[:, 1])).all()


def test_the_number_of_observations_and_the_layouts_are_checked():
    policy = ControlPolicy(make_generalist(1.0), [LAYOUT] * 2)
    with pytest.raises(ValueError, match="2 lanes but got 1"):
        policy.act(observe(np.random.default_rng(0), 1))
    with pytest.raises(ValueError, match="know no layout 'atari/pong': they act in classic/test"):
        ControlPolicy(make_generalist(1.0), ["atari/pong"])


def test_log_likelihood_does_not_depend_on_the_company():
    generalist = make_generalist(1.0)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    sequences = [
        generalist.assembler.document([image, "what?", Predicted(answer)])
        for answer in (" a block", " red", " the left one")
    ]
    together = log_likelihood(generalist, sequences, rows=4)
    alone = np.concatenate([log_likelihood(generalist, [sequence], rows=4) for sequence in sequences])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert (together < 0).all()
