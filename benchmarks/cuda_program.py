"""Counts in the training step as it is lowered for CUDA, which needs no GPU: what a layer asks for, and arrays of logits.

    python benchmarks/cuda_program.py gato_79m --rows 32

Kernels are made by XLA's fusions on the card. Products, attention and sums are at least one kernel each, and what is elementwise
is fused with them or stands between them: their number per layer, the difference of programs with two and with three layers, is a
lower bound. Of logits, the bytes count that products, loops, gathers and copies read or write whole.
"""

import argparse
import dataclasses
import re
import sys
from collections import Counter
from unittest import mock

import jax
from rich.console import Console

from generalist.config.presets import preset
from generalist.config.run import Config
from generalist.plan.memory import with_rows
from generalist.run.shapes import without_data
from generalist.system.platforms import target_platform
from generalist.training.loss import fitting
from generalist.training.sharding import make_mesh
from generalist.training.token_trainer import make_trainer

KERNELS = {
    "matrix products": r"stablehlo\.dot_general|stablehlo\.convolution",
    "attention kernels": r"stablehlo\.custom_call @__cudnn\$fmha",
    "sums and maxima": r"stablehlo\.reduce\(",
    "scatters": r"stablehlo\.scatter",
}
WHOLE = r"stablehlo\.(dot_general|concatenate|gather|dynamic_slice|dynamic_update_slice|custom_call|transpose|while)"
WIDTHS = {"bf16": 2, "f32": 4}


def lowered(config: Config) -> str:
    """The step of a preset on one GPU, as StableHLO."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    patches = [
        mock.patch.object(module, "target_platform", lambda: "gpu")
        for name, module in list(sys.modules.items())
        if name.startswith("generalist.") and getattr(module, "target_platform", None) is target_platform
    ]
    # These three ask the GPU and the cuDNN at hand.
    patches.append(mock.patch.object(cudnn, "check_cudnn_version", lambda *_: 92000))
    patches.append(mock.patch.object(cudnn, "check_compute_capability", lambda *_: True))
    patches.append(mock.patch.object(cudnn, "is_cuda_compute_capability_equal", lambda *_: False))
    for patch in patches:
        patch.start()
    spec, sizes, _ = without_data(config)
    trainer = make_trainer(spec, config.training, make_mesh(config.training, jax.devices()[:1]), weights=[1.0])
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(trainer.mesh):
        traced = jax.jit(trainer.step).trace(trainer.abstract_state, trainer.abstract_batch(sizes), key)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    mock.patch.stopall()
    return text


def functions(program: str) -> dict[str, list[str]]:
    """The lines of each function."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in program.splitlines():
        if head := re.match(r"\s*func\.func \w+ @([\w.]+)\(", line):
            name = head.group(1)
        found.setdefault(name, []).append(line)
    return found


def expanded(program: str) -> list[str]:
    """All lines in the order in which they run, calls replaced by what they call; loops once."""
    parts = functions(program)

    def of(name: str) -> list[str]:
        lines = []
        for line in parts[name]:
            called = re.search(r"\bcall @([\w.]+)\(", line)
            lines += of(called.group(1)) if called else [line]
        return lines

    return of("main")


def counts(lines: list[str]) -> Counter[str]:
    """Operations by kind."""
    return Counter({kind: sum(bool(re.search(pattern, line)) for line in lines) for kind, pattern in KERNELS.items()})


def logits(lines: list[str], vocabulary: set[int]) -> dict[str, int]:
    """Bytes of arrays of logits that are read or written whole, by type. A piece counts once, as a loop over pieces does."""
    found = dict.fromkeys(WIDTHS, 0)
    for line in lines:
        if not re.search(WHOLE, line):
            continue
        for dims, width in re.findall(r"tensor<((?:\d+x)+)(bf16|f32)>", line):
            sizes = [int(size) for size in dims[:-1].split("x")]
            if len(sizes) == 3 and sizes[-1] in vocabulary:
                found[width] += WIDTHS[width] * sizes[0] * sizes[1] * sizes[2]
    return found


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--rows", type=int, default=32)
    arguments = parser.parse_args()
    config = with_rows(preset(arguments.preset), arguments.rows)
    training = dataclasses.replace(config.training, micro_batches=1, dtype="bfloat16", data_axis=1, fsdp_axis=1)
    console = Console()
    programs = {}
    for layers in (2, 3):
        model = dataclasses.replace(config.model, layers=layers)
        programs[layers] = expanded(lowered(dataclasses.replace(config, model=model, training=training)))
    per_layer = counts(programs[3])
    per_layer.subtract(counts(programs[2]))
    for kind, number in per_layer.items():
        rest = counts(programs[2])[kind] - 2 * number
        console.print(f"{kind} per layer, forwards and backwards: {number}; in all else: {rest}")
    spec, _, _ = without_data(config)
    tables = {spec.vocabulary.text, spec.vocabulary.size - spec.vocabulary.text, spec.vocabulary.size}
    pieces = training.loss_chunks or fitting(
        config.data.length, config.data.rows * config.data.length * max(tables), "gpu"
    )
    for width, size in logits(programs[2], tables).items():
        console.print(f"logits in {width}, read or written whole: {pieces} pieces × {size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
