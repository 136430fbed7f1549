"""Screens of Atari games: pointing, detection and questions (docs/pointing.md)."""

import dataclasses

from generalist.data.arcade import ScreenExamples, check_installed, draw_screen, training_texts
from generalist.data.examples import Examples
from generalist.data.source import Reading, Say, Source, Stored, Ways, check_locations, register

DETECTED = 3  # things on most screens: a list of them has at least one entry more


@register("arcade")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Arcade(Source):
    """Screens of four Atari games, played at random, whose memory tells what is where."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out."""
    questions: int = 3
    """Maximum number of questions per screen, no two of which are about the same thing."""
    detections: float = 0.15
    """Share of the screens on which every thing is named with its place."""
    asked_first: float = 0.0
    """Share of the other screens that have one question, before the image. From half on an evaluation asks so too."""
    evaluation_screens: int = 100
    """Questions per game and kind that an evaluation asks."""

    def __post_init__(self) -> None:
        for name, least in (("questions", 1), ("evaluation_screens", 2)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"data.arcade.{name} must be at least {least}, got {value}")
        for name in ("detections", "asked_first"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"data.arcade.{name} is a share from 0 to 1, got {value}")

    @property
    def is_asked_first(self) -> bool:
        """Whether an evaluation asks before it shows the screen."""
        return self.asked_first >= 0.5

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("arcade",)

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if ways.features == "stored" and {"encoder", "projected"} & {*ways.documents}:
            raise ValueError(
                f"data.features = stored needs a fixed set of images, but data.{name} plays every screen anew: use computed"
            )
        check_locations(name, ways.locations)

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that ale-py is installed."""
        if self.takes_part:
            check_installed()

    def texts(self, stored: Stored) -> list[str]:
        """See `Source.texts`."""
        return list(training_texts())

    def open(self, stored: Stored, reading: Reading) -> list[Examples]:
        """See `Source.open`."""
        return [
            ScreenExamples(
                assembler=reading.assembler,
                length=reading.length,
                objects=DETECTED,
                questions=self.questions,
                detections=self.detections,
                asked_first=self.asked_first,
                things=0,
                draw=draw_screen,
            )
        ]
