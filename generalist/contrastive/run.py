"""Contrastive pretraining: `train.py contrastive`. Trains both towers, scores them, and leaves an encoder that can be frozen.

runs/<name>/config.json  text.model  checkpoints/  metrics.jsonl  tensorboard/  results.json
            encoder/     the image tower in SigLIP's layout, for --model.vision.encoder
            towers.safetensors   all weights, for `DualEncoder.load`
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from generalist.contrastive.config import ContrastiveConfig
from generalist.contrastive.data import TEMPLATES, EmojiPairs, OwnPairs, PairBatches, Pairs, text_ids
from generalist.contrastive.towers import Towers, clip_loss, siglip_loss, vit_config
from generalist.data.documents import Documents
from generalist.data.emoji import SPLITS, drawings
from generalist.eval.retrieval import class_embeddings, retrieval, zero_shot
from generalist.model.transformer import count_parameters
from generalist.progress import counting
from generalist.run import check_same_settings, write_json
from generalist.settings import from_plain, plain
from generalist.tokenizers.text import TextTokenizer
from generalist.training.checkpoint import Checkpoints
from generalist.training.loop import Interrupt, Interrupted, compute_dtype
from generalist.training.metrics import Metrics
from generalist.training.optimizer import make_optimizer, schedule
from generalist.training.sharding import flat, make_mesh, parameter_shardings, rows_sharding
from generalist.training.step import TrainState
from generalist.vision.encoder import Preparation
from generalist.vision.vit import save_vit
from generalist.weights.folder import WeightsFolder, nested, tensor

EMBEDDED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """Trained towers: images and texts to embeddings in one space."""

    config: ContrastiveConfig
    text: TextTokenizer
    params: Any

    @classmethod
    def load(cls, folder: Path | str) -> "DualEncoder":
        """A finished run's folder.

        Raises:
            WeightsError: it holds no such run, or damaged weights.
            ValueError: its settings are damaged.
        """
        weights = WeightsFolder(Path(folder))
        config = from_plain(ContrastiveConfig, weights.config)
        shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: _towers(config)), nnx.Param))
        recipes = {path: tensor(path, *leaf.shape) for path, leaf in flat(shapes).items()}
        params = nested({path: jnp.asarray(array) for path, array in weights.read(recipes).items()})
        return cls(config, TextTokenizer.load(weights.folder / "text.model"), params)

    @cached_property
    def prepare(self) -> Preparation:
        """How an image becomes pixels."""
        return Preparation(size=self.config.towers.size, crop=False)

    def embed_images(self, images: list[np.ndarray]) -> Float[np.ndarray, "N E"]:
        """Unit embeddings of images, uint8 (H, W, C) each."""
        return self._embed(Towers.images, np.stack([self.prepare(image) for image in images]))

    def embed_texts(self, texts: list[str]) -> Float[np.ndarray, "N E"]:
        """Unit embeddings of texts."""
        return self._embed(Towers.texts, text_ids(self.text, texts, self.config.towers.text_length))

    @cached_property
    def _compiled(self) -> Callable:
        graph, _ = nnx.split(nnx.eval_shape(lambda: _towers(self.config)), nnx.Param)
        run = jax.jit(lambda method, params, x: method(nnx.merge(graph, params), x, jnp.float32), static_argnums=0)
        return run

    def _embed(self, method: Callable, inputs: np.ndarray) -> np.ndarray:
        """A few at a time, always as many, so that all share one compilation."""
        found = []
        for start in range(0, len(inputs), EMBEDDED_AT_ONCE):
            chunk = inputs[start : start + EMBEDDED_AT_ONCE]
            filled = np.resize(chunk, (EMBEDDED_AT_ONCE, *chunk.shape[1:]))
            found.append(np.asarray(self._compiled(method, self.params, filled))[: len(chunk)])
        return np.concatenate(found)


def _towers(config: ContrastiveConfig) -> Towers:
    return Towers(config.towers, config.loss, rngs=nnx.Rngs(config.training.seed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveTrainer:
    """The compiled pieces of a run."""

    initialize: Callable[[], TrainState]
    step: Callable[[TrainState, Array, Array], tuple[TrainState, dict[str, Array]]]
    """State, pixels and text ids to the next state and metrics; donates the state."""
    abstract_state: TrainState
    mesh: jax.sharding.Mesh

    def place(self, arrays: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        """A batch on the devices, its rows split over them."""
        return tuple(jax.device_put(array, rows_sharding(array.shape, self.mesh)) for array in arrays)


def make_contrastive_trainer(config: ContrastiveConfig) -> ContrastiveTrainer:
    """Builds the trainer over all devices; nothing is computed yet."""
    training = config.training
    mesh = make_mesh(training.data_axis, training.fsdp_axis, training.tensor_axis)
    optimizer, dtype = make_optimizer(training), compute_dtype(training.dtype)

    def fresh() -> TrainState:
        params = nnx.to_pure_dict(nnx.state(_towers(config), nnx.Param))
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, frozen={}, opt_state=optimizer.init(params))

    graph, _ = nnx.split(nnx.eval_shape(lambda: _towers(config)), nnx.Param)
    abstract = jax.eval_shape(fresh)
    shardings = parameter_shardings(abstract.params, mesh)
    replicated = NamedSharding(mesh, P())
    state_shardings = TrainState(
        step=replicated,
        params=shardings,
        frozen={},
        opt_state=optax.tree.map_params(
            optimizer,
            lambda _, sharding: sharding,
            abstract.opt_state,
            shardings,
            transform_non_params=lambda _: replicated,
        ),
    )

    def loss(params, pixels, text):
        towers: Towers = nnx.merge(graph, params)
        images, texts = towers.images(pixels, dtype), towers.texts(text, dtype)
        if towers.bias is None:
            value = clip_loss(images, texts, towers.scale)
        else:
            value = siglip_loss(images, texts, towers.scale, towers.bias[...])
        right = (images @ texts.T).argmax(axis=1) == jnp.arange(len(images))
        return value, {"loss": value, "accuracy": right.mean(), "scale": towers.scale}

    def step(state: TrainState, pixels: Array, text: Array) -> tuple[TrainState, dict[str, Array]]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, pixels, text)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return ContrastiveTrainer(
        initialize=jax.jit(fresh, out_shardings=state_shardings),
        step=jax.jit(step, donate_argnums=(0,), out_shardings=(state_shardings, replicated)),
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            state_shardings,
        ),
        mesh=mesh,
    )


def run(config: ContrastiveConfig, command: list[str], console: Console) -> None:
    """Trains to `training.steps`, scores held-out pairs, and exports the image tower. Parts that are done are skipped.

    Raises:
        ValueError, ImportError, OSError, FloatingPointError: with a message for the user.
        KeyboardInterrupt: stopped; everything finished so far is on disk.
    """
    again = check_same_settings(config)
    if config.pairs is not None:
        console.print(f"checking {config.pairs} ...", highlight=False)
    pairs: Pairs = EmojiPairs(drawings("train")) if config.pairs is None else OwnPairs(Documents(config.pairs))
    heldout = OwnPairs(Documents(config.heldout)) if config.heldout is not None else None
    if again:
        text = TextTokenizer.load(config.folder / "text.model")
    else:
        console.print("learning the text tokenizer ...", highlight=False)
        drawn = [pairs.shown(index)[1] for index in range(len(pairs))]
        text = TextTokenizer.train([*drawn, *TEMPLATES], config.towers.text_pieces)
        config.folder.mkdir(parents=True, exist_ok=True)
        text.save(config.folder / "text.model")
        write_json(config.folder / "config.json", plain(config))
    prepare = Preparation(size=config.towers.size, crop=False)
    batches = PairBatches(
        pairs, prepare, text, length=config.towers.text_length, batch=config.batch, seed=config.training.seed
    )
    state = train(config, batches, console)
    params = jax.tree.map(np.asarray, state.params)
    dual = DualEncoder(config, text, jax.tree.map(jnp.asarray, params))
    export(config, params)
    results = evaluate(dual, heldout, console)
    write_json(config.folder / "results.json", {"command": command, "step": int(state.step), **results})
    show(results, console)
    console.print(
        f"the encoder: --model.vision.encoder {config.folder / 'encoder'}; every number: {config.folder / 'results.json'}",
        highlight=False,
    )


def train(config: ContrastiveConfig, batches: PairBatches, console: Console) -> TrainState:
    """Trains to `training.steps`, from the run's newest checkpoint if it has one."""
    training, trainer = config.training, make_contrastive_trainer(config)
    checkpoints = Checkpoints(config.folder / "checkpoints", training.keep)
    if checkpoints.latest is None:
        state = trainer.initialize()
    else:
        console.print(f"going on from the checkpoint of step {checkpoints.latest}", highlight=False)
        state = checkpoints.restore(trainer.abstract_state, batches)
    start = int(state.step)
    console.print(
        f"{count_parameters(state.params) / 1e6:.2f} M parameters, {config.batch} pairs a step, {config.loss} loss, "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)",
        highlight=False,
    )
    with Metrics(config.folder, training.steps, start, console) as metrics, Interrupt() as interrupt:
        state = _steps(config, trainer, state, batches, checkpoints, metrics, interrupt)
        metrics.advance(int(state.step), "saving")
        checkpoints.save(state, batches)
        checkpoints.wait()
    checkpoints.close()
    if interrupt.asked:
        raise Interrupted(f"stopped at step {int(state.step)} and saved; the same command goes on from there")
    return state


