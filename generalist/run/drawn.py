"""The image tokenizer of a run: what it determines, and its place in folders."""

import dataclasses
import math
from pathlib import Path

from generalist.config.run import Config
from generalist.run.folder import has_begun
from generalist.tokenizers.drawing import MOST_CELLS
from generalist.vision.autoencoder import AutoencoderConfig
from generalist.vision.image_tokenizer import ImageTokenizer
from generalist.vision.vq import VqConfig
from generalist.weights.folder import WeightsError

IMAGE_TOKENIZER = "image_tokenizer"  # within the folder of a run or of weights
LEARNED = "learned"


def with_image_tokenizer(config: Config) -> Config:
    """The settings with the number of codes of the image tokenizer `tokens.image_tokenizer`; 0 if that is none. None is learned
    if no source draws.

    Raises:
        WeightsError: it names no image tokenizer, or a damaged one.
        ValueError: its images have too many codes, or its run is this one.
    """
    # Weights that the run begins with bring theirs, whose own folder may be gone by now.
    if config.training.start and config.tokens.image_codes:
        return config
    codes, tokens = 0, config.tokens
    if tokens.image_tokenizer == LEARNED and not _draws(config):
        tokens = dataclasses.replace(tokens, image_tokenizer="none")
    if tokens.image_tokenizer == LEARNED and config.folder == _learned(config):
        raise ValueError(
            f"{config.folder} is the folder of the image tokenizer that is learned first: choose another --name"
        )
    if tokens.image_tokenizer != "none":
        shape = AutoencoderConfig() if is_to_be_learned(config) else load_tokenizer(config).config
        check_cells(config, shape)
        codes = shape.codebook
    return dataclasses.replace(config, tokens=dataclasses.replace(tokens, image_codes=codes))


def tokenizer_folder(config: Config) -> Path:
    """Where the image tokenizer is that the settings name, or will be once it is learned. A run that has begun has a copy, and
    goes on with it wherever it came from."""
    copy = config.folder / IMAGE_TOKENIZER
    if copy.is_dir() and has_begun(config.folder, config.training.checkpoints):
        return copy
    named = config.tokens.image_tokenizer
    return _learned(config) / "tokenizer" if named == LEARNED else Path(named)


def _learned(config: Config) -> Path:
    """The run whose image tokenizer `learned` stands for."""
    return config.runs / "image_tokenizer"


def is_to_be_learned(config: Config) -> bool:
    """Whether the image tokenizer has yet to be trained for a source that draws."""
    if config.tokens.image_tokenizer != LEARNED or not _draws(config):
        return False
    is_brought = bool(config.training.start and config.tokens.image_codes)  # by the weights that the run begins with
    return not is_brought and not tokenizer_folder(config).exists()


def _draws(config: Config) -> bool:
    return any(source.draws for source in config.data.taking_part.values())


def check_cells(config: Config, shape: AutoencoderConfig | VqConfig) -> None:
    """Checks that the codes of an image fit into a drawing, and into the rows of the sources that draw.

    Raises:
        ValueError: they do not.
    """
    size, cells = shape.size, shape.cells
    if cells > MOST_CELLS:
        largest = math.isqrt(MOST_CELLS) * (size // shape.side)
        raise ValueError(
            f"tokens.image_tokenizer = {config.tokens.image_tokenizer}: an image of {size} × {size} pixels has {cells:,} codes, "
            f"but a drawing has at most {MOST_CELLS}: use a tokenizer of larger patches, or images of at most {largest} pixels "
            f'(a published file takes them with {{"size": {largest}}} in a config.json beside it)'
        )
    for source in config.data.taking_part.values():
        source.check_cells(cells, config.data.length)


def load_tokenizer(config: Config) -> ImageTokenizer:
    """The image tokenizer that the settings name.

    Raises:
        WeightsError: it names no image tokenizer, or a damaged one.
    """
    try:
        return ImageTokenizer.load(tokenizer_folder(config))
    except WeightsError as error:
        raise WeightsError(f"tokens.image_tokenizer: {error}") from error


def checked_tokenizer(config: Config, folder: Path) -> ImageTokenizer:
    """The image tokenizer in the folder of a run or of weights.

    Raises:
        WeightsError: it is missing or damaged, or has other codes than the settings say.
    """
    # Without it a published one would load too, with another size of images.
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json: restore the folder")
    found = ImageTokenizer.load(folder)
    if found.codebook != config.tokens.image_codes:
        raise WeightsError(
            f"{folder} has {found.codebook} codes, but tokens.image_codes is {config.tokens.image_codes}: restore the folder"
        )
    return found
