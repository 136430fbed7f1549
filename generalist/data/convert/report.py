"""What a conversion did, for people and in `checksums.json` beside the data."""

import dataclasses
from pathlib import Path
from typing import Any

from generalist.data.convert.lerobot import TASK
from generalist.data.convert.naming import INSTRUCTION
from generalist.data.convert.source import Settings, Source
from generalist.data.convert.work import CHECKSUMS, MAKER
from generalist.data.formats.faults import Faults
from generalist.system.files import write_json

FORMAT = 1
"""Of working folders and checksums; raise it when the same settings give other files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did."""

    episodes: int
    steps: int
    files: int
    bytes: int
    left_out: dict[int, str]
    """Episodes that could not be read, by their number in the source, with the reason."""
    empty: int
    """Episodes without a step."""
    unread: dict[str, str]
    """Fields that could not be read, with the reason."""
    fields: dict[str, str]
    """Fields of the source → of the new data set."""
    worst: float | None
    """Largest mean difference of a video's frame; None: not compared."""


def made_report(
    source: Source, parts: list[dict[str, Any]], files: dict[str, Any], faults: Faults, worst: float | None
) -> Report:
    lengths = source.episodes.lengths
    # Broken episodes have no length either; those are told as broken.
    empty = int((lengths == 0).sum()) - sum(number < len(lengths) and not lengths[number] for number in faults.reasons)
    told = {source.mapping.instruction: INSTRUCTION if source.settings.to == "rlds" else TASK}
    return Report(
        episodes=sum(len(part["episodes"]) for part in parts),
        steps=sum(sum(part["lengths"]) for part in parts),
        files=len(files),
        bytes=sum(file["bytes"] for file in files.values()),
        left_out=dict(sorted(faults.reasons.items())),
        empty=empty,
        unread=dict(source.episodes.unread),
        fields={**{one.field.key: one.key for one in source.kept}, **{key: name for key, name in told.items() if key}},
        worst=worst,
    )


def write_checksums(folder: Path, settings: Settings, report: Report, files: dict[str, Any]) -> None:
    # No path of the machine: the folder may be published.
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("source", "mapping")}
    # `made_by` is what --replace looks for before it removes a folder.
    found = {"made_by": MAKER, "format": FORMAT, "source": Path(settings.source).name, "settings": kept}
    found |= {"episodes": report.episodes, "steps": report.steps, "left_out": list(report.left_out), "files": files}
    write_json(folder / CHECKSUMS, found)
