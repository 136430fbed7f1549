"""Features of a frozen encoder, computed once and stored with the data, from which training reads them instead of images.

features/<fingerprint>/000000.npy   float16 (n, T, F)
                       000000.keys  16 bytes per image, in the same order; written last: it marks the shard as complete

Shards are memory-mapped: only the table of keys is held in memory. The fingerprint covers the weights and the preparation of
images, so features of other weights are never mistaken for these.

Dimension key: N images, T grid cells, F channels.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from generalist.system.progress import counting
from generalist.vision.encoder import VisionEncoder

SHARD = 1024  # images: the most that an interruption loses
BATCH = 32
KEY = 16  # bytes


def content_key(pixels: np.ndarray) -> bytes:
    """The key of an image's features: a hash of its prepared pixels, 16 bytes."""
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
        self._shards: list[np.ndarray] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        # By .keys files: a .npy without one was interrupted and is written again under another number.
        for keys in sorted(self.folder.glob("*.keys")):
            self._enter(keys.with_suffix(".npy"), keys.read_bytes())

    def __len__(self) -> int:
        return len(self._places)

    @property
    def empty(self) -> np.ndarray:
        """Features of zero images."""
        return np.zeros((0, *self.shape), np.float16)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of images, uint8 (N, H, W, C) → float16 (N, T, F).

        Raises:
            ValueError: an image's features are not stored.
        """
        return np.stack([self.of(pixels) for pixels in self.encoder(images)]) if len(images) else self.empty

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """Features of prepared pixels, float16 (T, F), mapped from the disk."""
        place = self._places.get(content_key(pixels))
        if place is None:
            raise ValueError(
                f"an image's features are not in {self.folder}: run train.py again, which computes missing ones, "
                "or compute them during training with --data.features computed"
            )
        shard, row = place
        return self._shards[shard][row]

    def ensure(self, images: Iterable[np.ndarray], total: int, console: Console) -> None:
        """Computes and stores the missing features of `total` images, uint8 (H, W, C). Finished shards survive an
        interruption."""
        missing = self._missing(images)
        first = next(missing, None)
        if first is None:
            return
        encode = self.encoder.compiled()
        with counting(console) as progress:
            bar = progress.add_task(f"features of {self.encoder.name}", total=total - len(self))
            fresh = (pair for pairs in ([first], missing) for pair in pairs)
            # Shard by shard, since the features of a data set may exceed memory.
            while shard := list(islice(fresh, SHARD)):
                features = np.empty((len(shard), *self.shape), np.float16)
                for start in range(0, len(shard), BATCH):
                    pixels = np.stack([pixels for _, pixels in shard[start : start + BATCH]])
                    # The last batch is filled with copies: one shape, one compilation.
                    padded = np.concatenate([pixels, np.repeat(pixels[:1], BATCH - len(pixels), axis=0)])
                    features[start : start + len(pixels)] = self._halved(
                        jax.device_get(encode(jnp.asarray(padded)))[: len(pixels)]
                    )
                    progress.advance(bar, len(pixels))
                self._write(features, b"".join(key for key, _ in shard))

    def _missing(self, images: Iterable[np.ndarray]) -> Iterator[tuple[bytes, np.ndarray]]:
        seen: set[bytes] = set()
        for image in images:
            pixels = self.encoder.prepare(image)
            key = content_key(pixels)
            if key not in self._places and key not in seen:
                seen.add(key)
                yield key, pixels

    def _halved(self, features: np.ndarray) -> np.ndarray:
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

    def _write(self, features: np.ndarray, keys: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(self._shards)
        while (self.folder / f"{number:06d}.keys").exists():  # another process has written this number
            number += 1
        path = self.folder / f"{number:06d}.npy"
        temporary = self.folder / f".{number:06d}.{os.getpid()}"
        with temporary.open("wb") as file:
            np.save(file, features)
        # The data first, the keys last: a shard whose .keys file exists is complete.
        os.replace(temporary, path)
        temporary.write_bytes(keys)
        os.replace(temporary, path.with_suffix(".keys"))
        self._enter(path, keys)

    def _enter(self, path: Path, keys: bytes) -> None:
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
