"""Speed of the training step: tokens per second, fraction of the machine's measured matmul peak, memory and compile time.

    python benchmarks/train.py --sizes 3x128 6x256 8x512 --lengths 128 512 2048 --plot docs/experiments/performance.svg
    python benchmarks/train.py --sizes 6x256 --lengths 512 --torch

A size is layers × width. Every case is a process of its own, run twice: with an empty compile cache, and with what the first run
left there. Steps alternate with matmuls and, under --torch, with steps of the same model in PyTorch, so that other work on the
machine slows all alike: shares and ratios are medians over the rounds. `--torch` needs torch, `--plot` needs matplotlib; neither
is a dependency of the project.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch, BatchSpec
from generalist.model.config import ModelConfig, ModelSpec
from generalist.system.huge_pages import use_huge_pages
from generalist.system.processes import cores
from generalist.tokenizers.vocabulary import SPECIALS, Vocabulary
from generalist.training.flops import model_flops, peak_flops
from generalist.training.token_trainer import make_trainer

HEAD = 32
VOCABULARY = 8192
WARM = 4  # untimed steps: in the first ones the system provides memory page by page


def main() -> None:
    """Runs the cases and prints a table in Markdown."""
    use_huge_pages()  # as train.py does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["6x256"], metavar="LAYERSxWIDTH")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512])
    parser.add_argument("--tokens", type=int, default=4096, help="positions per step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--torch", action="store_true", help="also run the same model in PyTorch float32, alternating with ours"
    )
    parser.add_argument("--plot", type=Path, help="write a plot of the table: .svg or .png")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="model.remat='\"none\"', training.loss_chunks=1, ..., as JSON",
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case), arguments)))
        return
    rows = []
    columns = [*COLUMNS, *(["PyTorch's time / ours"] if arguments.torch else [])]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for size in arguments.sizes:
        for length in arguments.lengths:
            rows.append(both(size, length))
            print(describe(rows[-1], arguments.torch), flush=True)
    if arguments.plot:
        plot(rows, arguments.plot)


COLUMNS = (
    "model",
    "length",
    "tokens/s",
    "MFU, full attention",
    "MFU, causal",
    "peak memory, MiB",
    "compile, s",
    "from the cache, s",
)


def describe(row: dict[str, Any], torch: bool) -> str:
    """One line of the table."""
    model = f"{row['size']}, {row['parameters'] / 1e6:.1f} M"
    ratio = f" {row['torch_ratio']:.2f} |" if torch else ""
    return (
        f"| {model} | {row['length']} | {row['tokens_per_second']:.0f} | {row['full']:.1%} | {row['causal']:.1%} "
        f"| {row['memory']:.0f} | {row['compile']:.1f} | {row['cached']:.1f} |{ratio}"
    )


def both(size: str, length: int) -> dict[str, Any]:
    """Runs a case in a separate process with a cold compile cache, and compiles it once more with a warm one."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

        def run(only_compile: bool) -> dict[str, Any]:
            case = json.dumps({"size": size, "length": length, "only_compile": only_compile})
            done = subprocess.run(
                [sys.executable, *sys.argv, "--case", case],
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            return json.loads(done.stdout.splitlines()[-1])

        cold = run(only_compile=False)
        return cold | {"cached": run(only_compile=True)["compile"]}


def chosen(settings: list[str], part: str) -> dict[str, Any]:
    """The values of `--set` for a part of the settings, model or training."""
    pairs = (pair.split("=") for pair in settings)
    return {name.removeprefix(part): json.loads(value) for name, value in pairs if name.startswith(part)}


def make_spec(size: str, settings: list[str]) -> ModelSpec:
    """The model of a size: heads of 32, a gated feed-forward four times as wide as the model, 8192 tokens."""
    layers, width = map(int, size.split("x"))
    shape = {"heads": width // HEAD, "kv_heads": width // HEAD, "head_size": HEAD, "hidden": 4 * width}
    return ModelSpec(
        config=ModelConfig(**({"width": width, "layers": layers, **shape} | chosen(settings, "model."))),
        vocabulary=Vocabulary(text=VOCABULARY - len(SPECIALS), continuous=0, discrete=0),
        projection_width=0,
        patches=False,
        frames=False,
    )


def make_batch(spec: BatchSpec, vocabulary: Vocabulary) -> Batch:
    """Full rows of random text."""
    zeros = spec.zeros(vocabulary.pad)
    tokens = np.random.default_rng(0).integers(0, vocabulary.text, (spec.rows, spec.length)).astype(np.int32)
    return dataclasses.replace(
        zeros,
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_weight=np.ones(tokens.shape, np.float32),
        modality=np.zeros_like(tokens),
        position=np.broadcast_to(np.arange(spec.length, dtype=np.int32), tokens.shape).copy(),
        segment=np.ones_like(tokens),
    )


def measure(case: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles a case and times its steps, unless only compilation was requested."""
    spec = make_spec(case["size"], arguments.set)
    sizes = BatchSpec(
        rows=max(1, arguments.tokens // case["length"]),
        length=case["length"],
        tensors=0,
        projection_width=0,
        frames=0,
        frame_size=spec.config.frame_size,
    )
    training = TrainingConfig(**chosen(arguments.set, "training."))
    trainer = make_trainer(spec, training, weights=[1.0])
    state, key = trainer.initialize({}), jax.random.key(0)
    batch = trainer.place(make_batch(sizes, spec.vocabulary))
    with jax.set_mesh(trainer.mesh):
        begun = time.perf_counter()
        compiled = trainer.step.lower(state, batch, key).compile()
        found = {"size": case["size"], "length": case["length"], "compile": time.perf_counter() - begun}
        if case["only_compile"]:
            return found

        def ours() -> None:
            nonlocal state
            state, metrics = compiled(state, batch, key)
            jax.block_until_ready((state, metrics))

        for _ in range(WARM):
            ours()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the process, before torch is imported
        theirs = torch_step(spec.config, training, batch) if arguments.torch else None
        if theirs:
            for _ in range(WARM):
                theirs()
        rounds = [one_round(ours, theirs) for _ in range(arguments.rounds)]
    seconds, peaks, other = np.array(rounds).T
    flops = model_flops(spec, sizes, state.params, state.frozen)
    of_half = (
        6 * spec.config.layers * sizes.length * spec.config.heads * spec.config.head_size * sizes.rows * sizes.length
    )
    return found | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "tokens_per_second": sizes.rows * sizes.length / float(np.median(seconds)),
        "causal": float(np.median(flops / seconds / peaks)),
        "full": float(np.median((flops + of_half) / seconds / peaks)),
        "memory": memory,
        "torch_ratio": float(np.median(other / seconds)),
    }


def one_round(ours: Callable[[], None], theirs: Callable[[], None] | None) -> tuple[float, float, float]:
    """Seconds of our step, the peak in FLOP/s just before and after it, and seconds of the other step (0 without one)."""

    def seconds(step: Callable[[], None]) -> float:
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    before = peak_flops()
    own = seconds(ours)
    return own, max(before, peak_flops()), seconds(theirs) if theirs else 0.0


def torch_step(config: ModelConfig, training: TrainingConfig, batch: Batch) -> Callable[[], None]:
    """A training step of the same model in PyTorch: the same shapes, norms, rotary positions, gates, clipping and AdamW, with
    its own fused attention and optimizer; without the z-loss and the counts that our step computes besides the loss."""
    try:
        import torch
        from torch.nn import functional
    except ImportError as error:
        raise SystemExit("--torch needs PyTorch: pip install torch") from error
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    width, inner, heads, size = config.width, config.heads * config.head_size, config.heads, config.head_size

    class Norm(torch.nn.Module):
        def __init__(self, size: int):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(size))

        def forward(self, x):
            return functional.rms_norm(x, self.scale.shape, self.scale, 1e-6)

    def linear(inputs: int, outputs: int):
        return torch.nn.Linear(inputs, outputs, bias=False)

    half = size // 2
    angle = torch.outer(torch.arange(batch.tokens.shape[1]), config.rope.base ** (-torch.arange(half) / half))
    cos, sin = angle.cos(), angle.sin()

    def rotate(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList([Norm(width), Norm(width), Norm(size), Norm(size)])
            self.qkv, self.out = linear(width, 3 * inner), linear(inner, width)
            self.up, self.down = linear(width, 2 * config.hidden), linear(config.hidden, width)

        def forward(self, x):
            rows, length, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            q, k = rotate(self.norms[2](q)), rotate(self.norms[3](k))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, inner))
            gate, value = self.up(self.norms[1](x)).chunk(2, dim=-1)
            return x + self.down(functional.gelu(gate, approximate="tanh") * value)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = torch.nn.Embedding(VOCABULARY, width)
            torch.nn.init.normal_(self.tokens.weight, std=width**-0.5)
            self.positions = torch.nn.Embedding(config.local_positions, width)
            self.blocks = torch.nn.ModuleList([Block() for _ in range(config.layers)])
            self.norm = Norm(width)

        def forward(self, tokens, places):
            x = self.tokens(tokens) * width**0.5 + self.positions(places)
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

    model = Model()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-3,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )
    tokens, targets, places = (
        torch.from_numpy(np.array(array)).long() for array in (batch.tokens, batch.targets, batch.local_position)
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(tokens, places).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()

    return step


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Fractions of the peak by length, one line per size."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for size in dict.fromkeys(row["size"] for row in rows):
        line = sorted((row["length"], row["full"]) for row in rows if row["size"] == size)
        axes.plot(*zip(*line, strict=True), marker="o", label=size)
    axes.set(xscale="log", ylim=(0, None), xlabel="positions a row", ylabel="share of the matmul peak")
    axes.set_xticks([row["length"] for row in rows], [str(row["length"]) for row in rows])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.minorticks_off()
    axes.legend(title="layers × width")
    figure.savefig(path)


if __name__ == "__main__":
    main()
