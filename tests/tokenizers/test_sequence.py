"""Assembled sequences as tables that a reader checks by eye.

In the tables `.` is no target, `o1` the observation token of value 1 and `a2` the action token of value 2; `T` a position where
a tensor speaks, `F` a frame, `P` a patch; `|` the separator, `h` a hidden action.
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from generalist.inference.rows import tail
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.pieces import ACTION_POSITION, Modality
from generalist.tokenizers.sequence import CHUNK_END, Assembler, Predicted, Sequence
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout, action_dimensions
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["open the door"] * 9 + ["a red apple", "what is it"] * 9, 320)
VOCABULARY = Vocabulary(text=320, continuous=16, discrete=16)
FIRST = VOCABULARY.range("discrete").start
MODALITIES = {"T": Modality.TENSOR, "F": Modality.FRAME, "P": Modality.PATCH}


def assembler(**settings) -> Assembler:
    return Assembler(**({"vocabulary": VOCABULARY, "text_tokenizer": TEXT, "frame_size": 16} | settings))


def layout(observation: gym.Space, action: gym.Space, *, parallel: bool = False, **settings) -> TaskLayout:
    return TaskLayout(
        "toy",
        SpaceTokenizer.from_space(observation, vocabulary=VOCABULARY, text=TEXT, **settings),
        SpaceTokenizer.from_space(action, vocabulary=VOCABULARY, text=TEXT),
        Acting(parallel=parallel),
    )


# Two observed numbers and actions of three.
TOY = layout(gs.MultiDiscrete([9, 9]), gs.MultiDiscrete([9, 9, 9]))
OBSERVATIONS = {"": np.array([[1, 2], [3, 4]])}
ACTIONS = {"": np.array([[5, 6, 7], [8, 0, 1]])}


def ids(row: str) -> list[int]:
    """A row of a table as token ids."""
    special = {
        "|": VOCABULARY.separator,
        "h": VOCABULARY.hidden,
        ".": VOCABULARY.pad,
        "bos": VOCABULARY.bos,
        "eos": VOCABULARY.eos,
    }
    special |= dict.fromkeys("TFP", VOCABULARY.pad)
    return [special[word] if word in special else FIRST + int(word[1:]) for word in row.split()]


def check(sequence: Sequence, tokens: str, targets: str, local: str | None = None) -> None:
    """The whole of a sequence of specials, observations and actions against its table."""
    assert sequence.tokens.tolist() == ids(tokens)
    assert sequence.targets.tolist() == ids(targets)
    assert sequence.loss_weight.tolist() == [float(word != ".") for word in targets.split()]
    if local is not None:
        assert sequence.local_position.tolist() == [
            ACTION_POSITION if word == "A" else int(word) for word in local.split()
        ]
    expected = [
        MODALITIES.get(word, Modality.SPECIAL if word in "|h" else Modality.DISCRETE) for word in tokens.split()
    ]
    assert sequence.modality.tolist() == expected
    check_types(sequence)


def check_types(sequence: Sequence) -> None:
    length = (len(sequence),)
    for name in ("tokens", "targets", "modality", "local_position", "payload_index"):
        assert getattr(sequence, name).dtype == np.int32 and getattr(sequence, name).shape == length
    assert sequence.loss_weight.dtype == np.float32 and sequence.loss_weight.shape == length
    assert sequence.tensors.dtype == np.float32 and sequence.tensors.ndim == 2
    assert sequence.frames.dtype == np.uint8 and sequence.frames.shape[1:] == (16, 16, 3)
    assert sequence.patches.dtype == np.uint8 and sequence.patches.shape[1:] == (16, 16, 3)
    assert sequence.intervals.dtype == np.int32 and sequence.intervals.shape == (len(sequence.patches), 4)


def test_gato_layout_with_separator():
    """Traps 5 and 6: one position for all actions, local positions restart, the loss is on actions alone."""
    sequence = assembler(separator=True).control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=False)
    check(
        sequence,
        tokens="  o1 o2 |  a5 a6 a7  o3 o4 |  a8 a0 a1",
        targets=" .  .  a5 a6 a7 .   .  .  a8 a0 a1 . ",
        local="   0  1  2  A  A  A   0  1  2  A  A  A ",
    )


def test_gato_layout_without_separator():
    sequence = assembler().control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=False)
    check(
        sequence,
        tokens="  o1 o2 a5 a6 a7  o3 o4 a8 a0 a1",
        targets=" .  a5 a6 a7 .   .  a8 a0 a1 . ",
        local="   0  1  A  A  A   0  1  A  A  A ",
    )


def test_hidden_layout():
    sequence = assembler().control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=True)
    check(
        sequence,
        tokens="  o1 o2 h  h   o3 o4 h  h ",
        targets=" .  a5 a6 a7  .  a8 a0 a1",
        local="   0  1  A  A   0  1  A  A ",
    )


def test_hidden_layout_with_separator():
    sequence = assembler(separator=True).control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=True)
    check(
        sequence,
        tokens="  o1 o2 |  h  h   o3 o4 |  h  h ",
        targets=" .  .  a5 a6 a7  .  .  a8 a0 a1",
        local="   0  1  2  A  A   0  1  2  A  A ",
    )


@pytest.mark.parametrize("hide", [True, False])
def test_hidden_layout_of_one_action_dimension_has_no_hidden_token(hide):
    one = layout(gs.MultiDiscrete([9, 9]), gs.Discrete(9))
    sequence = assembler().control(one, "", OBSERVATIONS, {"": np.array([5, 6])}, hide_actions=hide)
    if hide:
        check(sequence, tokens="o1 o2 o3 o4", targets=". a5 . a6", local="0 1 0 1")
    else:
        check(sequence, tokens="o1 o2 a5 o3 o4 a6", targets=". a5 . . a6 .", local="0 1 A 0 1 A")


PROMPT = ({"": np.array([[0, 8]])}, {"": np.array([[2, 3, 4]])})


def test_a_prompt_carries_no_loss():
    sequence = assembler().control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=False, prompts=[PROMPT])
    assert sequence.tokens.tolist() == ids("o0 o8 a2 a3 a4  o1 o2 a5 a6 a7  o3 o4 a8 a0 a1")
    assert sequence.loss_weight.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0]
    weighted = sequence.targets[sequence.loss_weight > 0]
    assert weighted.tolist() == ids("a5 a6 a7 a8 a0 a1")


def test_a_prompt_carries_loss_if_asked():
    sequence = assembler().control(
        TOY, "", OBSERVATIONS, ACTIONS, hide_actions=False, prompts=[PROMPT], prompt_loss=True
    )
    check(
        sequence,
        tokens="  o0 o8 a2 a3 a4  o1 o2 a5 a6 a7  o3 o4 a8 a0 a1",
        targets=" .  a2 a3 a4 .   .  a5 a6 a7 .   .  a8 a0 a1 . ",
        local="   0  1  A  A  A   0  1  A  A  A   0  1  A  A  A ",
    )


def test_a_prompt_shows_its_actions_where_the_windows_are_hidden():
    sequence = assembler().control(TOY, "", OBSERVATIONS, ACTIONS, hide_actions=True, prompts=[PROMPT])
    assert sequence.tokens.tolist() == ids("o0 o8 a2 a3 a4  o1 o2 h h  o3 o4 h h")
    assert sequence.loss_weight.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1]


PARALLEL = layout(gs.MultiDiscrete([9, 9]), gs.MultiDiscrete([9, 9, 9]), parallel=True)


def check_actions(sequence: Sequence, table: dict[int, str]) -> None:
    """The parallel actions of a sequence: position → ids that are predicted from it, `.` for none."""
    assert sequence.action_from.tolist() == list(table)
    assert sequence.actions.tolist() == [ids(row) for row in table.values()]
    assert sequence.action_weight.tolist() == [[float(word != ".") for word in row.split()] for row in table.values()]
    assert sequence.action_from.dtype == sequence.actions.dtype == np.int32
    assert sequence.action_weight.dtype == np.float32


@pytest.mark.parametrize("separator", [True, False])
def test_parallel_layout(separator):
    """Actions that are shown are inputs, and predict nothing."""
    maker = assembler(action_dimensions=3, separator=separator)
    sequence = maker.control(PARALLEL, "", OBSERVATIONS, ACTIONS, hide_actions=False)
    if separator:
        check(
            sequence,
            tokens="  o1 o2 |  a5 a6 a7  o3 o4 |  a8 a0 a1",
            targets=" .  .  .  .  .  .   .  .  .  .  .  . ",
            local="   0  1  2  A  A  A   0  1  2  A  A  A ",
        )
        check_actions(sequence, {2: "a5 a6 a7", 8: "a8 a0 a1"})
    else:
        check(
            sequence,
            tokens="  o1 o2 a5 a6 a7  o3 o4 a8 a0 a1",
            targets=" .  .  .  .  .   .  .  .  .  . ",
            local="   0  1  A  A  A   0  1  A  A  A ",
        )
        check_actions(sequence, {1: "a5 a6 a7", 6: "a8 a0 a1"})


def test_parallel_hidden_layout_has_no_position_for_an_action():
    maker = assembler(action_dimensions=4)
    sequence = maker.control(PARALLEL, "", OBSERVATIONS, ACTIONS, hide_actions=True)
    check(sequence, tokens="o1 o2 o3 o4", targets=". . . .", local="0 1 0 1")
    check_actions(sequence, {1: "a5 a6 a7 .", 3: "a8 a0 a1 ."})
    sequence = assembler(action_dimensions=3, separator=True).control(
        PARALLEL, "", OBSERVATIONS, ACTIONS, hide_actions=True
    )
    check(sequence, tokens="o1 o2 | o3 o4 |", targets=". . . . . .", local="0 1 2 0 1 2")
    check_actions(sequence, {2: "a5 a6 a7", 5: "a8 a0 a1"})


def test_a_step_of_a_projected_layout_is_one_position():
    toy = layout(gs.Box(-9, 9, (2,)), gs.MultiDiscrete([9, 9, 9]), parallel=True, tensors="projected")
    values = {"": np.array([[1.0, 2], [3, 4]])}
    maker = assembler(action_dimensions=3, projection_width=2)
    sequence = maker.control(toy, "", values, ACTIONS, hide_actions=True)
    check(sequence, tokens="T T", targets=". .", local="0 0")
    check_actions(sequence, {0: "a5 a6 a7", 1: "a8 a0 a1"})


def test_a_prompt_of_parallel_actions_is_shown_and_predicted_only_if_asked():
    maker, how = assembler(action_dimensions=3), {"hide_actions": True, "prompts": [PROMPT, PROMPT]}
    sequence = maker.control(PARALLEL, "", OBSERVATIONS, ACTIONS, **how)
    assert sequence.tokens.tolist() == ids("o0 o8 a2 a3 a4  o0 o8 a2 a3 a4  o1 o2  o3 o4")
    check_actions(sequence, {11: "a5 a6 a7", 13: "a8 a0 a1"})
    sequence = maker.control(PARALLEL, "", OBSERVATIONS, ACTIONS, **how, prompt_loss=True)
    check_actions(sequence, {1: "a2 a3 a4", 6: "a2 a3 a4", 11: "a5 a6 a7", 13: "a8 a0 a1"})
    check_actions(tail(sequence, 3), {3: "a2 a3 a4", 8: "a5 a6 a7", 10: "a8 a0 a1"})


def test_actions_with_text_cannot_be_parallel():
    with pytest.raises(ValueError, match=r"actions of toy have text.*use sequential actions"):
        layout(gs.Discrete(9), gs.Dict(say=gs.Text(20), turn=gs.Discrete(9)), parallel=True)


def test_an_action_of_more_dimensions_than_the_assembler_has_is_refused():
    with pytest.raises(ValueError, match=r"an action has 3 dimensions, more than action_dimensions = 2"):
        assembler(action_dimensions=2).control(PARALLEL, "", OBSERVATIONS, ACTIONS, hide_actions=True)


def random_space(rng: np.random.Generator, depth: int = 0) -> gym.Space:
    """A space of numbers of any kind and nesting."""
    kind = int(rng.integers(4 if depth > 1 else 6))
    if kind == 0:
        return gs.Discrete(int(rng.integers(1, 16)))
    if kind == 1:
        return gs.MultiDiscrete(rng.integers(1, 16, tuple(rng.integers(1, 3, int(rng.integers(1, 3))))))
    if kind == 2:
        return gs.MultiBinary(int(rng.integers(1, 4)))
    if kind == 3:
        return gs.Box(-1, 1, tuple(rng.integers(1, 4, int(rng.integers(0, 3)))))
    parts = [random_space(rng, depth + 1) for _ in range(int(rng.integers(1, 4)))]
    return gs.Tuple(parts) if kind == 4 else gs.Dict({str(place): part for place, part in enumerate(parts)})


@pytest.mark.parametrize("seed", range(40))
def test_parallel_and_sequential_predict_the_same_ids_of_any_space(seed):
    """In order and with the same weights, whatever is shown; the inputs of shown actions are the same too."""
    rng = np.random.default_rng(seed)
    seen, done = random_space(rng), random_space(rng)
    for space in (seen, done):
        space.seed(seed)
    hide, separator, steps = bool(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(1, 5))
    one, several = layout(seen, done), layout(seen, done, parallel=True)
    count = action_dimensions(done)
    assert count is not None and count == one.action.tokens_per_step
    more = int(rng.integers(3))
    maker = assembler(separator=separator, action_dimensions=count + more)
    values = [
        part.stack([space.sample() for _ in range(steps)])
        for part, space in ((one.observation, seen), (one.action, done))
    ]
    after, together = (maker.control(of, "open", *values, hide_actions=hide) for of in (one, several))
    assert after.targets[after.loss_weight > 0].tolist() == together.actions[:, :count].reshape(-1).tolist()
    assert (together.action_weight == np.array([1.0] * count + [0.0] * more)).all()
    assert not together.loss_weight.any() and not len(after.actions)
    if not hide:
        for name in ("tokens", "modality", "local_position"):
            np.testing.assert_array_equal(getattr(after, name), getattr(together, name))
    assert len(after) - len(together) == (steps * (count - 1) if hide else 0)
    # The action is predicted from where sequential ones have their first dimension predicted.
    first = np.flatnonzero(after.loss_weight)[::count]
    moved = np.arange(steps) * (count - 1) if hide else 0
    assert together.action_from.tolist() == (first - moved).tolist()


def test_the_instruction_stands_first_and_is_given():
    words = TEXT.encode("open the door")
    sequence = assembler().control(TOY, "open the door", OBSERVATIONS, ACTIONS, hide_actions=True)
    count = len(words)
    np.testing.assert_array_equal(sequence.tokens[:count], words)
    assert not sequence.loss_weight[:count].any() and not sequence.local_position[:count].any()
    assert (sequence.targets[:count] == VOCABULARY.pad).all() and (sequence.modality[:count] == Modality.TEXT).all()
    assert sequence.tokens[count:].tolist() == ids("o1 o2 h h  o3 o4 h h")


def test_targets_and_observations_are_of_different_ranges():
    """Trap 4: text, continuous and discrete ids never meet."""
    mixed = layout(gs.Box(-1, 1, (2,)), gs.Discrete(9))
    observations = {"": np.array([[-1.0, 1.0]])}
    sequence = assembler().control(mixed, "open", observations, {"": np.array([3])}, hide_actions=False)
    kinds = [VOCABULARY.kind_of(token) for token in sequence.tokens]
    assert kinds == ["text"] * len(TEXT.encode("open")) + ["continuous", "continuous", "discrete"]
    assert sequence.modality[-3:].tolist() == [Modality.CONTINUOUS, Modality.CONTINUOUS, Modality.DISCRETE]


def test_tensors_frames_and_patches():
    """Every position knows the row of its payload; what is projected is one position a step."""
    image = gs.Box(0, 255, (16, 32, 3), np.uint8)
    space = gs.Dict(a=gs.Box(-9, 9, (2,)), b=gs.Discrete(3), i=image)
    values = {"a": np.array([[1.0, 2], [3, 4]]), "b": np.array([0, 2]), "i": np.zeros((2, 16, 32, 3), np.uint8)}
    values["i"][1] = 7
    toy = layout(space, gs.Discrete(9), tensors="projected", offset=1)
    sequence = assembler(projection_width=7).control(toy, "", values, {"": np.array([5, 6])}, hide_actions=True)
    check(sequence, tokens="T P P  T P P", targets=". . a5 . . a6", local="0 1 2  0 1 2")
    assert sequence.payload_index.tolist() == [0, 0, 1, 1, 2, 3]
    assert sequence.tensors.tolist() == [[0, 1, 2, 1, 0, 0, 0], [0, 3, 4, 0, 0, 1, 0]]
    assert sequence.patches[:, 0, 0, 0].tolist() == [0, 0, 7, 7]
    assert sequence.intervals.tolist() == [[0, 128, 0, 64], [0, 128, 64, 128]] * 2

    toy = layout(image, gs.Discrete(9), images="frame", frame_size=16, frame_tokens=2)
    sequence = assembler(frame_tokens=2).control(toy, "", {"": values["i"]}, {"": np.array([5, 6])}, hide_actions=False)
    check(sequence, tokens="F F a5 F F a6", targets=". a5 . . a6 .", local="0 1 A 0 1 A")
    assert sequence.payload_index.tolist() == [0, 1, 0, 2, 3, 0]
    assert sequence.frames[:, 0, 0, 0].tolist() == [0, 7]


def test_texts_of_different_length_in_the_steps():
    space = gs.Dict(m=gs.Text(20), n=gs.Discrete(9))
    observations = {"m": np.array(["open", ""], object), "n": np.array([1, 2])}
    toy, one = layout(space, gs.MultiDiscrete([9, 9])), TEXT.encode("open")
    sequence = assembler().control(toy, "", observations, {"": np.array([[3, 4], [5, 6]])}, hide_actions=True)
    expected = [*one, *ids("eos o1 h  eos o2 h")]
    assert sequence.tokens.tolist() == expected
    count = len(one)
    assert sequence.local_position.tolist() == [*range(count + 2), ACTION_POSITION, 0, 1, ACTION_POSITION]
    assert sequence.targets.tolist() == [VOCABULARY.pad] * count + ids(". a3 a4 . a5 a6")


def test_text_actions():
    toy = layout(gs.Discrete(9), gs.Dict(say=gs.Text(20), turn=gs.Discrete(9)))
    actions = {"say": np.array(["a", "open the"], object), "turn": np.array([3, 4])}
    sequence = assembler().control(toy, "", {"": np.array([1, 2])}, actions, hide_actions=False)
    one, two = TEXT.encode("a"), TEXT.encode("open the")
    assert sequence.tokens.tolist() == [*ids("o1"), *one, *ids("eos a3"), *ids("o2"), *two, *ids("eos a4")]
    assert sequence.loss_weight.sum() == len(one) + len(two) + 4
    with pytest.raises(ValueError, match=r"text in its actions.*hide_actions=False"):
        assembler().control(toy, "", {"": np.array([1, 2])}, actions, hide_actions=True)


@pytest.mark.parametrize("separator", [True, False])
@pytest.mark.parametrize("hide", [True, False])
@pytest.mark.parametrize("toy", [TOY, PARALLEL], ids=["sequential", "parallel"])
def test_acting_appends_what_training_saw(hide, separator, toy):
    """Instruction, step and action, appended one by one, are the training sequence up to its targets."""
    maker = assembler(separator=separator, action_dimensions=3)
    trained = maker.control(toy, "open the door", OBSERVATIONS, ACTIONS, hide_actions=hide)
    parts = [maker.instruction("open the door")]
    for step in range(2):
        parts.append(maker.step(toy, {"": OBSERVATIONS[""][step : step + 1]}, hide_actions=hide))
        if not hide:
            chosen = FIRST + ACTIONS[""][step]
            parts += [maker.action(toy, chosen[:1]), maker.action(toy, chosen[1:])]
    acted = maker.concatenate(parts)
    for name in ("tokens", "modality", "local_position", "payload_index"):
        np.testing.assert_array_equal(getattr(acted, name), getattr(trained, name), err_msg=name)
    assert not acted.loss_weight.any() and (acted.targets == VOCABULARY.pad).all()


def test_concatenated_payloads_keep_their_rows():
    maker = assembler(images="frame", frame_tokens=2, projection_width=2)
    tensors = layout(gs.Box(-9, 9, (2,)), gs.Discrete(9), tensors="projected")
    step = maker.step(tensors, {"": np.array([[1.0, 2], [3, 4]])}, hide_actions=True)
    picture = tail(maker.document([np.full((16, 16, 3), 5, np.uint8)]), 1)
    joined = maker.concatenate([step, picture, maker.instruction(""), step, picture])
    assert joined.modality.tolist() == [4, 4, 6, 6, 4, 4, 6, 6]
    assert joined.payload_index.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert joined.tensors.tolist() == [[1, 2], [3, 4]] * 2 and len(joined.frames) == 2
    check_types(joined)


def test_text_is_predicted_whole():
    words = TEXT.encode("a red apple").tolist()
    sequence = assembler().text("a red apple")
    assert sequence.tokens.tolist() == [VOCABULARY.bos, *words]
    assert sequence.targets.tolist() == [*words, VOCABULARY.eos]
    assert (sequence.loss_weight == 1).all() and not sequence.local_position.any()
    bare = assembler().text("a red apple", bos=False, eos=False)
    assert bare.tokens.tolist() == words and bare.targets.tolist() == [*words[1:], VOCABULARY.pad]
    assert bare.loss_weight.tolist() == [1] * (len(words) - 1) + [0]
    assert len(assembler().text("")) == 1 and len(assembler().text("", bos=False)) == 0
    check_types(sequence)


def test_a_document_with_given_and_predicted_text():
    """An image, a given question and a predicted answer, twice."""
    image = np.full((20, 10, 4), 200, np.uint8)
    question, answer = TEXT.encode("what is it").tolist(), TEXT.encode("a red apple").tolist()
    sequence = assembler(images="frame").document([image, "what is it", Predicted("a red apple")] * 2)
    pad, bos, end = VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.chunk_end
    asked, answered = len(question), len(answer)
    # Every answer closes with a predicted end of its chunk; the last one is a target only.
    assert sequence.tokens.tolist() == [bos, pad, *question, *answer, end, pad, *question, *answer]
    one = [pad] * asked + [*answer, end]
    assert sequence.targets.tolist() == [pad, *one, pad, *one]
    weight = [0] * asked + [1] * (answered + 1)
    assert sequence.loss_weight.tolist() == [0, *weight, 0, *weight]
    texts = [Modality.TEXT] * (asked + answered)
    closed = [Modality.FRAME, *texts, Modality.SPECIAL, Modality.FRAME, *texts]
    assert sequence.modality.tolist() == [Modality.TEXT, *closed]
    second = 2 + asked + answered + 1
    assert sequence.payload_index[second] == 1 and sequence.payload_index.sum() == 1
    assert sequence.frames.shape == (2, 16, 16, 3) and not sequence.local_position.any()
    check_types(sequence)


def test_documents_with_patches_and_those_without_images():
    sequence = assembler(images="patches").document([np.zeros((16, 48), np.uint8), Predicted("a")])
    assert sequence.modality.tolist()[1:4] == [Modality.PATCH] * 3
    assert sequence.payload_index.tolist()[1:4] == [0, 1, 2] and sequence.patches.shape == (3, 16, 16, 3)
    assert sequence.targets.tolist() == [VOCABULARY.pad] * 3 + [*TEXT.encode("a"), VOCABULARY.chunk_end]
    check_types(sequence)
    words = TEXT.encode("a").tolist()
    assert assembler().document([Predicted("a")]).tokens.tolist() == [VOCABULARY.bos, *words]
    assert assembler().document(["a"]).tokens.tolist() == [VOCABULARY.bos, *words]
    assert not assembler().document(["a"]).loss_weight.any()


def test_an_open_document_is_the_beginning_of_one_that_goes_on():
    maker = assembler(images="encoder", visual=Corner())
    shots = [picture(1), " the", " door"]
    begun = maker.document(shots, is_open=True)
    assert begun.tokens.tolist() == [VOCABULARY.bos, VOCABULARY.image, *words(" the"), *words(" door")]
    assert not begun.loss_weight.any()
    more = maker.document([*shots, picture(2), " a"], is_open=True)
    assert more.tokens.tolist()[: len(begun)] == begun.tokens.tolist()
    assert more.tokens.tolist()[len(begun) :] == [VOCABULARY.chunk_end, VOCABULARY.image, *words(" a")]
    rest = tail(more, len(begun))
    assert rest.image.tolist() == [0, 1, *[1] * len(words(" a"))] and rest.images.tolist() == [[2, 2, 2]]
    assert rest.payload_index.tolist()[1] == 0
    check_types(rest)


def test_text_examples_without_images_end_their_chunks():
    sequence = assembler(images="frame").document([" the", CHUNK_END, " door", CHUNK_END, picture(1)], is_open=True)
    end = VOCABULARY.chunk_end
    assert sequence.tokens.tolist() == [VOCABULARY.bos, *words(" the"), end, *words(" door"), end, VOCABULARY.pad]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": Vocabulary(text=300)}, "has 3.. pieces but vocabulary.text is 300: raise"),
        ({"images": "patch"}, "images must be one of patches, frame, encoder"),
    ],
)
def test_an_assembler_that_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        assembler(**settings)


def test_steps_that_do_not_fit():
    with pytest.raises(ValueError, match="toy has 2 observed steps but 1 actions"):
        assembler().control(TOY, "", OBSERVATIONS, {"": ACTIONS[""][:1]}, hide_actions=True)
    with pytest.raises(ValueError, match="different numbers of steps, or none"):
        assembler().step(TOY, {"": np.zeros((0, 2), np.int64)}, hide_actions=True)
    wide = layout(gs.MultiBinary(512), gs.Discrete(2))
    with pytest.raises(ValueError, match=r"512 observation positions, more than the 511.*projected"):
        assembler().step(wide, {"": np.zeros((1, 512), np.int8)}, hide_actions=True)
    tensor = layout(gs.Box(-1, 1, (4,)), gs.Discrete(2), tensors="projected", offset=3)
    with pytest.raises(ValueError, match="columns 3 to 7 exceed projection_width = 6"):
        assembler(projection_width=6).step(tensor, {"": np.zeros((1, 4))}, hide_actions=True)
    frame = layout(gs.Box(0, 255, (8, 8, 3), np.uint8), gs.Discrete(2), images="frame", frame_size=8)
    with pytest.raises(ValueError, match=r"a frame of toy has 8 pixels per side.*frame_size 16"):
        assembler().step(frame, {"": np.zeros((1, 8, 8, 3), np.uint8)}, hide_actions=True)


class Corner:
    """A frozen encoder's stand-in for tokenizers, which know none: an image's first pixel."""

    empty = np.zeros((0, 3), np.uint8)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images[:, 0, 0]


def words(text: str) -> list[int]:
    return TEXT.encode(text).tolist()


def picture(shade: int) -> np.ndarray:
    return np.full((8, 8, 3), shade, np.uint8)


@pytest.mark.parametrize("to_next", [False, True])
def test_an_interleaved_document(to_next: bool):
    """Flamingo's layout; what is predicted, and the image that every position attends to."""
    document = assembler(images="encoder", visual=Corner()).document(
        [" open", picture(1), " the", picture(2), " door"], to_next=to_next
    )
    v = VOCABULARY
    opened, the, door = words(" open"), words(" the"), words(" door")
    first = [v.chunk_end] if to_next else []  # the first text is a chunk only where it belongs to an image
    last = [] if to_next else [v.chunk_end]
    whole = [v.bos, *opened, *first, v.image, *the, v.chunk_end, v.image, *door, *last]
    sequence = whole if to_next else whole[:-1]  # from the closing mark nothing is read
    assert document.tokens.tolist() == sequence
    belongs = {False: (0, 1, 2), True: (1, 2, 0)}[to_next]
    attended = (
        [0] + [belongs[0]] * len(opened + first) + [1] + [belongs[1]] * (len(the) + 1) + [2] + [belongs[2]] * len(door)
    )
    assert document.image.tolist() == attended
    predicted = {False: [*the, v.chunk_end, *door, v.chunk_end], True: [*opened, v.chunk_end, *the, v.chunk_end]}
    assert document.targets[document.loss_weight > 0].tolist() == predicted[to_next]
    assert document.images.tolist() == [[1, 1, 1], [2, 2, 2]]
    at = document.modality == Modality.IMAGE
    assert document.payload_index[at].tolist() == [0, 1]


def test_images_in_both_ways():
    toy = layout(gs.Box(0, 255, (16, 16, 3), np.uint8), gs.Discrete(9), images="patches+encoder")
    observed = {"": np.stack([picture(1), picture(2)]).repeat(2, axis=1).repeat(2, axis=2)}
    step = assembler(visual=Corner()).step(toy, observed, hide_actions=False)
    assert step.modality.tolist() == [Modality.IMAGE, Modality.PATCH] * 2
    assert step.image.tolist() == [1, 1, 2, 2]
    assert step.images.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert len(step.patches) == 2


def test_what_follows_an_image_attends_to_it():
    maker = assembler(images="encoder", visual=Corner())
    text, image = maker.text("a"), tail(maker.document([picture(3)]), 1)
    joined = maker.concatenate([text, image, text, image])
    assert joined.image.tolist() == [0] * len(text) + [1] * (1 + len(text)) + [2]


def test_an_image_without_an_encoder():
    with pytest.raises(ValueError, match=r"set model\.vision\.encoder"):
        assembler(images="encoder").document([picture(1)])
