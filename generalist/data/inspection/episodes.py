"""Inspection of a data set of episodes: all that its files hold, and what is wrong with it.

Dimension key: N episodes, n values.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num
from rich.console import Console

from generalist.data.formats.episodes import EpisodeSet
from generalist.data.formats.places import size
from generalist.data.inspection import cameras, fields, timestamps
from generalist.data.inspection.problems import Problem, counted, listed
from generalist.data.inspection.scan import Scan, scan
from generalist.data.mapping import FieldMapping
from generalist.data.recorded import Opened
from generalist.data.statistics import Statistics

BINS = 20  # of a histogram
TEXTS = 20  # instructions that are listed
BROKEN = 100  # records that are listed
STILL = 4  # steps from which on an action that never changes is told
USUAL = 0.5
"""Share of the episodes in which a first or last action must be odd, so that it is no coincidence."""
RARE = 0.05
"""Share of the other steps in which the same may be so."""


def inspect(
    name: str, opened: Opened, console: Console, *, instruction: str = "", whole: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """All about a data set, as JSON values, and its problems.

    Args:
        name: of the data set, or of the task of a suite.
        instruction: of episodes that carry none.
        whole: decodes every image, and not only those of some episodes.

    Raises:
        OSError: a file can't be read.
    """
    episodes, mapping, statistics = opened.episodes, opened.mapping, opened.statistics
    times = timestamps.fields_with_times(episodes.fields)
    found = scan(episodes, mapping, times, console)
    seen, of_cameras, unreadable = cameras.check(name, episodes, mapping, console, whole=whole)
    # Three passes find them: over the numbers, over whole episodes, over images.
    broken = {**statistics.broken, **found.broken, **unreadable}
    # One entry per field: recordings of several sensors have several clocks.
    checked = [timestamps.check(name, episodes, key, found.times[key]) for key in times]
    about: dict[str, Any] = {
        "name": name,
        "every": opened.every,
        **_files(episodes),
        "fields": fields.described(episodes.fields, mapping, statistics),
        # 0 steps stands for an episode that is known to be broken.
        "lengths": histogram(episodes.lengths[episodes.lengths > 0]),
        "returns": histogram(statistics.returns[np.isfinite(statistics.returns)]),
        "instructions": _instructions(statistics, found, mapping, instruction),
        "broken": [{"record": number, "reason": why} for number, why in sorted(broken.items())[:BROKEN]],
        "broken_count": len(broken),
        "timestamps": [about for about, _ in checked],
        "cameras": seen,
    }
    return about, [
        *_broken(name, episodes, broken),
        *_not_finite(name, episodes, mapping, statistics, found),
        *(problem for _, several in checked for problem in several),
        *_duplicates(name, episodes, found),
        *_short(name, episodes),
        *_still(name, episodes, found),
        *_ends(name, found),
        *_untold(name, episodes, found, mapping, instruction),
        *fields.problems(name, about["fields"]),
        *of_cameras,
    ]


def _files(episodes: EpisodeSet) -> dict[str, Any]:
    """What is known of a data set before it is read."""
    return {
        "place": str(episodes.place),
        "format": episodes.format,
        "files": len(episodes.files),
        # Missing files are told as lost records, and have no size.
        "bytes": sum(size(file) for file in episodes.files if file.exists()),
        "rate": episodes.rate,
        "unread": dict(episodes.unread),
        "episodes": len(episodes),
        "steps": int(episodes.lengths.sum()),
    }


def histogram(values: Num[np.ndarray, "n"]) -> dict[str, Any] | None:
    """Least, median, mean and largest of values (n,), and how many are between each two edges; None of no values."""
    if not len(values):
        return None
    whole = values.dtype.kind in "iu"
    # At most one bin per whole number, or there would be gaps between the bars.
    span = int(values.max() - values.min()) + 1 if whole else BINS
    counts, edges = np.histogram(values, bins=min(BINS, span))
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "total": float(values.sum()),
        "counts": counts.tolist(),
        "edges": edges.tolist(),
    }


def _instructions(found: Statistics, scanned: Scan, mapping: FieldMapping, default: str) -> dict[str, Any]:
    if mapping.instruction is None:
        most = [[default, len(found.lengths)]] if default else []
        return {"field": None, "different": len(most), "empty": 0, "most": most}
    texts = [[text, count] for text, count in found.instructions.items()]
    empty = int((scanned.facts["read"] & scanned.facts["empty"]).sum())
    return {"field": mapping.instruction, "different": len(texts), "empty": empty, "most": texts[:TEXTS]}


def _broken(part: str, episodes: EpisodeSet, broken: dict[int, str]) -> list[Problem]:
    if not broken:
        return []
    # A file that is missing gives the same reason for each of its records.
    reasons = list(dict.fromkeys(broken[number] for number in sorted(broken)))
    what = f"{counted(len(broken), 'record')} of {max(len(episodes), 1 + max(broken)):,} can't be read"
    remedy = (
        "get the files again, or take the records out; up to the share data.recorded.unreadable is left out of training"
    )
    return [Problem(kind="broken", part=part, where=listed(reasons, 10), what=what, remedy=remedy)]


def _not_finite(
    part: str, episodes: EpisodeSet, mapping: FieldMapping, statistics: Statistics, found: Scan
) -> list[Problem]:
    problems = []
    for key in mapping.keys:
        numbers = statistics.fields.get(key)
        if numbers is None or not numbers.not_finite.any():
            continue
        steps = found.not_finite.get(key, {})
        # The statistics count all of them; where the first ones are comes from the pass over whole episodes.
        named = listed([f"step {step} of {episodes.where(number)}" for number, step in steps.items()], 3)
        columns = fields.names_of(episodes.fields[key], len(numbers.mean))
        odd = [column for column, count in zip(columns, numbers.not_finite, strict=True) if count]
        what = f"{counted(int(numbers.not_finite.sum()), 'value')} (NaN or infinite) of {listed(odd)}: {named}"
        remedy = "episodes with such values are left out of training: mend them, or leave the field out of the mapping"
        problems.append(Problem(kind="not_finite", part=part, where=key, what=what, remedy=remedy))
    return problems


def _duplicates(part: str, episodes: EpisodeSet, found: Scan) -> list[Problem]:
    """Episodes that are the same in actions and in what is observed; and those of numbers whose actions alone are the same."""
    equal = _groups(found, "whole")
    problems = []
    if equal:
        named = listed([" = ".join(episodes.where(number) for number in group) for group in equal], 3)
        again = sum(len(group) - 1 for group in equal)
        what = f"{counted(again, 'repetition')} of another episode, with all actions and observations: {named}"
        remedy = "they count twice, and may be held out and trained on at once: take the copies out"
        problems.append(Problem(kind="duplicate", part=part, where="episodes", what=what, remedy=remedy))
    # What is the same in everything is told once.
    known = {frozenset(group) for group in equal}
    acted = [group for group in _groups(found, "actions") if frozenset(group) not in known]
    # Choices, such as those of a grid world, often have the same few in a row by chance.
    if acted and _has_floats(episodes):
        named = listed([" = ".join(episodes.where(number) for number in group) for group in acted], 3)
        what = (
            f"exactly the same actions with other observations, in {counted(len(acted), 'group')} of episodes: {named}"
        )
        remedy = (
            "a take may have been stored twice, or with another one's images: look at them, and take the wrong ones out"
        )
        problems.append(Problem(kind="same_actions", part=part, where="action", what=what, remedy=remedy))
    return problems


def _groups(found: Scan, name: str) -> list[list[int]]:
    """Numbers of episodes with the same hash, of those whose actions vary."""
    groups: dict[int, list[int]] = defaultdict(list)
    # Actions that never change say nothing: all episodes that stand still would be the same.
    varied = found.facts["read"] & (~found.facts["still"] | (name == "whole"))
    for number in np.flatnonzero(varied).tolist():
        groups[int(found.facts[name][number])].append(number)
    return [group for group in groups.values() if len(group) > 1]


def _has_floats(episodes: EpisodeSet) -> bool:
    """Whether actions are numbers, of which two episodes have not the same by chance."""
    actions = [
        field for key, field in episodes.fields.items() if key.split("/")[0].split(".")[0] in ("action", "actions")
    ]
    return any(np.dtype(field.dtype).kind == "f" for field in actions if field.kind == "number")


def _short(part: str, episodes: EpisodeSet) -> list[Problem]:
    numbers = np.flatnonzero(episodes.lengths == 1).tolist()
    if not numbers:
        return []
    what = f"{counted(len(numbers), 'episode')} of one step: {listed([episodes.where(one) for one in numbers], 3)}"
    remedy = "nothing is learnt from them about what follows an action: probably recordings that were broken off; take them out"
    return [Problem(kind="one_step", part=part, where="episodes", what=what, remedy=remedy)]


def _still(part: str, episodes: EpisodeSet, found: Scan) -> list[Problem]:
    # Very short episodes may well do the same thing throughout.
    numbers = np.flatnonzero(found.facts["still"] & (episodes.lengths >= STILL)).tolist()
    if not numbers:
        return []
    named = listed([episodes.where(one) for one in numbers], 3)
    what = f"the action never changes in {counted(len(numbers), 'episode')}: {named}"
    remedy = "they teach to stand still: take them out if nothing was done there"
    return [Problem(kind="still", part=part, where="action", what=what, remedy=remedy)]


def _ends(part: str, found: Scan) -> list[Problem]:
    """Actions at the ends of episodes that are placeholders: zeros or repetitions there, and hardly anywhere else."""
    facts = found.facts[found.facts["read"]]
    # Of a single episode, nothing can be called usual.
    if len(facts) < 2:
        return []
    problems = []
    for kind, flag, others, what in ENDS:
        # An action of zeros is real where it occurs in the middle as well; only at the ends it is a filling.
        share, elsewhere = float(facts[flag].mean()), float((facts[others] > 0).mean())
        if share >= USUAL and elsewhere <= RARE:
            told = f"{what} in {share:.0%} of the episodes, and hardly anywhere else"
            remedy = (
                "it is a placeholder that would be learnt as an action: leave that step out when you write the data"
            )
            problems.append(Problem(kind=kind, part=part, where="action", what=told, remedy=remedy))
    return problems


ENDS: Sequence[tuple[Any, str, str, str]] = (
    ("first_action", "first_zero", "zeros", "the first action is zero"),
    ("last_action", "last_zero", "zeros", "the last action is zero"),
    ("last_action", "last_repeats", "repeats", "the last action is that before it again"),
)
"""Kind, the flag of the end and the count of the other steps in `scan.FACTS`, and what is told."""


def _untold(part: str, episodes: EpisodeSet, found: Scan, mapping: FieldMapping, default: str) -> list[Problem]:
    numbers = np.flatnonzero(found.facts["read"] & found.facts["empty"]).tolist()
    if not numbers or mapping.instruction is None or default:
        return []
    what = f"{counted(len(numbers), 'episode')} without an instruction: {listed([episodes.where(one) for one in numbers], 3)}"
    remedy = "write one, or say it for all of them with --data.recorded.instruction TEXT"
    return [Problem(kind="empty_instruction", part=part, where=mapping.instruction, what=what, remedy=remedy)]