def _steps(
    config: ContrastiveConfig,
    trainer: ContrastiveTrainer,
    state: TrainState,
    batches: PairBatches,
    checkpoints: Checkpoints,
    metrics: Metrics,
    interrupt: Interrupt,
) -> TrainState:
    training = config.training
    rate = schedule(training)
    begun, waited, since = time.perf_counter(), 0.0, int(state.step)
    with jax.set_mesh(trainer.mesh):
        for step in range(int(state.step) + 1, training.steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, entry = trainer.step(state, *trainer.place(batch))
            if step % training.log_every == 0 or step == training.steps:
                values = {name: float(value) for name, value in entry.items()}
                if not np.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"loss {values['loss']} at step {step}: lower training.learning_rate; the last checkpoint is whole"
                    )
                seconds = time.perf_counter() - begun
                values |= {
                    "learning_rate": float(rate(step - 1)),
                    "pairs_per_second": (step - since) * config.batch / seconds,
                    "waiting": waited / seconds,
                }
                metrics.write(step, values)
                metrics.advance(
                    step,
                    f"loss {values['loss']:.3f} right {values['accuracy']:.0%} {values['pairs_per_second']:.0f} pairs/s "
                    f"wait {values['waiting']:.0%}",
                )
                begun, waited, since = time.perf_counter(), 0.0, step
            else:
                jax.block_until_ready(entry["loss"])
                metrics.advance(step)
            if step % training.checkpoint_every == 0 and step < training.steps:
                checkpoints.save(state, batches)
            if interrupt.asked:
                break
    return state


