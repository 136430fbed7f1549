"""A published language model as the weights of a run that never was: its settings and its tokenizer."""

import dataclasses

from generalist.config.data import DataConfig
from generalist.config.run import Config, TokenConfig
from generalist.model.config import ModelConfig
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.marks import Marks
from generalist.tokenizers.pieces import Images
from generalist.vision.encoder import VisionEncoder
from generalist.vision.vit import ViTConfig, check_vit, load_vit, vit_config
from generalist.weights.language import LanguageModel

SEPARATOR = "\n"
"""Between shots."""


def published_tokenizers(model: LanguageModel) -> Tokenizers:
    """What turns text into a language model's ids and back, with settings that describe it.

    Raises:
        WeightsError: its settings are not supported, or its tokenizer is missing or damaged.
        ImportError: `tokenizer.json` needs the package `tokenizers`, which is not installed.
    """
    text = model.text()
    ways: Images = "encoder" if model.gated is not None else model.images.way if model.images else "frame"
    config = Config(
        name=model.named.resolve().name,
        # A document has one local position only, of an embedding that is zero.
        model=dataclasses.replace(ModelConfig(), local_positions=1, **model.shape),
        tokens=TokenConfig(
            text_pieces=model.vocabulary,
            continuous_bins=0,
            discrete_values=0,
            documents=ways,
        ),
        data=DataConfig(sources={}, length=model.context[0]),
    )
    # All rows are text: models have more rows than their tokenizers pieces, and control tokens beyond those.
    marks = Marks(
        begin=model.begin(text),
        ends=model.ends(),
        chunk_end=int(text.encode(SEPARATOR)[-1]),
        pieces=model.vocabulary,
        stops=(SEPARATOR,),
        silent=model.suppressed(),
        image=model.images.marks(text) if model.images else None,
    )
    if model.gated is not None:
        marks = model.gated.marked(marks, text, model.shape)
    return Tokenizers(config=config, text=text, layouts={}, projection_width=0, published=marks, folder=model.named)


def check_published(model: LanguageModel) -> None:
    """Raises `WeightsError` unless its tensors, those of its vision tower included, match its settings; reads no number."""
    model.check()
    if model.images is not None:
        check_vit(model.folder, model.images.tower)
    if model.gated is not None:
        check_vit(model.gated.folder, model.gated.tower)


def published_tower(model: LanguageModel) -> ViTConfig | None:
    """The shape of the vision tower of a model that sees images; None: it sees none. No number is read.

    Raises:
        WeightsError: its settings are not supported.
    """
    if model.gated is not None:
        return vit_config(model.gated.folder, model.gated.tower)
    return vit_config(model.folder, model.images.tower) if model.images is not None else None


def published_encoder(model: LanguageModel) -> VisionEncoder | None:
    """The frozen encoder of a model that sees images; None: it sees none.

    Raises:
        WeightsError: as `check_published`, or a number is not finite.
    """
    if model.gated is not None:
        return load_vit(model.gated.folder, model.gated.tower)
    return load_vit(model.folder, model.images.tower) if model.images is not None else None
