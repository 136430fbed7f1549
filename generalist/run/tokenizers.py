"""All that turns values into tokens and back in one run, and the files that keep it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from generalist.config.plain import plain
from generalist.config.run import Config
from generalist.model.config import ModelSpec
from generalist.run.folder import missing_run
from generalist.system.files import write_json
from generalist.tokenizers.pieces import Visual
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.text import TextTokenizer


def model_spec(config: Config, projection_width: int, channels: int) -> ModelSpec:
    """The model that the settings describe.

    Args:
        projection_width: columns of the tensor projection.
        channels: of the frozen encoder's features; 0 without one.
    """
    ways = f"{config.tokens.images}+{config.tokens.documents}".split("+")
    return ModelSpec(
        config=config.model,
        vocabulary=config.tokens.vocabulary(),
        projection_width=projection_width,
        patches="patches" in ways,
        frames="frame" in ways,
        channels=channels,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """All that turns values into tokens and back in one run."""

    config: Config
    text: TextTokenizer
    layouts: Mapping[str, TaskLayout]
    projection_width: int
    visual: Visual | None = None
    """What a frozen encoder is given of images; of the encoder that `config.model.vision` names, once it is opened."""
    channels: int = 0
    """Channels of its features; 0 without one."""

    @property
    def assembler(self) -> Assembler:
        """What puts pieces in order."""
        model, tokens = self.config.model, self.config.tokens
        return Assembler(
            vocabulary=tokens.vocabulary(),
            text_tokenizer=self.text,
            projection_width=self.projection_width,
            frame_size=model.frame_size,
            frame_tokens=model.frame_tokens,
            separator=tokens.separator,
            images=tokens.documents,
            visual=self.visual,
        )

    def model_spec(self) -> ModelSpec:
        """The model that reads these tokens."""
        return model_spec(self.config, self.projection_width, self.channels)

    def save(self, folder: Path) -> None:
        """Writes the three files; the settings last, so that a folder with them is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder / "text.model")
        layouts = {name: layout.to_json() for name, layout in sorted(self.layouts.items())}
        write_json(folder / "tokenizers.json", {"projection_width": self.projection_width, "layouts": layouts})
        write_json(folder / "config.json", plain(self.config))

    @classmethod
    def load(cls, folder: Path, config: Config) -> "Tokenizers":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no run in the folder.
            ValueError: a file is damaged.
        """
        try:
            stored = json.loads((folder / "tokenizers.json").read_text(encoding="utf-8"))
            width, described = int(stored["projection_width"]), dict(stored["layouts"])
            if width < 0:
                raise ValueError(f"projection_width is {width}")
        except FileNotFoundError as error:
            raise missing_run(folder) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{folder / 'tokenizers.json'} is damaged ({type(error).__name__}: {error}): "
                "delete the run's folder and train again"
            ) from error
        text = TextTokenizer.load(folder / "text.model")
        layouts = {name: TaskLayout.from_json(layout, text) for name, layout in described.items()}
        return cls(config=config, text=text, layouts=layouts, projection_width=width)
