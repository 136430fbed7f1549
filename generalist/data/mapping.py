"""What the fields of a data set mean: which are observed, which is the action, which is told as the instruction.

The files do not say it. The names that Open X-Embodiment, LeRobot, Minari, robomimic and D4RL use are known; a YAML file says
otherwise:

    observation:                 # name in the layout: field; or a list of fields, which keep their short names
      state: observation/state
      front: observation/image_0
    action: action               # a field, or names with fields
    instruction: language_instruction
    reward: reward               # optional: for returns
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from generalist.data.formats.episodes import EpisodeSet, Field
from generalist.data.formats.places import Place, place
from generalist.data.yaml_files import load_yaml

# In the order in which they are looked for: Open X-Embodiment's names, LeRobot's `task`, then MiniGrid's in
# Minari.
INSTRUCTIONS = (
    *(
        "language_instruction",
        "instruction",
        "natural_language_instruction",
        "observation/natural_language_instruction",
    ),
    *("observation/language_instruction", "observation/instruction", "episode_metadata/language_instruction", "task"),
    *("language", "mission", "observations/mission", "infos/mission"),
)
ACTIONS, ACTION_FOLDERS = ("action", "actions"), ("action/", "actions/", "action.")
# Of RLDS; of D4RL, Minari and robomimic; of LeRobot.
REWARDS = ("reward", "rewards", "next.reward")
# The more exact ones first, so that `observation.images.front` is called `front` and not `images.front`.
PREFIXES = (
    *(
        "observation.images.",
        "observation/images/",
        "observation.image.",
        "observation/",
        "observation.",
        "observations/",
    ),
    *("observations.", "obs/"),
)
"""Of observations; the first that fits is left out of the short name."""
BARE = ("observation", "observations", "obs")
# What an episode records about itself. To observe the reward, the end or `executed_action` would tell the policy
# the answer. `states` are a simulator's, which no robot has.
NOT_OBSERVED = (
    *(
        *INSTRUCTIONS,
        *ACTIONS,
        *REWARDS,
        "next_observations",
        "discount",
        "is_first",
        "is_last",
        "is_terminal",
        "done",
        "dones",
    ),
    *(
        "next.done",
        "next.success",
        "success",
        "terminal",
        "terminals",
        "terminations",
        "timeouts",
        "truncations",
        "timestamp",
    ),
    *("frame_index", "episode_index", "index", "task_index", "episode_id", "seed", "executed_action", "states"),
)
MEANINGLESS = ("embedding", "language", "instruction")
"""Parts of the names of fields that a policy is not shown unless it is asked for."""
LARGEST = 4096
"""Numbers of one observation that is no image; more is a depth map or a point cloud, which would swamp a row."""
UNREAD = 4
"""Fields that can't be read, which a message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldMapping:
    """What the fields of a data set are used for."""

    observation: Mapping[str, str]
    """Name in the layout → key of the field."""
    action: Mapping[str, str]
    """The same; a single one has the name ``, and the action space is its own."""
    instruction: str | None = None
    """Key of a text of the steps or of the episode."""
    reward: str | None = None
    """Key of a number per step."""

    @property
    def keys(self) -> list[str]:
        """All fields that are used for training, each once."""
        used = [*self.observation.values(), *self.action.values()]
        return list(dict.fromkeys([*used, *([self.instruction] if self.instruction else [])]))

    def to_json(self) -> dict[str, Any]:
        """As a mapping's file has it."""
        found: dict[str, Any] = {"observation": dict(self.observation)}
        found["action"] = self.action[""] if "" in self.action else dict(self.action)
        extra = {"instruction": self.instruction, "reward": self.reward}
        return found | {name: key for name, key in extra.items() if key is not None}


def unmapped(fields: Mapping[str, Field], mapping: FieldMapping) -> list[str]:
    """Keys that nothing is made of."""
    used = {*mapping.keys, mapping.reward}
    return [key for key in fields if key not in used]


def default_mapping(episodes: EpisodeSet) -> FieldMapping:
    """The mapping by the names that published data sets have.

    Raises:
        ValueError: no action or no observation is found; the message lists the fields.
    """
    fields = episodes.fields
    # Fields of whole episodes can be no observation: an outcome of the episode would be told from its first step
    # on.
    steps = {key: field for key, field in fields.items() if field.level == "step"}
    numbers = {key for key, field in steps.items() if field.kind == "number" and None not in field.shape}
    # One field that is the action wins over parts that may be the same numbers once more.
    alone = next((key for key in ACTIONS if key in numbers), None)
    action = {} if alone is None else {"": alone}
    # Several actions, `action/NAME`, make one space with a part each.
    if not action:
        action = {_short(key, ACTION_FOLDERS): key for key in numbers if key.startswith(ACTION_FOLDERS)}
    if not action:
        raise ValueError(_lacking(episodes, "action"))
    usable = [key for key, field in steps.items() if _is_observable(field) and key not in action.values()]
    # What is marked as an observation; only if nothing is, everything that is not known to be something else.
    seen = [key for key in usable if key.startswith(PREFIXES) or key in BARE]
    seen = seen or [key for key in usable if not key.startswith(("infos/", "next_obs", "info/", *ACTION_FOLDERS))]
    if not seen:
        raise ValueError(_lacking(episodes, "observation"))
    # Of several texts, such as several languages or phrasings, the first one that is known.
    texts = [key for key in INSTRUCTIONS if key in fields and fields[key].kind == "text"]
    rewards = [key for key in REWARDS if key in numbers]
    return FieldMapping(
        observation=_named(seen, PREFIXES),
        action={name: action[name] for name in sorted(action)},
        instruction=texts[0] if texts else None,
        reward=rewards[0] if rewards else None,
    )


