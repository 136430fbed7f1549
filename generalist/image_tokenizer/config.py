"""Settings of the training of an image tokenizer."""

import dataclasses
import math
from pathlib import Path

from generalist.config.run import RunSettings, TrainingConfig, check_name
from generalist.tokenizers.drawing import MOST_CELLS
from generalist.vision.autoencoder import AutoencoderConfig

# Settings of `training` that have no effect here, with the reason. They are refused rather than ignored.
WITHOUT_EFFECT = {
    "start": "the network begins with random weights",
    "lora": "the network begins with random weights",
    "trained_layers": "the network begins with random weights",
    "dtype": "it is computed in float32",
    "average": "a batch has one source",
    "z_loss": "there are no logits over a vocabulary",
    "loss_chunks": "there are no logits over a vocabulary",
    "micro_batches": "a batch is computed as a whole: lower batch instead",
    "sequence_axis": "images are not split by position",
}
METRICS = (
    *("loss", "gradient_norm", "skipped", "learning_rate", "waiting", "step_seconds", "images_per_second"),
    *("psnr", "perceptual", "stable"),
)
"""Names in metrics.jsonl."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(RunSettings):
    """A whole run. The folder `tokenizer` within the run's is what `--tokens.image-tokenizer` takes."""

    name: str = "image_tokenizer"
    """The run's folder under `runs`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    images: str | None = None
    """A folder of your own images, searched with all of its folders. None: emoji drawings.
    About a twentieth of your images is held out, chosen by their names."""
    batch: int = 32
    """Images per step."""
    shape: AutoencoderConfig = AutoencoderConfig()
    perceptual: float = 0.02
    """Weight of the distance between the features that EfficientNet-Lite0 has of an image and of its reconstruction (LPIPS).
    0: the encoder is not loaded."""
    stability: float = 0.02
    """Weight of the distance between codes and the codes of their decoded image, so that encoding again changes nothing."""
    training: TrainingConfig = TrainingConfig(
        steps=4000, optimizer="muon", learning_rate=3e-3, weight_decay=0.01, checkpoint_every=400, ema=0.995
    )
    profile: bool = False
    """Write a trace of a few steps to the run's folder, for TensorBoard's profiler or Perfetto."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        for name in ("perceptual", "stability"):
            if not getattr(self, name) >= 0:  # `not >=` also refuses NaN
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.shape.cells > MOST_CELLS:
            raise ValueError(
                f"shape.size = {self.shape.size} with shape.patch = {self.shape.patch} gives {self.shape.cells:,} codes per "
                f"image, but a drawing has at most {MOST_CELLS}: raise shape.patch, or lower shape.size to "
                f"{math.isqrt(MOST_CELLS) * self.shape.patch} or less"
            )
        check_name(self.name)


def check_effective(config: ImageTokenizerConfig) -> None:
    """Checks that every setting that was changed has an effect on the training of an image tokenizer.

    Raises:
        ValueError: one has none, or `training.best_metric` is not a metric of this kind of run.
    """
    usual = TrainingConfig()
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(config.training, name) != getattr(usual, name):
            raise ValueError(f"training.{name} has no effect on an image tokenizer, since {reason}: leave it out")
    if config.training.keep_best and config.training.best_metric not in METRICS:
        raise ValueError(
            f"training.best_metric = {config.training.best_metric} is not a metric of this run; there are: {', '.join(METRICS)}"
        )
