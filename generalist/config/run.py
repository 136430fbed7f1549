"""Every setting of a run. generalist/config/presets.py has named sets of them, of which the command line overrides any field.

The docstring of a field is what `--help` shows. Its lines after the first begin a new line there too, so a line ends with a
sentence.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from generalist.config.data import DataConfig
from generalist.data.source import Ways
from generalist.model.config import REQUIRED, ModelConfig
from generalist.model.tuning import LoraConfig, Tuning
from generalist.tokenizers.locations import LARGEST_BINS
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How values become tokens."""

    # Sizes of id ranges are fixed with the first weights: another size would shift the meaning of all ids behind it.
    text_pieces: int = 1024
    """Size of the text vocabulary, byte fallback included; SentencePiece learns it from the run's own texts."""
    continuous_bins: int = 256
    """Number of bins for a continuous number."""
    discrete_values: int = 64
    """Number of ids for discrete numbers, which must be above the largest discrete action or observation."""
    # What was done before this setting: stored settings that lack it mean this.
    actions: Literal["sequential", "parallel"] = "sequential"
    """How an action of several dimensions is predicted: each from a position of its own, one after the other (Gato), or all from
    one position (JAT), which takes fewer positions per step.
    Actions with text, whose length varies, are sequential in either case."""
    locations: int = 0
    """Number of ids for places in an image (PaliGemma: 1,024), with which the weights point (docs/pointing.md); 0: none."""
    separator: bool = False
    """Put a separator token between an observation and its action (Gato)."""
    tensors: Literal["tokens", "projected"] = "projected"
    """How observed tensors enter the model: one token per number (Gato), or one projected embedding per timestep (JAT)."""
    images: Images = "frame"
    """How observed images enter the model: as 16×16 patches (Gato), as embeddings of a small convolutional network (frame),
    through the frozen encoder and cross-attention (Flamingo), through the encoder and as one of the others, or projected: the
    encoder's features become `model.vision.positions` positions of the sequence (LLaVA)."""
    documents: Images = "frame"
    """How document images enter the model; same choices as `images`."""

    image_tokenizer: str = "none"
    """Folder of a trained image tokenizer, or file or folder of a published one (docs/drawing.md), whose codes the model then
    reads and draws; learned: that of the run `image_tokenizer` beside this one, which is trained first if it is not there;
    none: no codes."""
    image_codes: int = 0
    """Codes of the image tokenizer, which determines them: what is given here is replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.locations <= LARGEST_BINS:
            raise ValueError(
                f"tokens.locations must be from 0 to {LARGEST_BINS:,}, got {self.locations}: a place is written with four digits"
            )

    def vocabulary(self) -> Vocabulary:
        """The ranges of token ids that these settings describe."""
        return Vocabulary(
            text=self.text_pieces,
            continuous=self.continuous_bins,
            discrete=self.discrete_values,
            image_codes=self.image_codes,
            locations=self.locations,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation, checkpoints and reports."""

    steps: int = 2400
    """Number of optimizer steps."""
    start: str = ""
    """Weights to begin with: a folder of `generalist export`, a run's folder, `shipped`, or a published language model's folder.
    Empty: random weights.
    The run takes over their text pieces, their layouts, and their settings of `model` and `tokens`.
    Layouts that this run does not train keep their settings of acting; those that it trains act with this run's.
    A published model's folder becomes `model.trunk`, of which everything is trained unless `lora` or `trained_layers` says
    otherwise."""
    lora: LoraConfig = LoraConfig()
    trained_layers: int | None = None
    """Train only this number of upper layers of the weights that the run begins with, and all that is new. Left out: no limit."""
    # Betas, decay and clipping as in GPT-3 (Brown et al., 2020, appendix B).
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for matrices, which learns more per step, with AdamW for all other parameters."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    final_fraction: float = 0.05
    """Learning rate at the end of the cosine schedule, as a share of the peak."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and convolution kernels."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment, and Muon's momentum."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which evaluation then uses (0.999 is common); 0: no average."""
    z_loss: float = 1e-4
    """Weight of the squared log-partition in the loss, which keeps logits from drifting (PaLM, section 5)."""
    average: Literal["tokens", "sources"] = "tokens"
    """tokens: the loss is the mean over all tokens of the batch, weighted by their sources' `loss_weight`.
    sources: the mean over each source's tokens, then over the sources by `weight` times `loss_weight` (Flamingo, section 3.2)."""
    micro_batches: int | Literal["auto"] = 1
    """Parts of a batch that are computed one after the other, with their gradients added: the same step with less memory.
    auto: the smallest power of two with which the step fits the memory of the devices, by arithmetic (docs/plan.md)."""
    loss_chunks: int = 0
    """Pieces of the rows whose logits are computed one after the other, and again in the backward pass.
    0: so many that a piece takes at most 16 MiB per device on a CPU, 512 MiB on a GPU and 4 GiB on a TPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of activations. auto: bfloat16 on TPU and GPU, and float32 on CPU, where bfloat16 is slower."""
    seed: int = 0
    """Seed of the weights, of the order of the data and of everything else that is random."""
    data_axis: int = 0
    """Devices along the mesh's data axis (weights replicated). 0: 2 on TPUs if all others are along fsdp, else 1.
    One of the axes may be -1: the devices that the others leave."""
    fsdp_axis: int = -1
    """Devices along the fsdp axis (rows and weights split)."""
    tensor_axis: int = 1
    """Devices along the tensor axis (matrices and heads split)."""
    sequence_axis: int = 1
    """Devices along the sequence axis (positions split, for long rows)."""
    checkpoints: str = ""
    """Folder of the checkpoints, or a bucket (gs://..., s3://...) that all processes can reach. Empty: in the run's folder."""
    checkpoint_every: int = 400
    """Steps between checkpoints."""
    # Two by default: if the newest one turns out to be damaged, the run can continue from the one before.
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    keep_best: int = 0
    """Also keep this number of checkpoints with the lowest `best_metric`."""
    best_metric: str = "loss"
    """A metric in metrics.jsonl, such as loss or loss/prose; its last value before a checkpoint counts."""
    log_every: int = 20
    """Steps between lines of metrics."""
    skip_limit: int = 10
    """Maximum number of consecutive steps skipped because their loss or gradient is not finite; one more ends the run."""
    stall_seconds: float = 300.0
    """Report a step slower than this, what it waits for, and which processes lag."""

    def __post_init__(self) -> None:
        # `not >` also refuses NaN.
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate must be above 0, got {self.learning_rate}")
        for name in ("steps", "micro_batches", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("loss_chunks", "keep_every", "keep_best"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
        if self.trained_layers is not None and self.trained_layers < 1:
            raise ValueError(
                f"training.trained_layers must be at least 1, got {self.trained_layers}: leave it out to train all layers"
            )
        if self.trained_layers is not None and self.lora.rank is not None:
            raise ValueError("training.lora.rank and training.trained_layers exclude each other: leave one of them out")
        if self.stall_seconds <= 0:
            raise ValueError(f"training.stall_seconds must be above 0, got {self.stall_seconds}")
        # With two axes of -1 there would be more than one way to fill them.
        axes = {name: getattr(self, name) for name in ("data_axis", "fsdp_axis", "tensor_axis", "sequence_axis")}
        for name, size in axes.items():
            if size < 1 and size != -1 and (name, size) != ("data_axis", 0):
                raise ValueError(
                    f"training.{name} must be at least 1, or -1 for the devices that the others leave, got {size}"
                )
        if sum(size == -1 for size in axes.values()) > 1:
            raise ValueError(f"at most one of {', '.join(f'training.{name}' for name in axes)} may be -1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"training.ema must be at least 0 and below 1, got {self.ema}")
        if self.skip_limit < 0:
            raise ValueError(f"training.skip_limit must not be negative, got {self.skip_limit}")

    def without_start(self) -> "TrainingConfig":
        """These settings without the weights that a run begins with, and without what stays frozen of them."""
        return dataclasses.replace(self, start="", lora=LoraConfig(), trained_layers=None)

    @property
    def tuning(self) -> Tuning:
        """What is trained of the weights that the run begins with."""
        return Tuning(lora=self.lora, trained_layers=self.trained_layers)

    @property
    def parts(self) -> int:
        """`micro_batches` as a number.

        Raises:
            ValueError: it is `auto`, and nobody has decided it (`plan.micro_batches.decided`).
        """
        if self.micro_batches == "auto":
            raise ValueError("training.micro_batches = auto is decided by train.py and plan; here give a number")
        return self.micro_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Several processes that train together (docs/clusters.md). Slurm, GKE and multi-slice TPUs need no setting."""

    coordinator: str | None = None
    """host:port of process 0; `auto` asks the machine (a TPU pod without GKE)."""
    processes: int | None = None
    """Number of processes, with a `coordinator` given as host:port."""
    process: int | None = None
    """Number of this process, from 0, with a `coordinator` given as host:port."""

    def __post_init__(self) -> None:
        # Given by hand, JAX must be told all three; otherwise it finds all three.
        by_hand = self.coordinator not in (None, "auto")
        if by_hand != (self.processes is not None) or by_hand != (self.process is not None):
            raise ValueError(
                "cluster.coordinator HOST:PORT, cluster.processes and cluster.process go together: set all three, or none"
            )
        if by_hand and ":" not in (self.coordinator or ""):
            raise ValueError(f"cluster.coordinator must be HOST:PORT or auto, got {self.coordinator!r}")
        if self.processes is not None and self.process is not None and not 0 <= self.process < self.processes:
            raise ValueError(
                f"cluster.process must be from 0 to cluster.processes - 1 = {self.processes - 1}, got {self.process}"
            )


class RunSettings:
    """What the settings of every kind of run have, and where its files are."""

    name: str
    runs: Path
    training: TrainingConfig
    profile: bool

    @property
    def folder(self) -> Path:
        """The run's folder: settings, tokenizers, metrics and results, and the checkpoints unless they are elsewhere."""
        return self.runs / self.name

    @property
    def checkpoints(self) -> str:
        """The folder of the run's checkpoints, or a bucket's address."""
        return self.training.checkpoints or str(self.folder / "checkpoints")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """A whole run."""

    name: str
    """Name of the run's folder under `runs`; by default the preset's name."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    model: ModelConfig = ModelConfig()
    tokens: TokenConfig = TokenConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    # The same run may be continued on other machines: `generalist.run.folder.FREE` lists what may change.
    cluster: ClusterConfig = ClusterConfig()
    profile: bool = False
    """Write a trace of a few steps to the run's folder, for TensorBoard's profiler or Perfetto."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.training.micro_batches != "auto" and self.data.shards % self.training.micro_batches:
            raise ValueError(
                f"data.shards = {self.data.shards} must be a multiple of training.micro_batches = {self.training.micro_batches}: "
                "a micro-batch consists of whole shards"
            )
        # How many devices there are is not known here: `loss.token_losses` checks their part.
        if self.training.loss_chunks and self.data.length % self.training.loss_chunks:
            raise ValueError(
                f"data.length = {self.data.length} must be a multiple of training.loss_chunks = {self.training.loss_chunks}"
            )
        if self.training.start and self.model.trunk != "none":
            raise ValueError(
                "training.start and model.trunk both name weights to begin with: leave one out (exported weights include their "
                "trunk)"
            )
        self._check_tuning()
        self._check_images()
        if 0 < self.model.learned_positions < self.data.length:
            raise ValueError(
                f"data.length = {self.data.length}, but the trunk has only {self.model.learned_positions} positions: lower it"
            )

    @property
    def source_weights(self) -> dict[str, float]:
        """The factors of the losses of the sources that take part, in their order: of each target, or of each source's mean."""
        means = self.training.average == "sources"
        taking_part = self.data.taking_part.items()
        return {name: source.loss_weight * (source.weight if means else 1.0) for name, source in taking_part}

    @property
    def trunk_sees(self) -> bool:
        """Whether images enter as the trunk's publishers made it: through its own tower and projector."""
        return self.model.trunk_sees and "projected" in (self.tokens.images, self.tokens.documents)

    def _check_tuning(self) -> None:
        """Checks that what is to be trained of the weights that the run begins with does not contradict other settings."""
        lora = self.training.lora.rank is not None
        name = "training.lora.rank" if lora else "training.trained_layers"
        value = self.training.lora.rank if lora else self.training.trained_layers
        if value is None:
            return
        if not self.training.start and self.model.trunk == "none":
            raise ValueError(
                f"{name} = {value} keeps a part of the weights frozen, but the run begins with random ones: name weights with "
                "training.start or model.trunk, or leave it out"
            )
        if self.model.trunk != "none" and not self.model.trunk_frozen:
            raise ValueError(
                f"{name} = {value} and model.trunk_frozen = False contradict each other: leave one of them out"
            )

    def _check_images(self) -> None:
        """Checks that images enter through an encoder if and only if there is one, and that the sources fit how they enter."""
        ways = {"images": self.tokens.images, "documents": self.tokens.documents}
        if "projected" in ways.values() and any("encoder" in way for way in ways.values()):
            raise ValueError(
                f"tokens.documents = {self.tokens.documents} and tokens.images = {self.tokens.images} exclude each other: the "
                "encoder's features are either projected or read by cross-attention"
            )
        wanting = [f"tokens.{name} = {way}" for name, way in ways.items() if "encoder" in way or way == "projected"]
        if wanting and self.model.vision.encoder == "none":
            raise ValueError(
                f"{wanting[0]} needs a frozen encoder: set model.vision.encoder, for example to efficientnet_lite0"
            )
        # Not harmless: the resampler and the gated layers would be trained on nothing.
        if not wanting and self.model.vision.encoder != "none":
            raise ValueError(
                f"model.vision.encoder = {self.model.vision.encoder}, but no image enters through it: "
                "set tokens.documents or tokens.images to encoder"
            )
        ways_in = Ways(
            images=tuple(self.tokens.images.split("+")),
            documents=tuple(self.tokens.documents.split("+")),
            row_images=self.data.row_images,
            features=self.data.features,
            codes=self.tokens.image_tokenizer != "none" or self.tokens.image_codes > 0,
            locations=self.tokens.locations,
        )
        for name, source in self.data.taking_part.items():
            source.check_settings(name, ways_in)


def check_name(name: str) -> None:
    """Checks the name of a run.

    Raises:
        ValueError: the run's folder would not be below `runs`.
    """
    # A name may have slashes, such as sweep/3. Without this check, ../other would overwrite what is no run.
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"name must be that of a folder under `runs`, such as pocket, got {name!r}")


def check_complete(config: Config) -> None:
    """Checks that the folders which a preset leaves to its user are given. `generalist plan` needs none of them.

    Raises:
        ValueError: some are not; the message lists all of them.
    """
    # As options, in the form in which they are typed. What `training.start` names is trained, by adapters where they are set.
    trunk = "training.start" if config.training.tuning.freezes else "model.trunk"
    kind = "a Gemma 3, PaliGemma or LLaVA" if config.trunk_sees else "a language model"
    needed = {
        f"--{trunk} FOLDER ({kind})": config.model.trunk == REQUIRED,
        "--model.vision.encoder FOLDER (CLIP or SigLIP)": config.model.vision.encoder == REQUIRED
        and not config.trunk_sees,
    }
    missing = [what for what, is_missing in needed.items() if is_missing]
    missing += [f"--data.{name}.{source.missing}" for name, source in config.data.sources.items() if source.missing]
    if missing:
        raise ValueError(f"{config.name} needs {', '.join(missing)}; only `generalist plan` works without them")
