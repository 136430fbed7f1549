"""All that turns values into tokens and back in one run, and the files that keep it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from generalist.config.run import Config
from generalist.config.versions import FORMAT, to_stored
from generalist.model.config import ModelSpec
from generalist.run.folder import missing_run
from generalist.run.named_weights import run_settings
from generalist.system.files import write_json
from generalist.system.versions import FormatError, stored_format
from generalist.tokenizers.pieces import Visual
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.text import TextTokenizer

LAYOUTS_ACT = 2  # the first format in which a layout says how it is acted in


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
        described = {"format": FORMAT, "projection_width": self.projection_width, "layouts": layouts}
        write_json(folder / "tokenizers.json", described)
        write_json(folder / "config.json", to_stored(self.config))

    @classmethod
    def load(cls, folder: Path, config: Config) -> "Tokenizers":
        """Reads what `save` wrote, now or in an earlier version.

        Args:
            config: the settings that are used now: those stored in the folder, or a command's that goes on with the run. A
                temperature that the command changes replaces that of the suite's layouts.

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
            acting = begun.data.suite_of(name).acting if number < LAYOUTS_ACT else None
            layouts[name] = _with_temperature(TaskLayout.from_json(layout, text, acting), begun, config)
        return cls(config=config, text=text, layouts=layouts, projection_width=width)


def _with_temperature(layout: TaskLayout, begun: Config, now: Config) -> TaskLayout:
    """The layout with the temperature of the settings that are used now, where it is another than when the run began. Where it is
    the same, the layout's own counts: it may come with the weights of `training.start`, which the settings say nothing of."""
    before, after = (config.data.suite_of(layout.name).temperature for config in (begun, now))
    if before == after:
        return layout
    return dataclasses.replace(layout, acting=dataclasses.replace(layout.acting, temperature=after))
