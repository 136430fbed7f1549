"""Folders of published language models as they are: greedy texts of the reference implementation, their own marks and context,
what they cannot do. Expected texts: tests/fixtures/make_language.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from generalist.cli import main
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import AgentPrompt
from generalist.model.params import flat
from generalist.run.named_weights import weights_settings
from generalist.weights.folder import WeightsError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
QUICK = ("gpt_neox", "mistral", "qwen3_windows")


def written(generalist: Generalist, prompt: str, count: int) -> str:
    return generalist.prompt([prompt], tokens=count)


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in NAMES])
def test_greedy_text_is_the_reference_s(name: str):
    expected = np.load(FIXTURES / name / "expected.npz")
    generalist = Generalist.load(FIXTURES / name, cache_type="float32")
    # One more than the reference wrote: a text that ended, ends.
    count = len(expected["written"])
    assert count == 64 or expected["written"][-1] in generalist.assembler.marks.ends or name.startswith("gpt2")
    assert written(generalist, str(expected["prompt"]), count) == str(expected["text"])


def test_16_bit_files_stay_in_16_bits():
    mistral = Generalist.load(FIXTURES / "mistral")
    leaves = flat(mistral.params)
    assert leaves["tokens/text"].dtype == leaves["blocks/0/attention/qkv/kernel"].dtype == "bfloat16"
    assert leaves["final_norm/scale"].dtype == "float32"  # the gain less 1, which bfloat16 would round
    # Keys and values too, unless another type is set.
    assert mistral.cache_dtype == "bfloat16"
    assert Generalist.load(FIXTURES / "llama_biased").cache_dtype == "float16"
    assert Generalist.load(FIXTURES / "llama").cache_dtype == "float32"
    assert Generalist.load(FIXTURES / "mistral", weights_type="int8").cache_dtype == "bfloat16"
    assert Generalist.load(FIXTURES / "mistral", cache_type="float32").cache_dtype == "float32"


def test_caches_of_a_run_s_weights_are_in_float32_however_they_are_stored():
    shipped = Generalist.load()
    assert flat(shipped.params)["blocks/0/attention/qkv/kernel"].dtype == "bfloat16"
    assert shipped.cache_dtype == "float32"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "phi3", tmp_path / "phi3"))


def marks(folder: Path):
    return Generalist.load(folder).assembler.marks


def test_marks_are_those_of_the_folder_s_own_files(copy: Path):
    assert marks(copy).begin == (1,) and marks(copy).ends == (2,)
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (copy / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert marks(copy).begin == () and marks(copy).ends == (7, 8)
    (copy / "generation_config.json").write_text('{"eos_token_id": [300, 4]}')
    assert marks(copy).ends == (4,)
    (copy / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(WeightsError, match=r"eos_token_id = '</s>', which is no id"):
        marks(copy)
    (copy / "generation_config.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    stored = json.loads((copy / "tokenizer.json").read_text())
    stored["post_processor"]["single"].append({"SpecialToken": {"id": "<s>", "type_id": 0}})
    (copy / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(WeightsError, match=r"its tokenizer ends every text with ids \[1\]"):
        marks(copy)


def test_a_sentencepiece_model_begins_as_its_family_does(copy: Path, write_sentencepiece: Callable[[Path], None]):
    (copy / "tokenizer.json").unlink()
    write_sentencepiece(copy / "tokenizer.model")
    generalist = Generalist.load(copy)
    assert generalist.assembler.marks.begin == (1,)
    assert isinstance(written(generalist, "a photo", 8), str)


def test_prompts_beyond_the_context_are_refused_and_texts_end_there():
    generalist = Generalist.load(FIXTURES / "gpt2")
    with pytest.raises(ValueError, match="takes 32 positions, but the model has a context of 32"):
        generalist.prompt([" photo" * 32])
    assert generalist.prompt([" photo" * 31], tokens=9)
    with pytest.raises(ValueError, match="a prompt is empty"):
        generalist.prompt([""])


def test_shots_and_choices_are_texts_on_lines():
    generalist = Generalist.load(FIXTURES / "qwen3")
    shots = [{"question": "a cat", "answer": "red"}, {"question": "a dog", "answer": "of"}]
    from generalist.inference.shots import Shot

    parts = [part for shot in shots for part in Shot(**shot).parts()]
    after = generalist.read(parts)
    ids = generalist.assembler.document(parts, is_open=True).tokens
    said = "question: a cat answer: red\nquestion: a dog answer: of"
    assert generalist.tokenizers.text.decode(ids).rstrip("\n") == said
    text = generalist.prompt(["question: a photo answer:"], after=after, tokens=20)
    assert "\n" not in text
    assert generalist.prompt(["question: a photo answer:"], after=after, choices=[" red", " of"]) in (" red", " of")
    streamed = "".join(generalist.stream(["question: a photo answer:"], after=after, tokens=20))
    assert streamed == text


def test_what_a_language_model_is_not(copy: Path):
    generalist = Generalist.load(copy)
    with pytest.raises(ValueError, match="a language model, which sees no images"):
        generalist.prompt([np.zeros((8, 8, 3), np.uint8), "a photo"])
    with pytest.raises(ValueError, match="babyai"):
        generalist.prompt(AgentPrompt(layout="babyai", observation={}))
    with pytest.raises(ValueError, match="is a published language model: save it with `save_published`"):
        generalist.save(copy.parent / "saved")
    with pytest.raises(ValueError, match="without settings of a run: train.py alone takes it"):
        weights_settings(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no \*.safetensors file"):
        Generalist.load(copy)


def test_the_command_takes_such_a_folder(capsys: pytest.CaptureFixture):
    expected = np.load(FIXTURES / "mistral" / "expected.npz")
    status = main.main(["prompt", "--weights", str(FIXTURES / "mistral"), str(expected["prompt"]), "--tokens", "64"])
    assert status == 0
    assert capsys.readouterr().out.endswith(str(expected["text"]) + "\n")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": ' + "[" * 100_000])
def test_damaged_settings_are_named(copy: Path, text: str):
    (copy / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json (is not JSON|holds list instead of an object)"):
        Generalist.load(copy)


def test_every_character_has_the_ids_that_the_tokenizer_s_own_library_gives_it():
    from tokenizers import Tokenizer

    text, path = "a\u2581b\ue000c\0d \u25810", FIXTURES / "qwen3" / "tokenizer.json"
    ours = Generalist.load(FIXTURES / "qwen3").tokenizers.text
    ids = ours.encode(text)
    assert ids.tolist() == Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text
