"""What fields mean: by the names that are in common use, by a YAML file, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.data.formats.episodes import EpisodeSet, Field, Opening, RawEpisode
from generalist.data.mapping import FieldMapping, default_mapping, read_mapping, unmapped


class Described(EpisodeSet):
    """Fields without episodes."""

    format = "described"

    def __init__(self, *fields: Field):
        super().__init__(Path("somewhere"), Opening())
        self.fields = {field.key: field for field in fields}
        self.lengths = np.zeros(0, np.int64)

    @classmethod
    def matches(cls, place: Any) -> bool:
        return False

    @property
    def files(self) -> list:
        return []

    def read(self, index: int, keys: Any) -> RawEpisode:
        raise NotImplementedError

    def where(self, index: int) -> str:
        return ""


def number(key: str, *shape: int | None, dtype: str = "float32") -> Field:
    return Field(key=key, kind="number", shape=shape, dtype=dtype)


def image(key: str) -> Field:
    return Field(key=key, kind="image", shape=(8, 8, 3), dtype="uint8")


def text(key: str, level: Any = "step") -> Field:
    return Field(key=key, kind="text", level=level)


OPEN_X = (
    *(image("observation/image_0"), number("observation/state", 7), number("action", 7), text("language_instruction")),
    *(number("observation/natural_language_embedding", 512), text("observation/natural_language_instruction")),
    *(
        number("reward"),
        number("discount"),
        number("is_last", dtype="bool"),
        text("episode_metadata/file_path", "episode"),
    ),
)
LEROBOT = (
    *(image("observation.images.front"), image("observation.images.wrist"), number("observation.state", 4)),
    *(number("action", 1), text("task"), number("timestamp", 1), number("index", 1, dtype="int64")),
    number("next.reward", 1),
)
MINARI = (
    number("observations/observation", 3),
    number("observations/desired_goal", 2),
    number("actions", 2),
    number("rewards"),
)
ROBOMIMIC = (
    *(number("obs/robot0_eef_pos", 3), image("obs/agentview_image"), number("next_obs/robot0_eef_pos", 3)),
    *(number("actions", 7), number("states", 32), number("dones", dtype="int64")),
)
D4RL = (
    number("observations", 11),
    number("actions", 3),
    number("rewards"),
    number("infos/qpos", 5),
    number("next_observations", 11),
)
PARTS = (
    number("observation/state", 4),
    number("action/world_vector", 3),
    number("action/gripper", 1),
    number("observation/depth", 128, 128),
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            OPEN_X,
            FieldMapping(
                observation={"image_0": "observation/image_0", "state": "observation/state"},
                action={"": "action"},
                instruction="language_instruction",
                reward="reward",
            ),
        ),
        (
            LEROBOT,
            FieldMapping(
                observation={
                    "front": "observation.images.front",
                    "state": "observation.state",
                    "wrist": "observation.images.wrist",
                },
                action={"": "action"},
                instruction="task",
                reward="next.reward",
            ),
        ),
        (
            MINARI,
            FieldMapping(
                observation={"desired_goal": "observations/desired_goal", "observation": "observations/observation"},
                action={"": "actions"},
                reward="rewards",
            ),
        ),
        (
            ROBOMIMIC,
            FieldMapping(
                observation={"agentview_image": "obs/agentview_image", "robot0_eef_pos": "obs/robot0_eef_pos"},
                action={"": "actions"},
            ),
        ),
        (D4RL, FieldMapping(observation={"observations": "observations"}, action={"": "actions"}, reward="rewards")),
        (
            PARTS,
            FieldMapping(
                observation={"state": "observation/state"},
                action={"gripper": "action/gripper", "world_vector": "action/world_vector"},
            ),
        ),
    ],
    ids=["open-x", "lerobot", "minari", "robomimic", "d4rl", "parts"],
)
def test_names_in_common_use(fields: tuple[Field, ...], expected: FieldMapping) -> None:
    assert default_mapping(Described(*fields)) == expected


def test_names_that_would_collide_stay_whole() -> None:
    found = default_mapping(Described(number("obs/state", 2), number("observation/state", 3), number("action", 1)))
    assert found.observation == {"obs.state": "obs/state", "observation.state": "observation/state"}
    with pytest.raises(ValueError, match="would both be called observation.state"):
        default_mapping(Described(number("observation/state", 2), number("observation.state", 3), number("action", 1)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((number("observation/state", 3),), "no field is known to be the action.*observation/state"),
        ((number("action", 3), number("reward")), "no field is known to be the observation"),
        ((number("action", None), number("observation/state", 3)), "to be the action"),
    ],
)
def test_what_is_not_found_lists_the_fields(fields: tuple[Field, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        default_mapping(Described(*fields))


def mapped(folder: Path, content: str, *fields: Field) -> FieldMapping:
    (folder / "mapping.yaml").write_text(content)
    return read_mapping(str(folder / "mapping.yaml"), Described(*fields))


def test_file_says_what_is_used(tmp_path: Path) -> None:
    found = mapped(tmp_path, "observation: {cam: observation/image_0}\nreward: discount", *OPEN_X)
    assert found.observation == {"cam": "observation/image_0"}
    assert (found.action, found.reward, found.instruction) == ({"": "action"}, "discount", "language_instruction")
    assert "observation/state" in unmapped({field.key: field for field in OPEN_X}, found)
    listed = mapped(tmp_path, "observation: [observation/state, observation/image_0]\naction: {a: action}\n", *OPEN_X)
    assert listed.observation == {"image_0": "observation/image_0", "state": "observation/state"}
    assert listed.action == {"a": "action"}
    assert listed.instruction is None  # a file that says both is whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("observation: [nothing]", "no field 'nothing', only action"),
        ("obs: [action]", "'obs' is no part of a mapping"),
        ("[1]", "must say what fields mean"),
        ("a: [", "no YAML"),
        ("observation: 3", "names with fields"),
        ("observation: {a/b: action}", "without /"),
        ("action: observation/image_0", "which it can't be"),
        ("action: language_instruction", "which it can't be"),
        ("instruction: action", "is no text"),
        ("reward: language_instruction", "is no number"),
        ("reward: 3", "must be the key"),
        ("!!python/object/apply:os.system [echo]", "no YAML"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"mapping\.yaml.*{words}"):
        mapped(tmp_path, content, *OPEN_X)
