"""Settings of contrastive pretraining."""

import dataclasses
from pathlib import Path
from typing import Literal

from generalist.config.run import TrainingConfig, check_name

# Of training's settings, those that mean nothing here, with the reason; all others work.
WITHOUT_EFFECT = {
    "start": "towers begin freshly drawn",
    "average": "a batch has one source",
    "z_loss": "there are no logits over a vocabulary",
    "loss_chunks": "there are no logits over a vocabulary",
    "sequence_axis": "images and texts are not split by position",
}
METRICS = (
    *("loss", "gradient_norm", "skipped", "learning_rate", "waiting", "step_seconds"),
    *("pairs_per_second", "accuracy", "scale"),
)
"""Names in metrics.jsonl; those that the generalist's runs have too mean the same there."""
Loss = Literal["clip", "siglip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """The shapes of the image tower and of the text tower."""

    size: int = 72
    """Height and width of an image, in pixels."""
    patch: int = 12
    """Height and width of one of its patches, in pixels."""
    width: int = 128
    """Width of both towers."""
    layers: int = 4
    """Layers of the image tower."""
    text_layers: int = 2
    """Layers of the text tower."""
    heads: int = 4
    """Heads of both towers."""
    hidden: int = 512
    """Width of the hidden layer of their feed-forwards."""
    embedding: int = 128
    """Width of the space that images and texts share."""
    text_pieces: int = 1024
    """Size of the text vocabulary; SentencePiece learns it from the texts."""
    text_length: int = 32
    """Text pieces at most; longer texts are cut."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"towers.{field.name} must be at least 1, got {getattr(self, field.name)}")
        if self.size % self.patch:
            raise ValueError(f"towers.size ({self.size}) must be a multiple of towers.patch ({self.patch})")
        if self.width % (2 * self.heads):
            raise ValueError(f"towers.width ({self.width}) must be a multiple of twice towers.heads ({self.heads})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """A whole run."""

    name: str = "contrastive"
    """The run's folder under `runs`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    loss: Loss = "siglip"
    """Softmax over the batch in both directions (CLIP), or a sigmoid a pair (SigLIP), which is better in small batches."""
    pairs: str | None = None
    """Images with texts of one's own: a file or a folder in any format of docs/documents.md; none: emoji and their names."""
    heldout: str | None = None
    """Pairs of one's own to be retrieved at the end; none with `pairs`: nothing is evaluated."""
    unreadable: float = 0.05
    """Share of one's own pairs, and of held-out ones, that may have an image which can't be read: they are left out, counted and
    named; one more ends the run."""
    index: Path = Path("data/index")
    """Folder where indices of one's own pairs are kept."""
    check: bool = False
    """Read all of one's own images, held-out ones too, before anything is trained, and name all that can't be read at once."""
    batch: int = 128
    """Pairs a step, each against all others."""
    towers: TowersConfig = TowersConfig()
    training: TrainingConfig = TrainingConfig(steps=1500, learning_rate=1e-3, checkpoint_every=500)
    profile: bool = False
    """Write a trace of a few steps to the run's folder, for TensorBoard's profiler or Perfetto."""

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise ValueError(
                f"batch must be at least 2, as a pair is told from the others of its batch, got {self.batch}"
            )
        if self.batch % self.training.micro_batches:
            raise ValueError(
                f"batch = {self.batch} must be a multiple of training.micro_batches = {self.training.micro_batches}: "
                "micro-batches have the same number of pairs"
            )
        if not 0 <= self.unreadable < 1:
            raise ValueError(f"unreadable must be at least 0 and below 1, got {self.unreadable}")
        if self.check and self.pairs is None:
            raise ValueError("check reads pairs of one's own, and pairs names none: leave one out, or set the other")
        if self.heldout is not None and self.pairs is None:
            raise ValueError(
                "heldout without pairs: the emoji have held-out drawings of their own; give pairs too, or neither"
            )
        check_name(self.name)

    @property
    def folder(self) -> Path:
        """Where the run keeps everything; its `encoder/` is what `--model.vision.encoder` takes."""
        return self.runs / self.name

    @property
    def checkpoints(self) -> str:
        """Where its checkpoints are."""
        return self.training.checkpoints or str(self.folder / "checkpoints")


def check_effective(config: ContrastiveConfig) -> None:
    """Whether every setting that was changed has an effect on this kind of run.

    Raises:
        ValueError: one has none, or `training.best_metric` names no metric of it.
    """
    usual = TrainingConfig()
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(config.training, name) != getattr(usual, name):
            raise ValueError(f"training.{name} has no effect on contrastive pretraining, since {reason}: leave it out")
    if config.training.keep_best and config.training.best_metric not in METRICS:
        raise ValueError(
            f"training.best_metric = {config.training.best_metric} is no metric of this run; there are: {', '.join(METRICS)}"
        )
