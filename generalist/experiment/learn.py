"""What a run learns before it trains: text pieces from its own texts, and layouts from spaces and recordings."""

import dataclasses

from rich.console import Console

from generalist.config.run import Config
from generalist.data.episodes import Episodes
from generalist.data.source import Stored
from generalist.envs.task import Task
from generalist.experiment.layout_fit import fit_layout, losses, sample
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.spaces import TaskLayout, assign_offsets
from generalist.tokenizers.text import TextTokenizer
from generalist.weights.language import LanguageModel


def learn_tokenizers(
    config: Config, stored: Stored, start: Tokenizers | None = None, console: Console | None = None
) -> Tokenizers:
    """Text pieces from the run's own texts, or a pretrained trunk's; layouts from the environments' spaces and what was recorded.
    Those of the weights to begin with, if there are any, stay as they are, but that layouts which this run trains are acted in as
    this run trains them. What is lost in a layout's tokens is printed, and what changes in how it is acted in."""
    if start is not None:
        text = start.text
    elif config.model.trunk == "none":
        text = TextTokenizer.train(text_corpus(config, stored), config.tokens.text_pieces)
    else:
        text = LanguageModel(config.model.trunk).text()
    first: dict[str, Task] = {}
    by_layout: dict[str, list[Episodes]] = {}
    for source in config.data.taking_part.values():
        for task, reader in [*source.open_demonstrations(stored).items(), *source.open_corrections(stored)]:
            first.setdefault(task.layout, task)
            by_layout.setdefault(task.layout, []).append(reader)
    known = dict(start.layouts) if start is not None else {}
    spaces = {name: task.make_spaces() for name, task in first.items() if name not in known}
    projected = config.tokens.tensors == "projected"
    shown_as_frames = "frame" in config.tokens.images.split("+")
    offsets, width = (
        assign_offsets({name: observation for name, (observation, _) in spaces.items()}) if projected else ({}, 0)
    )
    if start is not None:  # new layouts' columns follow those that are there
        offsets = {name: offset + start.projection_width for name, offset in offsets.items()}
        width += start.projection_width
    layouts = known
    for name, recorded in by_layout.items():
        is_new = name in spaces
        observation, action = spaces[name] if is_new else (known[name].observation.space, known[name].action.space)
        found = sample(recorded, observation, action, config.model.frame_size if is_new and shown_as_frames else None)
        lines = []
        if is_new:
            layouts[name] = fit_layout(config, name, observation, action, offsets.get(name, 0), text, found)
        else:  # its windows are this run's from now on, and other ones it would not know
            acting = config.data.suite_of(name).acting
            lines = acting_changes(known[name], acting)
            layouts[name] = dataclasses.replace(known[name], acting=acting)
        if console is not None:
            for line in [*lines, *losses(layouts[name], found)]:
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return Tokenizers(config=config, text=text, layouts=layouts, projection_width=width)


def text_corpus(config: Config, stored: Stored) -> list[str]:
    """The texts of every source: instructions, names, prose, documents. Where there are none, a space: the bytes are pieces
    anyway, and a tokenizer is learnt from a character at least."""
    texts = [text for source in config.data.taking_part.values() for text in source.texts(stored)]
    return texts if any(texts) else [" "]


def acting_changes(layout: TaskLayout, acting: Acting) -> list[str]:
    """What a layout of `training.start` that this run trains is acted in with from now on, one line for each change."""
    before, after = layout.acting.to_json(), acting.to_json()
    return [
        f"{layout.name}: acts with {name} = {after[name]} from now on; training.start had {before[name]}"
        for name in before
        if before[name] != after[name]
    ]
