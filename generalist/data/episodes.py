"""Reading RLDS episodes as TFDS lays them out in ArrayRecord files, without TensorFlow.

A record is parsed as a whole, all steps at once; images stay PNG bytes until a window needs them. Parsed episodes are kept in
one cache of bounded size that all readers share.

Dimension key: T steps, H height, W width, C channels, R records, E episodes.
"""

import abc
import collections
import dataclasses
import json
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, Shaped

from generalist.data.formats.columns import Column, decode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.tfds_folder import FEATURES, check_trusted
from generalist.envs.rlds import read_metadata
from generalist.envs.rlds_steps import decisions, instruction, is_ours, training_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One parsed episode of T steps; keys of nested values are joined with `/`, and an unnested value has the key ``."""

    instruction: str
    observations: Mapping[str, Column]
    actions: Mapping[str, Column]
    nbytes: int
    """Size of its record, by which the cache is bounded; the parsed episode takes about as much, since images stay encoded."""
    where: str = ""
    """Its file and record, for messages."""
    number: int = 0
    """Its number in its data set."""

    def __len__(self) -> int:
        return len(next(iter(self.actions.values())))

    def window(
        self, start: int, stop: int
    ) -> tuple[dict[str, Shaped[np.ndarray, "T ..."]], dict[str, Shaped[np.ndarray, "T ..."]]]:
        """Observations and actions of the steps from `start` to `stop`, with images decoded.

        Raises:
            BrokenEpisode: an image can't be read.
        """
        # Only the window's images: decoding all of an episode would take longer than anything else.
        try:
            observations = {key: decode(column[start:stop]) for key, column in self.observations.items()}
            return observations, {key: decode(column[start:stop]) for key, column in self.actions.items()}
        except BrokenRecord as error:
            raise BrokenEpisode(self.number, f"{self.where}, steps from {start}: {error}") from error


class BrokenEpisode(BrokenRecord):
    """An episode that can't be read, or a part of it.

    Args:
        number: of the episode in its data set.
        reason: names the file, the record and the fault.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(number, reason)
        self.number, self.reason = number, reason

    def __str__(self) -> str:
        return self.reason


class EpisodeCache:
    """The most recently used episodes, up to a number of megabytes; safe to use from several threads."""

    def __init__(self, megabytes: int):
        self.limit, self.used = megabytes * 2**20, 0  # bytes
        # In the order of use, the least recent first.
        self._episodes: collections.OrderedDict[tuple[Hashable, int], Episode] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, reader: "Episodes", index: int) -> Episode:
        """An episode, parsed unless it is in the cache."""
        key = (reader.key, index)
        with self._lock:
            if key in self._episodes:
                self._episodes.move_to_end(key)
                return self._episodes[key]
        # Without the lock, so that threads parse at once; two may parse the same episode, of which one is kept.
        episode = reader.parse(index)
        with self._lock:
            if key not in self._episodes:
                self._episodes[key] = episode
                self.used += episode.nbytes
            # One episode stays even if it is larger than the limit.
            while self.used > self.limit and len(self._episodes) > 1:
                _, oldest = self._episodes.popitem(last=False)
                self.used -= oldest.nbytes
        return episode


class Episodes(abc.ABC):
    """Random access to the episodes of one layout.

    Args:
        key: distinguishes this reader's episodes in the cache from those of other readers.
        cache: shared by all readers.
    """

    lengths: Int[np.ndarray, "E"]
    """Decisions of each episode, at least 1."""

    def __init__(self, key: Hashable, cache: EpisodeCache):
        self.key, self._cache = key, cache

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """An episode, from the cache if it is there.

        Raises:
            ValueError: it can't be read (`BrokenEpisode` where it may be left out).
        """
        return self._cache.get(self, index)

    @abc.abstractmethod
    def parse(self, index: int) -> Episode:
        """Reads and parses one episode; raises as `__getitem__` does."""

    def leave_out(self, error: BrokenEpisode) -> None:
        """Counts an episode that can't be read, and reports it.

        Raises:
            ValueError: more episodes than allowed were left out; by default none may be.
        """
        # Our own recordings have no damaged episodes by accident: one that can't be read means that files are damaged.
        raise error

    @property
    def rows(
        self,
    ) -> tuple[Mapping[str, Shaped[np.ndarray, "_R ..."]], Mapping[str, Shaped[np.ndarray, "_R ..."]]] | None:
        """A sample of the numbers observed and of those acted in all episodes, by the key of their part, if one was collected:
        statistics are fitted to it. None: they are fitted to episodes."""
        return None


