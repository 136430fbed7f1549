"""From settings to batches, with a pretrained trunk and documents of one's own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from generalist.config import Config, ControlConfig, DataConfig, DocumentsConfig, EmojiConfig, ProseConfig
from generalist.prepare import prepare
from generalist.presets import debug
from generalist.tokenizers.pieces import Modality
from generalist.weights.language import with_trunk

FIXTURES = Path(__file__).parent / "fixtures"


def own(tmp_path: Path, **tokens: str) -> Config:
    """Nothing but documents, read by tiny CLIP eyes and a tiny Qwen."""
    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "red.png")
    page = {"content": ["look: ", {"image": "red.png"}, "a red photo", {"image": "red.png"}, " of a dog"]}
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps(page)] * 3 + ['{"text": "a photo of a cat"}'] * 3))
    absent = ControlConfig(weight=0.0)
    base = debug()
    model = dataclasses.replace(
        base.model,
        trunk=str(FIXTURES / "language" / "qwen3"),
        vision=dataclasses.replace(base.model.vision, encoder=str(FIXTURES / "vision" / "clip")),
    )
    data = DataConfig(
        folder=tmp_path / "data",
        metaworld=absent,
        babyai=absent,
        atari=absent,
        classic=absent,
        fetch=absent,
        emoji=EmojiConfig(weight=0.0),
        prose=ProseConfig(weight=0.0),
        documents=DocumentsConfig(weight=1.0, path=tmp_path / "own.jsonl"),
        rows=2,
        length=64,
        images=8,
    )
    return with_trunk(
        dataclasses.replace(
            base, runs=tmp_path / "runs", model=model, data=data, tokens=dataclasses.replace(base.tokens, **tokens)
        )
    )


def test_documents_reach_the_batch_in_the_trunk_s_own_tokens(tmp_path: Path):
    prepared = prepare(own(tmp_path, documents="encoder"), Console(quiet=True))
    batch = next(prepared.iterator)
    prepared.iterator.close()
    assert list(prepared.sources) == ["documents"]
    vocabulary, text = prepared.tokenizers.assembler.vocabulary, prepared.tokenizers.text
    assert vocabulary.text == 300
    shown = batch.modality == Modality.IMAGE
    assert shown.sum() >= 2
    assert (batch.tokens[shown] == vocabulary.image).all()
    assert batch.images.shape[1:] == (24, 24, 3)
    # Every word of the pages is there, as the trunk spells it.
    said = text.decode(batch.tokens[(batch.modality == Modality.TEXT) & (batch.tokens < text.size)])
    assert "a red photo" in said
    assert "a photo of a cat" in said
    assert np.isin(vocabulary.chunk_end, batch.targets)
    assert prepared.tokenizers.model_spec().channels == 16