def export(config: ContrastiveConfig, params: Any) -> None:
    """Writes all weights, and the image tower as a folder that any loader of SigLIP reads. Each appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=config.folder, prefix=".export.") as temporary:
        whole = Path(temporary)
        save_file({path: np.asarray(leaf) for path, leaf in flat(params).items()}, whole / "towers.safetensors")
        save_vit(whole / "encoder", vit_config(config.towers), params["vit"])
        shutil.rmtree(config.folder / "encoder", ignore_errors=True)
        (whole / "encoder").rename(config.folder / "encoder")
        (whole / "towers.safetensors").rename(config.folder / "towers.safetensors")


def evaluate(dual: DualEncoder, heldout: Pairs | None, console: Console) -> dict[str, Any]:
    """Retrieval among held-out pairs; on the emoji also zero-shot naming, with one template and with several."""
    results: dict[str, Any] = {"retrieval": {}, "zero_shot": {}}
    own = dual.config.pairs is not None
    sets: dict[str, Pairs] = {}
    if own and heldout is not None:
        sets["heldout"] = heldout
    if not own:
        sets = {split: EmojiPairs(drawings(split)) for split in SPLITS if split != "train"}
    with counting(console) as progress:
        bar = progress.add_task("embedding held-out pairs", total=sum(map(len, sets.values())))
        for name, pairs in sets.items():
            embedded, texts = [], []
            for start in range(0, len(pairs), EMBEDDED_AT_ONCE):
                some = [pairs.shown(index) for index in range(start, min(start + EMBEDDED_AT_ONCE, len(pairs)))]
                embedded.append(dual.embed_images([image for image, _ in some]))
                texts += [text for _, text in some]
                progress.advance(bar, len(some))
            images = np.concatenate(embedded)
            results["retrieval"][name] = retrieval(images, dual.embed_texts(texts), texts)
            if isinstance(pairs, EmojiPairs):
                classes = sorted({drawing.thing for drawing in pairs.drawings})
                labels = [classes.index(drawing.thing) for drawing in pairs.drawings]
                for kind, templates in (("one template", TEMPLATES[:1]), ("ensemble", TEMPLATES)):
                    embeddings = class_embeddings(dual.embed_texts, classes, templates)
                    results["zero_shot"][f"{name}, {kind}"] = zero_shot(images, embeddings, labels)
    return results


def show(results: dict[str, Any], console: Console) -> None:
    """The scores as a table."""

    def text(estimate: dict[str, float]) -> str:
        return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"

    table = Table(
        "held-out pairs", "image → text", "text → image", "chance", "items", title="percent, with 95% intervals"
    )
    for name, found in results["retrieval"].items():
        for k in (1, 5):
            both = [text(found[f"{direction}_r{k}"]) for direction in ("image_to_text", "text_to_image")]
            table.add_row(f"{name} R@{k}", *both, f"{found[f'chance_r{k}']:.2f}", str(found["items"]))
    for name, found in results["zero_shot"].items():
        table.add_row(f"zero-shot {name}", text(found["accuracy"]), "", f"{found['chance']:.2f}", str(found["items"]))
    if table.row_count:
        console.print(table)
