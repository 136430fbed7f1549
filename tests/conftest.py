"""Strict mode for every test: eight simulated devices, no silent rank promotion, shapes and types checked; tiny models."""

import dataclasses
import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Compiling takes most of the time of the tests and running next to none of it: XLA does not optimize, makes each fusion with
# its older emitter, which takes a quarter of the time, and hands LLVM one module instead of many small ones.
# Before jax is imported: the number of devices is fixed when it starts. Of a flag that comes twice the last counts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        *("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"),
        *("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"),
        *(os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Indices are of this session's files. Compiled programs are kept: resumed runs, other processes and later sessions need the same
# ones. With a largest size JAX locks the folder.
os.environ["GENERALIST_CACHE"] = tempfile.mkdtemp(prefix="generalist-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**31))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Of whoever runs the tests, or of pytest-xdist: tables are as wide as in a log.
os.environ.pop("COLUMNS", None)

import gymnasium as gym
import jax
import jaxtyping
import numpy as np
import psutil
import pytest
from jax._src import lru_cache

# Before each program that it keeps, JAX looks at every file of the folder, thousands by the end. Processes that tests start do
# so still, which bounds the folder.
if hasattr(lru_cache.LRUCache, "_evict_if_needed"):
    lru_cache.LRUCache._evict_if_needed = lambda *_, **__: None

jax.config.update("jax_numpy_rank_promotion", "raise")

# Only in tests: checking every call against its annotation costs time, and a mistake here is a mistake everywhere.
jaxtyping.install_import_hook(
    [
        f"generalist.{part}"
        for part in ("contrastive", "data", "image_tokenizer", "inference", "model", "serve", "training")
    ],
    "beartype.beartype",
)

LAYOUT = "classic/test"
LONG = (
    *("test_hosts", "test_end_to_end", "test_process", "test_rings"),
    *("test_gpu_benchmark", "test_mesh", "test_vision_agent", "test_contrastive"),
)
"""The files that take longest: what is begun last must be short, or one process waits for the other."""
GROWTH = max(2 * 2**30, psutil.virtual_memory().total // 6)  # bytes; several processes may run tests at once
kept = {"bytes": 0}
"""The memory that remained when programs were last forgotten."""


def pytest_unconfigure() -> None:
    """Removes the session's indices."""
    shutil.rmtree(os.environ["GENERALIST_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first; the others stay in their order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Modules and tests live to the end: collections of garbage need not go through them again and again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """Compiled programs are forgotten between files when they have grown by gigabytes: hundreds of tests would otherwise fill
    the memory. The cache on disk has those that are needed again."""
    yield
    if resident() - kept["bytes"] > GROWTH:
        jax.clear_caches()
        gc.collect()
        kept["bytes"] = resident()


def resident() -> int:
    """Bytes of memory that this process occupies; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Makes a `Generalist` with random weights that reads images in the given way."""
    return model


@functools.cache
def model(images: str = "frame", locations: int = 0) -> Any:
    """Random weights, larger than at initialisation, so that the choices depend on what was seen; gates are open."""
    from flax import nnx

    from generalist.config.presets import debug
    from generalist.inference.generalist import Generalist  # only after the hook above
    from generalist.model.config import VisionConfig
    from generalist.model.transformer import create_separate
    from generalist.run.tokenizers import Tokenizers
    from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
    from generalist.tokenizers.text import TextTokenizer
    from generalist.vision.load import load_encoder

    base = debug()
    shape = base.model
    if "encoder" in images:
        vision = VisionConfig(encoder="efficientnet_lite0", size=32, latents=2, layers=1, hidden_factor=1, every=2)
        shape = dataclasses.replace(shape, vision=vision)
    tokens = dataclasses.replace(base.tokens, documents=images, locations=locations)
    config = dataclasses.replace(base, tokens=tokens, model=shape)
    text = TextTokenizer.train(["push the red block to the left", "lift the blue block"] * 20, 512)
    settings = {"vocabulary": tokens.vocabulary(), "text": text}
    observation = SpaceTokenizer.from_space(gym.spaces.Box(-np.inf, np.inf, (3,)), tensors="projected", **settings)
    layout = TaskLayout(LAYOUT, observation, SpaceTokenizer.from_space(gym.spaces.Discrete(5), **settings))
    encoder = load_encoder(shape.vision.encoder, shape.vision.size)
    tokenizers = Tokenizers(
        config=config,
        text=text,
        layouts={LAYOUT: layout},
        projection_width=3,
        visual=encoder,
        channels=encoder.channels if encoder is not None else 0,
    )
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    params = jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params))
    if encoder is not None:
        for gated in params["visual"]["gated"].values():
            gated["attention_gate"] += 1.0
    return Generalist(tokenizers, graph, params, 0, encoder=encoder)


@pytest.fixture
def write_sentencepiece() -> Callable[[Path], None]:
    """Writes a `tokenizer.model` with marks of a text's beginning and end, as published language models have it."""
    import sentencepiece

    def write(path: Path) -> None:
        with path.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["a photo of a cat"] * 9),
                model_writer=file,
                vocab_size=280,
                model_type="bpe",
                byte_fallback=True,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                minloglevel=2,
            )

    return write
