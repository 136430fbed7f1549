"""Contrastive pretraining: losses against plain numpy, the same on every mesh, exact resumption, export, refused input."""

import dataclasses
import functools
import json
import signal
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.config.run import TrainingConfig
from generalist.contrastive import train as training_of_pairs
from generalist.contrastive.config import METRICS, ContrastiveConfig, Loss, TowersConfig, check_effective
from generalist.contrastive.data import EmojiPairs, OwnPairs, PairBatches, open_pairs, text_ids
from generalist.contrastive.dual import DualEncoder
from generalist.contrastive.towers import PADDING, clip_loss, siglip_loss
from generalist.contrastive.train import make_contrastive_trainer, place
from generalist.data.documents import Documents
from generalist.data.emoji import drawings
from generalist.data.files import DocumentError
from generalist.data.formats.faults import TooManyBroken
from generalist.experiment.pipeline import run_contrastive
from generalist.tokenizers.text import TextTokenizer
from generalist.training.checkpoint import Checkpoints
from generalist.training.interrupt import Interrupted
from generalist.vision.encoder import Preparation
from generalist.vision.load import load_encoder

TINY = TowersConfig(
    size=24,
    patch=8,
    width=32,
    layers=2,
    text_layers=1,
    heads=2,
    hidden=48,
    embedding=16,
    text_pieces=400,
    text_length=12,
)
TEXT = TextTokenizer.train(["a red heart", "waving hand dark skin tone"] * 9, 300)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def embedded() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(6, 5))).astype(np.float32), unit(rng.normal(size=(6, 5))).astype(np.float32)


