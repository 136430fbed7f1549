"""Benchmarks of images and text, read from local folders in their published layouts: shots come from the training split, queries
from the validation split.

No file is trusted: an error names the file and the entry, and no name may lead out of the folder (links in it were made by the
user and are followed). Of a large split a part is taken, always the same one; only its images need to be there.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from generalist.data.files import DocumentError, check_letters, json_file, json_lines, named, text_lines
from generalist.data.formats.vqa import ANSWER
from generalist.data.images import check_image

Kind = Literal["caption", "vqa", "classify"]
Metric = Literal["cider", "vqa", "exact", "accuracy", "auc"]
"""VQA accuracy needs the answers of several people; `exact` means equal to any of the answers, after normalising both."""
Split = Literal["train", "val"]

# With fewer answers VQA accuracy cannot be 100%: leaving one person out, three others must agree.
PEOPLE = 4
# Flamingo's prompts (appendix B), without its image marker, which the assembler adds.
CAPTION = "Output: {answer}"
MEME = "is an image with: '{question}' written on it. Is it hateful? Answer: {answer}"
_TYPES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A question about an image, with its answers."""

    image: Path
    answers: tuple[str, ...]
    """An image's captions, several people's answers, or the name of its class."""
    question: str = ""
    group: str = ""
    """A query's shots are taken from the supports of its group."""
    where: str
    """File and entry, for messages."""

    @property
    def shown(self) -> str:
        """Its answer when it is a shot: the most frequent one, and the first of equally frequent ones."""
        return Counter(self.answers).most_common(1)[0][0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The questions of a benchmark, the examples for its shots, and how it is asked and scored."""

    name: str
    kind: Kind
    metric: Metric
    supports: list[Example]
    """Examples that shots are taken from."""
    queries: list[Example]
    classes: tuple[str, ...] = ()
    """Names to choose among; if the metric is `auc`, the last one is the positive class."""
    template: str
    tokens: int
    """Maximum number of ids of an answer (Flamingo, appendix B)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The published layout of a benchmark."""

    files: str
    """The files that the folder must contain, for messages."""
    read: Callable[[Path, Split], Iterator[Example]]
    kind: Kind
    metric: Metric
    template: str
    tokens: int = 5
    classes: Callable[[Path], tuple[str, ...]] | None = None


def read_benchmark(
    name: str, folder: Path, *, supports: int = 2048, queries: int = 1000, kind: Kind | None = None, seed: int = 0
) -> Benchmark:
    """Reads a benchmark.

    Args:
        name: in `LAYOUTS`.
        folder: holds its files.
        supports, queries: maximum numbers of examples, 0: all.
        kind: for `jsonl` only; None: `vqa` if there are questions, else `caption`.
        seed: decides which examples are taken.

    Raises:
        DocumentError: a file or an image is missing or damaged; the message names it, the entry and the remedy.
        ValueError: there is no such benchmark, or it has a fixed kind.
    """
    if name not in LAYOUTS:
        raise ValueError(f"there is no benchmark {name!r}: there are {', '.join(LAYOUTS)}")
    layout, folder = LAYOUTS[name], Path(folder)
    if not folder.is_dir():
        raise DocumentError(f"there is no folder {folder}: {name} is read from {layout.files}")
    if kind is not None and name != "jsonl":
        raise ValueError(f"{name} is of the kind {layout.kind}: leave out its kind, which is for jsonl")
    wanted: dict[Split, int] = {"train": supports, "val": queries}
    given = {
        split: _part(list(layout.read(folder, split)), count, folder, f"{name} {split}", seed)
        for split, count in wanted.items()
    }
    classes = layout.classes(folder) if layout.classes else ()
    if name == "jsonl":
        layout, classes = _kind_of(layout, kind, given["train"], given["val"])
    return Benchmark(
        name=name,
        kind=layout.kind,
        metric=layout.metric,
        supports=given["train"],
        queries=given["val"],
        classes=classes,
        template=layout.template,
        tokens=layout.tokens,
    )


def _part(examples: list[Example], count: int, folder: Path, name: str, seed: int) -> list[Example]:
    """`count` of the examples (0: all) in their order, with their images checked."""
    if not examples:
        raise DocumentError(f"{folder} has no entry of {name}")
    if count < 0:
        raise ValueError(f"the number of examples must be at least 0 (all), got {count}")
    if count and count < len(examples):
        # At random, since files are often sorted by class or by image.
        taken = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
        examples = [examples[int(one)] for one in taken]
    # Now, not when they are asked about: a missing image must not end an evaluation after hours.
    for example in examples:
        try:
            check_image(example.image)
        except DocumentError as error:
            raise DocumentError(f"{example.where}: {error}; or take the entry out") from error
    return examples


def _kind_of(
    layout: Layout, kind: Kind | None, supports: list[Example], queries: list[Example]
) -> tuple[Layout, tuple[str, ...]]:
    """The layout and the classes of a JSONL file, which its entries decide."""
    asked = [example for example in (*supports, *queries) if example.question]
    if kind == "classify":
        classes = sorted({answer for example in (*supports, *queries) for answer in example.answers})
        template = ANSWER if asked else CAPTION
        return dataclasses.replace(layout, kind=kind, metric="accuracy", template=template), tuple(classes)
    if kind == "caption" or (kind is None and not asked):
        return dataclasses.replace(layout, kind="caption", metric="cider", template=CAPTION, tokens=20), ()
    silent = next((example for example in (*supports, *queries) if not example.question), None)
    if silent is not None:
        raise DocumentError(f"{silent.where} has no question, but others do: give all of them one, or none")
    few = any(len(query.answers) < PEOPLE for query in queries)
    return dataclasses.replace(layout, kind="vqa", metric="exact" if few else "vqa", template=ANSWER), ()


# ---- contents of files


def _load(path: Path) -> Any:
    """The value of a JSON file."""
    if not path.exists():
        raise DocumentError(f"there is no {path}: put it there as it is published (docs/prompts.md)")
    try:
        return json_file(path)
    except DocumentError as error:
        raise DocumentError(f"{error}: get it again") from error


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each entry of a JSONL file."""
    if not path.exists():
        raise DocumentError(f"there is no {path}: put it there (docs/prompts.md)")
    yield from json_lines(path)


def _get(entry: Any, key: str, wanted: type, where: str) -> Any:
    """A checked field of an entry; texts must not be empty."""
    if not isinstance(entry, dict):
        raise DocumentError(f"{where} holds {entry!r:.60} instead of an object")
    value = entry.get(key)
    # In Python a boolean is an integer.
    if not isinstance(value, wanted) or isinstance(value, bool) or value == "":
        raise DocumentError(f"{where}: its {key} is {value!r:.60} instead of {_TYPES[wanted]}")
    if isinstance(value, str):
        check_letters(value, f"{where}: its {key}")
    return value


def _texts(entry: Any, key: str, where: str) -> tuple[str, ...]:
    """A checked list of texts, at least one."""
    values = _get(entry, key, list, where)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise DocumentError(f"{where}: its {key} are {values!r:.60} instead of texts, at least one")
    for value in values:
        check_letters(value, f"{where}: one of its {key},")
    return tuple(values)


def _first(folder: Path, *names: str) -> Path:
    """The first of several places that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DocumentError(f"{folder} has none of {', '.join(names)}: put it there as it is published (docs/prompts.md)")


# ---- the layouts


def _coco(folder: Path, split: Split) -> Iterator[Example]:
    path = _first(folder, *(f"annotations/captions_{split}{year}.json" for year in (2014, 2017)))
    # The images of the same year: both years have a split of this name, with other images in it.
    images = _first(folder, path.stem.removeprefix("captions_"), f"images/{path.stem.removeprefix('captions_')}")
    whole, captions = _load(path), {}
    for number, entry in enumerate(_get(whole, "annotations", list, str(path)), 1):
        where = f"{path} annotation {number}"
        captions.setdefault(_get(entry, "image_id", int, where), []).append(_get(entry, "caption", str, where))
    for number, entry in enumerate(_get(whole, "images", list, str(path)), 1):
        where = f"{path} image {number}"
        name, known = _get(entry, "file_name", str, where), captions.get(_get(entry, "id", int, where))
        if known is None:
            raise DocumentError(f"{where} has no caption: get the file again")
        yield Example(image=named(images, name, where), answers=tuple(known), where=where)


def _karpathy(file: str, *folders: str) -> Callable[[Path, Split], Iterator[Example]]:
    """The splits of Karpathy and Fei-Fei (2015), where `restval` belongs to the training split."""

    def read(folder: Path, split: Split) -> Iterator[Example]:
        path, images = folder / file, _first(folder, *folders)
        wanted = ("train", "restval") if split == "train" else ("val",)
        for number, entry in enumerate(_get(_load(path), "images", list, str(path)), 1):
            where = f"{path} image {number}"
            if _get(entry, "split", str, where) in wanted:
                sentences = _get(entry, "sentences", list, where)
                captions = tuple(_get(one, "raw", str, where) for one in sentences)
                if not captions:
                    raise DocumentError(f"{where} has no sentence: get the file again")
                # COCO's entries name a folder per image, since `restval` lies with the validation images; Flickr's do not.
                inner = _get(entry, "filepath", str, where) if "filepath" in entry else "."
                image = named(named(images, inner, where), _get(entry, "filename", str, where), where)
                yield Example(image=image, answers=captions, where=where)

    return read


def _vqa(prefix: str) -> Callable[[Path, Split], Iterator[Example]]:
    """VQAv2 and OK-VQA, whose files differ in a prefix."""

    def read(folder: Path, split: Split) -> Iterator[Example]:
        path = folder / f"{prefix}OpenEnded_mscoco_{split}2014_questions.json"
        own = folder / f"{prefix}mscoco_{split}2014_annotations.json"
        images = _first(folder, f"{split}2014", f"images/{split}2014")
        answers = {}
        for number, entry in enumerate(_get(_load(own), "annotations", list, str(own)), 1):
            where = f"{own} annotation {number}"
            given = tuple(_get(one, "answer", str, where) for one in _get(entry, "answers", list, where))
            answers[_get(entry, "question_id", int, where)] = given
        for number, entry in enumerate(_get(_load(path), "questions", list, str(path)), 1):
            where = f"{path} question {number}"
            if not (known := answers.get(_get(entry, "question_id", int, where))):
                raise DocumentError(f"{where} has no answer in {own.name}: get both files of the same version")
            # Made from a number, so it cannot lead out of the folder.
            image = images / f"COCO_{split}2014_{_get(entry, 'image_id', int, where):012d}.jpg"
            yield Example(image=image, answers=known, question=_get(entry, "question", str, where), where=where)

    return read


def _textvqa(folder: Path, split: Split) -> Iterator[Example]:
    path = folder / f"TextVQA_0.5.1_{split}.json"
    for number, entry in enumerate(_get(_load(path), "data", list, str(path)), 1):
        where = f"{path} entry {number}"
        name = f"{_get(entry, 'image_id', str, where)}.jpg"
        image = named(folder / "train_images", name, where)  # the images of both splits
        question = _get(entry, "question", str, where)
        yield Example(image=image, answers=_texts(entry, "answers", where), question=question, where=where)


def _hateful(folder: Path, split: Split) -> Iterator[Example]:
    path = folder / "train.jsonl" if split == "train" else _first(folder, "dev_seen.jsonl", "dev.jsonl")
    for where, entry in _lines(path):
        label = _get(entry, "label", int, where)
        if label not in (0, 1):
            raise DocumentError(f"{where}: its label is {label} instead of 0 or 1")
        image, text = named(folder, _get(entry, "img", str, where), where), _get(entry, "text", str, where)
        yield Example(image=image, answers=(("no", "yes")[label],), question=text, where=where)


def _synsets(folder: Path) -> dict[str, str]:
    """The first name of each synset; all of its names if another synset has the same first one (such as crane)."""
    path, names = folder / "LOC_synset_mapping.txt", {}
    for row, line in text_lines(path):
        synset, _, name = line.partition(" ")
        if not name.strip():
            raise DocumentError(f"{path} line {row} is {line!r:.60} instead of a synset and its names")
        names[synset] = name.strip()
    short = {synset: name.split(",")[0] for synset, name in names.items()}
    counts = Counter(short.values())
    return {synset: one if counts[one] == 1 else names[synset] for synset, one in short.items()}


def _imagenet(folder: Path, split: Split) -> Iterator[Example]:
    names = _synsets(folder)
    images = _first(folder, f"ILSVRC/Data/CLS-LOC/{split}", split)
    solution = folder / "LOC_val_solution.csv"
    if split == "val" and solution.is_file():  # in Kaggle's layout validation images are not sorted into folders
        for row, line in text_lines(solution):
            if row == 1:  # the header
                continue
            where = f"{solution} line {row}"
            stem, _, prediction = line.partition(",")
            # The class, followed by a bounding box; further objects are of the same class.
            synset = prediction.split(" ")[0]
            if synset not in names:
                raise DocumentError(f"{where} names {synset!r:.40}, which is not in LOC_synset_mapping.txt")
            yield Example(image=named(images, f"{stem}.JPEG", where), answers=(names[synset],), where=where)
        return
    for inner in sorted(path for path in images.iterdir() if path.is_dir()):
        if inner.name not in names:
            raise DocumentError(f"the folder {inner} is not in LOC_synset_mapping.txt: take it out")
        for image in sorted(
            path for path in inner.iterdir() if not path.name.startswith(".")
        ):  # macOS leaves such files
            yield Example(image=image, answers=(names[inner.name],), where=str(image))


def _jsonl(folder: Path, split: Split) -> Iterator[Example]:
    for where, entry in _lines(folder / f"{split}.jsonl"):
        image = named(folder, _get(entry, "image", str, where), where)
        question = _get(entry, "question", str, where) if "question" in entry else ""
        group = _get(entry, "group", str, where) if "group" in entry else ""
        if unknown := sorted(set(entry) - {"image", "question", "answer", "answers", "group"}):
            raise DocumentError(
                f"{where} has {unknown[0]!r}: known keys are image, question, answers (or answer), group"
            )
        if "answer" in entry and "answers" in entry:
            raise DocumentError(f"{where} has answers and an answer, which would be lost: put it into the answers")
        answers = _texts(entry, "answers", where) if "answers" in entry else (_get(entry, "answer", str, where),)
        yield Example(image=image, answers=answers, question=question, group=group, where=where)


# Captions have up to 20 ids, answers 5, those of TextVQA 10 (Flamingo, appendix B).


def _captioning(files: str, read: Callable[[Path, Split], Iterator[Example]]) -> Layout:
    return Layout(files=files, read=read, kind="caption", metric="cider", template=CAPTION, tokens=20)


def _answering(files: str, read: Callable[[Path, Split], Iterator[Example]], tokens: int = 5) -> Layout:
    return Layout(files=files, read=read, kind="vqa", metric="vqa", template=ANSWER, tokens=tokens)


LAYOUTS: Mapping[str, Layout] = {
    "coco": _captioning("annotations/captions_{train,val}{2014,2017}.json and {train,val}{2014,2017}/", _coco),
    "coco-karpathy": _captioning(
        "dataset_coco.json (Karpathy's) and {train,val}2014/", _karpathy("dataset_coco.json", "images", ".")
    ),
    "flickr30k": _captioning(
        "dataset_flickr30k.json (Karpathy's) and flickr30k-images/",
        _karpathy("dataset_flickr30k.json", "flickr30k-images", "flickr30k_images", "images", "."),
    ),
    "vqav2": _answering(
        "v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json, {train,val}2014/",
        _vqa("v2_"),
    ),
    "okvqa": _answering(
        "OpenEnded_mscoco_{train,val}2014_questions.json, mscoco_{train,val}2014_annotations.json, {train,val}2014/",
        _vqa(""),
    ),
    "textvqa": _answering(
        "TextVQA_0.5.1_{train,val}.json and train_images/ (which has both splits' images)", _textvqa, tokens=10
    ),
    "hateful-memes": Layout(
        files="train.jsonl, dev_seen.jsonl (or dev.jsonl) and img/",
        read=_hateful,
        kind="classify",
        metric="auc",
        template=MEME,
        classes=lambda folder: ("no", "yes"),
    ),
    "imagenet": Layout(
        files="LOC_synset_mapping.txt, {train,val}/SYNSET/*.JPEG; or ILSVRC/Data/CLS-LOC/ with LOC_val_solution.csv",
        read=_imagenet,
        kind="classify",
        metric="accuracy",
        template=CAPTION,
        classes=lambda folder: tuple(dict.fromkeys(_synsets(folder).values())),
    ),
    "jsonl": _answering(
        "train.jsonl and val.jsonl: image, answers (or answer) and optionally question and group per line", _jsonl
    ),
}
