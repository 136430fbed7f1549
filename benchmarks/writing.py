"""Speed and memory of writing text, with fresh weights of GPT-2 small's shape that are loaded from a folder.

    python benchmarks/writing.py
    python benchmarks/writing.py --rows 8 --dtype bfloat16

Each measurement is a process of its own: it imports, loads the folder, reads equal prompts and writes. Its peak memory is counted
from the end of the imports and compared with what must be there, the weights in the folder's dtype and the caches.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from generalist.config.presets import debug
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import _begin
from generalist.inference.sampling import Decoding
from generalist.inference.writing import write
from generalist.model.config import ModelConfig
from generalist.model.transformer import create
from generalist.run.tokenizers import Tokenizers
from generalist.system.compilation_cache import use_compilation_cache
from generalist.system.huge_pages import use_huge_pages
from generalist.tokenizers.text import TextTokenizer

WIDTH, LAYERS, HEADS, PIECES = 768, 12, 12, 50257
MODEL = ModelConfig(
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=HEADS,
    head_size=WIDTH // HEADS,
    hidden=4 * WIDTH,
    activation="gelu",
    norm="layer",
    qkv_bias=True,
    bias=True,
    qk_norm=False,
    learned_positions=1024,
    embedding_scale=1.0,
)


def save(folder: Path, dtype: str) -> None:
    """Writes a folder of fresh weights whose text never ends by itself."""
    base = debug()
    tokens, data = (
        dataclasses.replace(base.tokens, text_pieces=PIECES),
        dataclasses.replace(base.data, length=MODEL.learned_positions),
    )
    config = dataclasses.replace(base, tokens=tokens, data=data, model=MODEL)
    text = TextTokenizer.train(["a robot moves the red block to the left of the green one"] * 20, 400)
    tokenizers = Tokenizers(config=config, text=text, layouts={}, projection_width=0)
    graph, params = nnx.split(create(tokenizers.model_spec(), 0), nnx.Param)
    params = nnx.to_pure_dict(params)
    # The likeliest of hundreds of random logits is above 0, which is the logit of a row of zeros.
    ends = np.array([config.tokens.vocabulary().eos, config.tokens.vocabulary().chunk_end]) - PIECES
    params["tokens"]["other"] = params["tokens"]["other"].at[ends].set(0.0)
    generalist = Generalist(tokenizers, graph, params, 0)
    generalist.save(folder, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


def measure(folder: Path, rows: int, prompt: int, tokens: int, turns: int) -> dict[str, float]:
    """Loads, reads and writes; times in seconds, memory in MiB."""
    jax.devices()  # the platform's own memory belongs to the imports
    begun = memory("VmRSS")
    started = time.perf_counter()
    generalist = Generalist.load(folder)
    loaded = time.perf_counter() - started
    text = "a"
    while len(generalist.assembler.document([text + " robot"], is_open=True)) <= prompt:
        text += " robot"
    prompts = [[text]] * rows

    def times() -> tuple[float, float]:
        """Seconds to the first id, and from there to the last."""
        started = time.perf_counter()
        steps = write(generalist, *_begin(generalist, prompts, None, tokens)[:2], Decoding(tokens=tokens), tokens)
        next(steps)
        first = time.perf_counter()
        assert sum(1 for _ in steps) == tokens - 1, "a text has ended early"
        return first - started, time.perf_counter() - first

    times()  # compiles
    first, writing = np.median([times() for _ in range(turns)], axis=0)
    cells = rows * (prompt + tokens) * WIDTH * LAYERS * 2
    return {
        "load": loaded,
        "first": float(first),
        "rate": float(rows * (tokens - 1) / writing),
        "peak": memory("VmHWM") - begun,
        "needed": ((folder / "model.safetensors").stat().st_size + cells * 4) / 2**20,
    }


def memory(field: str) -> float:
    """MiB of memory that this process has now (`VmRSS`), or had at most (`VmHWM`). What `resource` gives as the most may be that
    of the process that started this one."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="numbers of prompts that are read together")
    parser.add_argument("--prompt", type=int, default=256, help="positions of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="ids that are written after each prompt")
    parser.add_argument("--turns", type=int, default=3, help="repetitions, of which the median is reported")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the folder's weights")
    parser.add_argument(
        "--folder", type=Path, help="of the weights, kept; written if it is missing (default: a temporary one)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_huge_pages()
    use_compilation_cache()
    if arguments.worker:
        found = measure(arguments.folder, arguments.rows[0], arguments.prompt, arguments.tokens, arguments.turns)
        print(json.dumps(found))
        return
    table = Table(
        "rows", "load, s", "first id, ms", "ids/s", "peak beyond imports, MiB", "weights + caches, MiB", "ratio"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "model"
        if not folder.exists():
            save(folder, arguments.dtype)
        for rows in arguments.rows:
            worker = [sys.executable, __file__, "--worker", "--folder", str(folder), "--rows", str(rows)]
            for name in ("prompt", "tokens", "turns"):
                worker += [f"--{name}", str(getattr(arguments, name))]
            output = subprocess.run(worker, check=True, stdout=subprocess.PIPE, text=True).stdout
            one = json.loads(output.splitlines()[-1])
            table.add_row(
                str(rows),
                f"{one['load']:.1f}",
                f"{1000 * one['first']:.0f}",
                f"{one['rate']:.1f}",
                f"{one['peak']:.0f}",
                f"{one['needed']:.0f}",
                f"{one['peak'] / one['needed']:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
