"""Checks that every mesh of eight devices (data × fsdp × tensor × sequence) gives the losses of one device.

    python benchmarks/meshes.py --steps 20

Trains the model of the tests in float32 on simulated devices and prints how far each mesh's losses are from one device's.
"""

import argparse
import itertools
import math
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX starts
os.environ["JAX_PLATFORMS"] = "cpu"

import importlib.util
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent.parent / "tests" / "training" / "test_step.py"


def main() -> None:
    """Runs every mesh and prints its losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("test_step", TESTS)
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    one = np.array(tests.losses(tests.on_one_device(), arguments.steps))
    worst = 0.0
    for sizes in itertools.product((1, 2, 4, 8), repeat=4):
        if math.prod(sizes) == 8:
            found = np.array(tests.losses(tests.trainer_on(*sizes), arguments.steps))
            apart = float(np.abs(found - one).max())
            worst = max(worst, apart)
            print(" × ".join(map(str, sizes)), f"first {abs(found[0] - one[0]):.1e}, largest {apart:.1e}", flush=True)
    print(f"largest of all: {worst:.1e}, of losses from {one[0]:.3f} to {one[-1]:.3f}")


if __name__ == "__main__":
    main()
