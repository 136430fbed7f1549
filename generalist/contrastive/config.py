"""Settings of contrastive pretraining."""

import dataclasses
from pathlib import Path
from typing import Literal

from generalist.config.run import RunSettings, TrainingConfig, check_name

# Settings of `training` that have no effect here, with the reason. They are refused rather than ignored: whoever sets one expects
# it to do something.
WITHOUT_EFFECT = {
    "start": "both towers begin with random weights",
    "lora": "both towers begin with random weights",
    "trained_layers": "both towers begin with random weights",
    "average": "a batch has one source",
    "z_loss": "there are no logits over a vocabulary",
    "loss_chunks": "there are no logits over a vocabulary",
    "sequence_axis": "images and texts are not split by position",
}
METRICS = (
    *("loss", "gradient_norm", "skipped", "learning_rate", "waiting", "step_seconds"),
    *("pairs_per_second", "accuracy", "scale"),
)
"""Names in metrics.jsonl. Those that runs of the generalist have too mean the same there."""
Loss = Literal["clip", "siglip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """The shapes of the image tower and of the text tower."""

    size: int = 72
    """Height and width of an image, in pixels."""
    patch: int = 12
    """Height and width of a patch, in pixels; divides `size`."""
    width: int = 128
    """Width of both towers."""
    layers: int = 4
    """Number of layers of the image tower."""
    text_layers: int = 2
    """Number of layers of the text tower."""
    heads: int = 4
    """Number of attention heads in both towers."""
    hidden: int = 512
    """Width of the feed-forwards' hidden layers."""
    embedding: int = 128
    """Width of the space that images and texts are embedded in."""
    text_pieces: int = 1024
    """Size of the text vocabulary, which SentencePiece learns from the texts."""
    text_length: int = 32
    """Maximum number of text pieces; longer texts are cut."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"towers.{field.name} must be at least 1, got {getattr(self, field.name)}")
        if self.size % self.patch:
            raise ValueError(f"towers.size ({self.size}) must be a multiple of towers.patch ({self.patch})")
        if self.width % (2 * self.heads):  # rotary positions of the text tower turn pairs of numbers in each head
            raise ValueError(f"towers.width ({self.width}) must be a multiple of twice towers.heads ({self.heads})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(RunSettings):
    """A whole run. The folder `encoder` within the run's is what `--model.vision.encoder` takes."""

    name: str = "contrastive"
    """The run's folder under `runs`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    loss: Loss = "siglip"
    """Softmax over the batch in both directions (CLIP), or a sigmoid per pair (SigLIP), which is better in small batches."""
    pairs: str | None = None
    """Your own images with texts: a file or a folder in any format of docs/documents.md. None: emoji and their names."""
    heldout: str | None = None
    """Your own held-out pairs, on which retrieval is evaluated at the end. None, with `pairs`: no evaluation."""
    # Collections of images from the web nearly always have a few broken files.
    unreadable: float = 0.05
    """Share of your own pairs that may have an image which can't be read; the same for held-out pairs.
    Such pairs are left out and reported; one more ends the run."""
    check: bool = False
    """Read all of your own images, held-out ones too, before training begins, and report all that can't be read."""
    # More pairs are more negatives for each: CLIP had 32,768 per step (section 2.5). The sigmoid loss works with far fewer.
    batch: int = 128
    """Pairs per step; each is compared with all others."""
    towers: TowersConfig = TowersConfig()
    training: TrainingConfig = TrainingConfig(steps=1500, learning_rate=1e-3, checkpoint_every=500)
    profile: bool = False
    """Write a trace of a few steps to the run's folder, for TensorBoard's profiler or Perfetto."""

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise ValueError(
                f"batch must be at least 2, since a pair is compared with the others of its batch, got {self.batch}"
            )
        if self.training.micro_batches == "auto":
            raise ValueError("training.micro_batches: contrastive pretraining needs a number, not auto")
        if self.batch % self.training.micro_batches:
            raise ValueError(
                f"batch = {self.batch} must be a multiple of training.micro_batches = {self.training.micro_batches}: "
                "all micro-batches have the same number of pairs"
            )
        if not 0 <= self.unreadable < 1:
            raise ValueError(f"unreadable must be at least 0 and below 1, got {self.unreadable}")
        if self.check and self.pairs is None:
            raise ValueError("check reads your own pairs, but none are given: set pairs, or leave check out")
        # Refused rather than ignored, as every setting without an effect.
        if self.heldout is not None and self.pairs is None:
            raise ValueError(
                "heldout is for your own pairs, but none are given: set pairs, or leave heldout out (emoji have held-out "
                "drawings already)"
            )
        check_name(self.name)


def check_effective(config: ContrastiveConfig) -> None:
    """Checks that every setting that was changed has an effect on contrastive pretraining.

    Raises:
        ValueError: one has none, or `training.best_metric` is not a metric of this kind of run.
    """
    # Compared with the defaults, since a parsed setting does not say whether it was given.
    usual = TrainingConfig()
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(config.training, name) != getattr(usual, name):
            raise ValueError(f"training.{name} has no effect on contrastive pretraining, since {reason}: leave it out")
    if config.training.keep_best and config.training.best_metric not in METRICS:
        raise ValueError(
            f"training.best_metric = {config.training.best_metric} is not a metric of this run; there are: {', '.join(METRICS)}"
        )
