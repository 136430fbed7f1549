"""Plans of real training steps: counted against arithmetic, and the command from end to end."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.cli.main import main
from generalist.config.presets import debug, preset
from generalist.config.run import Config, TrainingConfig
from generalist.data.batch import BatchSpec
from generalist.model.blocked_attention import BLOCKS
from generalist.model.config import REQUIRED, ModelConfig, ModelSpec
from generalist.model.tuning import LoraConfig, Tuning
from generalist.plan.estimate import Estimate, abstract_parameters, estimate, speeds_of
from generalist.plan.hlo import parse
from generalist.plan.memory import FULL, arithmetic, largest_rows
from generalist.plan.micro_batches import MARGIN, decided, device_memory, with_micro_batches
from generalist.plan.roofline import walk
from generalist.plan.search import candidates
from generalist.plan.target import open_devices, parse_target, prepare_environment
from generalist.run.shapes import without_data
from generalist.training.flops import model_flops

ROWS, LENGTH = 16, 128
MODEL = ModelConfig(width=128, layers=6, heads=4, kv_heads=4, head_size=32, hidden=512, local_positions=8)
CPU = parse_target(None, "cpu:1")
# In the cache that all tests share: a program for devices that are not there can be written to it, but not read.
NOT_CACHED = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")


@pytest.fixture(autouse=True)
def unchecked_structures() -> Iterator[None]:
    """Lowering puts JAX's own descriptions in the places of a batch's arrays, which the checks of tests take for a mistake."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def language(model: ModelConfig = MODEL) -> tuple[Config, tuple[ModelSpec, BatchSpec, None]]:
    """A model that reads nothing but tokens."""
    config = dataclasses.replace(
        debug(),
        model=model,
        data=dataclasses.replace(debug().data, rows=ROWS, length=LENGTH),
        training=TrainingConfig(),
    )
    spec = ModelSpec(
        config=model, vocabulary=config.tokens.vocabulary(), projection_width=0, patches=False, frames=False
    )
    batch = BatchSpec(rows=ROWS, length=LENGTH, tensors=0, projection_width=0, frames=0, frame_size=0)
    return config, (spec, batch, None)


@functools.cache
def planned(remat: str) -> Estimate:
    """The model compiled for one CPU device, once for all tests."""
    return estimate(*language(dataclasses.replace(MODEL, remat=remat)), CPU, open_devices(CPU))


@pytest.mark.slow
def test_flops_of_a_training_step_are_those_of_arithmetic():
    found, (spec, _, _) = planned("none"), language()[1]
    blocks = abstract_parameters(spec, Tuning())[0]["blocks"]
    matrices = sum(leaf.size for leaf in jax.tree.leaves(blocks) if leaf.ndim == 3) + MODEL.width * spec.vocabulary.size
    # Attention on a CPU scores blocks of queries with the keys up to them, of two blocks three quarters of a row's scores: 2
    # products forward; backward 4, and more where it scores again.
    assert 2 * BLOCKS[0] == LENGTH
    attention = 3 / 4 * 2 * MODEL.layers * LENGTH * MODEL.heads * MODEL.head_size
    positions = ROWS * LENGTH
    assert (
        positions * (6 * matrices + 6 * attention) <= found.totals.flops <= positions * (6 * matrices + 8 * attention)
    )
    assert found.seconds is None and found.fits


@pytest.mark.slow
def test_recomputing_blocks_costs_another_forward_pass():
    assert 1.15 < planned("block").totals.flops / planned("none").totals.flops < 4 / 3


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture):
    written = tmp_path / "plan.json"
    smaller = ["--data.rows", "2", "--data.tensors", "32", "--data.frames", "4", "--model.layers", "1"]
    assert main(["plan", "debug", "--devices", "cpu:2", "--json", str(written), *smaller]) == 0
    shown = capsys.readouterr().out
    assert "trained parameters" in shown and "compiling" in shown and "all-gather" in shown
    values = json.loads(written.read_text())
    assert (values["target"], values["mesh"]["fsdp"], values["rows"]) == ("cpu:2", 2, 2)
    assert values["totals"]["flops"] > 0.5 * values["model_flops"] / 2
    assert values["memory"]["optimizer"] == pytest.approx(2 * values["memory"]["parameters"], rel=0.01)


