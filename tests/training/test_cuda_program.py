"""The training step as it is compiled for an NVIDIA GPU, which needs none: no scatter, cuDNN's attention, logits in 16 bits."""

import dataclasses
import re
import sys

import jax
import numpy as np
import pytest

from generalist.config.run import TrainingConfig
from generalist.data.batch import BatchSpec
from generalist.model import attend
from generalist.model.config import ModelConfig, ModelSpec, VisionConfig
from generalist.system.platforms import target_platform
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.sharding import make_mesh
from generalist.training.token_trainer import make_trainer

LENGTH, TEXT = 48, 1100  # sizes that nothing else has; more rows than tables whose gradients are products
SHAPE = ModelConfig(width=32, layers=2, heads=2, kv_heads=2, head_size=16, hidden=64, patch_channels=4)
GATO = ModelSpec(
    config=dataclasses.replace(SHAPE, qk_norm=False, stochastic_depth=0.1),
    vocabulary=Vocabulary(text=TEXT, continuous=64, discrete=16),
    projection_width=0,
    patches=True,
    frames=False,
)
VISION = VisionConfig(encoder="efficientnet_lite0", width=16, latents=2, layers=1, heads=2, head_size=8, every=2)
FLAMINGO = dataclasses.replace(
    GATO,
    config=dataclasses.replace(SHAPE, layers=3, vision=VISION, activation="gelu", remat="block"),
    projection_width=5,
    patches=False,
    frames=True,
    channels=12,
)


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch):
    """Lowers the step of a model for CUDA; returns its StableHLO."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    for name, module in list(sys.modules.items()):
        if name.startswith("generalist.") and getattr(module, "target_platform", None) is target_platform:
            monkeypatch.setattr(module, "target_platform", lambda: "gpu")
    # These three ask the GPU and the cuDNN at hand.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda *_: 92000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False)

    def lower(spec: ModelSpec, sizes: BatchSpec, **changed) -> str:
        training = TrainingConfig(dtype="bfloat16", fsdp_axis=1, **changed)
        trainer = make_trainer(spec, training, make_mesh(training, jax.devices()[:1]), weights=[1.0, 3.0])
        key = jax.eval_shape(lambda: jax.random.key(0))
        # Flat: JAX would put descriptions of arguments into the batch, whose fields are checked in tests.
        leaves, tree = jax.tree.flatten((trainer.abstract_state, trainer.abstract_batch(sizes), key))
        with jax.set_mesh(trainer.mesh):
            traced = jax.jit(lambda *leaves: trainer.step(*tree.unflatten(leaves))).trace(*leaves)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


def sizes(**changed) -> BatchSpec:
    none = {"tensors": 0, "projection_width": 0, "frames": 0, "frame_size": SHAPE.frame_size}
    return BatchSpec(**({"rows": 4, "length": LENGTH} | none | changed))


def check(program: str) -> None:
    """What holds for every model."""
    assert "stablehlo.scatter" not in program
    assert "__cudnn$fmhaScaleBiasSoftmax(" in program, "the forward pass has no fused attention"
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in program, "the backward pass has none"
    products = re.findall(r"stablehlo\.dot_general.*", program)
    assert len(products) > 20
    assert not [line for line in products if re.search(rf"x{LENGTH}x{LENGTH}x", line)], "attention by products"
    # Arrays of logits in float32 may only stand between elementwise operations and sums, which are compiled into one.
    kept = [line for line in program.splitlines() if re.search(rf"\dx\d+x{TEXT}xf32>", line)]
    whole = (
        r"stablehlo\.(dot_general|concatenate|while|gather|dynamic_slice|dynamic_update_slice|custom_call|transpose)"
    )
    assert kept and not [line for line in kept if re.search(whole, line)]


@pytest.mark.slow
def test_gatos_step(lowered):
    check(lowered(GATO, sizes(patches=2000), loss_chunks=2))


@pytest.mark.slow
def test_flamingos_step_in_micro_batches(lowered):
    images = {"images": 4, "row_images": 2, "image_shape": (6, FLAMINGO.channels), "image_dtype": "float16"}
    payloads = {"tensors": 8, "projection_width": 5, "frames": 4}
    changed = {"micro_batches": 2, "optimizer": "muon", "average": "sources"}
    check(lowered(FLAMINGO, sizes(**images, **payloads, shards=2), **changed))


def test_the_scatter_that_is_looked_for_has_this_name():
    table, index = jax.ShapeDtypeStruct((5, 2), np.float32), jax.ShapeDtypeStruct((3,), np.int32)
    gradient = jax.jit(jax.grad(lambda table, index: table[index].sum()))
    assert "stablehlo.scatter" in gradient.trace(table, index).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
def test_a_gpu_without_the_kernel_has_attention_by_products(lowered, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attend, "lacks_fused", lambda: True)
    assert "__cudnn" not in lowered(GATO, sizes(patches=2000), loss_chunks=2)
