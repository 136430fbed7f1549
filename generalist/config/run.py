"""Every setting of a run. Named ones are in generalist/config/presets.py; the command line overrides any field."""

import dataclasses
from pathlib import Path
from typing import Literal

from generalist.model.config import REQUIRED, ModelConfig
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.vocabulary import Vocabulary

SUITES = ("metaworld", "babyai", "atari", "classic", "fetch")
"""The suites of control tasks, each a field of `DataConfig` of that name."""


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
class ControlConfig:
    """One suite of control tasks as a source of training examples."""

    weight: float = 1.0
    """Share of the tokens, relative to the other sources; 0 leaves the suite out altogether."""
    tasks: str = "*"
    """Which of the suite's tasks, as a shell pattern on the part of the name after the slash."""
    episodes: int | None = None
    """Expert episodes recorded a task; None takes the suite's own number."""
    steps: int = 8
    """Environment steps in a training window, and the context that the policy acts with."""
    hide_actions: float = 1.0
    """Share of windows whose action inputs are hidden: against copying the last action; the policy then decodes all dimensions
    at once. Acting hides past actions if this is above 0."""
    temperature: float = 0.0
    """Acting draws actions at this temperature; 0 takes the likeliest, and of a continuous number the median. Drawing keeps a
    policy from standing still for ever."""
    prompt_fraction: float = 0.0
    """Share of windows that begin with steps of another episode of the same task (Gato: 0.25)."""
    prompt_steps: int = 4
    """Environment steps of such a prompt."""
    prompt_demonstrations: int = 0
    """Half of the prompts show up to so many other episodes instead, of each any number of steps from `prompt_steps` to what a
    row has room for, as `generalist eval control` does if it is asked for whole demonstrations; 0: none do."""
    shift: int = 0
    """Pixels by which the frames of a training window are moved at most, all alike: against learning few episodes by heart (DrQ,
    Kostrikov et al. 2020)."""
    recast: bool = False
    """Show each training window as in an equal world, drawn at random, where the suite knows some: BabyAI's grids with their
    colours exchanged, in the instruction too. Against learning few episodes by heart."""

    @property
    def acting(self) -> Acting:
        """How layouts that are trained with these settings are acted in; stored with each (see `TaskLayout`)."""
        return Acting(
            steps=self.steps,
            hide_actions=self.hide_actions > 0,
            temperature=self.temperature,
            prompt_steps=self.prompt_steps,
        )

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(
                f"data.SUITE.episodes must be at least 1, got {self.episodes}: data.SUITE.weight 0 leaves a suite out"
            )
        for name in ("steps", "prompt_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.SUITE.{name} must be at least 1 step, got {getattr(self, name)}")
        for name in ("hide_actions", "prompt_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.SUITE.{name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"data.SUITE.temperature must not be negative, got {self.temperature}")
        if self.shift < 0:
            raise ValueError(f"data.SUITE.shift must be at least 0 pixels, got {self.shift}")
        if self.prompt_demonstrations < 0:
            raise ValueError(
                f"data.SUITE.prompt_demonstrations must be at least 0 episodes, got {self.prompt_demonstrations}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(ControlConfig):
    """A user's own environments with their demonstrations (docs/environments.md)."""

    weight: float = 0.1
    """Share of the tokens, relative to the other sources; 0 leaves the suite out altogether."""
    demonstrations: tuple[str, ...] = ()
    """Folders that `record_demonstrations` wrote; `ID=FOLDER` for another tool's, with the environment's Gymnasium id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes is not None:
            raise ValueError(
                f"data.own.episodes = {self.episodes}, but demonstrations are taken as they are: leave it out, and record "
                "as many as are wanted"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiConfig:
    """Emoji drawings with their names: captions, and naming as question and answer."""

    weight: float = 1.0
    """Share of the tokens, relative to the other sources; 0 leaves it out."""
    variants: int = 0
    """Fixed variants of each drawing, so that a frozen encoder's features can be stored; 0 draws a new one each time."""

    def __post_init__(self) -> None:
        if self.variants < 0:
            raise ValueError(f"data.emoji.variants must not be negative, got {self.variants}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Episodes that bind made-up names to classes of drawings (docs/prompts.md)."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves them out."""
    images: int = 20
    """Images of an episode at most; each takes about six positions with its name."""
    ways: int = 6
    """Classes of an episode at most."""
    variants: int = 10
    """Fixed variants of each drawing."""

    def __post_init__(self) -> None:
        for name, least in (("images", 4), ("ways", 2), ("variants", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.fewshot.{name} must be at least {least}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProseConfig:
    """English prose from the documentation that the installed packages carry."""

    weight: float = 1.0
    """Share of the tokens, relative to the other sources; 0 leaves it out."""
    megabytes: float = 4.0
    """How much text at most."""

    def __post_init__(self) -> None:
        if not self.megabytes > 0:
            raise ValueError(
                f"data.prose.megabytes must be above 0, got {self.megabytes}: data.prose.weight 0 leaves prose out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """A user's own documents of texts and images (docs/data.md)."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves it out."""
    path: Path | None = None
    """A JSONL file, or a folder with such files; `required`: a preset leaves it to you."""
    images: int = 5
    """Images of a document at most (Flamingo: 5)."""
    next_probability: float = 0.5
    """How often a document's texts belong to the image after them rather than the one before (Flamingo: 0.5)."""
    unreadable: float = 0.05
    """Share of the documents that may have an image which can't be read: they are left out, counted and named; one more ends the
    run."""

    def __post_init__(self) -> None:
        if self.weight > 0 and self.path is None:
            raise ValueError("data.documents.weight is above 0 but data.documents.path names no file: set it")
        if not 0 <= self.next_probability <= 1:
            raise ValueError(f"data.documents.next_probability must be from 0 to 1, got {self.next_probability}")
        if not 0 <= self.unreadable < 1:
            raise ValueError(f"data.documents.unreadable must be at least 0 and below 1, got {self.unreadable}")
        if self.images < 1:
            raise ValueError(f"data.documents.images must be at least 1, got {self.images}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are packed."""

    folder: Path = Path("data")
    """Recordings and texts are kept here and reused by every run."""
    workers: int | None = None
    """Processes that record and evaluate; None takes one a core."""
    metaworld: ControlConfig = ControlConfig()
    """Meta-World: robot manipulation from state."""
    babyai: ControlConfig = ControlConfig()
    """BabyAI: instructions in a grid world."""
    atari: ControlConfig = ControlConfig()
    """Atari 2600 from pixels."""
    classic: ControlConfig = ControlConfig()
    """Classic control, Box2D and MuJoCo from state."""
    fetch: ControlConfig = ControlConfig()
    """Fetch: a robot arm that reaches, pushes and carries, from state."""
    own: OwnConfig = OwnConfig()
    """Environments of one's own; none without demonstrations."""
    dagger: tuple[Path, ...] = ()
    """Folders that `generalist dagger` wrote: the experts' answers in the weights' own play, learnt from as well."""
    emoji: EmojiConfig = EmojiConfig()
    """Images and their names."""
    fewshot: FewShotConfig = FewShotConfig()
    """New words for new images."""
    prose: ProseConfig = ProseConfig()
    """Text."""
    documents: DocumentsConfig = DocumentsConfig()
    """Texts and images of one's own."""
    check: bool = False
    """Read every document of one's own with its images, whole, before anything is trained, and name at once all that can't be
    read."""
    rows: int = 14
    """Rows of a batch."""
    length: int = 128
    """Positions of a row."""
    tensors: int = 1280
    """Projected tensors a batch has room for."""
    frames: int = 208
    """Frames a batch has room for."""
    patches: int = 0
    """Image patches a batch has room for."""
    images: int = 16
    """Images for the frozen encoder that a batch has room for."""
    row_images: int = 8
    """Those that one of its rows has room for."""
    shards: int = 1
    """Equal pieces that a batch is made of, each from a stream of its own; processes share them out, and the batches are the same
    for any number of processes. With many devices: a multiple of data axis × fsdp axis × micro-batches."""
    loaders: int = 0
    """Processes that make the batches, each some of this process's shards; 0: a thread of the training process does, which two
    cores need and which a GPU outruns."""
    features: Literal["computed", "stored"] = "computed"
    """A frozen encoder's features: computed in every step, or once, and kept in the data folder (needs data.emoji.variants)."""
    cache_megabytes: int = 1024
    """Memory for decoded episodes."""

    def control(self) -> dict[str, ControlConfig]:
        """The control suites that take part, by name."""
        suites = {name: getattr(self, name) for name in SUITES} | ({"own": self.own} if self.own.demonstrations else {})
        return {name: suite for name, suite in suites.items() if suite.weight > 0}

    def suite_of(self, layout: str) -> ControlConfig:
        """The settings of the suite that a layout belongs to (the part of its name before the slash), whether or not the suite
        takes part.

        Raises:
            ValueError: there is no such suite.
        """
        name = layout.partition("/")[0]
        if name not in (*SUITES, "own"):
            raise ValueError(f"the layout {layout!r} belongs to no suite: there are {', '.join(SUITES)} and own")
        return getattr(self, name)

    def __post_init__(self) -> None:
        for name in (*SUITES, "own", "emoji", "fewshot", "prose", "documents"):
            if getattr(self, name).weight < 0:
                raise ValueError(f"data.{name}.weight must not be negative, got {getattr(self, name).weight}")
        for name in ("rows", "length", "shards", "cache_megabytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tensors", "frames", "patches", "images", "row_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers must be at least 1, got {self.workers}; left out, it is one a core")
        if self.loaders < 0:
            raise ValueError(f"data.loaders must not be negative, got {self.loaders}; 0 makes batches in a thread")
        if self.loaders > self.shards:
            raise ValueError(
                f"data.loaders = {self.loaders} processes would share data.shards = {self.shards}: each needs a shard at least; "
                "raise data.shards (and data.rows with it), or take fewer loaders"
            )


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
    16 MiB a device on a CPU, of 1 GiB on accelerators."""
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
class EvaluationConfig:
    """How the trained weights are scored."""

    metaworld_episodes: int = 4
    """Episodes a Meta-World task."""
    babyai_episodes: int = 5
    """Episodes a BabyAI level."""
    atari_episodes: int = 4
    """Episodes an Atari game."""
    classic_episodes: int = 10
    """Episodes a classic, Box2D or MuJoCo task."""
    fetch_episodes: int = 20
    """Episodes a Fetch task."""
    own_episodes: int = 20
    """Episodes an environment of one's own."""
    naming_items: int = 400
    """Held-out drawings named."""
    naming_choices: int = 10
    """Names to choose among; chance is one over this."""
    prose_windows: int = 200
    """Held-out text windows."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 2 if field.name == "naming_choices" else 1
            if getattr(self, field.name) < least:
                raise ValueError(f"evaluation.{field.name} must be at least {least}, got {getattr(self, field.name)}")


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
    evaluation: EvaluationConfig = EvaluationConfig()
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
        for name, control in self.data.control().items():
            if control.shift and "frame" not in self.tokens.images.split("+"):
                raise ValueError(
                    f"data.{name}.shift moves frames, but tokens.images is {self.tokens.images}: set one of them otherwise"
                )
            if control.recast and name != "babyai":
                raise ValueError(
                    f"data.{name}.recast: no equal worlds of {name} are known, only of babyai: leave it out"
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
        if self.data.documents.weight > 0 and self.data.documents.images > self.data.row_images and wanting:
            raise ValueError(
                f"data.documents.images = {self.data.documents.images}, but a row has room for data.row_images = "
                f"{self.data.row_images}: raise that, or lower the first"
            )
        if self.data.fewshot.weight > 0 and self.data.fewshot.images > self.data.row_images and wanting:
            raise ValueError(
                f"data.fewshot.images = {self.data.fewshot.images}, but a row has room for data.row_images = "
                f"{self.data.row_images}: raise that, or lower the first"
            )
        if self.data.features == "stored" and (
            (self.data.emoji.weight > 0 and not self.data.emoji.variants)
            or "encoder" in self.tokens.images
            or self.data.documents.weight > 0
        ):
            raise ValueError(
                "data.features = stored needs images that come again: set data.emoji.variants above 0, and let observed "
                "images enter in another way than through the encoder (tokens.images), without documents of your own"
            )

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
        "--data.documents.path FILE (texts and images, docs/data.md)": str(config.data.documents.path) == REQUIRED,
    }
    if missing := [what for what, is_missing in needed.items() if is_missing]:
        raise ValueError(f"{config.name} needs {', '.join(missing)}; `generalist plan` plans it without them")
