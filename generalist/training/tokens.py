"""Training the generalist: what the common loop is given for batches of tokens."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from rich.console import Console

from generalist.config.run import Config
from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import BatchIterator
from generalist.model.attend import slow_heads
from generalist.model.config import ModelSpec
from generalist.model.params import flat, nested, united
from generalist.model.transformer import count_parameters
from generalist.model.tuned import apart
from generalist.system.gpu_flags import slow_additions
from generalist.training import loop
from generalist.training.flops import model_flops, peak_flops
from generalist.training.hosts import all_positions, positions_from
from generalist.training.loss import KINDS, TokenSums
from generalist.training.step import Trainer
from generalist.training.token_trainer import make_trainer
from generalist.vision.encoder import VisionEncoder
from generalist.weights.language import LanguageModel
from generalist.weights.peft_layout import PeftAdapter


def train(
    config: Config,
    spec: ModelSpec,
    batch_spec: BatchSpec,
    iterator: BatchIterator,
    sources: Mapping[str, float],
    console: Console,
    encoder: VisionEncoder | None = None,
    start: Mapping[str, Any] | None = None,
) -> None:
    """Trains to `config.training.steps`, from the run's newest checkpoint if it has one. If there are several processes, all call
    it.

    Args:
        iterator: gives this process's shards of the batches; closed at the end.
        sources: the data's sources with their weights in the loss, in the order of the batches' `source` ids.
        console: of the progress line.
        encoder: the frozen encoder, if batches carry pixels.
        start: parameters to begin with, by their paths, for a run without a checkpoint.

    Raises:
        Interrupted, FloatingPointError, OSError: as `loop.train`.
    """
    trainer = make_trainer(spec, config.training, weights=list(sources.values()), encoder=encoder)
    state = trainer.abstract_state  # shapes: nothing is allocated yet
    trained, frozen = count_parameters(state.params), count_parameters(state.frozen)
    held = f" and {frozen / 1e6:.2f} M frozen ones" if frozen else ""
    flops, peak = model_flops(spec, batch_spec, state.params, state.frozen), peak_flops()
    console.print(
        f"{trained / 1e6:.2f} M parameters{held}, {batch_spec.rows} × {batch_spec.length} positions per step, "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s) of {jax.process_count()} process(es), "
        f"peak {peak / 1e9:.0f} GFLOP/s",
        highlight=False,
    )
    if jax.devices()[0].platform == "gpu":
        for slow in filter(None, (slow_heads(config.model.head_size), slow_additions())):
            console.print(f"note: {slow}", highlight=False, markup=False, soft_wrap=True)
    loop.train(
        config,
        trainer,
        TokenBatches(iterator, config.data.shards),
        functools.partial(trainer.place, shards=config.data.shards),
        TokenReadout(list(sources), batch_spec.rows * batch_spec.length, flops, peak),
        console,
        # Called only without a checkpoint: a resumed run reads neither the weights it began with nor the trunk.
        lambda: first_parameters(config, spec, trainer, console, start),
    )


def first_parameters(
    config: Config, spec: ModelSpec, trainer: Trainer, console: Console, start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The parameters that a run begins with, nested, in training's layout: those of other weights or of a trunk.

    Args:
        start: of other weights, by their paths in files; None: there are none.
    """
    if start is None:
        adapters = first_adapters(config, trainer)
        return united(load_trunk(config, spec, trainer, console), nested(adapters))
    layers, tuning = spec.config.layers, config.training.tuning
    return nested({name: part for path in start for name, part in apart(path, start[path], layers, tuning).items()})


def first_adapters(config: Config, trainer: Trainer) -> dict[str, Any]:
    """The adapters that `training.lora.adapter` names, by their paths, on the devices; empty if it names none.

    Raises:
        WeightsError: they do not fit the trunk or the settings.
    """
    lora = config.training.lora
    if not lora.adapter:
        return {}
    kept = flat(trainer.abstract_state.params)
    arrays = PeftAdapter(lora.adapter, LanguageModel(config.model.trunk)).arrays(lora)
    return {path: jax.device_put(array, kept[path].sharding) for path, array in arrays}


