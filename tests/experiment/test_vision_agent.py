"""A published model that sees images as the start of an agent: its own tower and projector see documents and observations."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from serving import asked, running, user

from generalist.cli.main import main
from generalist.client import RobotClient
from generalist.config.presets import debug, gemma3_agent
from generalist.config.run import Config, check_complete
from generalist.data.emoji import drawings, variant
from generalist.experiment.beforehand import check
from generalist.experiment.inherit import parse
from generalist.experiment.prepare import prepare
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.model.tuned import is_trained
from generalist.run.tasks import record_missing
from generalist.run.trunk import with_trunk
from generalist.tokenizers.pieces import Modality
from generalist.training.tokens import train
from generalist.vision.load import load_encoder
from generalist.weights.folder import WeightsFolder
from generalist.weights.language import LanguageModel

FIXTURES = Path(__file__).parents[1] / "fixtures"
IMAGES = FIXTURES / "images"
GEMMA3 = IMAGES / "gemma3"
SILENT = Console(quiet=True)
PROJECTED = ("--tokens.images", "projected", "--tokens.documents", "projected")
LORA = ("--training.lora.rank", "4", "--training.learning-rate", "1e-2")


def command(folder: Path, *arguments: str) -> Config:
    """`train.py debug` with arguments, as it is parsed."""
    places = ("--runs", str(folder / "runs"), "--data.folder", str(folder / "data"))
    return with_trunk(parse(debug(), [*places, *arguments], prog="train.py debug"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is, and its recordings."""
    return tmp_path_factory.mktemp("agent")


@pytest.fixture(scope="module")
def agent(folder: Path) -> tuple[Config, Generalist]:
    """A run of adapters beside a tiny Gemma 3, on a game, a task without images, and captions."""
    few = ("--data.only", "atari", "classic", "emoji", "--training.steps", "40", "--training.checkpoint-every", "40")
    config = command(folder, "--name", "agent", "--training.start", str(GEMMA3), *PROJECTED, *LORA, *few)
    start = check(config, SILENT)
    record_missing(config, SILENT)
    ready = prepare(config, SILENT, start)
    spec = ready.tokenizers.model_spec()
    train(config, spec, ready.batch_spec, ready.iterator, ready.sources, SILENT, ready.encoder, ready.start)
    return config, Generalist.from_run(config)


@pytest.mark.slow
def test_control_and_captions_are_learnt_and_what_is_frozen_stays(agent: tuple[Config, Generalist]):
    config, weights = agent
    assert (config.model.trunk, config.model.vision.encoder) == (str(GEMMA3), str(GEMMA3))
    assert (config.model.vision.positions, config.model.blocks) == (9, "windowed")
    assert set(weights.layouts) == {"atari/freeway", "classic/cartpole"}
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "loss/atari", "loss/classic", "loss/emoji"):
        values = [line[name] for line in lines if name in line]
        assert np.mean(values[-3:]) < 0.99 * values[0], name
    after = dict(weights.arrays())
    before = dict(LanguageModel(GEMMA3, images=True).arrays(weights.vocabulary))
    same = {path for path in before if np.array_equal(after[path], before[path].astype(np.float32))}
    norms = {path for path in before if path.endswith("scale") and not path.startswith("projector")}
    assert same == norms | {"tokens/text", "projector/norm/scale", "projector/out/kernel"}
    assert np.any(after["position_table"]) and not is_trained(
        "projector/out/kernel", config.model, config.training.tuning
    )
    tower, own = load_encoder(str(GEMMA3), 0), weights.encoder
    assert tower is not None and own is not None and own.fingerprint == tower.fingerprint


@pytest.mark.slow
def test_an_image_stands_as_the_model_knows_it(agent: tuple[Config, Generalist]):
    _, weights = agent
    picture = variant(drawings("train")[0], 0)
    document = weights.assembler.document([picture, "red dog"])
    text = LanguageModel(GEMMA3, images=True).text()
    known = text.with_controls("\n\n<start>").tolist(), text.with_controls("<end>\n\n").tolist()
    before, after = known
    first = int(np.flatnonzero(document.modality == Modality.IMAGE)[0])
    assert document.tokens[1:first].tolist() == before
    assert document.tokens[first + 9 : first + 9 + len(after)].tolist() == after
    np.testing.assert_array_equal(document.modality[first : first + 9], [Modality.IMAGE, *[Modality.PROJECTED] * 8])
    np.testing.assert_array_equal(np.flatnonzero(document.block), np.arange(first, first + 9))
    # An observation's image stands alone: an episode has many.
    layout = weights.layouts["atari/freeway"]
    frame = np.zeros(layout.observation.space.shape, np.uint8)
    step = weights.assembler.step(layout, layout.observation.stack([frame, frame]), hide_actions=True)
    shown = np.isin(step.modality, (Modality.IMAGE, Modality.PROJECTED))
    assert shown.sum() == 18 and weights.assembler.around_images != ((), ())
    np.testing.assert_array_equal(np.unique(step.block[shown]), [1, 2])


