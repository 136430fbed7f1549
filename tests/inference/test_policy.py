"""The batched policy: what it decodes from its cache is what a whole pass over the same steps gives."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from generalist.config import Config, ControlConfig
from generalist.data.batch import Batch
from generalist.inference.decode import allow, confine
from generalist.inference.generate import generate
from generalist.inference.load import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.inference.rows import stack_rows
from generalist.inference.score import log_likelihood
from generalist.model.config import VisionConfig
from generalist.model.transformer import create
from generalist.presets import debug
from generalist.run import Tokenizers
from generalist.tokenizers.pieces import Images
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
    hide_actions: float, steps: int = 4, images: Images = "frame", encoder_name: str = "efficientnet_lite0"
) -> Generalist:
    """Random weights for one layout with a camera and a state; gates are open."""
    base: Config = debug()
    if "encoder" in images:
        vision = VisionConfig(encoder=encoder_name, size=32, latents=2, layers=1, hidden_factor=1, every=2)
        base = dataclasses.replace(
            base,
            tokens=dataclasses.replace(base.tokens, images=images, documents=images),
            model=dataclasses.replace(base.model, vision=vision),
        )
    encoder = load_encoder(base.model.vision.encoder, base.model.vision.size)
    data = dataclasses.replace(base.data, classic=ControlConfig(steps=steps, hide_actions=hide_actions))
    config = dataclasses.replace(base, data=data)
    text = TextTokenizer.train(["push the red block to the left", "lift the blue block"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    layout = TaskLayout(
        LAYOUT,
        SpaceTokenizer.from_space(OBSERVATION, tensors="projected", images=images, **settings),
        SpaceTokenizer.from_space(ACTION, **settings),
    )
    tokenizers = Tokenizers(
        config=config,
        text=text,
        layouts={LAYOUT: layout},
        projection_width=3,
        visual=encoder,
        channels=encoder.channels if encoder is not None else 0,
    )
    graph, params = nnx.split(create(tokenizers.model_spec(), 1), nnx.Param)
    # Larger than at initialisation, so that the choices depend on what was seen.
    params = jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params))
    if encoder is not None:
        params["visual"]["gated"]["attention_gate"] += 1.0
    return Generalist(config, tokenizers, graph, params, 0, encoder=encoder)


def observe(rng: np.random.Generator, lanes: int) -> list[dict[str, np.ndarray]]:
    return [
        {"camera": rng.integers(0, 256, (84, 84, 3)).astype(np.uint8), "state": rng.normal(size=3).astype(np.float32)}
        for _ in range(lanes)
    ]


LONGEST = 48  # positions of the longest whole pass: one shape, one compilation


@partial(jax.jit, static_argnums=0)
def uncached_logits(graph: nnx.GraphDef, params: Any, batch: Batch) -> jax.Array:
    model = nnx.merge(graph, params)
    return model.logits(model.hidden(batch))


def whole_pass(
    generalist: Generalist, instruction: str, steps: list, chosen: list[np.ndarray], hidden: bool
) -> np.ndarray:
    """The action ids that one uncached pass over one lane's steps gives for the last of them."""
    layout, assembler = generalist.layouts[LAYOUT], generalist.assembler
    parts, ids = [assembler.instruction(instruction)], []
    for index, observation in enumerate(steps):
        parts.append(assembler.step(layout, layout.observation.stack([observation]), hide_actions=hidden))
        if not hidden and index < len(steps) - 1:
            parts.append(assembler.action(layout, chosen[index]))
    dimensions = len(layout.action.valid_ranges)
    for dimension in range(dimensions if not hidden else 1):
        sequence = assembler.concatenate(parts)
        batch = generalist.on_device(stack_rows([sequence], LONGEST, pad=generalist.vocabulary.pad))
        logits = uncached_logits(generalist.graph, generalist.params, batch)[:, : len(sequence.tokens)]
        rows = slice(-dimensions, None) if hidden else slice(-1, None)
        ranges = layout.action.valid_ranges if hidden else layout.action.valid_ranges[dimension : dimension + 1]
        ids.append(
            np.asarray(jnp.argmax(confine(logits[:, rows], jnp.asarray(allow(ranges, logits.shape[-1]))), -1))[0]
        )
        parts.append(assembler.action(layout, ids[-1]))
    return np.concatenate(ids)


