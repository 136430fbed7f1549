"""Speed and memory of people's own data: reading steps, the time to the first batch, and memory over many batches.

    python benchmarks/formats.py steps                    # steps per second and core, without images and with 128×128 JPEG
    python benchmarks/formats.py shards --shards 200      # a folder of TFRecord shards: first batch, memory over the batches
    python benchmarks/formats.py documents --documents 1000000

Writes its data to a temporary folder. CPU seconds are this process's: other work on the machine hardly changes them.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console

SIDE = 128


def main() -> None:
    """Runs one of the measurements and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "shards", "documents"))
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--loaders", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # An index of an earlier run would make the first batch look too fast.
        os.environ["GENERALIST_CACHE"] = f"{folder}/cache"
        if arguments.what == "steps":
            steps(Path(folder))
        elif arguments.what == "shards":
            write_rlds(Path(folder) / "robot", shards=arguments.shards, episodes=20, length=60, images=False)
            source = {"recorded": {"path": f"{folder}/robot", "weight": 1.0}}
            batches(Path(folder), source, arguments.batches, arguments.loaders)
        else:
            write_documents(Path(folder) / "documents", arguments.documents)
            source = {"documents": {"path": f"{folder}/documents", "weight": 1.0}}
            batches(Path(folder), source, arguments.batches, arguments.loaders)


def steps(folder: Path) -> None:
    """Steps per second of CPU time, each episode read, mapped and decoded once."""
    from generalist.data.episodes import EpisodeCache
    from generalist.data.recorded import Dataset, RecordedEpisodes, opened

    for images in (False, True):
        path = folder / f"robot-{images}"
        # Fewer episodes with images: decoding takes far longer than reading numbers.
        write_rlds(path, shards=4, episodes=200 if not images else 30, length=100, images=images)
        dataset = Dataset(path=str(path))
        # CPU time: the machine may be shared.
        begun = time.process_time()
        total = int(opened(dataset).episodes.lengths.sum())
        indexed = time.process_time() - begun
        # The cache is not asked: `parse` reads each episode anew.
        reader = RecordedEpisodes(dataset, EpisodeCache(1), heldout=0.0)
        begun, seen = time.process_time(), 0
        for index in range(len(reader)):
            # A window longer than any episode: the whole of it, with its images decoded.
            seen += len(reader.parse(index).window(0, 10**6)[1][""])
        spent = time.process_time() - begun
        name = f"with {SIDE}×{SIDE} JPEG" if images else "without images"
        print(f"{name}: {seen / spent:,.0f} steps/s per core; index {total / indexed:,.0f} steps/s")


def batches(folder: Path, sources: dict, count: int, loaders: int) -> None:
    """The time to the first batch, with and without an index, and the memory of this process and its loaders."""
    from dataclasses import replace

    from generalist.config.data import read_source
    from generalist.config.presets import preset
    from generalist.experiment.prepare import prepare

    config = preset("debug")
    mixture = {name: read_source(name, settings) for name, settings in sources.items()}
    data = replace(
        config.data,
        sources=mixture,
        folder=folder / "data",
        shards=max(1, loaders),
        loaders=loaders,
        cache_megabytes=64,
    )
    # The second time the index is there, as at every later start of a run.
    for run in ("not indexed", "indexed"):
        begun = time.perf_counter()
        prepared = prepare(replace(config, data=data, runs=folder / "runs", name=run), Console(stderr=True))
        next(prepared.iterator)
        print(f"first batch, {run}: {time.perf_counter() - begun:.1f} s", flush=True)
        # Loaders of the first would count in the memory of the second.
        if run == "not indexed":
            prepared.iterator.close()
    process, lines = psutil.Process(), []
    begun = time.perf_counter()
    for number in range(1, count + 1):
        next(prepared.iterator)
        if number % max(1, count // 20) == 0:
            # Loaders are processes of their own; pages that they share are counted in each.
            held = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
            lines.append(held / 2**20)
            print(
                f"{number:,} batches, {number / (time.perf_counter() - begun):.0f} per second, {lines[-1]:.0f} MiB",
                flush=True,
            )
    prepared.iterator.close()
    # Without the first quarter, in which caches fill.
    half = lines[len(lines) // 4 :]
    print(f"memory from a quarter on: {min(half):.0f} to {max(half):.0f} MiB ({max(half) / min(half) - 1:.1%})")


def write_rlds(folder: Path, *, shards: int, episodes: int, length: int, images: bool) -> None:
    """RLDS in TFRecord files: a state of 8 numbers, an action of 7, and a camera if wanted."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    from generalist.data.formats.tfrecord import framed

    version = folder / "1.0.0"
    version.mkdir(parents=True)
    observation = {"state": tfds.features.Tensor(shape=(8,), dtype=np.float32)}
    if images:
        observation["image"] = tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg")
    steps = {
        "observation": observation,
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "is_last": np.bool_,
        "language_instruction": tfds.features.Text(),
    }
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    (version / "features.json").write_text(json.dumps(features.to_json()))
    split = {"name": "train", "shardLengths": [str(episodes)] * shards}
    info = {"name": folder.name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    # Written by hand, as TFDS's own writer of TFRecord needs TensorFlow.
    (version / "dataset_info.json").write_text(json.dumps(info))
    rng, at, pictures = np.random.default_rng(0), np.arange(length), jpegs() if images else []
    for shard in range(shards):
        records = []
        for episode in range(episodes):
            example = tf_example_pb2.Example()
            stored = example.features.feature
            stored["steps/observation/state"].float_list.value.extend(rng.normal(size=8 * length))
            stored["steps/action"].float_list.value.extend(np.sin(at[:, None] / 7 + np.arange(7)).ravel())
            stored["steps/is_last"].int64_list.value.extend((at == length - 1).astype(int))
            stored["steps/language_instruction"].bytes_list.value.extend([b"pick up the cube"] * length)
            if images:
                chosen = (pictures[(shard + episode + step) % len(pictures)] for step in range(length))
                stored["steps/observation/image"].bytes_list.value.extend(chosen)
            records.append(framed(example.SerializeToString()))
        (version / f"{folder.name}-train.tfrecord-{shard:05d}-of-{shards:05d}").write_bytes(b"".join(records))


def jpegs() -> list[bytes]:
    """Some pictures with gradients, edges and noise."""
    # Neither noise nor one colour, which JPEG takes longest and shortest for.
    rng, found = np.random.default_rng(0), []
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(64):
        planes = [127 + 100 * np.sin(columns / (5 + number % 7)), 127 + 100 * np.cos(rows / 9 + number), rows + columns]
        picture = np.stack(planes, axis=-1) % 256 + rng.normal(0, 6, (SIDE, SIDE, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_documents(folder: Path, count: int) -> None:
    """JSONL files of texts of some hundred letters, 100,000 to a file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(2000)])
    for first in range(0, count, 100_000):
        with (folder / f"{first:09d}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(first, min(count, first + 100_000)):
                text = " ".join(words[rng.integers(2000, size=int(rng.integers(20, 80)))])
                file.write(json.dumps({"text": f"{number}: {text}"}) + "\n")


if __name__ == "__main__":
    main()
