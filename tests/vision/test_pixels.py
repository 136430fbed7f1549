"""Image files of all kinds, read and prepared as the processors of published models do (tests/fixtures/make_pixels.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from generalist.data.images import Encoded, read_image
from generalist.vision.processor import processor
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.tower import Family

FIXTURES = Path(__file__).parent.parent / "fixtures"
SETTINGS = json.loads((FIXTURES / "pixels.json").read_text())
SIZE = 14


class Prepared(WeightsFolder):
    """A folder of which only the preparation of images is read."""

    def __init__(self, settings: dict):
        self.folder, self.settings = Path("folder"), settings

    def beside(self, name: str) -> dict:
        return self.settings if name == "preprocessor_config.json" else {}


def family(name: str) -> Family:
    return "siglip" if name.startswith(("siglip", "gemma3")) else "clip"


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_the_reference_s(name: str):
    stored = np.load(FIXTURES / "pixels.npz")
    prepare = processor(Prepared(SETTINGS[name]), family(name), SIZE, stretched=name == "idefics").preparation
    files = [one for one in stored.files if ":" not in one]
    assert len(files) == 14
    for file in files:
        found = prepare(read_image(Encoded(stored[file].tobytes(), file)))
        assert np.array_equal(found, stored[f"{name}:{file}"]), file


def test_standardisation_by_one_number_or_three():
    usual = SETTINGS["clip"]
    one = processor(Prepared(usual | {"image_mean": 0.5, "image_std": 0.25}), "clip", SIZE)
    assert (one.mean, one.deviation) == ((0.5,) * 3, (0.25,) * 3)
    plain = processor(Prepared(usual | {"do_normalize": False, "rescale_factor": 1 / 127.5}), "clip", SIZE)
    np.testing.assert_allclose(plain.deviation, 0.5)
    for wrong in ("half", True, [0.5, 0.5], float("nan"), None):
        with pytest.raises(WeightsError, match="unsupported way"):
            processor(Prepared(usual | {"image_mean": wrong}), "clip", SIZE)
