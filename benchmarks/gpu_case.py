"""One case of benchmarks/gpu.py in a process of its own, since the compiler reads its options once; prints figures as JSON."""

import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gpu_attention import attention
from rich.console import Console

from generalist.config.data import mixed
from generalist.config.presets import preset
from generalist.config.run import Config
from generalist.data import rows as table_rows
from generalist.data.batch import Batch, BatchSpec
from generalist.data.sources.control import Atari, BabyAI, Classic, Fetch, MetaWorld
from generalist.data.sources.emoji import Emoji
from generalist.data.sources.prose import Prose
from generalist.experiment.prepare import prepare
from generalist.model import attend
from generalist.model.config import ModelConfig, ModelSpec
from generalist.plan.memory import arithmetic, with_rows
from generalist.plan.program import make_planned_trainer
from generalist.run.shapes import shaped_encoder, without_data
from generalist.run.tasks import record_missing
from generalist.training.flops import model_flops, peak_flops
from generalist.training.token_trainer import TokenTrainer
from train import make_batch  # benchmarks/train.py, beside this file

TRACED, LONGEST = 3, 10  # steps under the profiler, kernels listed
BATCHES = 4  # different ones, placed before they are timed


def main() -> None:
    """Reads a case from the command line."""
    case = json.loads(sys.argv[1])
    if "length" in case:
        print(json.dumps(attention(case["length"])))
        return
    if case.get("scatter"):  # XLA's own gradient of table rows, as on a CPU
        table_rows.target_platform = lambda: "cpu"
    if case.get("mask"):
        attend.fused_on_gpu = lambda *_: False
    config = settings(case)
    spec, sizes, batches = drawn(config) if case["name"].startswith("flamingo") else loaded(config)
    print(json.dumps(measure(config, spec, sizes, batches, case)))


def settings(case: dict[str, Any]) -> Config:
    """The preset on one device, with sources that are recorded in seconds; GPT-2's smallest shape with text alone."""
    name = case["name"]
    config = preset("gato_79m" if name == "gpt2_124m" else name)
    if name == "gpt2_124m":
        gpt = ModelConfig(width=768, layers=12, heads=12, kv_heads=12, head_size=64, hidden=3072, activation="gelu")
        gpt = dataclasses.replace(gpt, norm="layer", qk_norm=False, learned_positions=1024, bias=True, qkv_bias=True)
        config = dataclasses.replace(
            config, model=gpt, tokens=dataclasses.replace(config.tokens, text_pieces=50_257, documents="frame")
        )
    config = with_rows(config, case["rows"])
    if case["dry"]:
        config = shrunk(config)
    if not name.startswith("flamingo"):
        config = with_own_sources(config, name, Path(case["folder"]))
    model = dataclasses.replace(config.model, layers_unrolled=case.get("layers_unrolled", 0))
    training = dataclasses.replace(config.training, micro_batches=1, loss_chunks=case.get("loss_chunks", 0))
    return dataclasses.replace(config, model=model, training=training)


def shrunk(config: Config) -> Config:
    """The settings with a model for a CPU."""
    vision = dataclasses.replace(
        config.model.vision, width=16, latents=2, layers=1, heads=2, head_size=8, gated_heads=2, gated_head_size=8
    )
    vision = dataclasses.replace(vision, resampler_hidden=16, gated_hidden=16)
    tiny = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_size": 16, "hidden": 64, "patch_channels": 4}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vision=vision, **tiny),
        tokens=dataclasses.replace(config.tokens, text_pieces=512),
        data=dataclasses.replace(config.data, patches=min(config.data.patches, 512)),
    )


def with_own_sources(config: Config, name: str, folder: Path) -> Config:
    """The settings with cart-pole, drawings and prose, or with prose alone for GPT-2."""
    mixes = name != "gpt2_124m"
    sources = mixed(
        metaworld=MetaWorld(weight=0.0),
        babyai=BabyAI(weight=0.0),
        atari=Atari(weight=0.0),
        fetch=Fetch(weight=0.0),
        classic=Classic(weight=0.4 * mixes, tasks="cartpole", episodes=8, steps=40),
        emoji=Emoji(weight=0.2 * mixes),
        prose=Prose(weight=0.4, megabytes=2.0),
    )
    data = dataclasses.replace(config.data, sources=sources, folder=folder / "data")
    return dataclasses.replace(config, data=data, runs=folder / "runs", name=name)


