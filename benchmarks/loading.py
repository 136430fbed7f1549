"""Memory of loading a published language model, whole on one device and part by part on a mesh, of a folder that is generated.

    python benchmarks/loading.py
    python benchmarks/loading.py --gigabytes 0.5 --mesh tensor=2

The folder has random bfloat16 weights of Llama's shape. Each measurement is a process of its own. A CPU's simulated devices hold
their parts in this machine's memory too, so the host's share is the peak less what the process had before and less the weights
that it has in the end. The bound is the largest tensor and a tenth of the folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from generalist.system.files import write_json
from generalist.system.xla_flags import given_flags
from generalist.weights.folder import save_shards

WIDTH, HIDDEN, HEADS, KV_HEADS, ROWS = 2048, 5632, 16, 4, 32000
KV = KV_HEADS * (WIDTH // HEADS)
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV, WIDTH),
    "self_attn.v_proj": (KV, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
}
TOKENIZER = Path(__file__).parent.parent / "tests" / "fixtures" / "language" / "llama" / "tokenizer.json"


def tensors(layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Random tensors under their names, one at a time."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (ROWS, WIDTH), "model.norm": (WIDTH,), "lm_head": (ROWS, WIDTH)}
    shapes |= {f"model.layers.{at}.{name}": shape for at in range(layers) for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape, np.float32) * WIDTH**-0.5
        yield f"{name}.weight", drawn.astype(ml_dtypes.bfloat16)


def write(folder: Path, gigabytes: float) -> None:
    """Writes a folder of about that many gigabytes."""
    of_layer = 2 * sum(int(np.prod(shape)) for shape in LAYER.values())
    layers = max(1, round((gigabytes * 1e9 - 4 * ROWS * WIDTH) / of_layer))
    folder.mkdir(parents=True)
    settings = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": ROWS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    write_json(folder / "config.json", settings)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    save_shards(tensors(layers), folder, int(1e9))


def status(name: str) -> float:
    """MiB of this process, by the name in Linux' table."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) / 1024


def measure(folder: Path, places: dict[str, str]) -> dict[str, float]:
    """Loads; memory in MiB."""
    import jax

    from generalist.inference.generalist import Generalist

    jax.block_until_ready(jax.numpy.zeros(1))  # the platform's own memory belongs to the imports
    begun, started = status("VmRSS"), time.perf_counter()
    model = Generalist.load(folder, **places)
    seconds, leaves = time.perf_counter() - started, jax.tree.leaves(model.params)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards) / 2**20
    most = max(
        sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device == device)
        for device in jax.devices()
    )
    return {"seconds": seconds, "held": held, "device": most / 2**20, "host": status("VmHWM") - begun - held}


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the folder (default 2)")
    parser.add_argument("--mesh", nargs="+", default=["tensor=4", "tensor=8"], help="meshes beside one device")
    parser.add_argument("--folder", type=Path, help="kept; written if it is missing (default: a temporary one)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(measure(arguments.folder, json.loads(arguments.worker))))
        return
    table = Table("places", "load, s", "weights, MiB", "largest device, MiB", "host beyond weights, MiB", "bound, MiB")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "model"
        if not folder.exists():
            write(folder, arguments.gigabytes)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        bound = (2 * ROWS * WIDTH + size / 10) / 2**20
        cases: list[dict[str, str]] = [{}, {"weights_type": "int8"}, *({"mesh": mesh} for mesh in arguments.mesh)]
        for places in cases:
            count = int(np.prod([int(part.partition("=")[2]) for part in places.get("mesh", "=1").split(",")]))
            flags = f"{given_flags()} --xla_force_host_platform_device_count={count}"
            worker = [sys.executable, __file__, "--folder", str(folder), "--worker", json.dumps(places)]
            output = subprocess.run(
                worker, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": flags}
            ).stdout
            one = json.loads(output.splitlines()[-1])
            name = ", ".join(places.values()) or "one device"
            numbers = (f"{one[key]:,.0f}" for key in ("held", "device", "host"))
            table.add_row(name, f"{one['seconds']:.1f}", *numbers, f"{bound:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
