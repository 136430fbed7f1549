"""One set of episodes as every format has it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from generalist.data.formats.tfrecord import framed

LENGTHS = (6, 9, 4, 12, 5, 7, 8, 6)
TEXT = "push the block"
FPS = 10


def episode(number: int) -> dict[str, np.ndarray]:
    """State (T, 3) and action (T, 2) float32, image uint8 (T, 32, 32, 3), reward (T,) float32."""
    rng, steps = np.random.default_rng(number), LENGTHS[number]
    return {
        "state": rng.normal(size=(steps, 3)).astype(np.float32),
        "image": rng.integers(256, size=(steps, 32, 32, 3), dtype=np.uint8),
        "action": rng.normal(size=(steps, 2)).astype(np.float32),
        "reward": np.full(steps, 0.5, np.float32),
    }


EPISODES = [episode(number) for number in range(len(LENGTHS))]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _rlds(folder: Path, file_format: str, write: Callable[[Path, list[bytes]], None]) -> Path:
    folder = folder / "1.0.0"
    folder.mkdir(parents=True)
    kinds = tfds.features
    steps = {
        "observation": {
            "state": kinds.Tensor(shape=(3,), dtype=np.float32),
            "image": kinds.Image(shape=(32, 32, 3), encoding_format="png"),
        },
        "action": kinds.Tensor(shape=(2,), dtype=np.float32),
        "reward": np.float32,
        "is_last": np.bool_,
        "language_instruction": kinds.Text(),
    }
    features = kinds.FeaturesDict({"steps": kinds.Dataset(steps)})
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    records = []
    for one in EPISODES:
        count, example = len(one["action"]), tf_example_pb2.Example()
        stored = example.features.feature
        stored["steps/observation/state"].float_list.value.extend(one["state"].ravel())
        stored["steps/observation/image"].bytes_list.value.extend(map(png, one["image"]))
        stored["steps/action"].float_list.value.extend(one["action"].ravel())
        stored["steps/reward"].float_list.value.extend(one["reward"])
        stored["steps/is_last"].int64_list.value.extend([0] * (count - 1) + [1])
        stored["steps/language_instruction"].bytes_list.value.extend([TEXT.encode()] * count)
        records.append(example.SerializeToString())
    halves = records[:3], records[3:]
    for number, part in enumerate(halves):
        write(folder / f"same-train.{file_format}-{number:05d}-of-00002", part)
    split = {"name": "train", "shardLengths": [str(len(part)) for part in halves]}
    info = {"name": "same", "version": "1.0.0", "fileFormat": file_format, "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder.parent


def tfrecord(folder: Path) -> Path:
    return _rlds(folder, "tfrecord", lambda file, records: file.write_bytes(b"".join(map(framed, records))))


def array_record(folder: Path) -> Path:
    from array_record.python import array_record_module

    def write(file: Path, records: list[bytes]) -> None:
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()

    return _rlds(folder, "array_record", write)


def _rows(number: int, start: int) -> pa.Table:
    one, count = EPISODES[number], LENGTHS[number]
    images = [{"bytes": png(image), "path": None} for image in one["image"]]
    return pa.table(
        {
            "observation.state": pa.array(one["state"].tolist(), pa.list_(pa.float32(), 3)),
            "observation.images.image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "action": pa.array(one["action"].tolist(), pa.list_(pa.float32(), 2)),
            "next.reward": pa.array(one["reward"]),
            "timestamp": pa.array((np.arange(count) / FPS).astype(np.float32)),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            "index": start + np.arange(count),
            "task_index": np.zeros(count, np.int64),
        }
    )


def _lerobot(folder: Path, version: str, paths: str) -> list[pa.Table]:
    (folder / "meta").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": [3]},
        "observation.images.image": {"dtype": "image", "shape": [32, 32, 3]},
        "action": {"dtype": "float32", "shape": [2]},
        **{key: {"dtype": "float32", "shape": [1]} for key in ("next.reward", "timestamp")},
        **{key: {"dtype": "int64", "shape": [1]} for key in ("frame_index", "episode_index", "index", "task_index")},
    }
    info = {"codebase_version": version, "fps": FPS, "total_episodes": len(LENGTHS), "chunks_size": 1000}
    info |= {"features": features, "splits": {"train": f"0:{len(LENGTHS)}"}, "data_path": paths, "video_path": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    starts = np.cumsum([0, *LENGTHS]).tolist()
    return [_rows(number, starts[number]) for number in range(len(LENGTHS))]


def lerobot_v21(folder: Path) -> Path:
    paths = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    tables = _lerobot(folder, "v2.1", paths)
    (folder / "data/chunk-000").mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"data/chunk-000/episode_{number:06d}.parquet")
    lines = [{"episode_index": number, "tasks": [TEXT], "length": count} for number, count in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TEXT}) + "\n")
    return folder


def lerobot_v3(folder: Path) -> Path:
    tables = _lerobot(folder, "v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables[:5]), folder / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.concat_tables(tables[5:]), folder / "data/chunk-000/file-001.parquet")
    stops, count = np.cumsum(LENGTHS), len(LENGTHS)
    listed = {
        "episode_index": np.arange(count),
        "length": np.array(LENGTHS),
        "tasks": [[TEXT]] * count,
        "dataset_from_index": stops - np.array(LENGTHS),
        "dataset_to_index": stops,
        "data/chunk_index": np.zeros(count, np.int64),
        "data/file_index": (np.arange(count) >= 5).astype(np.int64),
    }
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(listed), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": [TEXT]}), folder / "meta/tasks.parquet")
    return folder


def _padded(values: np.ndarray) -> np.ndarray:
    """With the observation after the last action, as Minari has it."""
    return np.concatenate([values, values[-1:]])


def _minari(folder: Path, layout: str) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    boxes = {"state": ("float32", [3]), "image": ("uint8", [32, 32, 3])}
    parts = {name: {"type": "Box", "dtype": dtype, "shape": shape} for name, (dtype, shape) in boxes.items()}
    metadata = {
        "total_episodes": len(LENGTHS),
        "total_steps": sum(LENGTHS),
        "data_format": layout,
        "observation_space": json.dumps({"type": "Dict", "subspaces": parts}),
        "action_space": json.dumps({"type": "Box", "dtype": "float32", "shape": [2]}),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    return data


def minari_hdf5(folder: Path) -> Path:
    data = _minari(folder, "hdf5")
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, one in enumerate(EPISODES):
            group = file.create_group(f"episode_{number}")
            group.attrs["total_steps"], group.attrs["id"] = LENGTHS[number], number
            group["observations/state"], group["observations/image"] = _padded(one["state"]), _padded(one["image"])
            group["actions"], group["rewards"] = one["action"], one["reward"]
    return folder


def minari_arrow(folder: Path) -> Path:
    data = _minari(folder, "arrow")
    for number, one in enumerate(EPISODES):
        (data / str(number)).mkdir()
        (data / str(number) / "metadata.json").write_text(json.dumps({"id": number, "total_steps": LENGTHS[number]}))
        state, image = _padded(one["state"]), _padded(one["image"])
        columns = {
            "observations": pa.StructArray.from_arrays(
                [
                    pa.array(state.tolist(), pa.list_(pa.float32(), 3)),
                    pa.array(image.reshape(len(image), -1).tolist(), pa.list_(pa.uint8(), 3072)),
                ],
                ["state", "image"],
            ),
            "actions": pa.array([*one["action"].tolist(), None], pa.list_(pa.float32(), 2)),
            "rewards": pa.array([*one["reward"].tolist(), None], pa.float32()),
        }
        table = pa.table(columns)
        with (
            pa.OSFile(str(data / str(number) / "part-0.arrow"), "wb") as file,
            pa.ipc.new_file(file, table.schema) as out,
        ):
            out.write_table(table)
    return folder


def robomimic(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with h5py.File(folder / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = json.dumps({"env_name": "Push", "env_kwargs": {}})
        for number, one in enumerate(EPISODES):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = LENGTHS[number]
            group["obs/state"], group["obs/image"] = one["state"], one["image"]
            group["actions"], group["rewards"] = one["action"], one["reward"]
    return folder / "demo.hdf5"


def npz(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, one in enumerate(EPISODES):
        arrays: dict[str, Any] = {"observation/state": one["state"], "observation/image": one["image"]}
        np.savez(folder / f"{number:03d}.npz", action=one["action"], reward=one["reward"], instruction=TEXT, **arrays)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    write.__name__: write
    for write in (tfrecord, array_record, lerobot_v21, lerobot_v3, minari_hdf5, minari_arrow, robomimic, npz)
}
