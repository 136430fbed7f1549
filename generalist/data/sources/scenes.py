"""Composed scenes with exact truth: pointing, detection, matching and questions (docs/pointing.md)."""

import abc
import dataclasses
from collections.abc import Sequence

from generalist.data.examples import Examples
from generalist.data.scene_examples import SceneExamples
from generalist.data.scene_questions import training_texts
from generalist.data.scenes import MOST, Draw, Split, draw_scene, names, pool
from generalist.data.source import Reading, Say, Source, Stored, Ways, check_locations, register

LEAST_THINGS = 24  # of fewer, too few pairs with a colour would be held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneSource(Source):
    """Drawn images of which everything is known, with the same questions whatever draws them."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    objects: int = 4
    """Maximum number of things per scene."""
    questions: int = 4
    """Maximum number of questions per scene, no two of which are about the same thing."""
    detections: float = 0.15
    """Share of the scenes in which every thing is named with its place, followed by noise."""
    asked_first: float = 0.0
    """Share of the other scenes that have one question, before the image. From half on an evaluation asks so too."""
    evaluation_scenes: int = 200
    """Scenes per number of things, and questions per kind, that an evaluation asks about."""

    def __post_init__(self) -> None:
        for name, least, most in (("objects", 1, MOST), ("questions", 1, None), ("evaluation_scenes", 2, None)):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                bound = f"from {least} to {most}" if most else f"at least {least}"
                raise ValueError(f"data.{self.kind}.{name} must be {bound}, got {value}")
        for name in ("detections", "asked_first"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"data.{self.kind}.{name} is a share from 0 to 1, got {value}")

    @property
    def is_asked_first(self) -> bool:
        """Whether an evaluation asks before it shows the image."""
        return self.asked_first >= 0.5

    @property
    @abc.abstractmethod
    def draw(self) -> Draw:
        """What draws its scenes."""

    @abc.abstractmethod
    def drawings(self, split: Split) -> tuple[int, int]:
        """The number of drawings that a split shows, and the number of different things that they are of."""

    @property
    def number_of_things(self) -> int:
        """Number of things that its scenes show; 0: all there are."""
        return 0

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if ways.features == "stored" and {"encoder", "projected"} & {*ways.documents}:
            raise ValueError(
                f"data.features = stored needs a fixed set of images, but data.{name} draws every scene anew: use computed"
            )
        check_locations(name, ways.locations)

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`."""
        return [
            SceneExamples(
                assembler=reading.assembler,
                length=reading.length,
                objects=self.objects,
                questions=self.questions,
                detections=self.detections,
                asked_first=self.asked_first,
                things=self.number_of_things,
                draw=self.draw,
            )
        ]


@register("scenes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(SceneSource):
    """Coloured drawings on textured grounds: point to one, name a place, match, count and compare."""

    things: int = 0
    """Number of things that scenes show, the first ones in a fixed random order; 0: all, more than 900."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.things and self.things < LEAST_THINGS:
            raise ValueError(f"data.scenes.things must be 0 (all) or at least {LEAST_THINGS}, got {self.things}")

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("scenes",)

    @property
    def draw(self) -> Draw:
        """See `SceneSource.draw`."""
        return draw_scene

    def drawings(self, split: Split) -> tuple[int, int]:
        """See `SceneSource.drawings`."""
        shown = names(split, self.things)
        return sum(len(pool(split)[thing]) for thing in shown), len(shown)

    @property
    def number_of_things(self) -> int:
        """See `SceneSource.number_of_things`."""
        return self.things

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the drawings are installed, and that there are as many things as wanted."""
        if self.takes_part and self.things > (there := len(names("train"))):  # raises if a package is missing
            raise ValueError(
                f"data.{name}.things = {self.things:,}, but there are {there:,}: lower it, or take all with 0"
            )

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        return list(training_texts(self.things))
