"""Chat templates: the reference's texts and ids (tests/fixtures/make_chat.py), and templates that mean harm."""

import base64
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from generalist.cli.main import main
from generalist.inference.generalist import Generalist
from generalist.tokenizers.text import TextTokenizer
from generalist.weights.chat import LARGEST, chat_text
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel

FIXTURES = Path(__file__).parent.parent / "fixtures"
STORED: dict[str, Any] = json.loads((FIXTURES / "chat.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "hello"}]


def put(folder: Path, template: Any, **settings: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} | settings))
    return folder


@pytest.mark.parametrize("name", STORED)
def test_texts_and_ids_are_the_reference_s(name: str, tmp_path: Path):
    case = STORED[name]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(case["settings"]))
    text = chat_text(tmp_path, case["messages"])
    assert text == case["text"]
    tokenizer = TextTokenizer.load(FIXTURES / "language" / "qwen3" / "tokenizer.json")
    assert tokenizer.with_controls(text).tolist() == case["ids"]
    # Text that is only text still has no control tokens.
    assert not set(tokenizer.encode(text).tolist()) & {0, 1, 2}


def test_control_tokens_of_a_sentencepiece_model(tmp_path: Path):
    for name, case in json.loads((FIXTURES / "chat_sentencepiece.json").read_text()).items():
        copy = Path(shutil.copytree(FIXTURES / "language" / "mistral", tmp_path / name))
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer.model").write_bytes(base64.b64decode(case["model"]))
        settings = case["settings"] | {"chat_template": "{{ messages[0].content }}</s>"}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
        text = LanguageModel(copy).text()
        assert [text.with_controls(one).tolist() for one in case["texts"]] == case["ids"]
        # In a text they stay text, and in a message they are refused.
        assert text.control_id("</s>") not in text.encode("a</s>").tolist() and "</s>" in text.controls()
        assert pickle.loads(pickle.dumps(text)) == text
    added = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "llama" / "added_tokens.json").write_text(
        json.dumps({one["content"]: int(id) for id, one in added.items()})
    )
    assert LanguageModel(tmp_path / "llama").text().control_id("<|im_end|>") == int(max(added))
    strange = {"x": 5, "-1": {"content": "a"}, "9": {"content": None, "special": True}, "9" * 5000: {"content": "b"}}
    (tmp_path / "llama" / "added_tokens.json").write_text(json.dumps({"c": 10**9, "d": "5", "": 3}))
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": strange}))
    assert LanguageModel(tmp_path / "llama").text().added == ()


def test_an_answer_with_a_sentencepiece_model(tmp_path: Path):
    copy = Path(shutil.copytree(FIXTURES / "language" / "mistral", tmp_path / "mistral"))
    (copy / "tokenizer.json").unlink()
    TextTokenizer.train(["a photo of a cat", "the red dog"] * 9, 280).save(copy / "tokenizer.model")
    generalist = Generalist.load(put(copy, "<s>[INST] {{ messages[0].content }} [/INST]"))
    ids = generalist.tokenizers.text.with_controls("<s>[INST] a photo [/INST]")
    assert ids[0] == 1 and generalist.tokenizers.text.decode(ids[1:]) == "[INST] a photo [/INST]"
    answer = "".join(generalist.chat([{"role": "user", "content": "a photo"}], tokens=5))
    assert answer == generalist.prompt([ids[1:]], tokens=5)
    with pytest.raises(ValueError, match="a message has the control token </s> in it"):
        generalist.chat([{"role": "user", "content": "a</s>b"}])


def test_tools_and_documents_are_null_and_not_missing(tmp_path: Path):
    put(tmp_path, "{% if tools is not none or documents is not none %}wrong{% else %}right{% endif %}")
    assert chat_text(tmp_path, USER) == "right"


def test_templates_in_all_the_places_where_they_are_kept(tmp_path: Path):
    put(
        tmp_path,
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}!"}],
    )
    assert chat_text(tmp_path, USER) == "hello!"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}."}))
    assert chat_text(tmp_path, USER) == "hello."
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}?")
    put(tmp_path, "not this", bos_token="<s>")
    assert chat_text(tmp_path, USER) == "<s>?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ raise_exception('only users speak') }}", "only users speak"),
        ("{% for x in messages %}", "TemplateSyntaxError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ unknown.thing.more }}", "UndefinedError"),
        ("{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "longer than 1,048,576 characters"),
        ("{{ 'x' * 99999999999 }}", "MemoryError|cannot fit"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "more than 0.5 s of CPU time",
        ),
        ("{{ ['x'] * 9 | join(range(99999) | map('string') | list | tojson) }}", "TypeError"),
        ("{{ lipsum(9999999, False, 1, 2) }}", "more than 0.5 s of CPU time|longer than|MemoryError|1024 MiB"),
        ("{{ 9 ** (9 ** 9) }}", "more than 0.5 s of CPU time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|brings its process down"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages | attr('__class__') }}{{ ('' | attr('__class__')).x }}", "unsafe|UndefinedError|SecurityError"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe|SecurityError"),
        ("{% import 'os' as o %}", "no loader"),
        (
            "{% set n = namespace(x='xx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "MemoryError|more than 0.5 s of CPU time|more than 1024 MiB",
        ),
        ("x" * (LARGEST + 1), "larger than 131,072 bytes"),
        (None, "has no chat template"),
        (7, "has no chat template"),
    ],
)
def test_templates_that_mean_harm(tmp_path: Path, template: Any, message: str):
    with pytest.raises(WeightsError, match=message):
        chat_text(put(tmp_path, template), USER)


@pytest.mark.parametrize("entry", [{"role": "user"}, {"role": "tool", "content": "x"}, {"role": "user", "content": 3}])
def test_messages_that_are_none(tmp_path: Path, entry: Any):
    with pytest.raises(ValueError, match="a message has a role"):
        chat_text(put(tmp_path, "x"), [entry])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(FIXTURES / "language" / "mistral", tmp_path / "mistral"))
    return put(copy, STORED["chatml0"]["settings"]["chat_template"])


def test_an_answer_follows_the_template_s_ids(folder: Path, capsys: pytest.CaptureFixture):
    generalist = Generalist.load(folder)
    text = "<s>system\nYou are red.</s>\n<s>user\na photo</s>\n<s>assistant\n"
    ids = generalist.tokenizers.text.with_controls(text)
    assert ids.tolist().count(1) == 3  # <s>, none added before the template's own
    message = [{"role": "user", "content": "a photo"}]
    answer = "".join(generalist.chat(message, tokens=12))
    # The tokenizer puts <s> before a prompt: the same ids then stand behind it.
    assert answer == generalist.prompt([ids[1:]], tokens=12)
    assert main(["prompt", "--weights", str(folder), "--chat", "a photo", "--tokens", "12"]) == 0
    assert capsys.readouterr().out.endswith(f"{answer}\n")
    with pytest.raises(ValueError, match="a message has the control token </s> in it"):
        generalist.chat([{"role": "user", "content": "a</s>b"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--system", "x", "a"], "--system is the first message of a chat: add --chat"),
        (["--chat", "a", "--choices", "b", "c"], "--chat answers one message: leave --choices out"),
        (["--chat", "a", "--beams", "2"], "leave --beams out"),
        (["--chat", "a"], "only published language models have chat templates"),
    ],
)
def test_what_a_chat_has_not(options: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(["prompt", *options]) == 1
    assert message in " ".join(capsys.readouterr().out.split())
