"""Images as positions of the sequence: where their features go, the grid that is averaged, and blocks in attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from generalist.data.batch import Batch
from generalist.inference.rows import side_by_side, stack_rows
from generalist.model.attend import Packed, attend_packed
from generalist.model.config import ModelConfig, ModelSpec, VisionConfig
from generalist.model.masks import Blocks, attention_mask
from generalist.model.projector import ImageProjector, image_positions, pooled
from generalist.model.transformer import Transformer, create
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

CELLS, CHANNELS, POSITIONS = 16, 6, 4
VOCABULARY = Vocabulary(text=270, continuous=4, discrete=4)


class Grid:
    """Shows an image as a grid of features that its first pixel decides."""

    empty = np.zeros((0, CELLS, CHANNELS), np.float16)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rng = [np.random.default_rng(int(image.flat[0])) for image in images]
        return np.stack([one.normal(size=(CELLS, CHANNELS)) for one in rng]).astype(np.float16)


def assembler(both_ways: bool = True) -> Assembler:
    return Assembler(
        vocabulary=VOCABULARY,
        text_tokenizer=TextTokenizer.train(["a red dog and a cat"], 270),
        images="projected",
        visual=Grid(),
        image_positions=POSITIONS,
        both_ways=both_ways,
    )


def image(number: int) -> np.ndarray:
    return np.full((5, 7, 3), number, np.uint8)


def model(**settings) -> Transformer:
    vision = VisionConfig(encoder="some", positions=POSITIONS, projector_hidden=8)
    config = ModelConfig(width=16, layers=3, heads=2, head_size=8, hidden=20, vision=vision, **settings)
    spec = ModelSpec(
        config=config,
        vocabulary=VOCABULARY,
        projection_width=0,
        patches=False,
        frames=False,
        channels=CHANNELS,
        projected=True,
    )
    return create(spec, 0)


def embed(opened: Transformer, batch: Batch) -> np.ndarray:
    return np.asarray(opened.embed(jax.device_put(batch), jnp.float32))


def hidden(opened: Transformer, batch: Batch) -> np.ndarray:
    graph, state = nnx.split(opened)
    return np.asarray(jax.jit(lambda state, batch: nnx.merge(graph, state).hidden(batch))(state, batch))


def test_a_document_s_positions():
    one = assembler().document([image(1), "a cat", image(2), "a dog"])
    first, more, text = int(Modality.IMAGE), int(Modality.PROJECTED), int(Modality.TEXT)
    seen = [first, *[more] * (POSITIONS - 1)]
    at = [place for place, modality in enumerate(one.modality) if modality == first]
    assert len(at) == 2 and len(one.images) == 2
    for number, place in enumerate(at):
        np.testing.assert_array_equal(one.modality[place : place + POSITIONS], seen)
        np.testing.assert_array_equal(one.block[place : place + POSITIONS], number + 1)
        assert one.payload_index[place] == number
        # An image is read, never predicted.
        assert not one.loss_weight[max(0, place - 1) : place + POSITIONS - 1].any()
    assert (one.block > 0).sum() == 2 * POSITIONS and one.modality[at[0] + POSITIONS] == text
    assert not assembler(both_ways=False).document([image(1), "a cat"]).block.any()


def test_each_position_embeds_its_own_feature():
    opened, make = model(), assembler()
    rows = [make.document([image(1), "a"]), make.document(["dog", image(2), image(3), "cat"])]
    batch = stack_rows(rows, max(map(len, rows)), pad=VOCABULARY.pad)
    assert opened.projector is not None
    projected = np.asarray(opened.projector(jnp.asarray(batch.images).astype(jnp.float32)))
    embedded = embed(opened, batch) - np.asarray(opened.position_table[0])
    for row, numbers in enumerate(([0], [1, 2])):
        places = np.flatnonzero(batch.modality[row] == Modality.IMAGE)
        for place, number in zip(places, numbers, strict=True):
            np.testing.assert_allclose(embedded[row, place : place + POSITIONS], projected[number], atol=1e-5)
    # In shards, each of which counts its own images.
    sharded = dataclasses.replace(side_by_side([batch, batch], 1), shards=2)
    index = np.where(np.arange(4)[:, None] < 2, sharded.payload_index, np.tile(batch.payload_index, (2, 1)))
    sharded = dataclasses.replace(sharded, payload_index=index)
    np.testing.assert_allclose(embed(opened, sharded)[2:], embed(opened, batch), atol=1e-5)
    is_image, at = image_positions(batch, POSITIONS)
    assert int(is_image.sum()) == 3 * POSITIONS and int(at.max()) == 3 * POSITIONS - 1


def test_text_before_an_image_does_not_see_it_and_a_block_sees_itself():
    make = assembler()
    one, other = (make.document(["a", image(number), "cat"]) for number in (1, 2))
    batches = [stack_rows([each], len(each), pad=VOCABULARY.pad) for each in (one, other)]
    first = int(np.flatnonzero(one.modality == Modality.IMAGE)[0])
    found = [hidden(model(blocks="windowed"), batch)[0] for batch in batches]
    np.testing.assert_array_equal(found[0][:first], found[1][:first])
    assert (np.abs(found[0][first:] - found[1][first:]).max(axis=1) > 1e-3).all()
    # Another last position of the image changes the first one only where a block sees itself.
    features = batches[0].images.copy()
    features[0, -1] += 1
    changed = dataclasses.replace(batches[0], images=features)
    for blocks, sees in (("none", False), ("windowed", True), ("whole", True)):
        opened = model(blocks=blocks)
        difference = np.abs(hidden(opened, changed) - hidden(opened, batches[0]))[0, first].max()
        assert (difference > 1e-4) == sees


def test_a_grid_is_averaged_by_squares():
    grid = jnp.arange(16.0).reshape(1, 16, 1)
    np.testing.assert_allclose(pooled(grid, 4)[0, :, 0], [2.5, 4.5, 10.5, 12.5])
    assert pooled(grid, 16) is grid
    # What is beyond the last whole square is left out, as by a pooling without padding.
    np.testing.assert_allclose(pooled(jnp.arange(25.0).reshape(1, 25, 1), 4)[0, :, 0], [3, 5, 13, 15])
    for cells, count in ((16, 9), (16, 25), (15, 4), (16, 3)):
        with pytest.raises(ValueError, match=f"model.vision.positions = {count}: the encoder's {cells} cells"):
            pooled(jnp.zeros((1, cells, 2)), count)


def test_places_are_told_apart_if_it_is_set_so():
    alike = jnp.ones((1, 16, 5))

    def projected(**changed) -> np.ndarray:
        vision = VisionConfig(encoder="efficientnet_lite0", positions=4, **changed)
        spec = ModelSpec(
            config=ModelConfig(width=32, heads=4, vision=vision),
            vocabulary=VOCABULARY,
            projection_width=0,
            patches=False,
            frames=False,
            channels=5,
            projected=True,
        )
        return np.asarray(ImageProjector(spec, rngs=nnx.Rngs(0))(alike))[0]

    assert np.ptp(projected(), axis=0).max() == 0
    found = projected(projector_places=True)
    # Row and column are added: what a step to the right changes is the same in both rows.
    np.testing.assert_allclose(found[1] - found[0], found[3] - found[2], atol=1e-5)
    assert len({row.tobytes() for row in found}) == 4
    with pytest.raises(ValueError, match=r"projector_places needs a square number of positions, and positions is 12"):
        VisionConfig(positions=12, projector_places=True)


def test_pixels_are_refused_and_activations_are_what_they_are_called():
    opened = model()
    batch = stack_rows([assembler().document([image(1)])], POSITIONS + 1, pad=VOCABULARY.pad)
    with pytest.raises(ValueError, match="not images of shape"):
        embed(opened, dataclasses.replace(batch, images=np.zeros((1, 4, 4, 3), np.uint8)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2, 2, 1), (1, 1, 2, 4)])
@pytest.mark.parametrize("whole", [False, True])
def test_blocks_may_be_divided_over_a_mesh(sizes, whole: bool):
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(one, (4, 64, 4, 8)) for one in keys)
    segment = jnp.where(jnp.arange(64)[None] < jnp.array([[20], [64], [33], [50]]), 1, 2)
    block = (jnp.arange(64)[None] // 9 % 2) * (jnp.arange(64)[None] // 9 + 1) + jnp.zeros((4, 1), int)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)

    def ours(query, key, value):
        seen = Packed(segment, jnp.array(True), block)
        return attend_packed(query, key, value, seen, window=5, scale=0.3, softcap=0.0, whole_blocks=whole)

    with jax.set_mesh(mesh):
        found = jax.jit(ours)(query, key, value)
    position = jnp.broadcast_to(jnp.arange(64)[None], segment.shape)
    mask = attention_mask(segment, position, segment, position, reach=5, blocks=Blocks(block, block, whole))
    scores = jnp.where(mask[:, None], jnp.einsum("blnh,bsnh->bnls", query, key) * 0.3, -jnp.inf)
    expected = jnp.einsum("bnls,bsnh->blnh", jax.nn.softmax(scores, axis=-1), value)
    np.testing.assert_allclose(found, expected, atol=1e-5)
