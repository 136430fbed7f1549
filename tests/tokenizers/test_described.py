"""What positions mean, read back from the arrays: tables of `part=value`, and what is predicted after `->`."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from generalist.tokenizers.acting import Acting
from generalist.tokenizers.described import Meaning, instruction_length, meanings, targets
from generalist.tokenizers.sequence import Assembler, Predicted, Sequence
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["open the door"] * 9 + ["a red apple", "what is it"] * 9, 320)
VOCABULARY = Vocabulary(text=320, continuous=16, discrete=16)


def assembler(**settings) -> Assembler:
    return Assembler(**({"vocabulary": VOCABULARY, "text_tokenizer": TEXT, "frame_size": 16} | settings))


def layout(observation: gym.Space, action: gym.Space, **settings) -> TaskLayout:
    return TaskLayout(
        "toy",
        SpaceTokenizer.from_space(observation, vocabulary=VOCABULARY, text=TEXT, **settings),
        SpaceTokenizer.from_space(action, vocabulary=VOCABULARY, text=TEXT),
    )


def said(meaning: Meaning) -> str:
    return f"{meaning.part}={meaning.value}" if meaning.value else meaning.part


def table(sequence: Sequence, by: Assembler, of: TaskLayout | None) -> list[str]:
    held, wanted = meanings(sequence, by, of), targets(sequence, by, of)
    assert len(held) == len(wanted) == len(sequence)
    return [f"{said(one)} -> {', '.join(map(said, several)) or '.'}" for one, several in zip(held, wanted, strict=True)]


TOY = layout(
    gs.Dict({"lamp": gs.Discrete(4), "arm": gs.MultiDiscrete([9, 9])}),
    gs.Dict({"grip": gs.Discrete(2), "move": gs.Box(-1, 1, (2,), np.float32)}),
)
SEEN = {"lamp": np.array([3, 0]), "arm": np.array([[1, 2], [5, 6]])}
DONE = {"grip": np.array([1, 0]), "move": np.array([[0.9, -0.9], [0.05, 0.3]], np.float32)}


def test_a_window_with_actions_shown() -> None:
    by = assembler(separator=True)
    sequence = by.control(TOY, "open", SEEN, DONE, hide_actions=False)
    length = len(TEXT.encode("open"))
    assert instruction_length(sequence, TOY) == length
    assert table(sequence, by, TOY)[length:] == [
        "observation arm[0]=1 -> .",
        "observation arm[1]=2 -> .",
        "observation lamp=3 -> .",
        "separator -> action grip=1",
        "action grip=1 -> action move[0]=0.9375",
        "action move[0]=0.9375 -> action move[1]=-0.9375",
        "action move[1]=-0.9375 -> .",
        "observation arm[0]=5 -> .",
        "observation arm[1]=6 -> .",
        "observation lamp=0 -> .",
        "separator -> action grip=0",
        "action grip=0 -> action move[0]=0.0625",
        "action move[0]=0.0625 -> action move[1]=0.3125",
        "action move[1]=0.3125 -> .",
    ]
    assert "".join(one.value for one in meanings(sequence, by, TOY)[:length]) == "open"


def test_hidden_actions_after_a_prompt_that_shows_them() -> None:
    by = assembler()
    one = (
        {"lamp": np.array([2]), "arm": np.array([[7, 8]])},
        {"grip": np.array([1]), "move": np.ones((1, 2), np.float32)},
    )
    sequence = by.control(TOY, "", SEEN, DONE, hide_actions=True, prompts=[one])
    assert table(sequence, by, TOY) == [
        "observation arm[0]=7 -> .",
        "observation arm[1]=8 -> .",
        "observation lamp=2 -> action grip=1",
        "action grip=1 -> action move[0]=0.9375",
        "action move[0]=0.9375 -> action move[1]=0.9375",
        "action move[1]=0.9375 -> .",
        "observation arm[0]=1 -> .",
        "observation arm[1]=2 -> .",
        "observation lamp=3 -> action grip=1",
        "hidden -> action move[0]=0.9375",
        "hidden -> action move[1]=-0.9375",
        "observation arm[0]=5 -> .",
        "observation arm[1]=6 -> .",
        "observation lamp=0 -> action grip=0",
        "hidden -> action move[0]=0.0625",
        "hidden -> action move[1]=0.3125",
    ]


def test_tensors_are_read_back_from_their_columns_and_images_are_shown() -> None:
    observation = gs.Dict(
        {
            "camera": gs.Box(0, 255, (16, 16, 3), np.uint8),
            "mode": gs.Discrete(3),
            "state": gs.Box(-np.inf, np.inf, (2,), np.float64),
        }
    )
    statistics = {"state": (np.array([10.0, 20.0]), np.array([2.0, 4.0]))}
    how = {"tensors": "projected", "images": "frame", "frame_size": 16, "frame_tokens": 2}
    toy = layout(observation, gs.Discrete(5), offset=3, statistics=statistics, **how)
    by = assembler(projection_width=8, frame_tokens=2)
    camera = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (50, 200)])
    seen = {"camera": camera, "mode": np.array([2, 1]), "state": np.array([[11.0, 18.0], [9.5, 20.0]])}
    sequence = by.control(toy, "", seen, {"": np.array([4, 0])}, hide_actions=True)
    assert table(sequence, by, toy) == [
        "observation camera=position 1 of 2 of a frame -> .",
        "observation camera=position 2 of 2 of a frame -> .",
        "observation mode, observation state=mode: 2; state: 11, 18 -> action=4",
        "observation camera=position 1 of 2 of a frame -> .",
        "observation camera=position 2 of 2 of a frame -> .",
        "observation mode, observation state=mode: 1; state: 9.5, 20 -> action=0",
    ]
    images = [one.image for one in meanings(sequence, by, toy)]
    np.testing.assert_array_equal([image for image in images if image is not None], camera[[0, 0, 1, 1]])


def test_texts_within_steps_vary_in_length() -> None:
    toy = layout(gs.Dict({"a": gs.Text(20), "b": gs.Discrete(3)}), gs.Text(20))
    by = assembler()
    seen = {"a": np.array(["what", "a red apple"], object), "b": np.array([1, 2])}
    sequence = by.control(toy, "open the door", seen, {"": np.array(["it", "door"], object)}, hide_actions=False)
    length = instruction_length(sequence, toy)
    assert length == len(TEXT.encode("open the door"))
    held = meanings(sequence, by, toy)
    assert {one.part for one in held[:length]} == {"instruction"}
    ends = [place for place, one in enumerate(held) if one.part == "observation a" and one.value == "end"]
    told = "".join(one.value for one in held[length : ends[0]]), [said(held[end + 1]) for end in ends]
    assert told == ("what", ["observation b=1", "observation b=2"])
    predicted = [one.value for several in targets(sequence, by, toy) for one in several]
    assert "".join(predicted) == "itenddoorend"


def test_patches_of_documents_and_what_is_predicted_of_them() -> None:
    by = assembler(images="patches")
    image = np.zeros((16, 32, 3), np.uint8)
    sequence = by.document([image, "what is it", Predicted(" a red apple")])
    held, wanted = meanings(sequence, by, None), targets(sequence, by, None)
    assert said(held[0]) == "bos"
    assert [said(one) for one in held[1:3]] == [
        "image=patch, rows 0 to 128, columns 0 to 64 of 128",
        "image=patch, rows 0 to 128, columns 64 to 128 of 128",
    ]
    assert "".join(one.value for one in held[3:]) == "what is it a red apple"
    predicted = [said(one).removeprefix("text=") for several in wanted for one in several]
    assert "".join(predicted) == " a red applechunk_end"


@pytest.mark.parametrize("hide", [True, False])
def test_a_position_predicts_all_dimensions_of_a_parallel_action(hide: bool) -> None:
    toy = dataclasses.replace(TOY, acting=Acting(parallel=True))
    by = assembler(action_dimensions=4)
    sequence = by.control(toy, "", SEEN, DONE, hide_actions=hide)
    acted = [] if hide else ["action grip=1 -> .", "action move[0]=0.9375 -> .", "action move[1]=-0.9375 -> ."]
    assert table(sequence, by, toy)[: 3 + len(acted)] == [
        "observation arm[0]=1 -> .",
        "observation arm[1]=2 -> .",
        "observation lamp=3 -> action grip=1, action move[0]=0.9375, action move[1]=-0.9375",
        *acted,
    ]


def test_a_layout_that_is_not_the_sequence_s_is_refused() -> None:
    by = assembler()
    sequence = by.control(TOY, "", SEEN, DONE, hide_actions=True)
    with pytest.raises(ValueError, match="begins no step of toy|should be"):
        meanings(sequence, by, layout(gs.Dict({"lamp": gs.Discrete(4)}), gs.Discrete(2)))
    with pytest.raises(ValueError, match="position 0 is DISCRETE, where 'lamp' should be CONTINUOUS"):
        meanings(sequence, by, layout(gs.Dict({"lamp": gs.Box(0, 1, (3,), np.float32)}), gs.Discrete(2)))