@pytest.mark.parametrize(("hidden", "images"), [(True, "frame"), (False, "frame"), (False, "encoder")])
def test_cached_equals_uncached(hidden: bool, images: Images):
    generalist = make_generalist(float(hidden), images=images)
    lanes, instructions = 3, ["push the red block", "lift", "lift the blue block to the left"]
    policy, rng = ControlPolicy(generalist, LAYOUT, lanes), np.random.default_rng(0)
    policy.reset(instructions)
    seen: list[list] = [[] for _ in range(lanes)]
    chosen: list[list] = [[] for _ in range(lanes)]
    codec = generalist.layouts[LAYOUT].action
    for step in range(6):  # beyond the window of 4, so that the caches are rebuilt
        observations = observe(rng, lanes)
        actions = policy.act(observations)
        # The context is the last 1..4 steps: the caches start over from the newest 2 once they hold 4.
        held = step + 1 if step < 4 else 3 + (step - 4) % 2
        for lane in range(lanes):
            seen[lane].append(observations[lane])
            expected = whole_pass(
                generalist, instructions[lane], seen[lane][-held:], chosen[lane][len(chosen[lane]) - held + 1 :], hidden
            )
            np.testing.assert_array_equal(actions[lane], codec.decode(expected), err_msg=f"step {step} lane {lane}")
            chosen[lane].append(expected)
    assert len({tuple(np.ravel(ids)) for lane in chosen for ids in lane}) > 3  # the choices do depend on the input


@pytest.mark.parametrize("images", ["frame", "frame+encoder"])
def test_a_folder_is_the_model(tmp_path: Path, images: Images):
    generalist = make_generalist(1.0, images=images)
    generalist.save(tmp_path / "model")
    loaded = Generalist.load(tmp_path / "model")
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    documents = [[picture, "push", Predicted(" the red block")], ["lift", Predicted(" the block")]]
    scores = [
        log_likelihood(one, [one.assembler.image_text(parts) for parts in documents], 2) for one in (generalist, loaded)
    ]
    np.testing.assert_array_equal(*scores)
    assert loaded.config == generalist.config and loaded.layouts.keys() == generalist.layouts.keys()
    with pytest.raises(FileExistsError, match="name another folder"):
        generalist.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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
        ("model.json", "{}", r"model\.json does not say how many steps"),
        ("model.json", '{"step": "9", "encoder": null}', r"model\.json does not say how many steps"),
        (
            "model.json",
            '{"step": 9, "encoder": "0123"}',
            r"trained with the encoder 0123 \(none\), but here it is None",
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
    ids = np.asarray(jnp.argmax(confine(logits, jnp.asarray(allow(ranges, logits.shape[-1]))), -1))[0]
    assert ((ids >= ranges[:, 0]) & (ids < ranges[:, 1])).all()


def test_the_number_of_instructions_is_checked():
    policy = ControlPolicy(make_generalist(1.0), LAYOUT, 2)
    with pytest.raises(ValueError, match="2 lanes but got 1"):
        policy.reset(["lift"])
    with pytest.raises(ValueError, match="reset"):
        ControlPolicy(make_generalist(1.0), LAYOUT, 2).act(observe(np.random.default_rng(0), 2))


def test_log_likelihood_does_not_depend_on_the_company():
    generalist = make_generalist(1.0)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    sequences = [
        generalist.assembler.image_text([image, "what?", Predicted(answer)])
        for answer in (" a block", " red", " the left one")
    ]
    together = log_likelihood(generalist, sequences, rows=4)
    alone = np.concatenate([log_likelihood(generalist, [sequence], rows=4) for sequence in sequences])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert (together < 0).all()


def test_generation_equals_choosing_the_likeliest_next_token_over_and_over():
    generalist = make_generalist(1.0)
    image = np.random.default_rng(0).integers(0, 256, (84, 84, 3)).astype(np.uint8)
    documents = [[image, "what is this?"], ["push the"], [image, image, "a"]]
    texts = generate(generalist, documents, tokens=3)
    model, assembler = nnx.merge(generalist.graph, generalist.params), generalist.assembler
    for parts, written in zip(documents, texts, strict=True):
        sequence, ids = assembler.image_text(parts), []
        for _ in range(3):
            batch = stack_rows([sequence], len(sequence.tokens), pad=generalist.vocabulary.pad)
            logits = model.logits(model.hidden(jax.tree.map(jnp.asarray, batch)))[0, -1]
            allowed = np.r_[0 : generalist.tokenizers.text.size, generalist.vocabulary.eos]
            ids.append(int(allowed[np.argmax(np.asarray(logits)[allowed])]))
            sequence = assembler.concatenate(
                [sequence, assembler.text(np.array(ids[-1:], np.int32), bos=False, eos=False)]
            )
        stop = ids.index(generalist.vocabulary.eos) if generalist.vocabulary.eos in ids else 3
        assert written == generalist.tokenizers.text.decode(np.array(ids[:stop], np.int32))
