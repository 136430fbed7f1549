"""The training step on a GPU: speed, memory, the longest kernels, and what each measure against slow kernels brings.

    python benchmarks/gpu.py --json gpu.json

Within `--minutes`, of which what no longer fits is left out and named: tokens per second, utilisation and memory of Gato's and
Flamingo's published models and of GPT-2's smallest; a profile; `gato_79m` without one measure at a time; attention of packed rows
against the mask. Gato and GPT-2 train on packed rows from the loaders (cart-pole, drawings, prose: recorded in seconds),
Flamingo, whose trunk and documents are its user's, on full rows of drawn tokens. `--dry` runs tiny models on a CPU, to try the
script: its figures mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from generalist.system.files import write_json
from generalist.system.gpu_flags import jaxlib_version, use_gpu_flags, with_flags
from generalist.system.xla_flags import given_flags

MODELS = {"gato_79m": 32, "gpt2_124m": 32, "gato_364m": 32, "gato_1b": 16, "flamingo_3b": 32}
"""Rows per step, which fit 80 GB."""
FIRST = "gato_79m"
TRITON, BUFFERS = "--xla_gpu_enable_triton_gemm=false", "--xla_gpu_enable_command_buffer="
USERS = given_flags()
# Name → what the case changes, the compiler's options (None: those of a training).
MEASURES: dict[str, tuple[dict[str, Any], str | None]] = {
    "gradients of rows by XLA's scatter": ({"scatter": True}, None),
    "a loop over the layers": ({"layers_unrolled": 1}, None),
    "logits in one piece": ({"loss_chunks": 1}, None),
    "attention by a mask, without cuDNN": ({"mask": True}, None),
    "without our compiler options": ({}, USERS),
    f"with {TRITON}": ({}, with_flags(f"{USERS} {TRITON}", jaxlib_version())),
    f"with {BUFFERS} (no command buffers)": ({}, with_flags(f"{USERS} {BUFFERS}", jaxlib_version())),
}
LENGTHS = (256, 1024, 4096)


class Cases:
    """Runs cases, each in a process of its own, until the time is over."""

    def __init__(self, minutes: float, dry: bool, steps: int, folder: str):
        self.end, self.left_out = time.monotonic() + 60 * minutes, []
        self.common = {"dry": dry, "steps": 1 if dry else steps, "folder": folder}

    def run(self, title: str, case: dict[str, Any], flags: str | None = None) -> dict[str, Any] | None:
        """A case's figures; None, with the reason kept, if it failed or there was no time for it.

        Args:
            flags: the compiler's options; None: those of a training.
        """
        left = self.end - time.monotonic()
        if left < 10:
            self.left_out.append(f"{title}: no time left")
            return None
        # Else the last line of an error is JAX's remark on what it has hidden, instead of the reason.
        given = os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | ({} if flags is None else {"XLA_FLAGS": flags})
        command = [sys.executable, str(Path(__file__).with_name("gpu_case.py")), json.dumps(self.common | case)]
        try:
            done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            self.left_out.append(f"{title}: the time was over")
            return None
        if done.returncode:
            self.left_out.append(f"{title}: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
            return None
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            self.left_out.append(f"{title}: its last line is no JSON: {done.stdout[-300:]!r}")
            return None


def main() -> None:
    """Runs the cases and prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--measures", nargs="*", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS), help="of the attention's rows")
    parser.add_argument("--rows", type=int, help="rows per step of all models")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument(
        "--json", type=Path, help="where all figures go, after every case, with the card and the versions"
    )
    parser.add_argument("--dry", action="store_true", help="tiny models on a CPU")
    arguments = parser.parse_args()
    use_gpu_flags()  # for the processes of the cases, as train.py does
    if not arguments.dry:
        check_gpu()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        everything(Cases(arguments.minutes, arguments.dry, arguments.steps, folder), arguments)


def check_gpu() -> None:
    """Ends the program where JAX finds no GPU; in another process, since one that has opened the GPU keeps its memory."""
    code = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep=',')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    platform, _, kind = (done.stdout.strip().splitlines() or ["nothing,"])[-1].partition(",")
    if done.returncode:
        raise SystemExit("JAX does not start:\n" + "\n".join(done.stderr.strip().splitlines()[-5:]))
    if platform != "gpu":
        raise SystemExit(f"this needs a GPU, but JAX found {kind or platform}; --dry tries the script on a CPU")


def everything(cases: Cases, arguments: argparse.Namespace) -> None:
    """Runs and prints all that was asked for, and writes every number."""
    found: dict[str, Any] = {"models": {}, "without": {}, "attention": [], "left_out": cases.left_out}

    def rows_of(name: str) -> int:
        return arguments.rows or (4 if arguments.dry else MODELS[name])

    def keep() -> None:
        if arguments.json:  # after every case: whatever ends the program, the figures before it are there
            write_json(arguments.json, found)

    def models(names: list[str]) -> None:
        print("| model | rows × length | filled | tokens/s | MFU | GiB planned | program | peak | compile, s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in names:
            one = cases.run(name, {"name": name, "rows": rows_of(name), "profile": name == FIRST})
            if one:
                found["models"][name] = one
                print(table_row(name, one), flush=True)
                if "no_profile" in one:
                    cases.left_out.append(f"profile of {name}: {one['no_profile']}")
            keep()

    keep()
    # The larger ones last: what time leaves out is then another size, and not the effect of a measure.
    models([name for name in arguments.models if name == FIRST])
    first = found["models"].get(FIRST)
    if first:
        print(
            f"\n{first['device']}, jax {first['jax']}, jaxlib {first['jaxlib']}\n\n| kernel of {FIRST} | share |\n|---|---|"
        )
        for kernel, share in first.get("kernels", []):
            print(f"| `{kernel[:90]}` | {share:.1%} |")
        print(f"\n| {FIRST} | tokens/s | of the first line's |\n|---|---|---|")
        for title in arguments.measures:
            changed, flags = MEASURES[title]
            one = cases.run(title, {"name": FIRST, "rows": rows_of(FIRST)} | changed, flags)
            if one:
                found["without"][title] = one
                speed = one["tokens_per_second"]
                print(f"| {title} | {speed:,.0f} | {speed / first['tokens_per_second']:.2f} |", flush=True)
            keep()
    else:
        cases.left_out += [f"{title}: {FIRST} has no figures to compare with" for title in arguments.measures]
        keep()
    print(
        "\n| length | error, forward | error, gradients | mask's time / cuDNN's, forward and backward |\n|---|---|---|---|"
    )
    for length in [] if arguments.dry else arguments.lengths:  # a CPU has no such kernel
        if one := cases.run(f"attention of {length}", {"length": length}):
            found["attention"].append(one)
            print(f"| {length} | {one['forward']:.1e} | {one['gradients']:.1e} | {one['ratio']:.2f} |", flush=True)
        keep()
    print()
    models([name for name in arguments.models if name != FIRST])
    for line in cases.left_out:
        print(f"left out: {line}")


def table_row(name: str, one: dict[str, Any]) -> str:
    """One line of the table of models."""
    planned, program = one["planned_bytes"] / 2**30, one["program_bytes"] / 2**30
    peak = f"{one['peak_bytes'] / 2**30:.1f}" if one["peak_bytes"] else ""
    return (
        f"| {name} | {one['rows']} × {one['length']} | {one['filled']:.0%} | {one['tokens_per_second']:,.0f} | "
        f"{one['mfu']:.1%} | {planned:.1f} | {program:.1f} | {peak} | {one['compile_seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
