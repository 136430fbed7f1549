"""Training examples of drawing: an image's name, and then its codes.

Dimension key: N drawings, V variants of each, T codes of an image, S pixels per side.
"""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int32

from generalist.data.emoji import Drawing, variant
from generalist.system.console import open_console
from generalist.system.progress import counting
from generalist.tokenizers.drawing import drawing
from generalist.tokenizers.pieces import ImageCodes, Sequence
from generalist.tokenizers.sequence import Assembler

TEMPLATES = ("{}", "a {}", "a drawing of {}")
"""Texts that a name is put into, one of them drawn at random."""
CHUNK = 64  # drawings whose images are in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnExamples:
    """Drawings after their names, and parts of drawings after the rest of them."""

    drawings: tuple[Drawing, ...]
    codes: Int[np.ndarray, "N V T"]
    assembler: Assembler
    side: int
    """Cells along each side of an image."""
    without_text: float
    """Share of the examples whose text is left out."""
    infilling: float
    """Share of the examples of which a part is given."""
    noise: float
    """Maximum share of an example's codes that are replaced where they are read, and not where they are predicted."""

    def __len__(self) -> int:
        return len(self.drawings)

    def example(self, index: int, rng: np.random.Generator) -> Sequence:
        """The drawing of that index; what it begins with is drawn from `rng`."""
        codes = self.codes[index, rng.integers(self.codes.shape[1])]
        text = TEMPLATES[rng.integers(len(TEMPLATES))].format(self.drawings[index].name)
        drawn = open_cells(self.side, rng) if rng.random() < self.infilling else None
        sequence = drawing(self.assembler, "" if rng.random() < self.without_text else text, codes, drawn)
        return self._noisy(sequence, rng)

    def _noisy(self, sequence: Sequence, rng: np.random.Generator) -> Sequence:
        """Some of the codes that are read become codes of other drawings. Otherwise a model learns drawings by
        heart from their first codes on, and one wrongly drawn code leads it astray."""
        ids, size = self.assembler.vocabulary.range("image_codes"), self.side**2
        is_code = (sequence.tokens >= ids.start) & (sequence.tokens < ids.stop)
        replaced = is_code & (rng.random(len(is_code)) < rng.uniform(0, self.noise))
        others = self.codes[rng.integers(len(self.codes), size=len(is_code)), 0, rng.integers(size, size=len(is_code))]
        return dataclasses.replace(
            sequence, tokens=np.where(replaced, others + ids.start, sequence.tokens).astype(np.int32)
        )


def open_cells(side: int, rng: np.random.Generator) -> Bool[np.ndarray, "T"]:
    """A random rectangle of cells, or all others: never none."""
    height, width = rng.integers(1, side + 1, 2)
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    inside = np.zeros((side, side), bool)
    inside[top : top + height, left : left + width] = True
    outside = rng.random() < 0.5 and not inside.all()
    return (~inside if outside else inside).reshape(-1)


def drawing_codes(
    drawings: tuple[Drawing, ...], variants: int, codes: ImageCodes, folder: Path
) -> Int32[np.ndarray, "N V T"]:
    """The codes of drawings, as they are and in `variants` - 1 fixed variants of each: computed once, and stored in a file.

    Args:
        folder: of the files, one for each image tokenizer and list of drawings.
    """
    listed = hashlib.sha256(str(variants).encode())
    for one in drawings:  # not their names alone: another version of the package has other drawings by the same names
        listed.update(hashlib.sha256(one.path.read_bytes()).digest())
    key = f"{codes.fingerprint}-{listed.hexdigest()[:16]}"
    path, shape = folder / f"{key}.npy", (len(drawings), variants, codes.side**2)
    if path.exists():
        stored = np.load(path, allow_pickle=False)
        if stored.shape != shape or stored.dtype != np.int32 or stored.min() < 0 or stored.max() >= codes.codebook:
            raise ValueError(f"{path} is damaged: delete it, and it is computed again")
        return stored
    # A published image tokenizer takes an hour on a CPU: each part is kept as soon as it is there.
    parts = folder / f".{key}"
    parts.mkdir(parents=True, exist_ok=True)
    with counting(open_console(stderr=True), transient=True) as progress:
        bar = progress.add_task("codes of drawings", total=len(drawings))
        for first in range(0, len(drawings), CHUNK):
            some = drawings[first : first + CHUNK]
            if not (part := parts / f"{first}.npy").exists():
                numbers = [(one, number) for one in some for number in range(variants)]
                images = [variant(one, number) if number else one.image() for one, number in numbers]
                _store(part, codes.encode(images).reshape(len(some), *shape[1:]))
            progress.advance(bar, len(some))
    firsts = range(0, len(drawings), CHUNK)
    _store(path, np.concatenate([np.load(parts / f"{first}.npy", allow_pickle=False) for first in firsts]))
    shutil.rmtree(parts, ignore_errors=True)
    return np.load(path, allow_pickle=False)


def _store(path: Path, codes: Int32[np.ndarray, "_N V T"]) -> None:
    # Under the process's own name first: several may compute the same file at once.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, codes)
    os.replace(temporary, path)