def load_trunk(config: Config, spec: ModelSpec, trainer: Trainer, console: Console) -> dict[str, Any]:
    """The parameters of the pretrained language model, nested, on the devices in the trainer's dtype and sharding; empty if
    `model.trunk` is none."""
    if config.model.trunk == "none":
        return {}
    console.print(f"reading the weights of {config.model.trunk} ...", highlight=False)
    kept = flat(united(trainer.abstract_state.params, trainer.abstract_state.frozen))

    placed: dict[str, Shaped[jax.Array, ...]] = {}
    # Each array goes to the devices as soon as it is read, so that the host never holds the whole model.
    for path, array in LanguageModel(config.model.trunk, images=config.trunk_sees).arrays(spec.vocabulary):
        for name, part in apart(path, array, spec.config.layers, config.training.tuning).items():
            placed[name] = jax.device_put(part.astype(kept[name].dtype), kept[name].sharding)
        del array, part
    return nested(placed)


@dataclasses.dataclass(frozen=True)
class TokenBatches:
    """Packed batches. Their position covers the shards of all processes, so that any number of processes can resume from it."""

    iterator: BatchIterator
    shards: int
    """Number of shards of a whole batch."""

    def __next__(self) -> Batch:
        return next(self.iterator)

    @property
    def position(self) -> dict[str, Any]:
        return {"shards": all_positions(self.iterator.positions, self.shards)}

    def go_to(self, position: Mapping[str, Any]) -> None:
        self.iterator.go_to(positions_from(position["shards"]))

    def close(self) -> None:
        self.iterator.close()


@dataclasses.dataclass(frozen=True)
class TokenReadout:
    """Losses by kind of token and by source, and the speed of training."""

    sources: list[str]
    """Their names, in the order of the batches' `source` ids."""
    positions: int
    """Positions of a batch, padding included."""
    flops: float
    """Model FLOPs of a step (`model_flops`)."""
    peak: float
    """FLOP/s of all devices together."""

    def values(self, sums: TokenSums, *, steps: int, sound: int, seconds: float, params: Any) -> dict[str, float]:
        """Losses are in nats per token; `padding`, `mfu` and accuracies are shares from 0 to 1."""
        del sound  # losses are means over tokens, and the sums hold no token of a skipped step
        # Skipped steps did the same work, so they count for the utilisation.
        values = {
            "tokens_per_second": sums.tokens / seconds,
            "mfu": self.flops * steps / seconds / self.peak,
            "padding": 1 - sums.tokens / (self.positions * steps),
        }
        # A kind or a source without a target in this interval has no loss, not a loss of 0.
        for kind, nll, weight in zip(KINDS, sums.kind_nll, sums.kind_weight, strict=True):
            if weight > 0:
                values[f"loss/{kind}"] = nll / weight
        for index, name in enumerate(self.sources):
            if sums.source_weight[index] > 0:
                values[f"loss/{name}"] = sums.source_nll[index] / sums.source_weight[index]
                values[f"accuracy/{name}"] = sums.source_correct[index] / sums.source_weight[index]
        return {name: float(value) for name, value in values.items()} | gate_openings(params)

    def describe(self, values: Mapping[str, float]) -> str:
        kinds = " ".join(f"{kind} {values[f'loss/{kind}']:.2f}" for kind in KINDS if f"loss/{kind}" in values)
        gates = f" gates {values['gate/attention']:.2f}" if "gate/attention" in values else ""
        return (
            f"loss {values['loss']:.3f} ({kinds}){gates} {values['tokens_per_second'] / 1e3:.1f}k tok/s "
            f"mfu {values['mfu']:.0%} pad {values['padding']:.0%} wait {values['waiting']:.0%}"
        )

    def origin(self, parts: TokenSums) -> str:
        weights = np.asarray(parts.source_weight)
        involved = [name for name, weight in zip(self.sources, weights, strict=True) if weight > 0]
        return f"; its batch came from {', '.join(involved) or 'no source'}"

    def breakdown(self, parts: TokenSums) -> str:
        weights = np.asarray(parts.source_weight)
        each = np.asarray(parts.source_nll) / np.maximum(weights, 1e-9)
        named = zip(self.sources, each, weights, strict=True)
        return f"; nats per token: {', '.join(f'{name} {nll:.2f}' for name, nll, weight in named if weight > 0)}"


def gate_openings(params: Any) -> dict[str, float]:
    """How far the gates of the cross-attention are open, from 0 to 1, averaged over the layers; empty without an encoder."""
    # Gates begin at 0, so that the language model is unchanged at first (Flamingo, section 2.2). If they stay closed, images have
    # no effect.
    if "visual" not in params:
        return {}
    gated = params["visual"]["gated"]
    return {
        f"gate/{name}": float(jnp.abs(jnp.tanh(gated[f"{name}_gate"])).mean()) for name in ("attention", "feed_forward")
    }
