"""`generalist plan`: estimates the memory and time that a preset needs on a machine that need not be present."""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from generalist.plan.target import Target, open_devices, parse_target, prepare_environment
from generalist.system.places import check_file

if TYPE_CHECKING:
    from generalist.config.run import Config

DESCRIPTION = """Compiles the real training step of a preset for a TPU slice (with the extra tpu, but without a TPU) or for
simulated CPU devices, and prints parameters, memory per device, estimated time, tokens/s, utilisation and exchanges between
devices. For a single GPU, estimates the memory by arithmetic. With --inference, plans writing of text instead. Any setting of
train.py may follow, such as --data.rows 256 --training.tensor-axis 4."""
SERVING = ("rows", "context", "weights_type", "cache_type", "mesh")
"""The options of --inference."""
EVERY = 15.0  # seconds between the lines that are printed while the compiler works


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist plan`; all others are settings of the preset."""
    parser.add_argument(
        "preset",
        help="a preset such as gato_1b (train.py --help lists them); with --inference also the folder of a published language "
        "model",
    )
    parser.add_argument(
        "--topology", help="a TPU slice such as v4:4x4x8, v5e:16x16, v5p:4x4x8 or v6e:16x16, of any size that exists"
    )
    parser.add_argument(
        "--devices", help="cpu:8 (simulated), or one GPU by arithmetic: gpu:24GiB, h100, a100, l40s, rtx4090 ..."
    )
    parser.add_argument(
        "--search", action="store_true", help="try meshes and rows per step; propose the best that fits"
    )
    parser.add_argument("--tries", type=int, default=4, help="number of candidates that --search compiles (default 4)")
    parser.add_argument(
        "--inference", action="store_true", help="plan writing of text instead of training: weights, caches, tokens/s"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="with --inference: texts at a time (default 1)")
    parser.add_argument(
        "--context", type=int, metavar="N", help="with --inference: positions of each (default: the model's context)"
    )
    parser.add_argument(
        "--weights-type",
        choices=("bfloat16", "float16", "float32", "int8"),
        help="with --inference: type of the weights (default bfloat16)",
    )
    parser.add_argument(
        "--cache-type",
        choices=("float32", "bfloat16", "float16"),
        help="with --inference: type of keys and values (default: a published model's as its weights, else float32)",
    )
    parser.add_argument(
        "--mesh", metavar="AXIS=N", help="with --inference: such as tensor=4 (default: all devices along tensor)"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to as well")
    parser.add_argument("--hlo", type=Path, help="file to write the compiled program to; not with --search or a GPU")


def run(arguments: argparse.Namespace, settings: list[str], console: Console) -> int:
    """Plans; returns the exit status: 0 if the step fits the devices, 2 if it does not.

    Raises:
        ValueError, ImportError: with a message for the user.
    """
    for path, option in ((arguments.json, "--json"), (arguments.hlo, "--hlo")):
        if path is not None:
            check_file(path, option)
    target = parse_target(arguments.topology, arguments.devices)
    given = {name: value for name in SERVING if (value := getattr(arguments, name)) is not None}
    if given and not arguments.inference:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} is for plans of inference: add --inference")
    if arguments.inference:
        return _inference(arguments, settings, target, given, console)
    if arguments.search and target.slice is None:
        raise ValueError(
            "--search compares speeds, which are known only for a --topology; for one GPU the plan always gives the largest "
            "rows that fit"
        )
    if arguments.hlo and (arguments.search or target.platform == "gpu"):
        raise ValueError(
            "--hlo writes the program that a plan compiles, but --search compiles several and a plan of a GPU none: leave it out"
        )
    if arguments.tries < 1:
        raise ValueError(f"--tries must be at least 1, got {arguments.tries}")
    prepare_environment(target)  # before JAX is imported, which reads these variables
    config = read_config(arguments.preset, settings)
    console.print(f"plan of {arguments.preset} for {target.name}: loading JAX ...", highlight=False)
    return (
        _gpu(config, target, arguments, console)
        if target.platform == "gpu"
        else _plan(config, target, arguments, console)
    )


def read_config(name: str, settings: list[str]) -> "Config":
    """The preset with the settings that follow it; a folder given as trunk determines the shape of the model."""
    from generalist.config.presets import preset
    from generalist.experiment.inherit import parse
    from generalist.model.config import REQUIRED
    from generalist.run.drawn import with_image_tokenizer
    from generalist.run.trunk import with_trunk

    config = parse(preset(name), settings, prog=f"generalist plan {name}")
    # A preset's own shape stands for a folder that is not given.
    return with_image_tokenizer(config if config.model.trunk == REQUIRED else with_trunk(config))


def _inference(
    arguments: argparse.Namespace, settings: list[str], target: Target, given: dict[str, Any], console: Console
) -> int:
    """Plans writing of text.

    Raises:
        ValueError: as `run`, for options of training alone, and for a mesh on a single GPU.
    """
    if arguments.search or arguments.hlo:
        raise ValueError("--search and --hlo are for plans of training: leave them out with --inference")
    if target.platform == "gpu" and "mesh" in given:
        raise ValueError("--mesh is for several devices, and a GPU is planned alone: leave it out")
    prepare_environment(target)
    folder = Path(arguments.preset)
    config = None if folder.is_dir() else read_config(arguments.preset, settings)
    if config is None and settings:
        raise ValueError(f"a published model has no settings of a preset: leave out {' '.join(settings)}")
    console.print(f"plan of inference with {arguments.preset} for {target.name}: loading JAX ...", highlight=False)
    from generalist.plan.inference import Serving, arithmetic, compiled, subject
    from generalist.plan.program import OutOfMemory
    from generalist.plan.report import show_served

    weights_type = given.get("weights_type", "bfloat16")
    stored = "bfloat16" if weights_type == "int8" else weights_type  # all but the layers' kernels
    spec, length, encoder = subject(folder if config is None else config, stored)
    # As `Weights.cache_dtype` has it.
    serving = Serving(**{"context": length, "cache_type": stored if config is None else "float32", **given})
    if target.platform == "gpu":
        found = arithmetic(spec, serving, target, encoder)
    else:
        with working(console, "compiling"):
            try:
                found = compiled(spec, serving, target, open_devices(target), encoder)
            except OutOfMemory as error:
                console.print(f"it does not fit: {error}", style="bold red", highlight=False, markup=False)
                return 2
    show_served(serving, found, console)
    _write(arguments, target, found.plain(), console)
    return 0 if found.fits else 2


def _plan(config: "Config", target: Target, arguments: argparse.Namespace, console: Console) -> int:
    """Plans with the compiler, for a TPU slice or simulated devices."""
    from generalist.plan.estimate import estimate
    from generalist.plan.report import show, show_found
    from generalist.plan.search import search
    from generalist.run.shapes import without_data

    devices = open_devices(target)
    console.print("shapes of the model and of its batches ...", highlight=False)
    shapes = without_data(config)  # makes one environment per layout, to see its spaces
    config = _decided(config, shapes, devices, target, console)
    with working(console, "compiling") as say:
        if arguments.search:
            found = search(config, shapes, target, devices, arguments.tries, say)
            best, result = found[0]
            config = best.config
        else:
            result = estimate(config, shapes, target, devices, arguments.hlo)
    if arguments.search:
        show_found(found, console)
    show(config, target, result, console)
    _write(arguments, target, result.plain(), console)
    return 0 if result.fits else 2


def _gpu(config: "Config", target: Target, arguments: argparse.Namespace, console: Console) -> int:
    """Plans for one GPU by arithmetic: XLA compiles for a GPU only where there is one."""
    import dataclasses

    from generalist.plan.memory import arithmetic, largest_rows
    from generalist.plan.report import show_arithmetic
    from generalist.run.shapes import without_data

    shapes = without_data(config)
    config = _decided(config, shapes, None, target, console)
    found = arithmetic(config, *shapes, limit=target.memory)
    most = largest_rows(config, *shapes, target.memory or 0.0)
    show_arithmetic(config, found, most, console)
    values = {**dataclasses.asdict(found), "total": found.total, "fits": found.fits, "largest_rows": most}
    _write(arguments, target, values, console)
    return 0 if found.fits else 2


def _decided(config: "Config", shapes: Any, devices: Any, target: Target, console: Console) -> "Config":
    """The settings with the number of micro-batches that a run on these devices would choose."""
    from generalist.plan.micro_batches import decided

    found = decided(config, shapes, devices, target.memory)
    if found is not config:
        console.print(f"training.micro_batches = auto: {found.training.parts}", highlight=False)
    return found


def _write(arguments: argparse.Namespace, target: Target, values: dict[str, Any], console: Console) -> None:
    """Writes the figures to the file of --json, if it is given."""
    if arguments.json is None:
        return
    from generalist.system.files import write_json

    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.json, {"preset": arguments.preset, "target": target.name, **values})
    console.print(f"all figures: {arguments.json}", highlight=False)


@contextmanager
def working(console: Console, what: str) -> Iterator[Any]:
    """Prints a line with the time spent every few seconds; gives a function that prints other lines.

    Args:
        what: is being done.
    """
    # XLA reports no progress, and a large program compiles for minutes: without a line, the command would look stuck.
    begun, ended = time.perf_counter(), threading.Event()

    def say(line: str) -> None:
        console.print(f"{time.perf_counter() - begun:4.0f} s  {line}", highlight=False, markup=False, soft_wrap=True)

    def repeat() -> None:
        say(f"{what} ...")
        while not ended.wait(EVERY):
            say(f"{what} ...")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        ended.set()
        thread.join()
