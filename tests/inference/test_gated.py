"""IDEFICS and OpenFlamingo folders against what the reference implementations compute (tests/fixtures/make_gated.py and
make_open_flamingo.py): ids, logits, texts; what is written back, and what is refused."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generalist.cli.main import main
from generalist.data.batch import Batch
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import context
from generalist.inference.rows import stack_rows
from generalist.inference.structure import Structure
from generalist.model.params import flat
from generalist.tokenizers.pieces import Sequence
from generalist.tokenizers.sequence import CHUNK_END
from generalist.weights.folder import WeightsError, WeightsFolder

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gated"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
IDEFICS = [name for name in NAMES if name.startswith("idefics")]
QUICK = ("idefics", "flamingo_mpt")


def expected(name: str) -> Any:
    return np.load(FIXTURES / name / "expected.npz")


def prompts_of(name: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """The two prompts whose logits are stored, and the two after which something was written."""
    one, two, three = (expected(name)[f"image_{number}"] for number in range(3))
    if name in IDEFICS:
        long = ["a photo of", one, "the red dog", two, three, "a picture of a cat", one, "this is"]
        return [long, [two, "a cat"]], [["a photo of", two, "a cat", three, "this is"], [one, "a picture of"]]
    # Two images before one text, which sees the last.
    long = ["a photo of", one, "the red dog", CHUNK_END, two, three, "a cat", CHUNK_END]
    return [long, [two, " this is"]], [["a photo", two, " of a cat", three, "this"], [one]]


def logits(generalist: Generalist, sequences: list[Sequence], **changes: Any) -> np.ndarray:
    """Logits of whole rows, one sequence per row."""
    batch = stack_rows(sequences, max(map(len, sequences)), pad=generalist.vocabulary.pad)
    placed = generalist.on_device(dataclasses.replace(batch, **changes))
    return np.asarray(all_logits(*generalist.decoder, placed))[..., : generalist.vocabulary.text]


@functools.partial(jax.jit, static_argnums=0)
def all_logits(structure: Structure, params: Any, batch: Batch) -> jax.Array:
    model = structure.model(params)
    return model.logits(model.hidden(batch, jnp.float32))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_logits_are_the_reference_s(name: str):
    stored, generalist = expected(name), Generalist.load(FIXTURES / name, cache_type="float32")
    sequences = [generalist.assembler.document(one, is_open=True) for one in prompts_of(name)[0]]
    present = stored["present"] > 0
    for row, sequence in enumerate(sequences):
        assert sequence.tokens.tolist() == stored["ids"][row][present[row]].tolist()
        if name in IDEFICS:  # which image each position sees
            mask = stored["mask"][row][present[row]]
            assert sequence.image.tolist() == np.where(mask.any(-1), mask.argmax(-1) + 1, 0).tolist()
    found = logits(generalist, sequences)
    assert stored["logits"].shape[-1] == found.shape[-1]
    rows = stored["logits"].shape[-1] - (3 if name == "flamingo_llama" else 0)  # whose last rows are in no file
    np.testing.assert_allclose(found[..., :rows][present], stored["logits"][..., :rows][present], atol=1e-4)
    if name == "flamingo_mpt":  # the two images are seen, and make a difference
        assert np.abs(found[0, :5] - found[1, :5]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["idefics", "idefics_bare", "flamingo_mpt"])
def test_packed_rows_equal_rows_of_their_own(name: str):
    generalist = Generalist.load(FIXTURES / name, cache_type="float32")
    both = [generalist.assembler.document(one, is_open=True) for one in prompts_of(name)[0]]
    first, second = map(len, both)
    packed = generalist.assembler.concatenate(both)
    # The second document begins with text without an image.
    position = np.concatenate([np.arange(first), np.arange(second)])[None].astype(np.int32)
    segment = np.repeat([1, 2], [first, second])[None].astype(np.int32)
    begin = np.where((packed.image == both[0].image.max()) & (segment[0] == 2), 0, packed.image)
    found = logits(
        generalist,
        [dataclasses.replace(packed, image=begin)],
        position=position,
        segment=segment,
    )[0]
    alone = [logits(generalist, [one])[0] for one in both]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in NAMES])
def test_greedy_texts_are_the_reference_s_in_batches_and_after_shots(name: str):
    generalist, written = Generalist.load(FIXTURES / name, cache_type="float32"), expected(name)["written"].tolist()
    prompts = prompts_of(name)[1]
    assert generalist.prompt(prompts, tokens=64) == written
    if name not in QUICK:
        return
    # The same prompt in two parts, of which the first is read once; nothing that ends a text stands between.
    first, second = prompts[0][:3], prompts[0][3:]
    after = generalist.read(first)
    assert generalist.prompt([second, second], after=after, tokens=20) == generalist.prompt([prompts[0]] * 2, tokens=20)


def test_types_of_files_stay():
    leaves = flat(Generalist.load(FIXTURES / "idefics_bare").params)
    names = ("tokens/text", "visual/gated/0/query/kernel", "visual/gated/2/attention_gate")
    assert {leaves[name].dtype.name for name in names} == {"bfloat16"}
    generalist = Generalist.load(FIXTURES / "flamingo_neox")
    assert flat(generalist.params)["visual/resampler/latents"].dtype == "float16"
    assert generalist.encoder is not None
    assert {leaf.dtype.name for leaf in flat(generalist.encoder.params).values()} == {"float32"}


def test_marks():
    marks = {name: Generalist.load(FIXTURES / name).assembler.marks for name in NAMES}
    assert marks["idefics"].cross.around == (300,) and marks["idefics"].cross.image == 301
    assert marks["idefics"].ends == (2,) and marks["idefics"].stops == ("\n",)
    assert marks["idefics_instruct"].chunk_end == 302 and marks["idefics_instruct"].ends == (2, 302)
    # The end of a chunk, an image, padding; rows that are in no file are never written.
    assert marks["flamingo_mpt"].ends == (300,) and marks["flamingo_mpt"].silent == (301, 302)
    assert marks["flamingo_llama"].ends == (2,) and marks["flamingo_llama"].silent == (300, 301, 302)
    assert marks["flamingo_llama"].begin == (1,) and marks["flamingo_neox"].begin == ()


def test_shots_end_where_the_model_was_trained_to_end_them():
    image = np.zeros((30, 30, 3), np.uint8)
    generalist = Generalist.load(FIXTURES / "flamingo_mpt")
    one = generalist.assembler.document([image, "a", CHUNK_END, image, "a"], is_open=True).tokens
    assert one.tolist() == generalist.assembler.document([image, "a", image, "a"], is_open=True).tokens.tolist()
    generalist = Generalist.load(FIXTURES / "idefics_instruct")
    ids = generalist.assembler.document([image, " a ", CHUNK_END, image], is_open=True).tokens.tolist()
    pieces = generalist.tokenizers.text.encode("a").tolist()
    assert ids == [1, 300, 301, 300, *pieces, 302, 300, 301, 300]
    # Where texts begin with a space of their own, that of a choice is not a second one.
    likely = generalist.prompt([[image]], choices=[" a", " cat"])
    assert likely == generalist.prompt([[image]], choices=["a", "cat"]) or likely[0].strip() in ("a", "cat")


def tensors(folder: Path) -> dict[str, np.ndarray]:
    opened = WeightsFolder(folder)
    return {name: opened.tensor(name) for name in opened.shapes}


@pytest.mark.parametrize("name", IDEFICS)
def test_idefics_is_saved_in_its_own_layout(name: str, tmp_path: Path):
    generalist, out = Generalist.load(FIXTURES / name), tmp_path / "out"
    assert generalist.save_published(out) == []
    before, after = tensors(FIXTURES / name), tensors(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[one], before[one]) and after[one].dtype == before[one].dtype for one in before)
    again = Generalist.load(out)
    assert again.prompt(prompts_of(name)[1], tokens=8) == generalist.prompt(prompts_of(name)[1], tokens=8)


def test_copies_of_tied_embeddings_are_those_of_the_new_ones(tmp_path: Path):
    copy = Path(shutil.copytree(FIXTURES / "idefics_instruct", tmp_path / "copy"))
    stored = load_file(copy / "model.safetensors")
    own, more = "model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"
    save_file(
        stored | {"lm_head.weight": stored[own], "lm_head.additional_fc.weight": stored[more]},
        copy / "model.safetensors",
    )
    generalist = Generalist.load(copy)
    changed = {path: array + array.dtype.type(path == "tokens/text") for path, array in generalist.arrays(dtype=None)}
    generalist.with_arrays(changed).save_published(tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(after["lm_head.weight"], after[own]) and not np.array_equal(after[own], stored[own])
    assert np.array_equal(after["lm_head.additional_fc.weight"], after[more])


def test_an_openflamingo_has_no_layout_to_be_saved_in(tmp_path: Path):
    with pytest.raises(WeightsError, match="is an OpenFlamingo, a checkpoint beside the models"):
        Generalist.load(FIXTURES / "flamingo_mpt").save_published(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cross_layer_interval": 3}, "4 layers, which cross_layer_interval = 3 does not divide"),
        ({"alpha_type": "matrix"}, "alpha_type = 'matrix'; supported is float, vector"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 2; an IDEFICS has 4"),
        ({"head_dim": 4}, "head_dim = 4; an IDEFICS has 8"),
        ({"vision_config.num_channels": 4}, "num_channels = 4; supported is 3"),
        ({"vision_config.hidden_act": "mish"}, "hidden_act"),
        ({"vision_config.image_size": [28, 28]}, "not of the expected type"),
        ({"alpha_type": "vector"}, r"alpha_cross_attn is \(1,\) instead of \(1, 1, 32\)"),
        ({"qk_layer_norms": False}, "unknown tensors: model.gated_cross_attn_layers.0.cross_attn.k_layer_norm.weight"),
        ({"use_resampler": False}, "unknown tensors: model.perceiver_resampler"),
        ({"perceiver_config.resampler_depth": 3}, r"missing tensors: model.perceiver_resampler.blocks.2.0"),
        ({"additional_vocab_size": 3}, r"additional_embedding.weight is \(2, 32\) instead of \(3, 32\)"),
        ({"vision_config.num_hidden_layers": 3}, "missing tensors: model.vision_model.encoder.layers.2"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(
    copy: Callable[[str], Path], changes: dict[str, Any], fault: str
):
    folder = copy("idefics")
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        section, _, last = name.rpartition(".")
        (config[section] if section else config)[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=fault):
        Generalist.load(folder)


def test_images_are_prepared_as_the_folder_says_or_not_at_all(copy: Callable[[str], Path]):
    folder = copy("idefics")
    prepared = folder / "preprocessor_config.json"
    for given, fault in (
        ({"image_size": 30}, "the tower's input"),
        ({"image_num_channels": 1}, "image_num_channels must be 3"),
        ({"do_resize": False}, "do_resize must be True"),
    ):
        prepared.write_text(json.dumps(given))
        with pytest.raises(WeightsError, match=fault):
            Generalist.load(folder)
    # Newer files name height and width; without a file the usual way holds.
    prepared.write_text(json.dumps({"size": {"height": 28, "width": 28}}))
    named = Generalist.load(folder).encoder
    prepared.unlink()
    plain = Generalist.load(folder).encoder
    assert named is not None and plain is not None
    assert named.prepare == plain.prepare and not plain.prepare.crop


def test_a_tokenizer_without_the_marks_of_images_is_refused(copy: Callable[[str], Path]):
    folder = copy("idefics")
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = [one for one in stored["added_tokens"] if one["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(WeightsError, match="has no control token <image>"):
        Generalist.load(folder)
    # Older folders list them in a file of their own.
    (folder / "added_tokens.json").write_text('{"<image>": 301}')
    assert Generalist.load(folder).assembler.marks.cross.image == 301
    (folder / "added_tokens.json").write_text('{"<image>": 302}')
    with pytest.raises(WeightsError, match="302 rows, too few for id 302 of the control token <image>"):
        Generalist.load(folder)


def test_what_is_missing_beside_a_checkpoint_is_named(copy: Callable[[str], Path]):
    folder = copy("flamingo_mpt")
    (folder / "vision").rename(folder / "clip")
    with pytest.raises(WeightsError, match="has a checkpoint.pt but no folder vision"):
        Generalist.load(folder)
    (folder / "vision").symlink_to(folder / "clip")
    assert context(Generalist.load(folder)) == 192
    config = json.loads((folder / "clip" / "config.json").read_text())
    (folder / "clip" / "config.json").write_text(json.dumps(config | {"model_type": "siglip_vision_model"}))
    with pytest.raises(WeightsError, match="but an OpenFlamingo sees with a CLIP"):
        Generalist.load(folder)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    stored = expected("idefics")
    for number in range(2):
        Image.fromarray(stored[f"image_{number}"]).save(tmp_path / f"{number}.png")
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"image": "0.png", "answer": "a cat"}\n{"image": "1.png", "answer": "a dog"}\n')
    weights = ["--weights", str(FIXTURES / "idefics")]
    given = ["prompt", *weights, str(tmp_path / "0.png"), "a picture of", "--tokens", "8"]
    assert main(given) == 0
    assert main([*given, "--shots", str(shots)]) == 0
    assert main([*given[:-2], "--choices", "a cat", "a dog"]) == 0
    assert "a " in capsys.readouterr().out


def test_a_benchmark_is_asked_with_its_images(tmp_path: Path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(4)), ("val", range(10, 12))):
        for number in numbers:
            Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        entries = [
            {"image": f"{number}.png", "question": "what?", "answer": "red cat"[number % 2 :]} for number in numbers
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, entries)))
    asked = ["eval", "fewshot", "--weights", str(FIXTURES / "idefics"), "--data", "jsonl", "--folder", str(tmp_path)]
    given = ["--kind", "vqa", "--shots", "0", "2", "--seeds", "1", "--tokens", "3", "--retrieve", "--beams", "2"]
    assert main([*asked, *given, "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["fewshot"]
    assert found["nearest_by"] == "the frozen encoder"
