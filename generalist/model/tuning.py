"""Settings of what is trained of the weights that a run begins with: everything, the upper layers, or adapters beside its linear
maps. Imports no JAX, so that mistakes are reported at once."""

import dataclasses
from typing import Literal, get_args

Place = Literal["qkv", "out", "up", "down"]
PLACES: tuple[Place, ...] = get_args(Place)
PATHS: dict[Place, str] = {
    "qkv": "attention/qkv",
    "out": "attention/out",
    "up": "feed_forward/up",
    "down": "feed_forward/down",
}
"""Where the linear maps of a block stand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al., 2021) beside the frozen linear maps of the weights that a run begins with."""

    rank: int | None = None
    """Rank of the adapters, for example 16. Left out: there are none."""
    alpha: float = 16.0
    """The adapters' outputs are multiplied by alpha / rank."""
    places: tuple[Place, ...] = PLACES
    """The linear maps of every block that get one: qkv and out of attention, up and down of the feed-forward."""
    adapter: str = ""
    """A folder with an adapter of this rank and alpha in PEFT's layout to begin with. Empty: the adapters begin at zero."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(
                f"training.lora.rank must be at least 1, got {self.rank}: leave it out to train without adapters"
            )
        # `not >` also refuses NaN.
        if not self.alpha > 0:
            raise ValueError(f"training.lora.alpha must be above 0, got {self.alpha}")
        if unknown := [place for place in self.places if place not in PLACES]:
            raise ValueError(f"training.lora.places: there is no {unknown[0]!r}, only {', '.join(PLACES)}")
        if not self.places or len(set(self.places)) < len(self.places):
            raise ValueError(
                f"training.lora.places must name at least one of {', '.join(PLACES)}, each once, got {' '.join(self.places)!r}"
            )
        if self.adapter and self.rank is None:
            raise ValueError("training.lora.adapter needs training.lora.rank: set it to the adapter's")

    @property
    def scale(self) -> float:
        """The factor of the adapters' outputs."""
        return self.alpha / (self.rank or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is trained of the weights that a run begins with. Its new parts, such as rows of new tokens, are always trained."""

    lora: LoraConfig = LoraConfig()
    trained_layers: int | None = None
    """Only this number of upper layers, with the final norm; None: no such limit."""

    @property
    def freezes(self) -> bool:
        """Whether it freezes a part of the model by itself."""
        return self.lora.rank is not None or self.trained_layers is not None

    def lower(self, layers: int) -> int:
        """Number of frozen lower layers of a model with `layers` layers.

        Raises:
            ValueError: it has fewer layers than are to be trained.
        """
        if self.trained_layers is not None and self.trained_layers > layers:
            raise ValueError(f"training.trained_layers = {self.trained_layers}, but the model has only {layers} layers")
        return 0 if self.trained_layers is None else layers - self.trained_layers
