"""BabyAI's grids seen whole: pointing, detection, matching and questions (docs/pointing.md)."""

import dataclasses

from generalist.data.grids import COLOURS, THINGS, check_installed, draw_grid
from generalist.data.scene_questions import question_texts
from generalist.data.scenes import Draw, Split
from generalist.data.source import Say, Stored, register
from generalist.data.sources.scenes import SceneSource


@register("grids")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grids(SceneSource):
    """Grids with balls, keys, boxes and doors, drawn by BabyAI's environment: the questions of `scenes`."""

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("grids",)

    @property
    def draw(self) -> Draw:
        """See `SceneSource.draw`."""
        return draw_grid

    def drawings(self, split: Split) -> tuple[int, int]:
        """See `SceneSource.drawings`."""
        return (len(COLOURS), len(THINGS)) if split == "pairs" else (0, 0)

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that minigrid is installed."""
        if self.takes_part:
            check_installed()

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        # Each thing with each colour, as often in each of the places that the texts have for them.
        return [
            text for shift in range(len(COLOURS)) for text in question_texts(THINGS, COLOURS[shift:] + COLOURS[:shift])
        ]
