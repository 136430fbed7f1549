"""Text comes back exactly, whatever it holds; the vocabulary is what it says."""

import io
import pickle
import time

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from generalist.tokenizers.text import TextTokenizer

CORPUS = [
    "pick up the red ball\nand put it next to the green box",
    "Opening doors, closing drawers: 123 tasks in 45 rooms.",
    "    indented  text\twith tabs, caf\u00e9s and \u65e5\u672c\u8a9e",
] * 20


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer.train(CORPUS, 400)


any_text = st.text(st.characters(exclude_categories=["Cs"]))
awkward_text = st.text(
    st.sampled_from(list(" \u2581\ue000\0012\n\r\t\u00a0\u3000\u200b\ufeff\ufffd\u2585\u2047a\u0301<>/s\U0010ffff"))
)


@settings(max_examples=300, deadline=None)
@given(string=any_text | awkward_text)
def test_any_string_comes_back(text, string):
    ids = text.encode(string)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert text.decode(ids) == string
    assert not len(ids) or (ids.min() >= 0 and ids.max() < text.size)


@pytest.mark.parametrize(
    "string",
    ["", " ", "  two  ", "\u2581", "\u2581 \u2581", "\ue000", "\ue0001", "\ue000\u25810", "\0", "a\0b", "\n\n \n", "\r\n",
     "<s>", "</s>", "<unk>", "<0x41>", " \u2047 ", "\ufdd0", "\U0001f600\u200d", "e\u0301", "\u00e9", "\ufb01"],
)  # fmt: skip
def test_hard_strings_come_back(text, string):
    assert text.decode(text.encode(string)) == string


def test_own_words_are_short(text):
    assert len(text.encode("pick up the red ball")) <= 8


def test_text_never_takes_the_control_pieces(text):
    taken = np.concatenate([text.encode(string) for string in [*CORPUS, "<unk><s></s>"]])
    assert not np.isin([0, 1, 2], taken).any()


def test_a_lone_surrogate_is_an_error(text):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2.*replace"):
        text.encode("ab\ud800")


@pytest.mark.parametrize("bad", [-1, 400])
def test_an_id_that_is_no_piece_is_an_error(text, bad):
    with pytest.raises(ValueError, match=r"text ids must be in 0\.\."):
        text.decode(np.array([5, bad]))


def test_every_id_decodes(text):
    """A model may write any order of ids; bytes that are no UTF-8 become the replacement character."""
    assert isinstance(text.decode(np.arange(text.size)[::-1]), str)


def test_training_is_deterministic_and_saved_exactly(text, tmp_path):
    again = TextTokenizer.train(CORPUS, 400)
    assert again.model == text.model
    text.save(tmp_path / "text.model")
    for copy in (TextTokenizer.load(tmp_path / "text.model"), pickle.loads(pickle.dumps(text))):
        assert copy == text and copy.size == text.size
        np.testing.assert_array_equal(copy.encode("the red ball"), text.encode("the red ball"))


def test_a_small_corpus_gives_fewer_pieces_and_says_so():
    text = TextTokenizer.train(["ab abc"], 32000)
    assert 259 < text.size < 300
    assert text.decode(text.encode("xyz \u65e5")) == "xyz \u65e5"


def test_a_corpus_of_many_characters_fits_a_small_vocabulary():
    text = TextTokenizer.train(["".join(map(chr, range(0x4E00, 0x5600)))], 300)
    assert text.size <= 300
    assert text.decode(text.encode("\u4e00 \u5000  a ")) == "\u4e00 \u5000  a "  # spaces too, of which it saw none


def test_training_is_quick_and_quiet(capfd):
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(5000)]
    corpus = [" ".join(rng.choice(words, 150)) for _ in range(3000)]
    start = time.perf_counter()
    text = TextTokenizer.train(corpus, 1024)
    assert time.perf_counter() - start < 10  # seconds, on 3 MB
    assert text.size == 1024
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 400, "no text"),
        (["\n\n"], 400, "no text"),
        (["abc"], 100, "at least 261"),
        (["a\udfff"], 400, "lone surrogate"),
    ],
)
def test_training_errors(texts, size, message):
    with pytest.raises(ValueError, match=message):
        TextTokenizer.train(texts, size)


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "text.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"text\.model: the text model is damaged"):
        TextTokenizer.load(tmp_path / "text.model")
    with pytest.raises(FileNotFoundError):
        TextTokenizer.load(tmp_path / "nothing.model")


@pytest.mark.parametrize(
    "settings",
    [
        {"byte_fallback": True},  # SentencePiece's defaults: folds characters and strips spaces
        {"byte_fallback": True, "normalization_rule_name": "identity"},  # strips
        {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},  # has no bytes
    ],
)
def test_a_model_that_changes_text_is_refused(settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat on a mat"] * 9),
        model_writer=model,
        vocab_size=290 if "byte_fallback" in settings else 40,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    with pytest.raises(ValueError, match="the text model changes text"):
        TextTokenizer(model.getvalue())