@pytest.mark.slow
def test_exports_see_and_act(agent: tuple[Config, Generalist], folder: Path):
    config, weights = agent
    arrays = dict(weights.arrays())
    named = ["--run", config.name, "--runs", str(config.runs)]
    assert main(["export", str(folder / "own"), *named]) == 0
    assert main(["export", str(folder / "hf"), *named, "--layout", "huggingface"]) == 0
    assert main(["export", str(folder / "adapter"), *named, "--layout", "peft"]) == 0
    own = Generalist.load(folder / "own")
    for path, array in own.arrays():
        np.testing.assert_array_equal(array, arrays[path])
    # Of the encoder's folder the tower alone.
    copied = WeightsFolder(folder / "own" / "encoder").shapes
    assert copied and all(name.startswith("vision_tower.") for name in copied)
    published, merged = Generalist.load(folder / "hf"), Generalist.load(GEMMA3).with_adapter(folder / "adapter")
    of_trunk = [
        path for path, _ in published.arrays() if path in arrays and "other" not in path and "table" not in path
    ]
    assert "projector/out/kernel" in of_trunk
    for one in (published, merged):
        found = dict(one.arrays())
        for path in of_trunk:
            np.testing.assert_allclose(found[path], arrays[path], atol=1e-6)
    picture = variant(drawings("train")[0], 0)
    assert published.prompt([picture, "a photo of"], tokens=8) == merged.prompt([picture, "a photo of"], tokens=8)
    assert own.prompt([picture, "a photo of"], tokens=8) == weights.prompt([picture, "a photo of"], tokens=8)
    control = ["eval", "control", "--weights", str(folder / "own"), "--tasks", "classic/cartpole", "--episodes", "1"]
    assert main([*control, "--out", str(folder / "control.json")]) == 0
    # The game's frames decide what is chosen, those of a demonstration in front of the episode too.
    layout = weights.layouts["atari/freeway"]
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, layout.observation.space.shape).astype(np.uint8) for _ in range(3)]

    def logits(first: np.ndarray, then: np.ndarray) -> np.ndarray:
        shown = layout.observation.stack([first]), layout.action.stack([0])
        policy = ControlPolicy(own, ["atari/freeway"])
        policy.reset([0], [own.assembler.prefix(layout, "cross", [shown])], [0])
        policy.act([then])
        return np.asarray(policy.logits)

    expected = logits(frames[0], frames[2])
    np.testing.assert_array_equal(logits(frames[0], frames[2]), expected)
    assert np.abs(logits(frames[1], frames[2]) - expected).max() > 1e-5
    assert np.abs(logits(frames[0], frames[1]) - expected).max() > 1e-5


@pytest.mark.slow
def test_a_server_chats_and_acts_with_its_eyes(agent: tuple[Config, Generalist]):
    _, weights = agent
    picture, other = (variant(drawings("train")[number], 0) for number in (0, 1))
    rng, space = np.random.default_rng(0), weights.layouts["atari/freeway"].observation.space
    frames = [rng.integers(0, 256, space.shape).astype(np.uint8) for _ in range(5)]
    policy = ControlPolicy(weights, ["atari/freeway"])
    policy.reset([0], ["cross"], [0])
    actions = [policy.act([frame])[0] for frame in frames]
    assert weights.projects
    with running(weights, sessions=1, layouts=("atari/*",)) as (_, port):
        for images in ([picture], [picture, other]):
            expected = weights.prompt([*images, "a photo of"], tokens=8)
            body = {"model": "agent", "messages": [user(*images, "a photo of")], "temperature": 0, "max_tokens": 8}
            status, found = asked(port, "/v1/chat/completions", body)
            assert status == 200 and found["choices"][0]["message"]["content"] == expected, found
        with RobotClient(f"ws://127.0.0.1:{port}", layout="atari/freeway") as robot:
            robot.reset(prompt="cross", seed=0)
            assert [robot.act(frame) for frame in frames] == actions


@pytest.mark.slow
def test_a_run_is_the_same_on_a_mesh(agent: tuple[Config, Generalist]):
    config, weights = agent
    meshed = Generalist.load(config.folder, mesh="fsdp=2,tensor=4")
    picture = variant(drawings("train")[0], 0)
    assert meshed.prompt([picture, "a photo of"], tokens=8) == weights.prompt([picture, "a photo of"], tokens=8)
    space = weights.layouts["atari/freeway"].observation.space
    frames = [np.random.default_rng(number).integers(0, 256, space.shape).astype(np.uint8) for number in range(3)]
    found = []
    for one in (weights, meshed):
        policy = ControlPolicy(one, ["atari/freeway"])
        policy.reset([0], ["cross"], [0])
        found.append([(policy.act([frame]), np.asarray(policy.logits)) for frame in frames])
    for (action, logits), (other, others) in zip(*found, strict=True):
        assert action == other
        np.testing.assert_allclose(logits, others, atol=1e-4)


