"""The image tokenizer of a run: what it determines, and its place in folders."""

import dataclasses
from pathlib import Path

from generalist.config.run import Config
from generalist.vision.image_tokenizer import ImageTokenizer
from generalist.weights.folder import WeightsError

IMAGE_TOKENIZER = "image_tokenizer"  # within the folder of a run or of weights


def with_image_tokenizer(config: Config) -> Config:
    """The settings with the number of codes of the image tokenizer `tokens.image_tokenizer`; 0 if that is none.

    Raises:
        WeightsError: it names no image tokenizer, or a damaged one.
    """
    # Weights that the run begins with bring theirs, whose own folder may be gone by now.
    if config.training.start and config.tokens.image_codes:
        return config
    codes = 0 if config.tokens.image_tokenizer == "none" else load_tokenizer(config).codebook
    return dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, image_codes=codes))


def load_tokenizer(config: Config) -> ImageTokenizer:
    """The image tokenizer that the settings name.

    Raises:
        WeightsError: it names no image tokenizer, or a damaged one.
    """
    return ImageTokenizer.load(config.tokens.image_tokenizer)


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