def test_clip_loss_is_the_mean_of_two_cross_entropies(embedded):
    images, texts = embedded
    logits = 7.0 * images @ texts.T

    def cross_entropy(rows: np.ndarray) -> float:
        chances = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        return float(-np.log(np.diagonal(chances)).mean())

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    loss = clip_loss(jnp.asarray(images), jnp.asarray(texts), jnp.array(7.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_siglip_loss_sums_over_pairs_and_divides_by_the_batch(embedded):
    images, texts = embedded
    total = 0.0
    for i in range(6):
        for j in range(6):
            matches = 1 if i == j else -1
            total += np.log1p(np.exp(-matches * (7.0 * images[i] @ texts[j] - 3.0)))
    loss = siglip_loss(jnp.asarray(images), jnp.asarray(texts), jnp.array(7.0), jnp.array(-3.0))
    np.testing.assert_allclose(loss, total / 6, rtol=1e-5)


def config(loss: Loss, steps: int = 6, **changed: Any) -> ContrastiveConfig:
    training = TrainingConfig(steps=steps, warmup=1, learning_rate=1e-3, checkpoint_every=3, log_every=3, **changed)
    return ContrastiveConfig(loss=loss, batch=16, towers=TINY, training=training)


def batches(seed: int = 0) -> PairBatches:
    pairs = EmojiPairs(drawings("train")[:40])
    return PairBatches(pairs, Preparation(size=24, crop=False), TEXT, length=12, batch=16, seed=seed)


@functools.cache
def initial_state(loss: Loss) -> Any:
    """Drawn once: compiling it anew for each mesh takes as long as the step."""
    return jax.tree.map(np.asarray, make_contrastive_trainer(config(loss)).initialize({}))


@functools.cache
def losses(settings: ContrastiveConfig, steps: int = 3) -> tuple[list[float], int]:
    """Losses of the first steps, and the bytes that a step holds meanwhile."""
    trainer, source, seen = make_contrastive_trainer(settings), batches(), []
    state, key = jax.device_put(initial_state(settings.loss), trainer.state_shardings), jax.random.key(0)
    with jax.set_mesh(trainer.mesh):
        batch = place(next(source), trainer.mesh)
        step = cast(Any, trainer.step).lower(state, batch, key).compile()
        for _ in range(steps):
            state, metrics = step(state, batch, key)
            seen.append(float(metrics.loss))
            batch = place(next(source), trainer.mesh)
    source.close()
    return seen, step.memory_analysis().temp_size_in_bytes


def on_every_device(loss: Loss, **changed: int) -> ContrastiveConfig:
    """The whole batch on each."""
    return config(loss, data_axis=1, fsdp_axis=1, tensor_axis=8, **changed)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_eight_devices_give_the_losses_of_one(loss: Loss):
    """Two pairs a device, each against the pairs of all, or the whole batch on every device."""
    split, _ = losses(config(loss, data_axis=4, fsdp_axis=2))
    whole, _ = losses(on_every_device(loss))
    np.testing.assert_allclose(split, whole, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_micro_batches_are_the_same_step_in_less_memory(loss: Loss):
    """Each pair is still set against all others of the batch, whatever parts it is embedded in."""
    whole, needed = losses(on_every_device(loss))
    parts, needed_for_parts = losses(on_every_device(loss, micro_batches=8))
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert needed_for_parts < 0.6 * needed


@pytest.mark.slow
def test_the_scale_is_clamped_and_comes_back():
    """Mismatched pairs drive it down again from the clamp, where a gradient of zero would hold it."""
    settings = config("clip")
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, learning_rate=0.1))
    trainer = make_contrastive_trainer(settings)
    state, seen, key = trainer.initialize({}), [], jax.random.key(0)
    # Placed as it was: the step is compiled once.
    state.params["log_scale"] = jax.device_put(jnp.array(9.0), state.params["log_scale"].sharding)
    with jax.set_mesh(trainer.mesh):
        batch = place(next(batches()), trainer.mesh)
        for _ in range(4):
            state, metrics = trainer.step(state, batch, key)
            seen.append(float(metrics.parts.scale))
    assert seen[0] > 8000
    np.testing.assert_allclose(seen[1], 100, rtol=1e-5)
    assert seen[-1] < 99


def test_batches_follow_from_their_number_and_hold_no_pair_twice():
    first, again = batches(), batches()
    seen = [next(first) for _ in range(5)]
    again.go_to({"step": 3})
    for mine, theirs in zip(seen[3:], (next(again), next(again)), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    assert first.position == {"step": 5}
    for pixels, ids in seen:
        assert pixels.shape == (16, 24, 24, 3)
        assert len(np.unique(pixels.reshape(16, -1), axis=0)) == 16
        assert ids.shape == (16, 12)
    assert not np.array_equal(seen[0][0], seen[2][0])
    with pytest.raises(ValueError, match="40 pairs for a batch of 64"):
        PairBatches(
            EmojiPairs(drawings("train")[:40]), Preparation(size=24, crop=False), TEXT, length=12, batch=64, seed=0
        )


def test_texts_are_cut_and_padded():
    ids = text_ids(TEXT, ["a", "a red heart " * 9], 12)
    assert (ids[0] == PADDING).sum() == 12 - len(TEXT.encode("a"))
    assert (ids[1] != PADDING).all()


def final_state(settings: ContrastiveConfig) -> Any:
    checkpoints = Checkpoints(settings.checkpoints, settings.training)
    state, _ = checkpoints.restore(make_contrastive_trainer(settings).abstract_state)
    checkpoints.close()
    return jax.tree.map(np.asarray, state)


@pytest.mark.slow
def test_a_run_of_one_s_own_pairs_resumes_and_leaves_an_encoder(tmp_path: Path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": f"thing number {number}"}))
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    quiet = Console(quiet=True)
    own, training = (
        str(tmp_path / "own.jsonl"),
        {"ema": 0.9, "micro_batches": 2, "keep_best": 1, "best_metric": "accuracy"},
    )
    settings = dataclasses.replace(
        config("siglip", **training),
        name="cut",
        runs=tmp_path,
        pairs=own,
        heldout=own,
        profile=True,
    )
    run_contrastive(
        dataclasses.replace(settings, training=dataclasses.replace(settings.training, steps=3)), ["test"], quiet
    )
    run_contrastive(settings, ["test"], quiet)
    results = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert results["step"] == 6
    assert results["retrieval"]["heldout"]["items"] == 24
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6] and all(set(line) == {"step", *METRICS} for line in lines)
    assert list((settings.folder / "profile").rglob("*.xplane.pb"))
    dual = DualEncoder.load(tmp_path / "cut")
    # With `ema` the averaged weights are exported and scored.
    state = final_state(settings)
    jax.tree.map(np.testing.assert_array_equal, dual.params, state.mean_params)
    assert not np.array_equal(state.mean_params["projection"]["kernel"], state.params["projection"]["kernel"])
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    embedded = dual.embed_images([image])
    np.testing.assert_allclose(np.linalg.norm(embedded), 1.0, rtol=1e-5)
    # The exported tower gives the features that the embedding is the mean of.
    encoder = load_encoder(str(tmp_path / "cut" / "encoder"), 0)
    assert encoder is not None
    features = np.asarray(encoder.compiled()(encoder(image[None])))
    assert features.shape == (1, 9, 32)
    projected = features.mean(axis=1) @ np.asarray(dual.params["projection"]["kernel"])
    np.testing.assert_allclose(unit(projected), embedded, atol=1e-5)
    with pytest.raises(ValueError, match="loss"):
        run_contrastive(dataclasses.replace(settings, loss="clip"), ["test"], quiet)


class Signalling(PairBatches):
    """Asks its own process to stop while a batch is made."""

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)  # handled at once, where `os.kill` leaves it to some thread
        return super().__next__()


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path):
    quiet, pairs = Console(quiet=True), EmojiPairs(drawings("train")[:40])
    whole, parts = (
        dataclasses.replace(config("siglip", ema=0.9, micro_batches=2), name=name, runs=tmp_path)
        for name in ("whole", "parts")
    )
    for settings in (whole, parts):
        settings.folder.mkdir()
    training_of_pairs.train(whole, batches(), quiet)
    stopping = Signalling(pairs, Preparation(size=24, crop=False), TEXT, length=12, batch=16, seed=0)
    with pytest.raises(Interrupted, match="stopped at step 4 and saved"):
        training_of_pairs.train(parts, stopping, quiet)
    assert int(final_state(parts).step) == 4
    training_of_pairs.train(parts, batches(), quiet)
    jax.tree.map(np.testing.assert_array_equal, final_state(whole), final_state(parts))


