"""Captions' tokens and scores are the published scorers' (tests/fixtures/make_captions.py)."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.eval.fewshot.captions import caption_scores, tokens

STORED = json.loads((Path(__file__).parents[2] / "fixtures" / "captions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "expected"), STORED["texts"])
def test_tokens_are_the_official_tokenizers(text: str, expected: str):
    assert tokens(text) == expected


def test_scores_are_the_published_scorers():
    several = STORED["captions"]
    scores = caption_scores([one["caption"] for one in several], [one["references"] for one in several])
    np.testing.assert_allclose(scores.cider, [one["cider"] for one in several], rtol=1e-12)
    np.testing.assert_allclose(scores.cider.mean(), STORED["cider"], rtol=1e-12)
    np.testing.assert_allclose(scores.bleu, STORED["bleu"], rtol=1e-12)
    assert scores.cider[0] > 1 > scores.cider[5] == 0.0, "the fixture has good captions and a bad one"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="needs references, got 1 lists of them, 1 of them empty"):
        caption_scores(["a cat"], [[]])
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"install the extra `captions`"):
        caption_scores(["a cat"], [["a cat"]])
