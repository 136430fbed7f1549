"""Everything that turns values into tokens and back in one run, and its files."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym

from generalist.config.run import Config
from generalist.config.versions import FORMAT, to_stored
from generalist.model.config import ModelSpec
from generalist.run.drawn import IMAGE_TOKENIZER, checked_tokenizer
from generalist.run.folder import missing_run
from generalist.run.named_weights import run_settings
from generalist.system.files import write_json
from generalist.system.versions import FormatError, stored_format
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.marks import Marks
from generalist.tokenizers.pieces import Visual
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout, action_dimensions
from generalist.tokenizers.text import TextTokenizer
from generalist.vision.image_tokenizer import ImageTokenizer

LAYOUTS_ACT = 2  # the first format in which layouts store their settings of acting


def model_spec(config: Config, projection_width: int, channels: int, action_dimensions: int) -> ModelSpec:
    """The model that the settings describe.

    Args:
        projection_width: number of columns of the tensor projection.
        channels: of the frozen encoder's features; 0 without an encoder.
        action_dimensions: of the largest parallel action; 0 if there is none.
    """
    ways = f"{config.tokens.images}+{config.tokens.documents}".split("+")
    return ModelSpec(
        config=config.model,
        vocabulary=config.tokens.vocabulary(),
        projection_width=projection_width,
        patches="patches" in ways,
        frames="frame" in ways,
        channels=channels,
        projected="projected" in ways and channels > 0,
        action_dimensions=action_dimensions,
    )


def acting_in(config: Config, name: str, action: gym.Space) -> Acting:
    """How a run acts in a layout that it trains: by the settings of the layout's suite, and with parallel actions if the run has
    them and the layout's actions have one length.

    Args:
        name: of the layout.
        action: its action space.
    """
    parallel = config.tokens.actions == "parallel" and action_dimensions(action) is not None
    return dataclasses.replace(config.data.suite_of(name).acting, parallel=parallel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """Everything that turns values into tokens and back in one run."""

    config: Config
    text: TextTokenizer
    layouts: Mapping[str, TaskLayout]
    """Task layouts by their names."""
    projection_width: int
    """Number of columns of the tensor projection, of all layouts together; 0 if tensors are not projected."""
    codes: ImageTokenizer | None = None
    """The image tokenizer; None without one."""
    visual: Visual | None = None
    """Turns images into the frozen encoder's input, or its stored features; None without an encoder, or until it is opened."""
    channels: int = 0
    """Channels of the encoder's features; 0 without an encoder."""
    published: Marks | None = None
    """The marks of a published model, which has no layouts; None: weights of a run."""
    folder: Path | None = None
    """Folder of the published language model."""
    around_images: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Ids before and behind an image of a document, as the published model writes them that the weights began with."""

    @property
    def assembler(self) -> Assembler:
        """What assembles the pieces of values into sequences."""
        model, tokens = self.config.model, self.config.tokens
        return Assembler(
            vocabulary=tokens.vocabulary(),
            text_tokenizer=self.text,
            projection_width=self.projection_width,
            frame_size=model.frame_size,
            frame_tokens=model.frame_tokens,
            action_dimensions=self.action_dimensions,
            separator=tokens.separator,
            images=tokens.documents,
            visual=self.visual,
            image_positions=model.vision.positions,
            both_ways=self._both_ways,
            codes=self.codes,
            published=self.published,
            around_images=self.around_images,
        )

    @property
    def _both_ways(self) -> bool:
        """Whether images are blocks; of a published model its marks decide, since its whole prompt may be one instead."""
        if self.published is not None and self.published.image is not None:
            return self.published.image.blocks == "image"
        return self.config.model.blocks != "none"

    @property
    def action_dimensions(self) -> int:
        """Dimensions of the largest parallel action; 0 if no layout has them."""
        parallel = (layout for layout in self.layouts.values() if layout.acting.parallel)
        return max((layout.action.tokens_per_step or 0 for layout in parallel), default=0)

    def model_spec(self) -> ModelSpec:
        """The model that reads these tokens."""
        spec = model_spec(self.config, self.projection_width, self.channels, self.action_dimensions)
        return spec if self.published is None else dataclasses.replace(spec, patches=False, frames=False)

    def save(self, folder: Path) -> None:
        """Writes tokenizers.json, text.model, image_tokenizer/ if there is one, and config.json."""
        # The settings last: a folder that has them is complete.
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder / "text.model")
        if self.codes is not None:
            # What an interrupted command left here, whose folder has no settings yet.
            shutil.rmtree(folder / IMAGE_TOKENIZER, ignore_errors=True)
            self.codes.save(folder / IMAGE_TOKENIZER)
        layouts = {name: layout.to_json() for name, layout in sorted(self.layouts.items())}
        described = {"format": FORMAT, "projection_width": self.projection_width, "layouts": layouts}
        if any(self.around_images):
            described["around_images"] = self.around_images
        write_json(folder / "tokenizers.json", described)
        write_json(folder / "config.json", to_stored(self.config))

    @classmethod
    def load(cls, folder: Path, config: Config) -> "Tokenizers":
        """Reads what `save` wrote, now or in an earlier version.

        Args:
            config: the current settings: those of the folder, or of a command that continues the run. Where the command
                changes the temperature of a suite, the suite's layouts get it.

        Raises:
            FileNotFoundError: there is no run in the folder.
            ValueError: a file is damaged, or of a newer format than this version reads.
        """
        path = folder / "tokenizers.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            number = stored_format(stored, FORMAT, path)
            width, described = int(stored["projection_width"]), dict(stored["layouts"])
            if width < 0:
                raise ValueError(f"projection_width is {width}")
            before, after = (tuple(map(int, ids)) for ids in stored.get("around_images", ((), ())))
        # `FormatError` is a `ValueError` too, but its file is not damaged.
        except FileNotFoundError as error:
            raise missing_run(folder) from error
        except FormatError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}): delete the run's folder and train again"
            ) from error
        text, begun = TextTokenizer.load(folder / "text.model"), run_settings(folder)
        layouts = {}
        for name, layout in described.items():
            # Before layouts stored how to act in them, the settings of their suite decided.
            acting = begun.data.suite_of(name).acting if number < LAYOUTS_ACT else None
            layouts[name] = _with_temperature(TaskLayout.from_json(layout, text, acting), begun, config)
        codes = checked_tokenizer(config, folder / IMAGE_TOKENIZER) if config.tokens.image_codes else None
        around = (before, after)
        return cls(config=config, text=text, layouts=layouts, projection_width=width, codes=codes, around_images=around)


def _with_temperature(layout: TaskLayout, begun: Config, now: Config) -> TaskLayout:
    """The layout with the temperature of the current settings, if that has changed since the run began."""
    # If it has not changed, the layout keeps its own, which may differ: that of a layout which came with the weights of
    # `training.start` is not in the settings.
    before, after = (config.data.suite_of(layout.name).temperature for config in (begun, now))
    if before == after:
        return layout
    return dataclasses.replace(layout, acting=dataclasses.replace(layout.acting, temperature=after))
