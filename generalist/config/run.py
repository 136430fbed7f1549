"""Every setting of a run. Named ones are in generalist/config/presets.py; the command line overrides any field."""

import dataclasses
from pathlib import Path
from typing import Literal

from generalist.config.data import DataConfig
from generalist.data.source import Ways
from generalist.model.config import REQUIRED, ModelConfig
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How values become tokens."""

    text_pieces: int = 1024
    """Size of the text vocabulary; SentencePiece learns it from the run's own text (byte fallback included)."""
    continuous_bins: int = 256
    """Bins of a continuous number."""
    discrete_values: int = 64
    """Ids for discrete numbers: the largest discrete action or observation must fit."""
    separator: bool = False
    """Put Gato's separator between an observation and its action."""
    tensors: Literal["tokens", "projected"] = "projected"
    """How observed tensors enter: one token a number (Gato), or one projected embedding of all of a step's (JAT)."""
    images: Images = "frame"
    """How an observed image enters: 16×16 patches (Gato), embeddings of a small convolutional network (frame), the frozen
    encoder and cross-attention (Flamingo), or the last together with one of the others."""
    documents: Images = "frame"
    """How the images of documents enter, alike."""

    def vocabulary(self) -> Vocabulary:
        """The id ranges these settings describe."""
        return Vocabulary(text=self.text_pieces, continuous=self.continuous_bins, discrete=self.discrete_values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation, checkpoints and what is shown."""

    steps: int = 2400
    """Optimizer steps."""
    start: str = ""
    """Weights to begin with: a folder of `generalist export`, a run's folder, or `shipped`; with their text pieces, the layouts
    that they know, and their settings of `model` and `tokens`. Layouts that this run does not train keep the window, the
    temperature and whatever else they act with; those that it trains act with this run's. Empty: all is drawn and learnt anew."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """How steps are made of gradients: AdamW; or Muon for matrices, which learns more of a step, and AdamW for the rest."""
    learning_rate: float = 2e-3
    """Peak of the schedule."""
    final_fraction: float = 0.05
    """Where the cosine ends, as a share of the peak."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay, and Muon's momentum."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what evaluation uses (0.999 is common); 0: none."""
    z_loss: float = 1e-4
    """Weight of the squared log-partition, which keeps logits from drifting (PaLM, section 5)."""
    average: Literal["tokens", "sources"] = "tokens"
    """What the loss is a mean over: all tokens of the batch; or each source's tokens, and then the sources by their weights, as
    if gradients of a batch a source were added up (Flamingo, section 3.2)."""
    micro_batches: int = 1
    """Parts of a batch that are computed one after the other, their gradients added up: less memory, the same step."""
    loss_chunks: int = 0
    """Pieces of the rows whose logits are held one after the other, and computed again backwards; 0: as many as leave a piece of
    16 MiB a device on a CPU, of 512 MiB on accelerators."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of activations; auto is bfloat16 on TPU and GPU and float32 on CPU, where bfloat16 is slower."""
    seed: int = 0
    """Seed of the weights, the shuffles and everything else that is drawn."""
    data_axis: int = 1
    """Devices along the mesh's data axis (weights replicated); -1 takes what the other two axes leave."""
    fsdp_axis: int = -1
    """Devices along the fsdp axis (batch and weights sharded)."""
    tensor_axis: int = 1
    """Devices along the tensor axis (matrices and heads split)."""
    sequence_axis: int = 1
    """Devices along the sequence axis (positions split, for long rows)."""
    checkpoints: str = ""
    """Folder of the checkpoints, a bucket (gs://..., s3://...) if all processes reach it; empty: in the run's folder."""
    checkpoint_every: int = 400
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also kept for good: the checkpoint of every so many steps; 0: none."""
    keep_best: int = 0
    """Also kept: so many of those with the lowest `best_metric`."""
    best_metric: str = "loss"
    """A metric of metrics.jsonl, as of the last line before the checkpoint: loss, loss/prose, ..."""
    log_every: int = 20
    """Steps between metric lines."""
    skip_limit: int = 10
    """Steps in a row whose loss or gradient is not finite that are skipped; one more ends the run."""
    stall_seconds: float = 300.0
    """A step that takes longer is told, with what it waits for, and with the processes that are behind."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate must be above 0, got {self.learning_rate}")
        for name in ("steps", "micro_batches", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("loss_chunks", "keep_every", "keep_best"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
        if self.stall_seconds <= 0:
            raise ValueError(f"training.stall_seconds must be above 0, got {self.stall_seconds}")
        axes = {name: getattr(self, name) for name in ("data_axis", "fsdp_axis", "tensor_axis", "sequence_axis")}
        for name, size in axes.items():
            if size < 1 and size != -1:
                raise ValueError(f"training.{name} must be at least 1, or -1 for what the others leave, got {size}")
        if sum(size == -1 for size in axes.values()) > 1:
            raise ValueError(f"at most one of {', '.join(f'training.{name}' for name in axes)} may be -1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"training.ema must be at least 0 and below 1, got {self.ema}")
        if self.skip_limit < 0:
            raise ValueError(f"training.skip_limit must not be negative, got {self.skip_limit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Several processes that train together (docs/clusters.md). Slurm, GKE and multi-slice TPUs tell each process its place."""

    coordinator: str | None = None
    """host:port of process 0; `auto` asks the machine (a TPU pod without GKE)."""
    processes: int | None = None
    """How many processes there are, where the machine does not say."""
    process: int | None = None
    """Which of them this is, counted from 0."""

    def __post_init__(self) -> None:
        by_hand = self.coordinator not in (None, "auto")
        if by_hand != (self.processes is not None) or by_hand != (self.process is not None):
            raise ValueError(
                "cluster.coordinator HOST:PORT, cluster.processes and cluster.process go together: give all three, or none"
            )
        if by_hand and ":" not in (self.coordinator or ""):
            raise ValueError(f"cluster.coordinator must be HOST:PORT or auto, got {self.coordinator!r}")
        if self.processes is not None and self.process is not None and not 0 <= self.process < self.processes:
            raise ValueError(
                f"cluster.process must be from 0 to cluster.processes - 1 = {self.processes - 1}, got {self.process}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    name: str
    """The run's folder under `runs`; the preset's name unless given."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    model: ModelConfig = ModelConfig()
    tokens: TokenConfig = TokenConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    profile: bool = False
    """Write a trace of a few steps to the run's folder, for TensorBoard's profiler or Perfetto."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.data.shards % self.training.micro_batches:
            raise ValueError(
                f"data.shards = {self.data.shards} must be a multiple of training.micro_batches = {self.training.micro_batches}: "
                "a micro-batch is made of whole shards"
            )
        if self.training.loss_chunks and self.data.length % self.training.loss_chunks:
            raise ValueError(
                f"data.length = {self.data.length} must be a multiple of training.loss_chunks = {self.training.loss_chunks}"
            )
        if self.training.start and self.model.trunk != "none":
            raise ValueError(
                "training.start and model.trunk both say what to begin with: leave one out (weights that were exported bring "
                "their trunk along)"
            )
        ways = {"images": self.tokens.images, "documents": self.tokens.documents}
        wanting = [f"tokens.{name} = {way}" for name, way in ways.items() if "encoder" in way]
        if wanting and self.model.vision.encoder == "none":
            raise ValueError(
                f"{wanting[0]} needs a frozen encoder: set model.vision.encoder, to efficientnet_lite0 for one"
            )
        if not wanting and self.model.vision.encoder != "none":
            raise ValueError(
                f"model.vision.encoder = {self.model.vision.encoder}, but no image enters through it: "
                "set tokens.documents or tokens.images to encoder"
            )
        if 0 < self.model.learned_positions < self.data.length:
            raise ValueError(
                f"data.length = {self.data.length}, but the trunk knows only {self.model.learned_positions} positions: lower it"
            )
        ways_in = Ways(
            images=tuple(self.tokens.images.split("+")),
            documents=tuple(self.tokens.documents.split("+")),
            row_images=self.data.row_images,
            features=self.data.features,
        )
        for name, source in self.data.taking_part.items():
            source.check_settings(name, ways_in)

    @property
    def folder(self) -> Path:
        """Where the run keeps its tokenizers, checkpoints, metrics and results."""
        return self.runs / self.name

    @property
    def checkpoints(self) -> str:
        """Where its checkpoints are."""
        return self.training.checkpoints or str(self.folder / "checkpoints")


def check_name(name: str) -> None:
    """Whether a run can be called so.

    Raises:
        ValueError: its folder would not be under `runs`.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"name must be a folder's under `runs`, such as pocket, got {name!r}")


def check_complete(config: Config) -> None:
    """Whether a preset's `required` folders are named.

    Raises:
        ValueError: one is not; the message lists them all.
    """
    needed = {
        "--model.trunk FOLDER (a language model)": config.model.trunk == REQUIRED,
        "--model.vision.encoder FOLDER (CLIP or SigLIP)": config.model.vision.encoder == REQUIRED,
    }
    missing = [what for what, is_missing in needed.items() if is_missing]
    missing += [f"--data.{name}.{source.missing}" for name, source in config.data.sources.items() if source.missing]
    if missing:
        raise ValueError(f"{config.name} needs {', '.join(missing)}; `generalist plan` plans it without them")
