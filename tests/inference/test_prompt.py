"""Prompts: sharing, batching, beams of width 1 and streaming give what the plain path gives, which is what whole passes give."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from generalist.data.documents import DocumentError
from generalist.inference import prompt as prompts
from generalist.inference import writing
from generalist.inference.cached_rows import CachedRows
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import AgentPrompt
from generalist.inference.rows import length_bucket, stack_rows
from generalist.inference.sampling import Decoding, draw
from generalist.inference.score import log_likelihood
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.sequence import CHUNK_END, Predicted

LAYOUT = "classic/test"
WAYS: tuple[Images, ...] = ("frame", "frame+encoder", "encoder", "patches")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 40, 3)).astype(np.uint8)


@functools.partial(jax.jit, static_argnames=("graph",))
def whole_pass(graph: nnx.GraphDef, params: Any, batch: Any) -> jax.Array:
    module = nnx.merge(graph, params)
    return module.logits(module.hidden(batch))


def plainly(generalist: Generalist, parts: list[Any], tokens: int) -> str:
    """The likeliest next id over and over, each from a whole pass without a cache."""
    assembler = generalist.assembler
    allowed = np.flatnonzero(writing.writable(generalist)[0])
    sequence, ids = assembler.document(parts, is_open=True), []
    for _ in range(tokens):
        batch = generalist.on_device(stack_rows([sequence], 64, pad=generalist.vocabulary.pad))
        logits = whole_pass(generalist.graph, generalist.params, batch)[0, len(sequence) - 1]
        ids.append(int(allowed[np.argmax(np.asarray(logits)[allowed])]))
        if ids[-1] in (generalist.vocabulary.eos, generalist.vocabulary.chunk_end):
            ids.pop()
            break
        step = assembler.text(np.array(ids[-1:], np.int32), bos=False, eos=False)
        sequence = assembler.concatenate([sequence, step])
    return generalist.tokenizers.text.decode(np.array(ids, np.int32))


PROMPTS = [[picture(0), "what is this?"], ["push the"], [picture(1), " red", picture(2), "a"], [picture(3)]]


@pytest.mark.slow
@pytest.mark.parametrize("images", WAYS)
def test_batches_and_shared_shots_give_what_whole_passes_give(make_model: Callable[..., Generalist], images: Images):
    generalist = make_model(images)
    documents = PROMPTS if images != "patches" else [list(PROMPTS[0]), PROMPTS[1]]
    expected = [plainly(generalist, parts, 4) for parts in documents]
    assert len(set(expected)) > 1
    assert generalist.prompt(documents, tokens=4) == expected
    assert [generalist.prompt(parts, tokens=4) for parts in documents] == expected
    shots = [picture(7), " blue block", picture(8), " left"] if images != "patches" else [picture(7), " left"]
    asked = [[picture(0)], [" and", picture(1), "lift"]] if images != "patches" else [[" and"], ["lift"]]
    after = generalist.read(shots)
    whole = [plainly(generalist, [*shots, *parts], 4) for parts in asked]
    assert generalist.prompt(asked, after=after, tokens=4) == whole
    assert generalist.prompt(asked[0], after=after, tokens=4) == whole[0], "what was read stays as it was"


@pytest.mark.slow
def test_one_beam_and_streaming_give_the_plain_text(make_model: Callable[..., Generalist]):
    generalist = make_model()
    for parts in PROMPTS:
        plain = generalist.prompt(parts, tokens=6)
        assert "".join(generalist.stream(parts, tokens=6)) == plain
        rows, logits, room = prompts._begin(generalist, [parts], None, 6)
        assert writing.beam_search(generalist, rows, logits, Decoding(tokens=6), room) == [plain]
    drawn = {"tokens": 6, "temperature": 1.5, "seed": 3}
    assert "".join(generalist.stream(PROMPTS[0], **drawn)) == generalist.prompt(PROMPTS[0], **drawn)


@pytest.mark.slow
def test_a_wide_beam_finds_the_best_of_all_texts(
    make_model: Callable[..., Generalist], monkeypatch: pytest.MonkeyPatch
):
    """Of all that three pieces can be written to, in three ids at most, by the mean log-likelihood an id, the end included."""
    generalist = make_model()
    pieces = [int(generalist.tokenizers.text.encode(word)[0]) for word in (" the", " block", "lift")]
    end, parts = generalist.vocabulary.chunk_end, PROMPTS[0]
    allowed = np.zeros((1, generalist.vocabulary.size), bool)
    allowed[0, [*pieces, end]] = True
    monkeypatch.setattr(writing, "writable", lambda _: allowed)

    @functools.cache
    def ahead(ids: tuple[int, ...]) -> np.ndarray:
        document = generalist.assembler.document(parts, is_open=True)
        step = generalist.assembler.text(np.array(ids, np.int32), bos=False, eos=False)
        sequence = generalist.assembler.concatenate([document, step])
        batch = generalist.on_device(stack_rows([sequence], 64, pad=generalist.vocabulary.pad))
        logits = whole_pass(generalist.graph, generalist.params, batch)[0, len(sequence) - 1]
        return np.asarray(jax.nn.log_softmax(jnp.where(allowed[0], logits, -jnp.inf)), np.float64)

    def value(ids: tuple[int, ...]) -> float:
        return sum(ahead(ids[:at])[one] for at, one in enumerate(ids)) / len(ids)

    written = [ids for length in range(4) for ids in itertools.product(pieces, repeat=length)]
    finished = [(*ids, end) if len(ids) < 3 else ids for ids in written]
    best = max(finished, key=value)
    text = generalist.tokenizers.text.decode(np.array([one for one in best if one != end], np.int32))
    assert generalist.prompt([parts, parts], tokens=3, beams=40) == [text, text]


def test_what_is_drawn_follows_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05, 0.0]] * 4000) + 1e-12)
    allowed = jnp.array([True, True, True, True, False])

    def shares(temperature: float, top_k: int, top_p: float) -> np.ndarray:
        draws = jnp.stack(
            [jnp.zeros(4000, jnp.uint32), jnp.arange(4000, dtype=jnp.uint32), jnp.zeros(4000, jnp.uint32)], 1
        )
        ids = draw(logits, allowed, jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), draws)
        return np.bincount(np.asarray(ids), minlength=5) / 4000

    np.testing.assert_allclose(shares(1.0, 0, 1.0), [0.5, 0.3, 0.15, 0.05, 0], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 2, 1.0), [0.625, 0.375, 0, 0, 0], atol=0.03)
    # The fewest that together have 0.7: the first two; 0.5 is had by the first alone.
    np.testing.assert_allclose(shares(1.0, 0, 0.7), [0.625, 0.375, 0, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 0, 0.49), [1, 0, 0, 0, 0], atol=0)
    sharp = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(0.5, 0, 1.0)[:4], sharp / sharp.sum(), atol=0.03)


@pytest.mark.slow
def test_stop_texts_end_what_is_written(make_model: Callable[..., Generalist]):
    generalist = make_model()
    plain = generalist.prompt(PROMPTS[1], tokens=8)
    assert len(plain) > 3
    stop = plain[2:4]
    expected = plain[: plain.find(stop)]
    assert generalist.prompt(PROMPTS[1], tokens=8, stop=[stop]) == expected
    assert "".join(generalist.stream(PROMPTS[1], tokens=8, stop=[stop])) == expected
    assert generalist.prompt(PROMPTS[1], tokens=8, stop=["not in it"]) == plain


@pytest.mark.slow
def test_choices_are_ranked_as_whole_sequences_are(make_model: Callable[..., Generalist]):
    generalist = make_model("frame+encoder")
    shots, choices = [picture(4), " red"], [" red", " blue block", " left"]
    asked = [[picture(5)], [picture(6), "it is"]]
    scores = prompts.rank(generalist, asked, choices, generalist.read(shots))
    documents = [[*shots, *parts, Predicted(choice)] for parts in asked for choice in choices]
    whole = log_likelihood(generalist, [generalist.assembler.document(parts) for parts in documents], 6)
    np.testing.assert_allclose(scores.reshape(-1), whole, rtol=1e-4, atol=1e-3)
    best = [choices[one] for one in scores.argmax(axis=1)]
    assert generalist.prompt(asked, after=generalist.read(shots), choices=choices) == best


@pytest.mark.slow
def test_two_text_examples_without_images(make_model: Callable[..., Generalist]):
    """Flamingo's zero shots."""
    generalist = make_model()
    parts = ["Output: a block", CHUNK_END, "Output: left", CHUNK_END, picture(0), "Output:"]
    sequence = generalist.assembler.document(parts, is_open=True)
    assert (sequence.tokens == generalist.vocabulary.chunk_end).sum() == 2 and not sequence.loss_weight.any()
    assert generalist.prompt(parts, tokens=4) == plainly(generalist, parts, 4)