class EpisodeReader(Episodes):
    """Random access to the episodes of one RLDS data set in ArrayRecord files: our recordings, and demonstrations of an own
    environment.

    Args:
        folder: a TFDS version folder, with `dataset_info.json`, `features.json` and ArrayRecord files.
        cache: shared by all readers.
        instruction: for data sets whose episodes store none.

    Raises:
        FileNotFoundError: there is no data set in the folder.
        ValueError: the data set is not RLDS in ArrayRecord files, or a file is damaged.
    """

    def __init__(self, folder: Path, cache: EpisodeCache, instruction: str = ""):
        import tensorflow_datasets as tfds  # takes nearly a second to import, and only reading needs it
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        super().__init__(folder, cache)
        self.folder, self._instruction = folder, instruction
        if not (folder / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{folder} holds no data set: record it, or give the folder with dataset_info.json in it"
            )
        try:
            check_trusted(json.loads((folder / FEATURES).read_text(encoding="utf-8")))
            builder = tfds.builder_from_directory(str(folder))
            features, info = builder.info.features, builder.info
        except Exception as error:  # TFDS raises whatever the damaged files make its parsers raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())  # on one line
            raise ValueError(f"{folder} is not a readable TFDS data set ({reason}): record it again") from error
        self.files = [str(path) for path in info.splits[training_split(info, folder)].filepaths]
        if "steps" not in features or not {"observation", "action"} <= set(features["steps"].feature.keys()):
            raise ValueError(f"{folder} is not RLDS: it needs `steps` with `observation` and `action`")
        # The parser alone: TFDS's decoder would decode every image of an episode for each window.
        self._parser = ExampleParserNp(features.get_serialized_info())
        self._steps, self._ours = features["steps"].feature, is_ours(features)
        self._source = self._open()
        lengths = self._read_lengths()  # (R,)
        self._numbers = np.flatnonzero(lengths)  # (E,): an episode without a decision teaches nothing
        self.lengths = lengths[self._numbers]  # (E,)
        if not len(self.lengths):
            raise ValueError(f"{folder} has no episode with a decision in it: give another data set")

    def _open(self) -> Any:
        """Random access to the records."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        for file in self.files:
            # NAME-SPLIT.array_record-00000-of-00003; a name may have dashes, so counted from the end.
            if not file.split("-")[-4].endswith("array_record"):
                raise ValueError(
                    f"{file} is not an ArrayRecord file: convert the data set to file_format='array_record'"
                )
            if not Path(file).exists():
                raise FileNotFoundError(f"{file} is missing: delete {self.folder} and record it again")
        try:
            return ArrayRecordDataSource(self.files)
        except Exception as error:
            raise ValueError(
                f"{self.folder} has a damaged file ({error}): delete the folder and record it again"
            ) from error

    def _read_lengths(self) -> Int64[np.ndarray, "R"]:
        """Decisions in each record: from the metadata of our own recordings, else by reading all episodes once."""
        # Another tool may have a metadata.json too, in which `lengths` means something else.
        stored = (read_metadata(self.folder) or {}).get("lengths") if self._ours else None
        if stored is None:
            lengths = [len(self._parsed(number)) for number in range(len(self._source))]
        else:
            lengths = stored
        if len(lengths) != len(self._source):
            raise ValueError(
                f"{self.folder} has {len(self._source)} episodes but metadata.json says {len(lengths)}: "
                "a file is damaged; delete the folder and record it again"
            )
        return np.asarray(lengths, np.int64)

    def parse(self, index: int) -> Episode:
        """Reads and parses one episode, past the cache.

        Raises:
            ValueError: the record is damaged; the message names the data set.
        """
        return self._parsed(int(self._numbers[index]))

    def _parsed(self, number: int) -> Episode:
        """Reads and parses one record; steps after the last decision are left out."""
        try:
            record = self._source[number]
            values = self._parser.parse_example(record)
        except Exception as error:  # from C++ code of two libraries, which share no type of error
            raise ValueError(
                f"episode {number} of {self.folder} can't be read ({type(error).__name__}: {error}): a file is damaged; "
                "delete the folder and record it again"
            ) from error
        steps = values["steps"]
        seen, acted = (dict(columns(steps[name], self._steps[name])) for name in ("observation", "action"))
        try:
            count = decisions(self._ours, steps.get("is_last"), len(next(iter(acted.values()))))
            # Of an episode without steps, which is left out, there may be none to read it from.
            given = instruction(values, self._instruction) if count else self._instruction
        except ValueError as error:
            raise ValueError(f"episode {number} of {self.folder}: {error}") from error
        return Episode(
            instruction=given,
            observations={key: column[:count] for key, column in seen.items()},
            actions={key: column[:count] for key, column in acted.items()},
            nbytes=len(record),
        )


def columns(value: Any, feature: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Column]]:
    """Nested step values as flat columns, each with its key.

    Args:
        value: T steps as TFDS parses them.
        feature: their `tfds.features`, which distinguishes images from texts: both are byte strings.
        path: the value's place within the step.
    """
    import tensorflow_datasets as tfds

    if isinstance(value, Mapping):
        nested = [columns(value[name], feature[name], (*path, str(name))) for name in value]
        return [column for several in nested for column in several]
    array, key = np.asarray(value), "/".join(path)
    if isinstance(feature, tfds.features.Image):
        return [(key, [bytes(item) for item in array.reshape(-1)])]
    # Numbers stored as bytes: tf.train.Example holds only float32 and int64, so TFDS can keep wider ones this way.
    if array.dtype == object and np.dtype(feature.np_dtype).kind in "fiub":
        return [(key, np.stack([feature.decode_example_np(item) for item in array]))]
    return [(key, array)]
