"""Presets: those of the papers have the published numbers of parameters."""

import dataclasses

import jax
import pytest
from flax import nnx

from generalist.config.presets import PRESETS, preset
from generalist.config.run import check_complete
from generalist.model.transformer import count_parameters, create
from generalist.model.tuned import divided
from generalist.plan.estimate import abstract_parameters
from generalist.run.shapes import without_data
from generalist.vision.vit import SO400M

# In millions: the frozen language model, its gated layers, the resampler, the encoder, and all (Flamingo, table 5).
FLAMINGO = {
    "flamingo_3b": (1_400, 1_200, 194, 435, 3_200),
    "flamingo_9b": (7_100, 1_600, 194, 435, 9_300),
    "flamingo_80b": (70_000, 10_000, 194, 435, 80_600),
}


def shapes(name: str) -> dict:
    spec, _, _ = without_data(preset(name))
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param))


@pytest.mark.parametrize(("name", "published"), [("gato_79m", 79e6), ("gato_364m", 364e6), ("gato_1b", 1.18e9)])
def test_gato_s_published_sizes(name: str, published: float):
    assert abs(count_parameters(shapes(name)) / published - 1) < 0.03


@pytest.mark.parametrize("name", FLAMINGO)
def test_flamingo_s_published_sizes(name: str):
    params = shapes(name)
    trained, frozen = divided(params, preset(name).model)
    encoder = count_parameters(without_data(preset(name))[2].params)
    # SigLIP's own count has its pooling head too, which a grid of features does without: one more layer, and a query.
    width, hidden = SO400M.width, SO400M.hidden
    head = 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 3 * width
    parts = (
        count_parameters(frozen),
        count_parameters(trained["visual"]["gated"]),
        count_parameters(trained["visual"]["resampler"]),
        encoder + head,
        count_parameters(params) + encoder,
    )
    assert [abs(part / 1e6 / count - 1) < 0.03 for part, count in zip(parts, FLAMINGO[name], strict=True)] == [True] * 5
    assert set(frozen) == {"blocks", "final_norm", "tokens"}


@pytest.mark.parametrize(("name", "published"), [("gemma3_agent", 3_883e6), ("smollm_agent", 361.8e6)])
def test_agents_have_the_published_language_models_and_train_little(name: str, published: float):
    spec, _, _ = without_data(preset(name))
    trained, frozen = abstract_parameters(spec, preset(name).training.tuning)
    assert abs(count_parameters(frozen) / published - 1) < 0.001
    assert count_parameters(trained) < 0.06 * published
    with pytest.raises(ValueError, match=rf"{name} needs --training.start FOLDER \((a language model|a Gemma 3.*)\);"):
        check_complete(preset(name))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name: str):
    config = preset(name)
    assert config.name == name
    assert config.data.taking_part


@pytest.mark.parametrize("name", FLAMINGO)
def test_what_only_the_user_has_is_asked_for(name: str):
    with pytest.raises(
        ValueError, match=rf"{name} needs --model.trunk FOLDER .*--model.vision.encoder .*--data.documents"
    ):
        check_complete(preset(name))
    check_complete(preset("pocket"))


def test_shapes_need_no_data():
    spec, batch, encoder = without_data(preset("debug"))
    assert encoder is None
    assert (batch.rows, batch.length, batch.frames) == (8, 128, 64)
    assert batch.projection_width == spec.projection_width > 0
    assert spec.action_dimensions == batch.actions == 0
    tokens = dataclasses.replace(preset("debug").tokens, actions="parallel")
    spec, batch, _ = without_data(dataclasses.replace(preset("debug"), tokens=tokens))
    # Arms have actions of four numbers; all other tasks have choices.
    assert spec.action_dimensions == batch.action_dimensions == 4 and batch.actions == 1280
    spec, batch, encoder = without_data(preset("flamingo_3b"))
    assert encoder is not None
    assert (spec.channels, spec.frames, batch.image_shape) == (1152, False, (224, 224, 3))
    features = jax.eval_shape(
        encoder.apply, encoder.params, jax.ShapeDtypeStruct((2, *batch.image_shape), batch.image_dtype)
    )
    assert features.shape == (2, encoder.cells, encoder.channels)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'pocket'"):
        preset("pockt")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"images": "projected"}, "tokens.images = projected needs a frozen encoder"),
        ({"images": "projected", "documents": "encoder"}, "exclude each other"),
        ({"documents": "projected", "images": "encoder"}, "exclude each other"),
        ({"documents": "projected"}, "tokens.documents = projected needs a frozen encoder"),
    ],
)
def test_images_that_cannot_be_projected_are_refused(tokens: dict[str, str], message: str):
    config = preset("debug")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, **tokens))
