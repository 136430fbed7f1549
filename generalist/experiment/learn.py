"""What a run learns before training: text pieces from its own texts, and layouts from spaces and recordings."""

import dataclasses

from rich.console import Console

from generalist.config.run import Config
from generalist.data.episodes import Episodes
from generalist.data.source import Stored
from generalist.envs.task import Task
from generalist.experiment.layout_fit import fit_layout, losses, sample
from generalist.run.drawn import load_tokenizer
from generalist.run.tokenizers import Tokenizers, acting_in
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.spaces import TaskLayout, assign_offsets
from generalist.tokenizers.text import TextTokenizer
from generalist.weights.language import LanguageModel


def learn_tokenizers(
    config: Config, stored: Stored, start: Tokenizers | None = None, console: Console | None = None
) -> Tokenizers:
    """Text pieces and layouts of a run.

    Text pieces come from the run's own texts, or from a pretrained trunk; layouts from the environments' spaces and recordings.
    Those of `start` are taken over unchanged, except for the settings of acting of layouts that this run trains.

    Args:
        stored: the places of the run's data.
        start: tokenizers of the weights that the run begins with.
        console: shows what recorded values lose as tokens, and which settings of acting change; None shows nothing.
    """
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if start is not None:
        text, around = start.text, start.around_images
    elif config.model.trunk == "none":
        text = TextTokenizer.train(text_corpus(config, stored), config.tokens.text_pieces)
    else:
        trunk = LanguageModel(config.model.trunk, images=config.trunk_sees)
        text = trunk.text()
        around = ids_around_images(trunk, text)
    # Demonstrations and corrections of all tasks that share a layout, since its statistics must fit all of them.
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
    # The columns of new layouts follow the old ones, so that those keep their place in the projection's kernel.
    if start is not None:
        offsets = {name: offset + start.projection_width for name, offset in offsets.items()}
        width += start.projection_width
    layouts = known
    for name, recorded in by_layout.items():
        is_new = name in spaces
        observation, action = spaces[name] if is_new else (known[name].observation.space, known[name].action.space)
        # Frames are only needed for statistics, which a known layout has.
        found = sample(recorded, observation, action, config.model.frame_size if is_new and shown_as_frames else None)
        lines = []
        if is_new:
            layouts[name] = fit_layout(config, name, observation, action, offsets.get(name, 0), text, found)
        else:  # training windows have this run's length from now on, so acting must use the same
            acting = acting_in(config, name, action)
            lines = acting_changes(known[name], acting)
            layouts[name] = dataclasses.replace(known[name], acting=acting)
        if config.tokens.actions == "parallel" and not layouts[name].acting.parallel:
            lines.append(f"{name}: its actions have text, whose length varies, so they are sequential")
        if console is not None:
            for line in [*lines, *losses(layouts[name], found)]:
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    codes = start.codes if start is not None else None
    if codes is None and config.tokens.image_codes:
        codes = load_tokenizer(config)
    return Tokenizers(
        config=config, text=text, layouts=layouts, projection_width=width, codes=codes, around_images=around
    )


def ids_around_images(trunk: LanguageModel, text: TextTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a published model's processor writes before and behind an image; none if it sees no images.

    Raises:
        WeightsError: its tokenizer lacks the control tokens among them.
    """
    marks = None if trunk.images is None else trunk.images.marks(text)
    written = ("", "") if marks is None else (marks.before, marks.after)
    before, after = (tuple(text.with_controls(one).tolist()) if one else () for one in written)
    return before, after


def text_corpus(config: Config, stored: Stored) -> list[str]:
    """The texts of every source: instructions, names, prose, documents. Where there are none, a space: the bytes are pieces
    anyway, and a tokenizer is learned from a character at least."""
    # In the order of the mixture, so that equal settings learn equal pieces.
    texts = [text for source in config.data.taking_part.values() for text in source.texts(stored)]
    return texts if any(texts) else [" "]


def acting_changes(layout: TaskLayout, acting: Acting) -> list[str]:
    """Descriptions of the changed settings of acting of a layout, one per setting.

    Args:
        layout: as the weights of `training.start` have it.
        acting: the new settings, those of this run.
    """
    before, after = layout.acting.to_json(), acting.to_json()
    return [
        f"{layout.name}: acts with {name} = {after[name]} from now on; training.start had {before[name]}"
        for name in before
        if before[name] != after[name]
    ]
