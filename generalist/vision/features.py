"""Features of a frozen encoder, computed once and stored with the data, from which training reads them instead of images.

features/<fingerprint>/000000.npy   float16 (n, T, F)
                       000000.keys  16 bytes per image, in the same order; written last: it marks the shard as complete

Shards are memory-mapped: only the table of keys is held in memory. The fingerprint covers the weights and the preparation of
images, so features of other weights are never mistaken for these.

Dimension key: N images, H and W pixels, C colours, S pixels per side of the encoder's input, T grid cells, F channels.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32, UInt8
from rich.console import Console

from generalist.system.progress import counting
from generalist.vision.encoder import VisionEncoder

SHARD = 1024  # images: the most that an interruption loses
BATCH = 32  # images; a multiple of the encoder's AT_ONCE, since on a CPU it divides a batch into equal chunks
KEY = 16  # bytes: even among billions of images no two have the same hash by chance


def content_key(pixels: UInt8[np.ndarray, "S S 3"]) -> bytes:
    """The key of an image's features: a hash of its prepared pixels, 16 bytes."""
    # The shape stays out of the hash: all images of an encoder have the same.
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=KEY).digest()


class FeatureStore:
    """The stored features of one encoder. Also the `Visual` of an assembler whose model is trained on them."""

    def __init__(self, folder: Path, encoder: VisionEncoder):
        """
        Raises:
            ValueError: a shard is damaged; the message names it.
        """
        self.folder, self.encoder = folder / encoder.fingerprint, encoder
        self.shape = (encoder.cells, encoder.channels)
        # Memory-mapped, (n, T, F) each; and per key its shard and its row there.
        self._shards: list[np.ndarray] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        # By .keys files: a .npy without one was interrupted and is written again under another number.
        for keys in sorted(self.folder.glob("*.keys")):
            self._enter(keys.with_suffix(".npy"), keys.read_bytes())

    def __len__(self) -> int:
        return len(self._places)

    @property
    def empty(self) -> Float16[np.ndarray, "0 T F"]:
        """Features of zero images."""
        return np.zeros((0, *self.shape), np.float16)

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> Float16[np.ndarray, "N T F"]:
        """Features of images.

        Raises:
            ValueError: an image's features are not stored.
        """
        # Prepared first: keys are of prepared pixels, so that one image in two files or sizes is stored once.
        return np.stack([self.of(pixels) for pixels in self.encoder(images)]) if len(images) else self.empty

    def of(self, pixels: UInt8[np.ndarray, "S S 3"]) -> Float16[np.ndarray, "T F"]:
        """Features of prepared pixels, mapped from the disk.

        Raises:
            ValueError: they are not stored.
        """
        place = self._places.get(content_key(pixels))
        if place is None:
            raise ValueError(
                f"an image's features are not in {self.folder}: run train.py again, which computes missing ones, "
                "or compute them during training with --data.features computed"
            )
        shard, row = place
        return self._shards[shard][row]

    def ensure(self, images: Iterable[UInt8[np.ndarray, "_H _W _C"]], total: int, console: Console) -> None:
        """Computes and stores the missing features of `total` images. Finished shards survive an interruption.

        Raises:
            ValueError: a feature exceeds float16, or is not a number.
        """
        missing = self._missing(images)
        # Where nothing is missing, nothing is compiled and no bar appears.
        first = next(missing, None)
        if first is None:
            return
        encode = self.encoder.compiled()
        with counting(console) as progress:
            bar = progress.add_task(f"features of {self.encoder.name}", total=total)
            fresh = itertools.chain([first], missing)
            # Shard by shard, since the features of a data set may exceed memory.
            while shard := list(itertools.islice(fresh, SHARD)):
                features = np.empty((len(shard), *self.shape), np.float16)
                for start in range(0, len(shard), BATCH):
                    batch = shard[start : start + BATCH]
                    pixels = np.stack([pixels for _, _, pixels in batch])  # (n, S, S, 3), n ≤ BATCH
                    # The last batch is filled with copies: one shape, one compilation.
                    padded = np.concatenate([pixels, np.repeat(pixels[:1], BATCH - len(pixels), axis=0)])
                    features[start : start + len(pixels)] = self._halved(
                        jax.device_get(encode(jnp.asarray(padded)))[: len(pixels)]
                    )
                    # By the place among all images: how many of them are missing is known only at the end.
                    progress.update(bar, completed=batch[-1][0])
                self._write(features, b"".join(key for _, key, _ in shard))

    def _missing(
        self, images: Iterable[UInt8[np.ndarray, "_H _W _C"]]
    ) -> Iterator[tuple[int, bytes, UInt8[np.ndarray, "_S _S 3"]]]:
        """Place from 1, key and prepared pixels of every image that is not stored, each once."""
        seen: set[bytes] = set()
        for place, image in enumerate(images, 1):
            pixels = self.encoder.prepare(image)
            key = content_key(pixels)
            # `seen` too: what has been given out is stored only when its shard is full.
            if key not in self._places and key not in seen:
                seen.add(key)
                yield place, key, pixels

    def _halved(self, features: Float32[np.ndarray, "N T F"]) -> Float16[np.ndarray, "N T F"]:
        """The features as float16.

        Raises:
            ValueError: a feature exceeds float16, or is not a number.
        """
        largest = float(np.abs(features).max())
        # `not <` instead of `>=`: it also refuses NaN.
        if not largest < float(np.finfo(np.float16).max):
            raise ValueError(
                f"a feature of {self.encoder.name} is {largest}, which float16 cannot hold: use --data.features computed"
            )
        return features.astype(np.float16)

    def _write(self, features: Float16[np.ndarray, "N T F"], keys: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # "x" creates the file or fails, so that a number is one process's alone: several hosts may store at the same time.
        for number in itertools.count(len(self._shards)):
            path = self.folder / f"{number:06d}.npy"
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                np.save(file, features)
                break
        # The data first, the keys last and in one step: a shard whose .keys file exists is complete.
        temporary = self.folder / f".{path.stem}.{os.getpid()}"
        temporary.write_bytes(keys)
        os.replace(temporary, path.with_suffix(".keys"))
        self._enter(path, keys)

    def _enter(self, path: Path, keys: bytes) -> None:
        """Maps a shard and notes its keys; a shard of another shape or dtype than its keys and the encoder imply is damaged."""
        try:
            shard = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it and its .keys file") from error
        if shard.shape != (len(keys) // KEY, *self.shape) or shard.dtype != np.float16 or len(keys) % KEY:
            raise ValueError(f"{path} is damaged ({shard.dtype} of shape {shard.shape}): delete it and its .keys file")
        # An image that two processes stored at once is found in either; the features are equal.
        for row in range(len(shard)):
            self._places[keys[row * KEY : (row + 1) * KEY]] = (len(self._shards), row)
        self._shards.append(shard)
