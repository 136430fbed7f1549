"""Rows that are shown are those that training reads, with the model's own masks."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from generalist.config.data import DataConfig, mixed
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.mixture import mix
from generalist.data.packing import Packer, Position
from generalist.data.recorded import opened
from generalist.experiment.prepare import open_sources
from generalist.experiment.rows import training_rows
from generalist.experiment.subject import Subject, subject
from generalist.experiment.tokens_seen import shard_spec
from generalist.run.named_weights import weights_settings
from generalist.run.tokenizers import Tokenizers

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROBOT = FIXTURES / "formats" / "rlds_tfrecord" / "small_bridge"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    opened.cache_clear()
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))


def robot() -> Subject:
    base = debug()
    data = dataclasses.replace(base.data, length=160, frames=256)
    return subject(str(ROBOT), dataclasses.replace(base, data=data))


def test_packed_rows_are_the_first_batch_of_training() -> None:
    about = robot()
    data = about.stored()
    tokenizers = about.tokenizers(data)
    stream = mix(open_sources(about.config, tokenizers, data), seed=about.config.training.seed)[0]
    packed, _ = Packer(stream, shard_spec(about, tokenizers), tokenizers.assembler.vocabulary.pad).pack(Position())
    batch = packed.batch
    rows = training_rows(about, 8, packed=True)
    assert len(rows) == 8 and any(len(row.segments) == 2 for row in rows)
    for number, row in enumerate(rows):
        count = len(row.cells)
        assert row.length == 160 and count == (batch.segment[number] > 0).sum()
        assert [cell.token for cell in row.cells] == batch.tokens[number, :count].tolist()
        assert [cell.weight for cell in row.cells] == batch.loss_weight[number, :count].tolist()
        assert [cell.segment for cell in row.cells] == batch.segment[number, :count].tolist()
        assert [cell.local for cell in row.cells] == batch.local_position[number, :count].tolist()
        for place, cell in enumerate(row.cells):
            if cell.weight:
                assert [one.token for one in cell.targets] == [batch.targets[number, place]]


def test_each_position_sees_its_segment_up_to_itself() -> None:
    row = next(row for row in training_rows(robot(), 8, packed=True) if len(row.segments) == 2)
    begin = 0
    for place, cell in enumerate(row.cells):
        begin = place if cell.position == 0 else begin
        assert cell.sees == cell.near == [(begin, place + 1)] and cell.images == []


def test_rows_alone_have_one_example_each_and_say_which() -> None:
    rows = training_rows(robot(), 3, packed=False)
    assert [len(row.segments) for row in rows] == [1, 1, 1]
    assert all("recorded/small_bridge, episode" in row.segments[0] and "offset" in row.segments[0] for row in rows)
    frames = [cell for cell in rows[0].cells if cell.modality == "frame"]
    assert frames and all(cell.image is not None and cell.image.shape == (84, 84, 3) for cell in frames)
    predicted = [cell for cell in rows[0].cells if cell.weight]
    assert {one.part for cell in predicted for one in cell.targets} == {f"action[{number}]" for number in range(7)}


def test_a_cell_predicts_all_dimensions_of_a_parallel_action() -> None:
    about = robot()
    tokens = dataclasses.replace(about.config.tokens, actions="parallel")
    about = dataclasses.replace(about, config=dataclasses.replace(about.config, tokens=tokens))
    rows = [row for row in training_rows(about, 8, packed=True) if row.cells]
    wanted = [f"action[{number}]" for number in range(7)]
    predicted = [[cell for cell in row.cells if cell.weight] for row in rows]
    assert all(predicted) and any(len(row.segments) > 1 for row in rows)
    assert all([one.part for one in cell.targets] == wanted for cells in predicted for cell in cells)
    assert not any(cell.targets for row in rows for cell in row.cells if not cell.weight)
    assert not any(cell.part == "hidden" for row in rows for cell in row.cells)


def test_a_window_of_layers_is_marked() -> None:
    about = robot()
    model = dataclasses.replace(about.config.model, window=16, layer_kinds=("window", "full"))
    about = dataclasses.replace(about, config=dataclasses.replace(about.config, model=model))
    (row,) = training_rows(about, 1, packed=False)
    assert row.window == 16
    assert row.cells[40].sees == [(0, 41)] and row.cells[40].near == [(25, 41)]


def documents(tmp_path: Path) -> Config:
    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "red.png")
    page = {"content": ["look", {"image": "red.png"}, " a red photo", {"image": "red.png"}, " of a dog"]}
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps(page)] * 4))
    base = debug()
    vision = dataclasses.replace(base.model.vision, encoder=str(FIXTURES / "vision" / "clip"))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, vision=vision),
        tokens=dataclasses.replace(base.tokens, documents="encoder"),
        data=DataConfig(folder=tmp_path / "data", sources=mixed(), rows=2, length=64, images=8),
    )


def test_texts_see_their_images_and_no_other_segment_s(tmp_path: Path) -> None:
    config = documents(tmp_path)
    row = training_rows(subject(str(tmp_path / "own.jsonl"), config), 1, packed=True)[0]
    shown = [place for place, cell in enumerate(row.cells) if cell.modality == "image"]
    assert len(row.segments) > 1 and len(shown) == 2 * len(row.segments)
    for cell in row.cells:
        assert cell.images == ([] if cell.image_index == 0 else [shown[cell.image_index - 1]])
        assert all(row.cells[place].segment == cell.segment for place in cell.images)
    pixels = row.cells[shown[0]].image
    assert pixels is not None and pixels.shape == (24, 24, 3)
    assert any(cell.images for cell in row.cells if cell.part == "text")


@pytest.mark.parametrize("packed", [False, True])
def test_an_example_without_room_is_refused_by_the_source_s_name(packed: bool) -> None:
    about = robot()
    small = dataclasses.replace(about.config, data=dataclasses.replace(about.config.data, frames=2))
    with pytest.raises(ValueError, match="an example of recorded has frames 16, more than the 2 that"):
        training_rows(dataclasses.replace(about, config=small), 1, packed=packed)


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="no folder or file nowhere, and no source of that name; the mixture has"
    ):
        subject("nowhere", debug())
    (tmp_path / "notes.bin").write_bytes(bytes(9))
    with pytest.raises(ValueError, match="notes.bin is no data that is known .*RLDS.*: give the folder or the file"):
        subject(str(tmp_path / "notes.bin"), debug())
    with pytest.raises(ValueError, match="recorded names no data: give its folder or file instead"):
        subject("recorded", debug())


def test_data_of_a_mixture_keep_their_settings() -> None:
    about = robot()
    source = dataclasses.replace(about.source, steps=3, weight=0.0)
    config = dataclasses.replace(debug(), data=dataclasses.replace(debug().data, sources=mixed(robot=source)))
    again = subject(str(ROBOT), config)
    assert again.name == "robot" and again.source == dataclasses.replace(source, weight=0.1)
    assert subject("robot", config) == again
    assert "robot" not in again.others and 0 < again.share < 1


def test_a_run_s_own_tokenizers_are_used_and_layouts_that_it_lacks_are_learnt() -> None:
    folder = FIXTURES / "versions" / "weights"
    run = Tokenizers.load(folder, weights_settings(folder))
    config = weights_settings(folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, frames=64))
    about = subject(str(ROBOT), config, folder)
    tokenizers = about.tokenizers(about.stored())
    assert tokenizers.text.model == run.text.model
    assert tokenizers.layouts.keys() == run.layouts.keys() | {"recorded/small_bridge"}
    assert tokenizers.layouts["recorded/small_bridge"].observation.rules.offset == run.projection_width
    (row,) = training_rows(about, 1, packed=False)
    assert any("state: " in cell.value for cell in row.cells)
