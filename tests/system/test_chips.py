"""The table of chips: found by the names that JAX reports, and by no other."""

import jax
import pytest

from generalist.system.chips import GPUS, TPUS, chip_of
from generalist.training import flops


@pytest.mark.parametrize(
    ("kind", "name", "teraflops"),
    [
        ("TPU v3", "v3", 61.5),
        ("TPU v4", "v4", 275),
        ("TPU v5 lite", "v5e", 197),
        ("TPU v5e", "v5e", 197),
        ("TPU v5", "v5p", 459),
        ("TPU v5p", "v5p", 459),
        ("TPU v6 lite", "v6e", 918),
        ("NVIDIA A100-SXM4-40GB", "a100", 312),
        ("NVIDIA A100-PCIE-40GB", "a100", 312),
        ("NVIDIA A100 80GB PCIe", "a100", 312),
        ("NVIDIA H100 80GB HBM3", "h100", 989),
        ("NVIDIA H100 PCIe", "h100-pcie", 756),
        ("NVIDIA H100 NVL", "h100-nvl", 835),
        ("NVIDIA H200", "h200", 989),
        ("NVIDIA H200 NVL", "h200-nvl", 835),
        ("NVIDIA L4", "l4", 121),
        ("NVIDIA L40S", "l40s", 362),
        ("NVIDIA GeForce RTX 3090", "rtx3090", 71),
        ("NVIDIA GeForce RTX 4090", "rtx4090", 165),
    ],
)
def test_a_device_is_found_by_its_kind(kind: str, name: str, teraflops: float):
    chip = chip_of(kind)
    assert chip is not None
    assert (chip.name, chip.flops) == (name, teraflops * 1e12)


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA L40", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100", "TPU v7"],
)
def test_a_variant_is_no_row_of_the_table(kind: str):
    """Its peak is another; training then measures it."""
    assert chip_of(kind) is None


def test_every_row_has_a_kind():
    assert all(chip.kind and chip.flops and chip.memory and chip.bandwidth for chip in (TPUS | GPUS).values())


def test_a_peak_is_that_of_the_devices_at_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flops, "chip_of", lambda _: GPUS["h100"])
    assert flops.peak_flops(jax.devices()[:1]) == GPUS["h100"].flops
    assert flops.peak_flops() == jax.device_count() * GPUS["h100"].flops