@pytest.mark.slow
def test_the_command_plans_a_gpu_by_arithmetic(capsys: pytest.CaptureFixture):
    assert main(["plan", "pocket", "--devices", "gpu:2GiB"]) == 0
    assert main(["plan", "flamingo_80b", "--devices", "h100"]) == 2
    shown = capsys.readouterr().out
    assert "it fits" in shown and "not even one row fits" in shown
    assert shown.count("note: heads of 32 fill only a part") == 1  # flamingo_80b has larger ones


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug"], "give either --topology"),
        (["debgu", "--devices", "cpu:1"], "Did you mean 'debug'"),
        (["debug", "--devices", "cpu:8", "--training.fsdp-axis", "3"], "does not cover the 8 devices"),
        (["debug", "--devices", "cpu:2000"], "--xla_force_host_platform_device_count=2000"),
        (["debug", "--devices", "h100", "--search"], "--search compares speeds, which are known only for a --topology"),
        (["debug", "--devices", "h100", "--hlo", "plan.txt"], "--search compiles several and a plan of a GPU none"),
        (["debug", "--topology", "v5e:2x2", "--search", "--hlo", "plan.txt"], "--search compiles several"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(["plan", *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error:")]
    assert message in line


def test_help_imports_no_jax():
    code = (
        "import sys\nfrom generalist.cli.main import main\ntry:\n    main(['plan', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'jax' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--topology" in shown


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
def test_memory_by_arithmetic_is_near_the_compiler_s(remat: Literal["none", "block"]):
    config, shapes = language(dataclasses.replace(MODEL, remat=remat))
    needed = planned(remat).needed
    assert needed is not None
    assert 0.6 < arithmetic(config, *shapes, limit=None, platform="cpu").total / needed < 1.7


@pytest.mark.slow
def test_adapters_cost_no_gradients_and_no_moments_of_what_is_frozen():
    model = dataclasses.replace(MODEL, width=512, hidden=2048, remat="block", trunk=REQUIRED)
    config, (spec, batch, _) = language(model)
    batch = dataclasses.replace(batch, rows=2, length=64)
    config = dataclasses.replace(config, training=TrainingConfig(lora=LoraConfig(rank=8)))
    found = estimate(config, (spec, batch, None), CPU, open_devices(CPU))
    assert found.memory is not None and found.counts.frozen > 30 * found.counts.trained
    assert found.memory.frozen == FULL * found.counts.frozen
    assert found.memory.temporary < 0.6 * found.memory.frozen  # with gradients it would be more than once as much
    assert found.memory.optimizer < 2.1 * FULL * found.counts.trained
    by_arithmetic = arithmetic(config, spec, batch, None, limit=None, platform="cpu")
    assert 0.6 < by_arithmetic.total / found.memory.total < 1.7
    everything = dataclasses.replace(spec, config=dataclasses.replace(model, trunk_frozen=False))
    assert found.model_flops < 0.75 * model_flops(everything, batch, *abstract_parameters(everything, Tuning()))


def test_a_gpu_holds_no_scores_where_its_kernel_takes_the_shapes():
    def activations(softcap: float) -> float:
        config = with_micro_batches(preset("gato_79m"), 1)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention_softcap=softcap))
        return arithmetic(config, *without_data(config), limit=None).activation_bytes

    rows, length, heads = 512, 1024, 24
    scores = rows * heads * length**2 * FULL  # of one block, in float32
    assert 2.9 < (activations(50.0) - activations(0.0)) / scores < 3.0


def test_the_largest_batch_is_the_last_that_fits():
    config = with_micro_batches(preset("gato_79m"), 1)
    shapes, limit = without_data(config), 24.0 * 2**30
    most = largest_rows(config, *shapes, limit)
    assert most > 1
    spec, batch, _ = shapes

    def needed(rows: int) -> float:
        sized = dataclasses.replace(batch, rows=rows, patches=-(-batch.patches * rows // batch.rows), shards=1)
        return arithmetic(config, spec, sized, None, limit=limit).total

    assert needed(most) <= limit < needed(most + 1)


@pytest.mark.parametrize(
    ("gibibytes", "dtype", "expected"),
    [(1000.0, "auto", 1), (80.0, "auto", 4), (24.0, "auto", 16), (0.1, "auto", 256), (60.0, "float32", 16)],
)
def test_the_fewest_micro_batches_that_fit(gibibytes: float, dtype: Literal["auto", "float32"], expected: int):
    config, limit = preset("gato_79m"), gibibytes * 2**30
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, dtype=dtype))
    assert config.training.micro_batches == "auto"
    shapes = without_data(config)

    def needed(count: int) -> float:
        return MARGIN * arithmetic(with_micro_batches(config, count), *shapes, limit=limit).total

    found = decided(config, shapes, None, limit).training.parts
    assert found == expected
    # 256 is all that the shards allow, whether or not it fits.
    assert (needed(found) <= limit) == (found < 256) and (found == 1 or needed(found // 2) > limit)
    with pytest.raises(ValueError, match=r"micro_batches = auto is decided by train\.py and plan"):
        _ = config.training.parts


def test_an_accelerator_that_tells_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert device_memory() is None  # a CPU
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [silent])
    with pytest.raises(ValueError, match="does not say how much memory it has .* such as --training.micro-batches 4"):
        device_memory()


def test_a_search_ranks_what_fits_and_divides():
    config, shapes = language(dataclasses.replace(MODEL, kv_heads=2))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=4))
    target = parse_target(None, "cpu:8")
    found = candidates(config, shapes, target, open_devices(target))
    for one in found:
        training, batch = one.config.training, one.shapes[1]
        rows = training.data_axis * training.fsdp_axis
        assert rows * training.tensor_axis * training.sequence_axis == 8
        assert batch.rows % (rows * training.micro_batches) == 0 and batch.shards == rows * training.micro_batches
        assert MODEL.heads % training.tensor_axis == 0 and training.tensor_axis <= 2
    rows_of = {
        mesh: sorted(one.config.data.rows for one in found if one.config.training.fsdp_axis == mesh) for mesh in (8, 4)
    }
    # From a quarter to twice of four rows: eight devices take 8, four take 4 or 8, beside each of the other axes in turn.
    assert rows_of == {8: [8], 4: [4, 4, 8, 8, 8]}
    rates = [one.tokens_per_second for one in found]
    assert rates == sorted(rates, reverse=True)


@NOT_CACHED
def test_the_tpu_compiler_s_programs_count_like_the_cpu_s():
    pytest.importorskip("libtpu")
    target = parse_target("v5e:2x2", None)
    prepare_environment(target)
    devices = open_devices(target)
    layers, rows, width = 5, 256, 512

    def stack(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].astype(jnp.float32))

    mesh = Mesh(np.array(devices), ("fsdp",), axis_types=(AxisType.Auto,))
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in (((layers, width, width), P(None, "fsdp")), ((rows, width), P("fsdp")))
    ]
    text = jax.jit(jax.grad(stack)).lower(*shapes).compile().as_text()
    found = walk(parse(text), speeds_of(target, devices))
    assert found.flops * 4 == pytest.approx((3 - 1 / layers) * layers * 2 * rows * width**2, rel=0.1)
    assert found.notes == ()
    assert sum(one.bytes for one in found.moved.values()) == pytest.approx(found.bytes)
    assert any("(plan/test_plan.py:" in place for place in found.moved), list(found.moved)
    assert found.seconds > found.matrix_seconds > 0
    assert found.traffic["all-gather"].count >= layers


@NOT_CACHED
@pytest.mark.slow
@pytest.mark.parametrize("slice", ["v4:2x2x1", "v5e:1x1", "v6e:2x2"])
def test_a_small_model_is_planned_for_every_kind_of_tpu(slice: str):
    pytest.importorskip("libtpu")
    target = parse_target(slice, None)
    prepare_environment(target)
    devices = open_devices(target)
    assert len(devices) == target.count
    found = estimate(*language(dataclasses.replace(MODEL, layers=2)), target, devices)
    assert found.mesh == {"data": 2 if target.count == 4 else 1, "fsdp": 2 if target.count == 4 else 1} | {
        "tensor": 1,
        "sequence": 1,
    }
    assert found.fits and found.utilisation is not None and 0 < found.utilisation < 1
