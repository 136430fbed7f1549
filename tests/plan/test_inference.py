"""Plans of inference: against the memory of weights, caches and programs that are there, and by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from generalist.cli.main import main
from generalist.inference.decode import empty_caches
from generalist.inference.generalist import Generalist
from generalist.inference.placing import parse_mesh
from generalist.model.params import flat
from generalist.plan.inference import Serving, arithmetic, compiled, encoder_bytes, subject
from generalist.plan.program import device_bytes
from generalist.plan.target import Target, parse_target

LLAMA = Path(__file__).parent.parent / "fixtures" / "language" / "llama"


@pytest.fixture(autouse=True)
def unchecked_structures() -> Iterator[None]:
    """As in test_plan.py: shapes stand in the places of arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("weights_type", ["float32", "int8"])
def test_weights_and_caches_are_those_of_a_loaded_model(weights_type: str):
    spec, context, encoder = subject(LLAMA)
    assert context == 2048
    serving = Serving(rows=4, context=32, weights_type=weights_type, cache_type="bfloat16", mesh="data=2,tensor=4")
    found = compiled(spec, serving, parse_target(None, "cpu:8"), jax.devices(), encoder)
    held = "int8" if weights_type == "int8" else "stored"
    there = Generalist.load(LLAMA, mesh="data=2,tensor=4", weights_type=held, cache_type="bfloat16")
    if weights_type == "float32":  # as the folder's are; with int8 a plan takes the rest for bfloat16
        assert found.weights == device_bytes(there.params)
    assert found.caches == device_bytes(empty_caches(there, 4, 32, rings=True))
    assert found.fits and found.step_seconds is None
    assert found.total == found.weights + found.caches + found.temporary


def test_arithmetic_is_near_the_compiler_s_memory():
    # Long enough that scores are most of it, as where memory matters.
    spec, _, encoder = subject(LLAMA)
    serving = Serving(rows=2, context=512, weights_type="float32")
    program = compiled(spec, serving, Target(name="cpu", platform="cpu", count=1), jax.devices()[:1], encoder)
    number = arithmetic(spec, serving, parse_target(None, "gpu:1GiB"), encoder)
    assert (number.weights, number.caches) == (program.weights, program.caches)
    assert program.temporary / 1.7 < number.temporary < program.temporary * 1.7
    assert number.step_seconds is None  # a card known by its memory alone


def test_a_step_reads_all_weights_and_caches():
    spec, _, _ = subject(LLAMA)
    target = parse_target(None, "h100")
    small, large = (arithmetic(spec, Serving(rows=rows, context=256), target, {}) for rows in (1, 8))
    table = (
        spec.vocabulary.size * spec.config.width * 2
    )  # bfloat16; looked up, not read: this model's output is its own
    assert small.step_seconds == pytest.approx((small.weights - table + small.caches) / 3350e9)
    assert large.caches == 8 * small.caches and large.tokens_per_second > small.tokens_per_second
    assert arithmetic(spec, Serving(rows=1, context=256, weights_type="int8"), target, {}).weights < small.weights


def test_layers_with_a_window_keep_no_more_than_they_look_back():
    folder = LLAMA.parent / "gemma3"  # six layers of seven have a window of 5, which takes 16 slots
    spec, _, _ = subject(folder)
    serving = Serving(rows=2, context=1024, weights_type="float32")
    program = compiled(spec, serving, Target(name="cpu", platform="cpu", count=1), jax.devices()[:1], {})
    number = arithmetic(spec, serving, parse_target(None, "gpu:1GiB"), {})
    there = device_bytes(empty_caches(Generalist.load(folder), 2, 1024, rings=True))
    assert number.caches == program.caches == there
    config = spec.config
    assert there == 2 * config.kv_heads * (1024 + 6 * 16) * config.key_size * 2 * 4


def test_a_frozen_encoder_s_part_is_that_of_its_mesh():
    shape = jax.ShapeDtypeStruct((3, 24, 64), jnp.float32)
    kernels = {
        "layers": {"up": {"kernel": shape}, "attention_norm": {"scale": jax.ShapeDtypeStruct((3, 24), jnp.float32)}}
    }
    assert encoder_bytes(kernels, parse_mesh("data=2,tensor=4")) == 4 * (3 * 24 * 16 + 3 * 24)
    assert encoder_bytes({}, parse_mesh("tensor=8")) == 0


@pytest.mark.parametrize(
    "name", ["images/gemma3", "images/llava", "images/paligemma2", "gated/idefics", "gated/flamingo_mpt"]
)
def test_a_published_model_s_tower_and_projector_count(name: str):
    folder = LLAMA.parents[1] / name
    spec, context, tower = subject(folder, "float32")
    there = Generalist.load(folder)
    assert there.encoder is not None and context == there.config.data.length
    sizes = [{path: leaf.shape for path, leaf in flat(one).items()} for one in (tower, there.encoder.params)]
    assert sizes[0] == sizes[1]
    found = arithmetic(spec, Serving(rows=1, context=64, weights_type="float32"), parse_target(None, "gpu:1GiB"), tower)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(there.params))
    assert found.encoder == 4 * sum(leaf.size for leaf in jax.tree.leaves(tower))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "plan.json"
    options = ["--rows", "8", "--cache-type", "bfloat16", "--json", str(written)]
    assert main(["plan", "gato_1b", "--inference", "--devices", "rtx4090", *options]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "8 × 1024 positions, weights in bfloat16, caches in bfloat16" in shown
    values = json.loads(written.read_text())
    assert values["caches"] == 8 * 1024 * 2 * 2 * 24 * 2048 and values["fits"]
    assert main(["plan", "flamingo_80b", "--inference", "--devices", "h100"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug", "--devices", "cpu:8", "--rows", "2"], "--rows is for plans of inference: add --inference"),
        (["debug", "--devices", "cpu:8", "--inference", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["debug", "--devices", "cpu:8", "--inference", "--mesh", "tensor=3"], "is for 3 devices, but there are 8"),
        (["debug", "--devices", "h100", "--inference", "--mesh", "tensor=2"], "a GPU is planned alone"),
        (["debug", "--devices", "h100", "--inference", "--search"], "leave them out with --inference"),
        ([str(LLAMA), "--devices", "h100", "--inference", "--data.rows", "2"], "has no settings of a preset"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error:")]
    assert message in line
