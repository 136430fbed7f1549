"""What is told about a published model's folder: settings of its files that are not applied, and files that it lacks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from generalist.cli.main import main
from generalist.inference.generalist import Generalist
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.notes import notes

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "language" / "mistral", tmp_path / "mistral"))


def written(folder: Path, settings: dict[str, Any]) -> list[str]:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return notes(LanguageModel(folder, images=True))


def test_settings_of_writing_that_are_not_applied(copy: Path):
    usual = {"repetition_penalty": 1.0, "num_beams": 1, "bad_words_ids": None, "do_sample": False, "temperature": 0.6}
    assert written(copy, usual | {"eos_token_id": 2, "suppress_tokens": [5], "max_length": 9}) == []
    (penalty,) = written(copy, {"repetition_penalty": 1.1, "forced_eos_token_id": 2})
    assert penalty.endswith("asks for repetition_penalty = 1.1, forced_eos_token_id = 2, which is not applied")
    (sampling,) = written(copy, {"do_sample": True, "temperature": 0.6, "top_p": 0.95})
    assert "(--temperature 0.6 --top-k 50 --top-p 0.95)" in sampling


def test_a_model_without_its_preparation_of_images(tmp_path: Path):
    for name, missing in (("images/gemma3", 1), ("gated/idefics", 1), ("gated/flamingo_mpt", 0), ("language/llama", 0)):
        copy = Path(shutil.copytree(FIXTURES / name, tmp_path / Path(name).name))
        for file in copy.glob("*processor_config.json"):
            file.unlink()
        found = notes(LanguageModel(copy, images=True))
        assert len(found) == missing and all("has no preprocessor_config.json" in one for one in found)
        assert notes(LanguageModel(FIXTURES / name, images=True)) == []


def test_suppressed_ids_are_never_written(copy: Path):
    plain = Generalist.load(copy)
    (letter,) = plain.tokenizers.text.encode("q").tolist()
    ids = [one for one in range(plain.assembler.marks.pieces) if one != letter]
    (copy / "generation_config.json").write_text(json.dumps({"suppress_tokens": [*ids, 9999]}))
    generalist = Generalist.load(copy)
    assert generalist.assembler.marks.silent == tuple(ids)
    # Not even its end.
    assert plain.prompt(["a photo of"], tokens=6) != "q" * 6 == generalist.prompt(["a photo of"], tokens=6)
    (copy / "generation_config.json").write_text(json.dumps({"suppress_tokens": "all"}))
    with pytest.raises(WeightsError, match="suppress_tokens = 'all' in generation_config.json is no list of ids"):
        Generalist.load(copy)


def test_the_command_tells_them(copy: Path, capsys: pytest.CaptureFixture[str]):
    (copy / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": 3, "do_sample": True}))
    assert main(["prompt", "--weights", str(copy), "a photo", "--tokens", "2"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "note: its generation_config.json asks for no_repeat_ngram_size = 3, which is not applied" in told
    assert "note: its generation_config.json asks for sampling (--temperature 1.0" in told
