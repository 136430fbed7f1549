"""Every format reaches training, pretraining and the check of all images."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from document_checks import SETS

from generalist.contrastive.data import OwnPairs
from generalist.data import documents as module
from generalist.data.document_examples import DocumentExamples
from generalist.data.documents import Documents, open_documents
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.faults import TooManyBroken
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["picture 1 and picture 2 between the two"] * 9, 300)
ASSEMBLER = Assembler(vocabulary=Vocabulary(text=300, continuous=0, discrete=0), text_tokenizer=TEXT, images="frame")


@pytest.mark.parametrize("name", ["saved", "hub", "webdataset", "obelics", "cauldron"])
def test_examples_have_the_texts_and_images(name: str):
    documents = Documents(SETS / name)
    examples = DocumentExamples(documents=documents, assembler=ASSEMBLER, length=2000)
    for index in range(len(documents)):
        sequence = examples.example(index, np.random.default_rng(index))
        parts = documents[index]
        assert len(sequence.frames) == sum(not isinstance(part, str) for part in parts)
        said = TEXT.decode(sequence.tokens[sequence.tokens < TEXT.size])
        assert all(part.strip() in said for part in parts if isinstance(part, str))
    assert not documents.left_out


@pytest.mark.parametrize("name", ["hub", "webdataset"])
def test_pairs_for_contrastive_pretraining(name: str):
    pairs = OwnPairs(Documents(SETS / name))
    assert len(pairs) == {"hub": 5, "webdataset": 6}[name]
    image, text = pairs.drawn(3, np.random.default_rng(0))
    assert text == "picture 3" and image[0, 0].tolist() == [30, 20, 30]
    assert list(pairs.texts())[:2] == ["picture 0", "picture 1"]


@pytest.mark.slow
def test_all_images_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FEW", 0)
    monkeypatch.setattr(module, "PER_JOB", 7)
    sound = Documents(SETS / "hub")[0][0].content  # type: ignore[union-attr]
    images = [sound] * 20
    images[3] = images[17] = b"broken"
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": ["a"] * 20}), tmp_path / "t.parquet")
    said: list[str] = []
    read: list[int] = []
    opening = DocumentOpening(index=tmp_path / "index")
    found = open_documents(
        tmp_path, 0.1, said.append, opening=opening, workers=2, whole=True, advance=read.append
    )  # fmt: skip
    assert list(found.left_out) == [3, 17] and sum(read) == 20
    assert "t.parquet row 3: its image is no image" in said[0]
    with pytest.raises(TooManyBroken, match="2 of 20 records"):
        open_documents(tmp_path, 0.05, said.append, opening=opening, workers=2, whole=True)
