"""Published models whose images stand in the sequence, against the reference implementation (tests/fixtures/make_images.py)."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from generalist.cli.main import main
from generalist.data.batch import Batch, BatchSpec
from generalist.data.packing import OpenBatch
from generalist.inference import cached_rows
from generalist.inference.cached_rows import CachedRows
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import rank
from generalist.inference.rows import POSITIONAL, stack_rows
from generalist.inference.shots import Shot
from generalist.inference.structure import Structure
from generalist.inference.weights import Weights
from generalist.model.masks import Blocks, attention_mask
from generalist.tokenizers.documents import Controlled
from generalist.tokenizers.pieces import Modality, Sequence
from generalist.vision.processor import processor
from generalist.weights.chat import chat_text
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.language import LanguageModel

FIXTURES = Path(__file__).parent.parent / "fixtures" / "images"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
QUICK = ("gemma3", "paligemma2", "llava", "llava_next")
"""Of each family one; the others are tried in the whole suite."""
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NAMES]
SCANNED = {
    "image_processor.do_pan_and_scan": True,
    "image_processor.pan_and_scan_min_crop_size": 8,
    "image_processor.pan_and_scan_max_num_crops": 3,
    "image_processor.pan_and_scan_min_ratio_to_activate": 1.2,
}
# Three images, text before the first, two images next to each other; and a shorter prompt that begins with one.
PROMPTS: list[list[str | int]] = [["a photo", 0, "of the\n", 1, 2, " red dog"], [3, "a cat"]]


@functools.cache
def loaded(name: str) -> Generalist:
    return Generalist.load(FIXTURES / name, cache_type="float32")


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / name / "expected.npz"))


def parts(name: str, prompt: list[str | int]) -> list[Any]:
    return [expected(name)[f"image{part}"] if isinstance(part, int) else part for part in prompt]


def documents(name: str) -> list[Sequence]:
    return [loaded(name).assembler.document(parts(name, prompt), is_open=True) for prompt in PROMPTS]


@functools.partial(jax.jit, static_argnums=0)
def logits(structure: Structure, params: Any, batch: Batch) -> jax.Array:
    opened = structure.model(params)
    return opened.logits(opened.hidden(batch))


def logits_of(model: Weights, batch: Batch) -> np.ndarray:
    return np.asarray(logits(*model.decoder, model.on_device(batch)))[..., : model.vocabulary.text]


@functools.cache
def rows(name: str) -> np.ndarray:
    """Our logits of both prompts, one per row, with padding on the right."""
    both = documents(name)
    return logits_of(loaded(name), stack_rows(both, max(map(len, both)), pad=0))


@pytest.mark.parametrize("name", EACH)
def test_ids_pixels_and_logits_of_all_positions_are_the_reference_s(name: str):
    stored, model = expected(name), loaded(name)
    assert model.encoder is not None
    present = stored["present"] > 0
    for one, ids, there in zip(documents(name), stored["ids"], present, strict=True):
        np.testing.assert_array_equal(one.tokens, ids[there])
    pixels = np.concatenate([one.images for one in documents(name)])
    settings = json.loads((FIXTURES / name / "processor_config.json").read_text())["image_processor"]
    standardised = (pixels / 255 - settings["image_mean"]) / settings["image_std"]
    np.testing.assert_allclose(standardised.transpose(0, 3, 1, 2), stored["pixels"], atol=1e-5)
    np.testing.assert_allclose(rows(name)[present], stored["logits"][present], atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_packed_behind_one_another_they_are_the_same(name: str):
    model, both = loaded(name), documents(name)
    lengths = [len(one) for one in both]
    assert model.encoder is not None
    room = {"tensors": 0, "projection_width": 0, "frames": 0, "frame_size": 84, "images": 24, "row_images": 24}
    pixels = model.encoder.prepare.size
    packed = OpenBatch(BatchSpec(rows=1, length=sum(lengths) + 3, image_shape=(pixels, pixels, 3), **room), pad=0)
    assert all(packed.add(one, source=0) for one in both)
    found = logits_of(model, packed.batch)[0]
    alone = rows(name)
    np.testing.assert_allclose(found[: lengths[0]], alone[0, : lengths[0]], atol=1e-4)
    np.testing.assert_allclose(found[lengths[0] : sum(lengths)], alone[1, : lengths[1]], atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_read_into_a_cache_in_parts_they_are_the_same(name: str):
    """Cut where a block ends: what sees itself in both directions is read as a whole."""
    model, whole = loaded(name), documents(name)[0]
    batch, size = stack_rows([whole], len(whole), pad=0), model.vocabulary.size
    cached = CachedRows(model, 1, len(whole), images=3)
    inside = whole.block > 0 if whole.block.any() else np.zeros(len(whole), bool)
    cuts = [cut for cut in range(1, len(whole)) if not (inside[cut] and whole.block[cut] == whole.block[cut - 1])]
    cuts = [0, *(cut for cut in cuts if whole.modality[cut] != Modality.PROJECTED), len(whole)]
    found = []
    for begin, end in itertools.pairwise(cuts):
        positional: dict[str, Any] = {one: getattr(batch, one)[:, begin:end] for one in POSITIONAL}
        any_image = (positional["modality"] == Modality.IMAGE).any()
        shown = np.arange(len(batch.images) if any_image else 0)
        part = dataclasses.replace(batch, **positional, images=batch.images[shown])
        found.append(np.asarray(cached.append(part, np.ones((end - begin, size), bool))[1])[0])
    assert len(cuts) > 5 or name.startswith("paligemma")  # whose prompt is one block
    found_all = np.concatenate(found)[:, : model.vocabulary.text]
    np.testing.assert_allclose(found_all, rows(name)[0, : len(whole)], atol=1e-4)


def test_a_long_text_is_not_cut_inside_its_block(monkeypatch: pytest.MonkeyPatch):
    model = loaded("paligemma2")
    text = model.assembler.document(["the red dog and a cat"], is_open=True)
    assert len(text) > 8 and text.block.all()
    monkeypatch.setattr(cached_rows, "LONGEST", 8)
    batch = stack_rows([text], len(text), pad=0)
    _, logits = CachedRows(model, 1, len(text)).append(batch, np.ones((1, model.vocabulary.size), bool))
    found = np.asarray(logits)[0, 0, : model.vocabulary.text]
    np.testing.assert_allclose(found, logits_of(model, batch)[0, -1], atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_greedy_text_is_the_reference_s_in_batches_streamed_and_after_shared_shots(name: str):
    model, prompts = loaded(name), [parts(name, prompt) for prompt in PROMPTS]
    written = [model.tokenizers.text.written(expected(name)[f"written{number}"]) for number in range(2)]
    assert model.prompt(prompts, tokens=64) == written
    if name not in (*QUICK, "paligemma"):
        return
    assert "".join(model.stream(prompts[1], tokens=64)) == written[1]
    shared = model.read(prompts[0][:4])
    # After shots a line ends what is written.
    (one, other) = model.prompt([prompts[0][4:], [prompts[1][0], " dog"]], after=shared, tokens=64)
    assert one == written[0].partition("\n")[0]
    alone = model.prompt([*prompts[0][:4], prompts[1][0], " dog"], tokens=64)
    assert other == alone.partition("\n")[0]


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_a_chat_with_images_is_the_template_s_text(name: str):
    model, shown = loaded(name), [expected(name)[f"image{number}"] for number in range(3)]
    typed = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a photo of"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "the red dog"}]},
        {"role": "user", "content": [{"type": "text", "text": "a cat?"}, {"type": "image"}]},
    ]
    text = chat_text(FIXTURES / name, typed)
    assert text == str(expected(name)["chat"])
    ours = [
        {"role": "user", "content": [shown[0], "a photo of", shown[1]]},
        {"role": "assistant", "content": "the red dog"},
        {"role": "user", "content": ["a cat?", shown[2]]},
    ]
    # The answer is what follows the ids of that text, in which each marker is an image.
    marks, begun = model.assembler.marks.image, model.tokenizers.published
    assert marks is not None and begun is not None
    told: list[Any] = [Controlled(piece) for piece in text.split(marks.marker)]
    for place, image in enumerate(shown):
        told.insert(2 * place + 1, image)
    unbegun = dataclasses.replace(model.tokenizers, published=dataclasses.replace(begun, begin=()))
    plain = dataclasses.replace(model, tokenizers=unbegun)
    ids = model.tokenizers.text.with_controls(text.replace(marks.marker, marks.text))
    np.testing.assert_array_equal(plain.assembler.document(told, is_open=True).tokens, ids)
    assert "".join(model.chat(ours, tokens=12)) == plain.prompt(told, tokens=12) != ""
    with pytest.raises(ValueError, match="a message has the control token <image>"):
        model.chat([{"role": "user", "content": [shown[0], "an <image>"]}])


def test_a_text_with_a_control_token_is_refused():
    with pytest.raises(ValueError, match="a text has the control token <image> in it"):
        loaded("llava").prompt(["an <image> of"])


@pytest.mark.parametrize("name", EACH)
def test_loaded_and_saved_a_folder_is_the_same_bit_for_bit(name: str, tmp_path: Path):
    assert loaded(name).save_published(tmp_path / "out") == []
    before, after = WeightsFolder(FIXTURES / name), WeightsFolder(tmp_path / "out")
    assert before.shapes == after.shapes and before.types == after.types and before.config == after.config
    assert all(np.array_equal(before.tensor(one), after.tensor(one)) for one in before.shapes)


def test_a_changed_projector_is_saved(tmp_path: Path):
    model = loaded("llava")
    arrays = dict(model.arrays(dtype=None))
    arrays["projector/out/bias"] = arrays["projector/out/bias"] + 1
    model.with_arrays(arrays).save_published(tmp_path / "out")
    name = "multi_modal_projector.linear_2.bias"
    before, after = (WeightsFolder(one).tensor(name) for one in (FIXTURES / "llava", tmp_path / "out"))
    np.testing.assert_array_equal(after, before + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        {"vision_tower.": "vision_tower.vision_model."},  # transformers 4
        {
            "language_model.model.": "model.language_model.",
            "language_model.lm_head.": "lm_head.",
            "vision_tower.": "model.vision_tower.vision_model.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
    ],
)
@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava_full"])
def test_other_names_of_the_same_tensors(name: str, names: dict[str, str], tmp_path: Path):
    def renamed(tensor: str) -> str:
        old = next((one for one in names if tensor.startswith(one)), "")
        return names.get(old, "") + tensor.removeprefix(old)

    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    arrays = {renamed(key): array for path in folder.glob("*.safetensors") for key, array in load_file(path).items()}
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(arrays, folder / "model.safetensors")
    model, both = Generalist.load(folder), documents(name)
    found = logits_of(model, stack_rows(both, max(map(len, both)), pad=0))
    there = expected(name)["present"] > 0
    np.testing.assert_array_equal(found[there], rows(name)[there])


def test_as_a_trunk_it_is_its_language_model_alone():
    for name in NAMES:
        model = LanguageModel(FIXTURES / name)
        model.check()
        assert model.images is None and not any(path.startswith("projector") for path in model.recipes[0])


def changed(folder: Path, file: str, settings: dict[str, Any]) -> None:
    """Changes settings by their names; a dot separates sections, None removes."""
    path = folder / file
    stored = json.loads(path.read_text()) if path.is_file() else {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        section = functools.reduce(lambda one, key: one.setdefault(key, {}), sections, stored)
        section[last] = value
        if value is None:
            del section[last]
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llava", {"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy = 'cls'"),
        ("llava", {"vision_feature_layer": 9}, "vision_feature_layer = 9"),
        ("llava", {"vision_feature_layer": "last"}, "vision_feature_layer = 'last'"),
        ("llava", {"projector_hidden_act": "mish"}, "projector_hidden_act = 'mish'"),
        ("llava", {"multimodal_projector_bias": False}, "unknown tensors: multi_modal_projector.linear_1.bias"),
        ("llava", {"vision_config.model_type": "pixtral"}, "a vision tower of type 'pixtral'"),
        ("llava", {"text_config.model_type": "gpt2"}, "a language model of type 'gpt2'"),
        ("llava", {"image_token_index": 299}, "image_token_index = 299, which is no control token"),
        ("llava", {"vision_config.hidden_act": "mish"}, "hidden_act must be one of"),
        ("llava", {"tie_word_embeddings": True, "vision_config.hidden_size": 20}, "wrong shapes"),
        ("gemma3", {"mm_tokens_per_image": 10}, "mm_tokens_per_image = 10"),
        ("gemma3", {"mm_tokens_per_image": 25}, "cannot be averaged"),
        ("gemma3", {"mm_tokens_per_image": 4}, "image_seq_length = 9 in processor_config.json"),
        ("gemma3", {"boi_token_index": 200}, "boi_token_index = 200"),
        ("gemma3", {"text_config.tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gemma3", {"text_config.use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("paligemma", {"text_config.use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("paligemma", {"vision_config.image_size": 16}, "size must be"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(name: str, settings: dict, message: str, tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    changed(folder, "config.json", settings)
    with pytest.raises(WeightsError, match=message):
        Generalist.load(folder)


@pytest.mark.parametrize(("name", "tied"), [("llava", True), ("llava_next", False)])
def test_tied_output_of_the_section_alone(name: str, tied: bool, tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    changed(folder, "config.json", {"text_config.tie_word_embeddings": True})
    assert LanguageModel(folder, images=True).shape["tied_output"] == tied
    if name == "llava_next":  # without an output matrix there is only one way
        stored = load_file(folder / "model.safetensors")
        save_file({one: it for one, it in stored.items() if "lm_head" not in one}, folder / "model.safetensors")
        assert LanguageModel(folder, images=True).shape["tied_output"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gemma3", SCANNED | {"image_processor.pan_and_scan_min_crop_size": 0}, "pan_and_scan_min_crop_size = 0"),
        ("llava", {"image_processor.do_pad": True}, "do_pad = True"),
        ("llava", {"image_processor.do_resize": False}, "do_resize must be True"),
        ("llava", {"image_processor.rescale_factor": 0}, "rescale_factor must be a number above 0"),
        ("llava_next", {"image_processor.image_grid_pinpoints": [[16, 16]]}, "another image_grid_pinpoints"),
        ("llava_next", {"image_processor.size": {"shortest_edge": 18}}, "it must be the tower's 16 pixels"),
        ("llava", {"image_processor.image_processor_type": "FuyuImageProcessor"}, "FuyuImageProcessor"),
        ("llava", {"num_additional_image_tokens": 0}, "num_additional_image_tokens"),
        ("llava", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ("llava", {"patch_size": 4}, "patch_size"),
        ("paligemma", {"image_processor.size": {"height": 20, "width": 20}}, "size must be"),
    ],
)
def test_another_preparation_is_refused_by_name(name: str, settings: dict, message: str, tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    changed(folder, "processor_config.json", settings)
    with pytest.raises(WeightsError, match=message):
        Generalist.load(folder)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("paligemma", "multi_modal_projector.linear.bias"),
        ("paligemma", "vision_tower.post_layernorm.bias"),
        ("llava_siglip", "vision_tower.embeddings.position_embedding.weight"),
    ],
)
def test_tensors_that_are_missing_or_left_over_are_named(name: str, lost: str, tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    arrays = load_file(folder / "model.safetensors")
    kept = {key: array for key, array in arrays.items() if key != lost}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=f"missing tensors: {lost}"):
        Generalist.load(folder)
    for extra in ("vision_tower.encoder.extra", "multi_modal_projector.extra", "language_model.model.extra"):
        save_file({**arrays, extra: np.zeros(2, np.float32)}, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=f"unknown tensors: {extra}"):
            Generalist.load(folder)


def test_blocks_see_themselves_in_both_directions_and_windows_bound_them_or_not():
    segment, position = jnp.ones((1, 6), int), jnp.arange(6)[None]
    block = jnp.array([[0, 1, 1, 1, 2, 0]])

    def seen(whole: bool) -> list[list[int]]:
        blocks = Blocks(block, block, whole)
        mask = attention_mask(segment, position, segment, position, reach=2, blocks=blocks)
        return np.asarray(mask[0]).astype(int).tolist()

    windowed = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert seen(whole=False) == windowed
    windowed[3][1] = 1
    assert seen(whole=True) == windowed


def test_a_tower_in_16_bits_stays_in_16_bits():
    encoder = loaded("llava").encoder
    assert encoder is not None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(encoder.params)} == {"float16"}


def test_the_commands_take_images_shots_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(3):
        Image.fromarray(expected("llava")[f"image{number}"]).save(tmp_path / f"{number}.png")
    one = {"image": "0.png", "question": "what?", "answer": "a cat"}
    (tmp_path / "shots.jsonl").write_text(json.dumps(one) + "\n" + json.dumps(one | {"image": "1.png"}) + "\n")
    for split, shown in (("train", "01"), ("val", "2")):
        lines = [{"image": f"{one}.png", "question": "what?", "answers": ["a cat"]} for one in shown]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder, image = str(FIXTURES / "llava"), str(tmp_path / "2.png")

    def said(*arguments: str) -> str:
        assert main([*arguments, "--weights", folder]) == 0
        return capsys.readouterr().out

    pixels = expected("llava")["image2"]
    written = loaded("llava").prompt([pixels, "a photo"], tokens=3)
    assert written in said("prompt", image, "a photo", "--tokens", "3")
    asked = "question: what? answer:"
    shots = str(tmp_path / "shots.jsonl")
    assert "a cat" in said("prompt", image, asked, "--shots", shots, "--choices", "a cat", "--retrieve", "1")
    answer = "".join(loaded("llava").chat([{"role": "user", "content": [pixels, "a photo"]}], tokens=3))
    assert answer in said("prompt", image, "a photo", "--chat", "--tokens", "3")
    out = tmp_path / "out.json"
    told = said(*f"eval fewshot --data jsonl --folder {tmp_path} --shots 1 --seeds 1 --beams 1 --out {out}".split())
    assert "sees no images" not in told and out.is_file()


def test_shots_end_with_a_line_end_and_share_their_keys():
    model, shown = loaded("llava"), parts("llava", [0, 1])
    shots = [part for image in shown for part in Shot(image=image, answer="a cat").parts(ended=True)]
    whole = model.assembler.document([*shots, shown[0]], is_open=True)
    marks = model.assembler.marks
    assert (whole.tokens == marks.chunk_end).sum() == 2
    query = [shown[0], "a"]
    np.testing.assert_allclose(
        rank(model, [query], [" cat", " dog"], after=model.read(shots)),
        rank(model, [[*shots, *query]], [" cat", " dog"]),
        atol=1e-4,
    )


def test_a_gemma_3_that_pans_and_scans_sees_crops_of_long_images(tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / "gemma3", tmp_path / "gemma3"))
    changed(folder, "processor_config.json", SCANNED)
    model, stored = Generalist.load(folder), expected("gemma3")
    document = model.assembler.document(parts("gemma3", PROMPTS[0]), is_open=True)
    np.testing.assert_array_equal(document.tokens, stored["scanned_ids"])
    standardised = (document.images / 255 - 0.5) / 0.5
    np.testing.assert_allclose(standardised.transpose(0, 3, 1, 2), stored["scanned_pixels"], atol=1e-5)
    last = logits_of(model, stack_rows([document], len(document), pad=0))[0, -1]
    np.testing.assert_allclose(last, stored["scanned_logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({"do_rescale": False}, 255), ({"rescale_factor": 1 / 127.5}, 2), ({"rescale_factor": 0.00392157}, 1)],
)
def test_another_factor_of_pixels_enters_their_mean_and_deviation(settings: dict, factor: int, tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / "llava", tmp_path / "llava"))
    changed(folder, "processor_config.json", {f"image_processor.{name}": value for name, value in settings.items()})
    found, usual = (processor(WeightsFolder(one), "clip", 16) for one in (folder, FIXTURES / "llava"))
    np.testing.assert_allclose(np.array(found.mean) * factor, usual.mean)
    np.testing.assert_allclose(np.array(found.deviation) * factor, usual.deviation)


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_rows_without_an_image_stand_beside_rows_with_one(name: str):
    model, (seen, blind) = loaded(name), (parts(name, PROMPTS[1]), ["the red dog"])
    assert model.prompt([seen, blind], tokens=6) == [model.prompt(one, tokens=6) for one in (seen, blind)]


def test_a_bound_of_logits_holds_where_the_reference_has_it(tmp_path: Path):
    bounds = {}
    for name in ("gemma3", "paligemma2"):
        folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
        changed(folder, "config.json", {"text_config.final_logit_softcapping": 3.0})
        bounds[name] = LanguageModel(folder, images=True).shape["logit_softcap"]
    # Gemma 3's definition has the bound for its language model alone.
    assert bounds == {"gemma3": 0.0, "paligemma2": 3.0}
