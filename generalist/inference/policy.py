"""A batched policy: many environments act together, each in its own row of a key-value cache with its own sliding window.

Lanes of one batch may play different tasks, also of different layouts, as long as their steps have the same shape: the same
number and kinds of positions, the same number of action tokens, and the same settings of acting (`shape_of`).

Dimension key: B lanes, N positions of a step, A action dimensions, V vocabulary, b lanes of one layout, I images of a step.
"""

import dataclasses
import itertools
from collections.abc import Sequence as Sequences
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generalist.data.batch import Batch
from generalist.inference.decode import allow
from generalist.inference.rows import POSITIONAL, in_front, row_images, side_by_side, stack_rows
from generalist.inference.step_window import StepWindow
from generalist.inference.weights import Weights
from generalist.tokenizers.parts import CLIP
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import Sequence
from generalist.tokenizers.spaces import TaskLayout


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What the steps of all lanes of a batch have in common."""

    modalities: tuple[int, ...]
    """The `Modality` of each position of a step, before its action is chosen."""
    dimensions: int
    """Number of tokens of an action."""
    window: int
    """Number of steps in the context."""
    hidden: bool
    """Whether actions are hidden: they are not fed back, and all dimensions are chosen at once."""
    parallel: bool
    """Whether all dimensions are chosen at one position."""
    temperature: float
    """0 takes the likeliest action."""


def shape_of(generalist: Weights, name: str) -> StepShape:
    """The shape of the steps of a layout, by the layout's name.

    Raises:
        ValueError: the weights do not know the layout, or its steps vary in length.
    """
    if name not in generalist.layouts:
        raise ValueError(
            f"these weights know no layout {name!r}: they act in {', '.join(sorted(generalist.layouts))}; train with its tasks"
        )
    layout = generalist.layouts[name]
    acting = layout.acting
    if layout.observation.tokens_per_step is None or layout.action.tokens_per_step is None:
        raise ValueError(
            f"{name} has text in its observations or actions, whose length varies, but the steps of a policy have one length: "
            "give such text in the instruction"
        )
    # A step is assembled once to see its positions; its values do not matter.
    observed = layout.observation.stack([some_value(layout.observation.space)])
    step = generalist.assembler.step(layout, observed, hide_actions=acting.hide_actions)
    dimensions = layout.action.tokens_per_step
    modalities = tuple(step.modality.tolist())
    return StepShape(modalities, dimensions, acting.steps, acting.hide_actions, acting.parallel, acting.temperature)


def some_value(space: gym.Space) -> Any:
    """A value of a space, always the same; for lanes without an observation."""
    space.seed(0)
    return space.sample()


class ControlPolicy:
    """Acts in several environments. Takes the likeliest actions and the median of continuous numbers, or samples if the layouts
    have a temperature.

    Args:
        generalist: the weights with their tokenizers.
        layouts: the name of each lane's layout; lanes of one layout are best next to each other, as they are tokenized together.
        apart: lanes act when they like: an idle one stands still. Otherwise all act together, and an idle one's time passes too.
        prefix: positions that episodes' prefixes may take without a new compilation.

    Raises:
        ValueError: the steps of the layouts have different shapes.
    """

    def __init__(self, generalist: Weights, layouts: Sequences[str], *, apart: bool = False, prefix: int = 0):
        if not layouts:
            raise ValueError("a policy needs the name of a layout for each lane, got none")
        self.generalist, self.lanes, self._apart = generalist, len(layouts), apart
        self._names = list(layouts)
        self._runs = [(name, len(list(run))) for name, run in itertools.groupby(layouts)]
        shapes = {name: shape_of(generalist, name) for name, _ in self._runs}
        self.shape = next(iter(shapes.values()))
        for name, shape in shapes.items():
            if shape != self.shape:
                raise ValueError(
                    f"steps of {name} and {self._runs[0][0]} have different shapes: give each its own policy"
                )
        # Layouts with equal shapes may still allow different ids, so every lane has its own mask.
        allowed = [
            np.broadcast_to(self._allowed(name), (count, self.shape.dimensions, generalist.vocabulary.size))
            for name, count in self._runs
        ]
        self._begun: set[int] = set()
        self._choices = jnp.asarray(np.concatenate(allowed))  # (B, A, V)
        observed, fed = len(self.shape.modalities), 0 if self.shape.hidden else self.shape.dimensions
        self._window = StepWindow(
            generalist,
            self.lanes,
            steps=self.shape.window,
            positions=observed + fed,
            carried=self._carried,
            images=self.shape.modalities.count(Modality.IMAGE),
            temperature=self.shape.temperature,
            apart=apart,
        )
        if prefix:
            self._window.reserve(prefix, 0)
        # Each lane's last action, for those that are fed back; that of an episode's first step is hidden.
        self._acted = np.concatenate(
            [
                np.broadcast_to(self.generalist.layouts[name].action.valid_ranges[:, 0], (count, self.shape.dimensions))
                for name, count in self._runs
            ]
        )  # (B, A)
        self._cut: dict[str, list[int]] = {name: [0, 0] for name, _ in self._runs}
        self.logits: Float[Array, "B A V"] | None = None
        """The logits of all ids that the last actions were chosen from."""
        self._last: list[Any] = [
            some_value(layout.observation.space) for layout, count in self._layouts() for _ in range(count)
        ]

    def assign(self, lane: int, layout: str) -> None:
        """Gives a lane another layout with steps of the same shape. The lane's next call must be `reset`.

        Raises:
            ValueError: the layout's steps have another shape.
        """
        if shape_of(self.generalist, layout) != self.shape:
            raise ValueError(
                f"steps of {layout} and {self._names[lane]} have different shapes: give each its own policy"
            )
        self._names[lane] = layout
        self._runs = [(name, len(list(run))) for name, run in itertools.groupby(self._names)]
        self._cut.setdefault(layout, [0, 0])
        self._choices = self._choices.at[lane].set(jnp.asarray(self._allowed(layout)))
        self._last[lane] = some_value(self.generalist.layouts[layout].observation.space)
        self._acted = np.array(self._acted)  # what a device gave is read-only
        self._acted[lane] = self.generalist.layouts[layout].action.valid_ranges[:, 0]
        self._begun.discard(lane)

    def reset(
        self, lanes: Sequences[int], prefixes: Sequences[Sequence | str], seeds: Sequences[int | np.integer]
    ) -> None:
        """Begins an episode in some lanes.

        Args:
            prefixes: what precedes the first step: an instruction, or what `Assembler.prefix` makes of it and demonstrations.
            seeds: of the episodes; they alone determine what is sampled.

        Raises:
            ValueError: the arguments have different lengths, or a lane, prefix or seed is invalid.
        """
        if not len(lanes) == len(prefixes) == len(seeds) or isinstance(prefixes, str):
            raise ValueError(
                f"reset needs one prefix and one seed per lane, got {len(lanes)} lanes, {len(prefixes)} prefixes and "
                f"{len(seeds)} seeds: give lists of equal length"
            )
        if len(set(lanes)) != len(lanes) or not all(lane in range(self.lanes) for lane in lanes):
            raise ValueError(f"lanes must be different numbers from 0 to {self.lanes - 1}, got {list(lanes)}")
        if wrong := [one for one in prefixes if not isinstance(one, str | Sequence)]:
            raise ValueError(f"a prefix must be an instruction or a result of Assembler.prefix, got {wrong[0]!r:.60}")
        if bad := [one for one in seeds if not isinstance(one, int | np.integer)]:
            raise ValueError(f"the seed of an episode must be a whole number, got {bad[0]!r:.60}")
        if not lanes:
            return
        for one in prefixes:
            if isinstance(one, str):
                self.generalist.assembler.check_places(one)
        self._begun.update(lanes)
        sequences = [self.generalist.assembler.instruction(one) if isinstance(one, str) else one for one in prefixes]
        self._window.start(lanes, sequences, seeds)

    def act(self, observations: Sequences[Any], *, checked: bool = False) -> list[Any]:
        """One action per lane.

        Args:
            observations: one per lane; None for a lane that does not act now, whose action has no meaning.
            checked: they are what `SpaceTokenizer.checked` returned, and are not checked again.

        Raises:
            ValueError: a lane acts before its first episode, or an observation is not of its layout's space; the message names
                the part.
        """
        step = self._step(observations, checked)
        return self._actions(self._decode(step, acting=self._acting(observations)))

    def predict(
        self, observations: Sequences[Any], actions: Sequences[Any]
    ) -> tuple[list[Any], Float[np.ndarray, "B A"]]:
        """The action that `act` would choose in each lane, and the negative log-likelihood of the given ones, nats for each of
        their tokens. The given ones are what is fed back: each dimension is predicted from the true ones before it.

        Args:
            observations: as for `act`.
            actions: the true ones; None in lanes that do not act.

        Raises:
            ValueError: an observation or an action is not of its layout's space, or a lane has one without the other.
        """
        if len(actions) != self.lanes:
            raise ValueError(f"the policy has {self.lanes} lanes but got {len(actions)} actions")
        for lane, (seen, acted) in enumerate(zip(observations, actions, strict=False)):
            if (seen is None) != (acted is None):
                has, lacks = ("action", "observation") if seen is None else ("observation", "action")
                raise ValueError(f"lane {lane} has an {has} but no {lacks}: give both, or None for both")
        step = self._step(observations)
        true = self._encoded(actions)
        chosen = self._decode(step, true, self._acting(observations))
        assert self.logits is not None
        picked = jnp.take_along_axis(self.logits, jnp.asarray(true)[..., None], axis=-1)[..., 0]  # (B, A)
        nats = jax.nn.logsumexp(self.logits, axis=-1) - picked
        return self._actions(chosen), np.asarray(nats)

    def _acting(self, observations: Sequences[Any]) -> Bool[np.ndarray, "B"] | None:
        """The lanes that act, if lanes act apart; None: time passes in all of them."""
        return np.array([one is not None for one in observations]) if self._apart else None

    def _encoded(self, actions: Sequences[Any]) -> Int[np.ndarray, "B A"]:
        """The tokens of each lane's action; those of a lane that does not act are any."""
        rows, at = [], 0
        for layout, count in self._layouts():
            given = actions[at : at + count]
            some = next((one for one in given if one is not None), some_value(layout.action.space))
            values = [
                layout.action.checked(some if one is None else one, f"{layout.name}: the action") for one in given
            ]
            pieces = layout.action.encode(layout.action.stack(values))
            rows.append(np.concatenate([piece.tokens.reshape(count, -1) for piece in pieces], axis=1))
            at += count
        return np.concatenate(rows)

    def _step(self, observations: Sequences[Any], checked: bool = False) -> Batch:
        """The lanes' new observations as positions to append."""
        if len(observations) != self.lanes:
            raise ValueError(f"the policy has {self.lanes} lanes but got {len(observations)} observations")
        layouts = (layout for layout, count in self._layouts() for _ in range(count))
        if idle := [lane for lane, one in enumerate(observations) if one is not None and lane not in self._begun]:
            raise ValueError(f"lane {idle[0]} acts before its first episode has begun: call reset")
        # A lane without an observation repeats its last one: all lanes are computed together, and its result is dropped.
        self._last = [
            old
            if new is None
            else new
            if checked
            else layout.observation.checked(new, f"{layout.name}: the observation")
            for layout, old, new in zip(layouts, self._last, observations, strict=True)
        ]
        return self._observe(np.array([one is not None for one in observations]))

    def _actions(self, tokens: Int[np.ndarray, "B A"]) -> list[Any]:
        """What the lanes' action tokens say."""
        actions, at = [], 0
        for layout, count in self._layouts():
            actions += layout.action.decode_batch(tokens[at : at + count])
            at += count
        return actions

    def _decode(
        self, step: Batch, fed: Int[np.ndarray, "B A"] | None = None, acting: Bool[np.ndarray, "B"] | None = None
    ) -> Int[np.ndarray, "B A"]:
        """The action ids: all at once; or in turn, every dimension fed back before the next is chosen, as Gato does
        (section 2.5).

        Args:
            fed: what is fed back; None: what is chosen.
            acting: the lanes that act; None: all do.
        """
        if self._carried:
            # What was not fed yet of the action before comes in front. Its ids do not matter in a lane that begins.
            step = in_front(self._action(self._acted[:, -self._carried :]), step)
        if self.shape.hidden or self.shape.parallel:
            tokens, self.logits = self._window.append(step, self._choices, parallel=self.shape.parallel, acting=acting)
        else:
            action = self._action(self._acted[:, -1:])
            tokens, self.logits = self._window.append(step, self._choices, action, fed, acting=acting)
        acted = tokens if fed is None else fed
        self._acted = acted if acting is None else np.where(acting[:, None], acted, self._acted)
        return tokens

    @property
    def _carried(self) -> int:
        """Numbers at the end of an action that are fed with the next observation: nothing is chosen from them."""
        if self.shape.hidden:
            return 0
        return self.shape.dimensions if self.shape.parallel else 1

    @property
    def observed(self) -> dict[str, tuple[int, int]]:
        """Counts of the projected numbers observed so far, by layout: how many were cut off, and how many there were."""
        # Numbers are cut off at `CLIP` standard deviations. Many of them mean that the layout's statistics do not fit.
        return {name: (cut, numbers) for name, (cut, numbers) in self._cut.items()}

    @property
    def cut_off(self) -> dict[str, float]:
        """The share of projected numbers that were cut off so far, by layout; layouts without any are left out."""
        return {name: cut / numbers for name, (cut, numbers) in self._cut.items() if cut}

    def _observe(self, acting: Bool[np.ndarray, "B"]) -> Batch:
        """The observations of all lanes as positions to append.

        Args:
            acting: the lanes whose observations are new.
        """
        # One call of the tokenizer per layout: its lanes are tokenized as if they were the steps of one episode.
        batches, at = [], 0
        for layout, count in self._layouts():
            values = layout.observation.stack(self._last[at : at + count])
            flat = self.generalist.assembler.step(layout, values, hide_actions=self.shape.hidden)
            if len(flat.tensors):
                seen = flat.tensors[acting[at : at + count]]
                self._cut[layout.name][0] += int((np.abs(seen) >= CLIP).sum())
                self._cut[layout.name][1] += len(seen) * layout.observation.measured
            batches.append(self._split(flat, count))
            at += count
        return side_by_side(batches, self.generalist.config.model.frame_tokens)

    def _action(self, tokens: Int[np.ndarray, "B n"]) -> Batch:
        """Action ids as positions."""
        # Any layout will do: an id decides the modality, and all action tokens share one local position.
        layout = self._layouts()[0][0]
        return self._split(self.generalist.assembler.action(layout, tokens.reshape(-1)), self.lanes)

    def _split(self, flat: Sequence, lanes: int) -> Batch:
        """A sequence of one step per lane as one row per lane."""
        whole = stack_rows(
            [flat],
            len(flat.tokens),
            pad=self.generalist.vocabulary.pad,
            frame_tokens=self.generalist.config.model.frame_tokens,
        )
        rows = {name: getattr(whole, name).reshape(lanes, -1) for name in POSITIONAL}  # (b, N)
        # Images were counted through all lanes; each lane's count begins anew, and 0 hides those of earlier lanes.
        shown = (rows["modality"] == Modality.IMAGE).sum(axis=1, keepdims=True)
        rows["image"] = np.maximum(rows["image"] - (np.cumsum(shown, axis=0) - shown), 0).astype(np.int32)
        return dataclasses.replace(whole, **rows, row_images=row_images(rows["modality"], rows["payload_index"]))

    def _layouts(self) -> list[tuple[TaskLayout, int]]:
        """The layouts in the order of the lanes, each with its number of consecutive lanes."""
        return [(self.generalist.layouts[name], count) for name, count in self._runs]

    def _allowed(self, name: str) -> Bool[np.ndarray, "A V"]:
        """The ids that each dimension of a layout's actions may have."""
        return allow(self.generalist.layouts[name].action.valid_ranges, self.generalist.vocabulary.size)