@pytest.mark.slow
def test_a_batch_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    placed = 0

    def second_is_broken(batch: tuple[np.ndarray, np.ndarray], mesh: jax.sharding.Mesh) -> Any:
        nonlocal placed
        placed += 1
        pixels, text = batch
        return place((pixels * np.float32(np.nan if placed == 2 else 1), text), mesh)

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whole numbers, as pixels are, have no NaN
    monkeypatch.setattr(training_of_pairs, "place", second_is_broken)
    settings = dataclasses.replace(config("siglip", steps=3), name="borne", runs=tmp_path)
    settings.folder.mkdir()
    training_of_pairs.train(settings, batches(), Console(quiet=True))
    (line,) = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    assert line["skipped"] == 1 and np.isfinite(line["loss"]) and line["loss"] > 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"start": "weights"}, "both towers begin with random weights"),
        ({"average": "sources"}, "a batch has one source"),
        ({"z_loss": 0.0}, "no logits over a vocabulary"),
        ({"loss_chunks": 2}, "no logits over a vocabulary"),
        ({"sequence_axis": 2}, "not split by position"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_refused(changed: dict[str, Any], reason: str):
    (name,) = changed
    with pytest.raises(
        ValueError, match=rf"training.{name} has no effect on contrastive pretraining, since .*{reason}"
    ):
        check_effective(config("siglip", **changed))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="contrastive pretraining runs in one process"):
        run_contrastive(config("siglip"), ["test"], Console(quiet=True))


def test_settings_that_make_no_sense(tmp_path: Path):
    with pytest.raises(ValueError, match="batch must be at least 2"):
        ContrastiveConfig(batch=1)
    with pytest.raises(ValueError, match=r"batch = 16 must be a multiple of training.micro_batches = 3"):
        config("clip", micro_batches=3)
    with pytest.raises(ValueError, match="heldout is for your own pairs"):
        ContrastiveConfig(heldout=str(tmp_path))
    with pytest.raises(ValueError, match=r"towers.size \(72\) must be a multiple of towers.patch \(10\)"):
        TowersConfig(patch=10)
    (tmp_path / "own.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(DocumentError, match="no pair of an image and a text"):
        OwnPairs(Documents(tmp_path))


def test_pairs_that_cannot_be_read_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
    lines = [json.dumps({"image": f"{number}.bmp", "text": f"thing {number}"}) for number in range(40)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join([*lines, '{"text": "alone"}']))
    (tmp_path / "7.bmp").write_bytes((tmp_path / "7.bmp").read_bytes()[:500])
    pairs = open_pairs(ContrastiveConfig(pairs=str(path), unreadable=0.03))
    assert "1 of 41 documents" in capsys.readouterr().err
    image, text = pairs.drawn(7, np.random.default_rng(0))
    assert text == "thing 8" and image[0, 0, 0] == 8
    assert pairs.drawn(7, np.random.default_rng(0))[1] == "thing 8" and pairs.readable(7) is None
    assert capsys.readouterr().err.count("own.jsonl line 8: ") == 1
    (tmp_path / "9.bmp").write_bytes((tmp_path / "9.bmp").read_bytes()[:500])
    with pytest.raises(
        TooManyBroken, match="2 of 41 records of .* can't be read, where a share of 0.03 may be left out"
    ):
        pairs.drawn(9, np.random.default_rng(0))
    with pytest.raises(TooManyBroken, match="2 of 41 records of .* can't be read"):
        open_pairs(ContrastiveConfig(pairs=str(path), heldout=str(path), unreadable=0.03, check=True))
    assert "note: record left out, number 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="check reads your own pairs, but none are given"):
        ContrastiveConfig(check=True)