@pytest.mark.slow
def test_an_agent_is_told_and_shown_and_acts(make_model: Callable[..., Generalist]):
    generalist = make_model()
    layout = generalist.layouts[LAYOUT]
    observed, acted = layout.observation.stack(list(np.eye(3, dtype=np.float32))), layout.action.stack([1, 2, 0])
    asked = AgentPrompt(
        layout=LAYOUT,
        observation=np.array([1.0, -2.0, 0.5], np.float32),
        instruction="push the block",
        demonstrations=[(observed, acted)],
    )
    action = generalist.prompt(asked)
    assert layout.action.space.contains(action)
    shown = {
        int(
            generalist.prompt(
                dataclasses.replace(
                    asked, observation=(np.random.default_rng(seed).normal(size=3) * 3).astype(np.float32)
                )
            )
        )
        for seed in range(12)
    }
    assert len(shown) > 1
    with pytest.raises(ValueError, match="know no layout 'atari/pong'"):
        generalist.prompt(dataclasses.replace(asked, layout="atari/pong"))
    with pytest.raises(ValueError, match="takes .* positions, but .* rows of 128"):
        generalist.prompt(dataclasses.replace(asked, demonstrations=[(observed, acted)] * 40))


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ([], {}, "at least one of them"),
        ("push", {}, "a prompt is a list of images and texts"),
        ([3], {}, "part 1 of the prompt is a int"),
        ([np.zeros((8, 8, 3))], {}, "an array float64 .8, 8, 3., but images are uint8"),
        ([np.zeros((0, 8, 3), np.uint8)], {}, "an array uint8 .0, 8, 3."),
        (["push the block " * 100], {}, "takes .* positions, but the model was trained on rows of 128"),
        (["push"], {"tokens": 0}, "tokens must be at least 1"),
        (["push"], {"top_p": 0.0}, "top_p must be above 0"),
        (["push"], {"top_k": 3}, "set temperature above 0"),
        (["push"], {"beams": 3, "temperature": 1.0}, "leave out either beams or temperature"),
        (["push"], {"stop": "the"}, "stop must be a sequence of texts"),
        (["push"], {"choices": []}, "choices must be non-empty texts"),
        (["push"], {"choices": ["a"], "tokens": 3}, "choices are ranked, not written: leave out tokens"),
    ],
)
def test_a_prompt_that_can_not_be_read(
    make_model: Callable[..., Generalist], parts: Any, settings: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        make_model().prompt(parts, **settings)


@pytest.mark.slow
def test_images_from_files(make_model: Callable[..., Generalist], tmp_path: Path):
    generalist, path = make_model(), tmp_path / "one.png"
    Image.fromarray(picture(0)).save(path)
    assert generalist.prompt([path, "what is this?"], tokens=4) == generalist.prompt(PROMPTS[0], tokens=4)
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DocumentError, match=r"one\.png is no image that can be read"):
        generalist.prompt([path], tokens=4)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with pytest.raises(DocumentError, match=r"huge\.png has .*pixels: make it smaller"):
        generalist.prompt([tmp_path / "huge.png"], tokens=4)