def read_mapping(path: str | Place, episodes: EpisodeSet) -> FieldMapping:
    """The mapping of a YAML file; what it does not say is taken from the default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping, or names a field that there is not.
    """
    try:
        stored = load_yaml(place(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file ({' '.join(str(error).split())})") from error
    known = [field.name for field in dataclasses.fields(FieldMapping)]
    if not isinstance(stored, Mapping) or not stored:
        raise ValueError(f"{path} must say what fields mean: {', '.join(known)}; got {stored!r:.60}")
    if unknown := [name for name in stored if name not in known]:
        raise ValueError(f"{path}: {unknown[0]!r} is no part of a mapping, only {', '.join(known)}")
    # A file that says both needs no known names, with which the default would fail.
    lacks = "observation" not in stored or "action" not in stored
    base = default_mapping(episodes).to_json() if lacks else {}
    told = base | dict(stored)
    try:
        mapping = FieldMapping(
            observation=_names(told["observation"], "observation", PREFIXES),
            action={"": told["action"]}
            if isinstance(told["action"], str)
            else _names(told["action"], "action", ACTION_FOLDERS),
            instruction=_key(told.get("instruction"), "instruction"),
            reward=_key(told.get("reward"), "reward"),
        )
        # Here, where the file that says it is known.
        check_mapping(mapping, episodes.fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return mapping


def check_mapping(mapping: FieldMapping, fields: Mapping[str, Field]) -> None:
    """Whether each field is there and can be what the mapping makes of it.

    Raises:
        ValueError: one is not.
    """
    for role, keys in (("observation", mapping.observation), ("action", mapping.action)):
        for name, key in keys.items():
            field = _field(fields, key, f"{role}.{name}" if name else role)
            # Texts are instructions; an action that is an image has no space to choose from.
            if field.kind == "text" or field.level != "step" or (field.kind == "image" and role == "action"):
                raise ValueError(
                    f"{role} {name!r} is the {field.kind} {key!r} of each {field.level}, which it can't be"
                )
            if field.kind == "number" and None in field.shape:
                raise ValueError(f"{role} {name!r}: the shape of {key!r} differs between steps")
    if mapping.instruction is not None and _field(fields, mapping.instruction, "instruction").kind != "text":
        raise ValueError(f"instruction: {mapping.instruction!r} is no text")
    if mapping.reward is not None and _field(fields, mapping.reward, "reward").kind != "number":
        raise ValueError(f"reward: {mapping.reward!r} is no number")


def _is_observable(field: Field) -> bool:
    if field.kind == "text" or field.key in NOT_OBSERVED or any(part in field.key for part in MEANINGLESS):
        return False
    size = 1
    for count in field.shape:
        # An open shape counts as too large.
        size *= count if count is not None else LARGEST + 1
    return field.kind == "image" or size <= LARGEST


def _named(keys: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Fields by short names, or by their keys where two would have the same one.

    Raises:
        ValueError: two would have the same name all the same.
    """
    keys = list(keys)
    short = [_short(key, prefixes) for key in keys]
    # Two cameras of `wrist/image` and `front/image` are no clash, but `observation/state` and `obs/state` are.
    names = [name if short.count(name) == 1 else key.replace("/", ".") for name, key in zip(short, keys, strict=True)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        same = [key for name, key in zip(names, keys, strict=True) if name == twice[0]]
        raise ValueError(
            f"the fields {' and '.join(same)} would both be called {twice[0]}: give them names in a mapping's file"
        )
    return dict(sorted(zip(names, keys, strict=True)))


def _short(key: str, prefixes: tuple[str, ...]) -> str:
    prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
    # Layouts join their own levels with `/`.
    return key.removeprefix(prefix).replace("/", ".")


def _names(told: Any, role: str, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Names with fields of a mapping's file, in the order of the names."""
    # A single field needs no list.
    if isinstance(told, str):
        told = [told]
    if isinstance(told, list):
        told = _named([str(key) for key in told], prefixes)
    if not isinstance(told, Mapping) or not told:
        raise ValueError(f"{role} must be names with fields, or a list of fields, got {told!r:.60}")
    for name, key in told.items():
        if not isinstance(name, str) or not isinstance(key, str) or "/" in name:
            raise ValueError(f"{role} must be names (without /) with fields, got {name!r:.60}: {key!r:.60}")
    # The order of the names is that of the tokens: it must not depend on how somebody has sorted a file.
    return {name: told[name] for name in sorted(told)}


def _key(told: Any, role: str) -> str | None:
    if told is not None and not isinstance(told, str):
        raise ValueError(f"{role} must be the key of a field, got {told!r:.60}")
    return told


def _field(fields: Mapping[str, Field], key: str, role: str) -> Field:
    if key not in fields:
        raise ValueError(f"{role}: there is no field {key!r}, only {', '.join(sorted(fields))}")
    return fields[key]


def _kind(field: Field) -> str:
    """Of a field, for messages; with why it is not observed unless a mapping names it, where that is its size."""
    size = math.prod(count or 0 for count in field.shape)
    if field.kind == "number" and size > LARGEST:
        return f"{size:,} numbers, where more than {LARGEST:,} are only taken if a mapping names them"
    return field.kind


def _lacking(episodes: EpisodeSet, role: str) -> str:
    known = ", ".join(f"{key} ({_kind(field)})" for key, field in sorted(episodes.fields.items()))
    known += "".join(f"; {key!r} can't be read: {reason}" for key, reason in sorted(episodes.unread.items())[:UNREAD])
    return (
        f"{episodes.place}: no field is known to be the {role}: say in a YAML file which one is ({role}: KEY, "
        f"--data.recorded.mapping FILE); its fields are {known}"
    )
