"""Where a folder has a vision tower, and what is read of it: plain data, which `generalist.vision.vit` builds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Family = Literal["clip", "siglip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision tower in a folder, alone or as a part of a larger model."""

    family: Family
    """CLIP has a class position in front, SigLIP has none."""
    section: str = ""
    """Of `config.json` with the tower's settings, with its dot: `vision_config.`."""
    prefix: str = ""
    """Of the names of its tensors, with its dot."""
    part: bool = False
    """Whether it is part of a larger model, which checks its own tensors, and whose weights stay in their type."""
    taps: tuple[int, ...] = ()
    """Numbers of layers after which positions are taken, side by side as channels; 0: before the first. (): after all layers."""
    normed: bool = True
    """Apply the norm behind the last layer."""
    skipped: int | None = None
    """Positions in front that are left out; None: the class position."""

    stretched: bool = False
    """Whether images are stretched to the tower's size unless their preparation says otherwise, also for CLIP (IDEFICS)."""
    even: bool = False
    """Whether the centre is cropped as open_clip does, see `EvenPreparation` (OpenFlamingo)."""
    settings: Mapping[str, Any] | None = None
    """The tower's settings by CLIP's names, in place of those of the section."""

    def __post_init__(self) -> None:
        if self.normed and self.taps:
            raise ValueError("the last norm acts on the output of all layers: leave taps or normed out")
