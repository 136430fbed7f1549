"""Presets: those of the papers have the published numbers of parameters."""

import pytest
from flax import nnx

from generalist.config import PRESETS, preset
from generalist.model.config import ModelSpec
from generalist.model.transformer import count_parameters, create


@pytest.mark.parametrize(("name", "published"), [("gato_79m", 79e6), ("gato_364m", 364e6), ("gato_1b", 1.18e9)])
def test_gato_s_published_sizes(name: str, published: float):
    config = preset(name)
    spec = ModelSpec(
        config=config.model, vocabulary=config.tokens.vocabulary(), projection_width=0, patches=True, frames=False
    )
    count = count_parameters(nnx.state(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param))
    assert abs(count / published - 1) < 0.03


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name: str):
    config = preset(name)
    assert config.name == name
    assert sum(suite.weight for suite in config.data.control().values()) > 0


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'pocket'"):
        preset("pockt")