def loaded(config: Config) -> tuple[ModelSpec, BatchSpec, list[Batch]]:
    """Packed rows as a training gets them."""
    console = Console(stderr=True)
    record_missing(config, console)
    prepared = prepare(config, console)
    batches = [next(prepared.iterator) for _ in range(BATCHES)]
    prepared.iterator.close()
    return prepared.tokenizers.model_spec(), prepared.batch_spec, batches


def drawn(config: Config) -> tuple[ModelSpec, BatchSpec, list[Batch]]:
    """Full rows of drawn tokens, with features of images that no position sees: all products have their sizes."""
    spec, sizes, _ = without_data(config)
    encoder = shaped_encoder(config)
    if encoder is not None:
        sizes = dataclasses.replace(sizes, image_shape=(encoder.cells, encoder.channels), image_dtype="float16")
    return spec, sizes, [make_batch(sizes, spec.vocabulary)]


def measure(
    config: Config, spec: ModelSpec, sizes: BatchSpec, batches: list[Batch], case: dict[str, Any]
) -> dict[str, Any]:
    """Speed and memory of the step, and under `profile` its longest kernels."""
    devices = jax.devices()[:1]
    trainer = make_planned_trainer(config, spec, devices)
    placed = [trainer.place(batch) for batch in batches]
    state, key = trainer.initialize({}), jax.random.key(0)
    flops = model_flops(spec, sizes, state.params, state.frozen)
    with jax.set_mesh(trainer.mesh):
        begun = time.perf_counter()
        compiled = trainer.step.lower(state, placed[0], key).compile()
        found = {"compile_seconds": time.perf_counter() - begun}
        state = steps(compiled, state, placed, key, 3)
        begun = time.perf_counter()
        state = steps(compiled, state, placed, key, case["steps"])
        each = (time.perf_counter() - begun) / case["steps"]
        if case.get("profile"):
            try:
                found["kernels"] = longest(trainer, compiled, state, placed, key)
            except Exception as error:  # of several kinds; the step's figures count without a profile
                found["no_profile"] = f"{type(error).__name__}: {error}"[:300]
    needs = compiled.memory_analysis()
    held = needs.argument_size_in_bytes + needs.temp_size_in_bytes + needs.output_size_in_bytes
    filled = float(np.mean([(batch.segment > 0).mean() for batch in batches]))
    return found | {
        "rows": sizes.rows,
        "length": sizes.length,
        "filled": filled,
        "tokens_per_second": sizes.rows * sizes.length / each,
        "mfu": flops / each / peak_flops(devices),
        "planned_bytes": arithmetic(config, spec, sizes, None, limit=None).total,
        "program_bytes": held - needs.alias_size_in_bytes,
        "peak_bytes": (devices[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "device": devices[0].device_kind,
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
    }


def steps(compiled: Any, state: Any, placed: list[Batch], key: jax.Array, count: int) -> Any:
    """The state after some steps, which are over."""
    for number in range(count):
        state, metrics = compiled(state, placed[number % len(placed)], key)
    jax.block_until_ready((state, metrics))
    return state


def longest(trainer: TokenTrainer, compiled: Any, state: Any, placed: list[Batch], key: jax.Array) -> list[Any]:
    """Names of the kernels that take the most time, with their shares of all kernels' time."""
    gpu = trainer.mesh.devices.flat[0].platform == "gpu"
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps(compiled, state, placed, key, TRACED)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        times: Counter[str] = Counter()
        for plane in planes:
            if plane.name.startswith("/device:GPU" if gpu else "/host:CPU"):
                for line in plane.lines:
                    if not gpu or line.name.startswith("Stream"):  # other lines sum kernels up once more
                        for event in line.events:
                            times[event.name] += event.duration_ns
    whole = sum(times.values()) or 1
    return [[name, time / whole] for name, time in times.most_common(LONGEST)]


if __name__ == "__main__":
    main()