@pytest.mark.slow
def test_a_run_begins_with_an_exported_agent_and_its_tower(agent: tuple[Config, Generalist], folder: Path):
    _, weights = agent
    weights.save(folder / "begun")
    again = ("--name", "again", "--training.start", str(folder / "begun"), "--data.only", "classic", "emoji")
    config = command(folder, *again)
    assert config.model.vision.encoder == str(folder / "begun" / "encoder") and config.model.trunk == "none"
    start = check(config, SILENT)
    assert start is not None
    ready = prepare(config, SILENT, start)
    assert ready.tokenizers.around_images == weights.tokenizers.around_images != ((), ())
    assert ready.start is not None and "projector/out/kernel" in ready.start


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2", "llava", "llava_siglip", "llava_full"])
def test_models_that_see_bring_their_projector(name: str, tmp_path: Path):
    config = command(tmp_path, "--training.start", str(IMAGES / name), *PROJECTED)
    published = LanguageModel(IMAGES / name, images=True)
    assert published.images is not None
    vision = published.images.shape["vision"]
    assert config.model.vision.positions == vision.positions and config.model.trunk_sees
    assert check(config, SILENT) is None
    # Trained in full, the projector is trained too; beside adapters it is not.
    assert is_trained("projector/out/kernel", config.model, config.training.tuning)
    tuned = command(tmp_path, "--training.start", str(IMAGES / name), *PROJECTED, *LORA)
    assert not is_trained("projector/out/kernel", tuned.model, tuned.training.tuning)


def test_fewer_positions_per_image():
    more = ("--training.start", str(GEMMA3), *PROJECTED, "--model.vision.positions")
    assert command(Path(), *more, "4").model.vision.positions == 4
    with pytest.raises(ValueError, match=r"positions = 5: the encoder's 36 cells .* one of 36, 9, 4, 1"):
        command(Path(), *more, "5")


def test_other_ways_leave_the_tower_out():
    config = command(Path(), "--training.start", str(GEMMA3))
    assert (config.model.vision.encoder, config.model.blocks, config.tokens.documents) == ("none", "none", "frame")
    only = command(
        Path(), "--training.start", str(GEMMA3), "--tokens.documents", "projected", "--training.trained-layers", "1"
    )
    assert only.trunk_sees and only.tokens.images == "frame"
    # A frozen trunk, with another encoder and a projector that is new.
    clip = ("--model.vision.encoder", str(FIXTURES / "vision" / "clip"), "--model.vision.positions", "1")
    other = command(Path(), "--training.start", str(GEMMA3), *PROJECTED, *clip, *LORA)
    assert not other.trunk_sees and is_trained("projector/out/kernel", other.model, other.training.tuning)


@pytest.mark.parametrize("name", ["language/llama", "language/gemma3", "gated/idefics"])
def test_models_without_a_projector_are_refused_with_a_remedy(name: str, tmp_path: Path):
    with pytest.raises(
        ValueError, match="training.start: .* has no vision tower .* or name the folder of a CLIP or SigLIP"
    ):
        command(tmp_path, "--training.start", str(FIXTURES / name), *PROJECTED)
    with pytest.raises(ValueError, match="does not project images into the sequence"):
        whole = ("--model.trunk", str(FIXTURES / name), "--model.vision.encoder", str(FIXTURES / name))
        command(tmp_path, *whole, *PROJECTED)


def test_the_preset_sees_with_the_model_s_own_tower():
    config = parse(gemma3_agent(), ["--training.start", str(GEMMA3), "--model.vision.positions", "9"], prog="train.py")
    assert with_trunk(config).model.vision.projector_norm and config.trunk_sees
    frames = ("--tokens.images", "frame", "--tokens.documents", "frame")
    blind = parse(gemma3_agent(), ["--training.start", str(FIXTURES / "language" / "llama"), *frames], prog="train.py")
    assert (blind.model.vision.encoder, blind.model.blocks) == ("none", "none")
    llava = parse(
        gemma3_agent(), ["--training.start", str(IMAGES / "llava_siglip"), "--model.vision.positions", "9"], prog=""
    )
    assert with_trunk(llava).model.blocks == "none"
    with pytest.raises(ValueError, match=r"needs --training.start FOLDER \(a Gemma 3, PaliGemma or LLaVA\); only"):
        check_complete(gemma3_agent())


def test_a_grid_is_averaged_before_it_is_kept():
    encoder = load_encoder(str(GEMMA3), 0)
    assert encoder is not None and encoder.cells == 36
    pixels = np.zeros((1, 24, 24, 3), np.uint8)
    whole, averaged = encoder.compiled()(pixels), encoder.compiled(positions=9)(pixels)
    assert whole.shape == (1, 36, 24) and averaged.shape == (1, 9, 24)
    np.testing.assert_allclose(averaged[0, 0], np.asarray(whole[0])[[0, 1, 6, 7]].mean(axis=0), atol=1e-5)