@pytest.mark.slow
def test_writing_ends_where_the_context_does(make_model: Callable[..., Generalist]):
    generalist = make_model()
    length = len(generalist.assembler.document(["push the block " * 20], is_open=True))
    room = prompts.context(generalist) - length
    assert 0 < room < 60
    text = generalist.prompt(["push the block " * 20], tokens=400)
    assert len(generalist.tokenizers.text.encode(text)) <= room


def test_prompts_of_many_lengths_need_few_programs():
    from generalist.inference.decode import extend
    from generalist.inference.in_turn import write_in_turn

    folder = Path(__file__).parent.parent / "fixtures" / "language" / "qwen3"
    generalist = Generalist.load(folder)
    generalist.compile_ahead(40, tokens=9)
    before = extend.programs, write_in_turn.programs
    # What is compiled ahead is all that prompts of these lengths need, whatever their texts and numbers of ids.
    lengths = [length_bucket(length) for length in range(1, 151)]
    for length in (*range(1, 41, 6), 40):
        generalist.prompt([np.full(length, 7, np.int32)], tokens=9)
        "".join(generalist.stream([np.full(length, 7, np.int32)], tokens=9))
    assert (extend.programs, write_in_turn.programs) == before
    assert len(set(lengths)) == 13 and max(lengths) == 160
    assert all(
        length <= size < max(1.25 * length, length + 8) for length, size in zip(range(1, 151), lengths, strict=True)
    )
    with pytest.raises(ValueError, match="leave out shots"):
        generalist.compile_ahead(10**6)


def test_long_texts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch):
    from generalist.inference import cached_rows

    generalist = Generalist.load(Path(__file__).parent.parent / "fixtures" / "language" / "qwen3_windows")
    ids = np.random.default_rng(0).integers(5, 200, (3, 110), np.int32)
    asked = [[ids[0]], [ids[1][:90]], [ids[2][:9]]]  # with padding in front of the shorter ones
    whole = generalist.prompt(asked, tokens=12), prompts.rank(generalist, asked, [" a", " the photo"])
    fed = []
    append = CachedRows._append
    monkeypatch.setattr(
        CachedRows,
        "_append",
        lambda rows, batch, allowed: fed.append(batch.tokens.shape) or append(rows, batch, allowed),
    )
    monkeypatch.setattr(cached_rows, "LONGEST", 64)
    assert generalist.prompt(asked, tokens=12) == whole[0]
    assert fed[:7] == [(3, 16)] * 7  # 112 positions in equal parts, of at most 64 positions of all rows
    np.testing.assert_allclose(prompts.rank(generalist, asked, [" a", " the photo"]), whole[1], atol=1e-4)
