"""From settings to batches, with a pretrained trunk and documents of one's own."""

import dataclasses
import io
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from jax.tree import leaves
from PIL import Image
from rich.console import Console

from generalist.config.data import DataConfig, mixed
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.data.formats.faults import TooManyBroken
from generalist.data.sources.control import Classic
from generalist.data.sources.documents import OwnDocuments
from generalist.envs.registry import get
from generalist.experiment.beforehand import check
from generalist.experiment.learn import learn_tokenizers
from generalist.experiment.prepare import prepare
from generalist.run.named_weights import run_settings
from generalist.run.tasks import record_missing, stored
from generalist.run.tokenizers import Tokenizers, acting_in
from generalist.run.trunk import with_trunk
from generalist.tokenizers.acting import Acting
from generalist.tokenizers.pieces import Modality

FIXTURES = Path(__file__).parents[1] / "fixtures"


def own(tmp_path: Path, **tokens: str) -> Config:
    """Nothing but documents, read by tiny CLIP eyes and a tiny Qwen."""
    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "red.png")
    page = {"content": ["look: ", {"image": "red.png"}, "a red photo", {"image": "red.png"}, " of a dog"]}
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps(page)] * 3 + ['{"text": "a photo of a cat"}'] * 3))
    base = debug()
    model = dataclasses.replace(
        base.model,
        trunk=str(FIXTURES / "language" / "qwen3"),
        vision=dataclasses.replace(base.model.vision, encoder=str(FIXTURES / "vision" / "clip")),
    )
    data = DataConfig(
        folder=tmp_path / "data",
        sources=mixed(documents=OwnDocuments(weight=1.0, path=str(tmp_path / "own.jsonl"))),
        only=("documents",),
        rows=2,
        length=64,
        images=8,
    )
    return with_trunk(
        dataclasses.replace(
            base, runs=tmp_path / "runs", model=model, data=data, tokens=dataclasses.replace(base.tokens, **tokens)
        )
    )


def test_documents_reach_the_batch_in_the_trunk_s_own_tokens(tmp_path: Path):
    prepared = prepare(own(tmp_path, documents="encoder"), Console(quiet=True))
    batch = next(prepared.iterator)
    prepared.iterator.close()
    assert list(prepared.sources) == ["documents"]
    vocabulary, text = prepared.tokenizers.assembler.vocabulary, prepared.tokenizers.text
    assert vocabulary.text == 300
    shown = batch.modality == Modality.IMAGE
    assert shown.sum() >= 2
    assert (batch.tokens[shown] == vocabulary.image).all()
    assert batch.images.shape[1:] == (24, 24, 3)
    # Every word of the pages is there, as the trunk spells it.
    said = text.decode(batch.tokens[(batch.modality == Modality.TEXT) & (batch.tokens < text.size)])
    assert "a red photo" in said
    assert "a photo of a cat" in said
    assert np.isin(vocabulary.chunk_end, batch.targets)
    assert prepared.tokenizers.model_spec().channels == 16


def test_documents_are_checked_before_anything_is_read(tmp_path: Path):
    config, shown = own(tmp_path, documents="encoder"), io.StringIO()
    console = Console(file=shown, width=80)
    lines = [json.dumps({"image": f"{number}.bmp", "text": "a", "url": "b"}) for number in range(21)]
    for number in range(21):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.bmp")
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    (tmp_path / "7.bmp").write_bytes((tmp_path / "7.bmp").read_bytes()[:2000])
    check(config, console)
    assert "'url' of 21 documents is not read" in shown.getvalue() and "7.bmp" not in shown.getvalue()
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, check=True))
    check(whole, console)
    assert "own.jsonl line 8: " in shown.getvalue() and "20 of 21 documents can be read" in shown.getvalue()
    none = dataclasses.replace(whole.data.sources["documents"], unreadable=0.0)
    strict = dataclasses.replace(whole, data=whole.data.with_sources(documents=none))
    with pytest.raises(TooManyBroken, match="1 of 21 records of .* can't be read"):
        check(strict, console)
    assert not config.folder.exists()
    absent = dataclasses.replace(whole.data, sources=mixed(), only=("prose",))
    with pytest.raises(ValueError, match="data.check reads your own documents, but no source names any"):
        check(dataclasses.replace(whole, data=absent), console)


@pytest.mark.slow
def test_batches_are_the_same_whoever_leaves_a_document_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    config = own(tmp_path, documents="encoder")
    for number in range(24):
        Image.new("RGB", (40, 40), (10 * number, 0, 0)).save(tmp_path / f"{number}.bmp")
    lines = [json.dumps({"image": f"{number}.bmp", "text": " a photo"}) for number in range(24)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    (tmp_path / "7.bmp").write_bytes((tmp_path / "7.bmp").read_bytes()[:2000])
    whole = prepare(config, Console(quiet=True)).iterator
    seen, after = [], []
    for _ in range(4):
        seen.append(next(whole))
        after.append(whole.positions)
    whole.close()
    loaded = dataclasses.replace(config, data=dataclasses.replace(config.data, loaders=1))
    again = prepare(loaded, Console(quiet=True)).iterator
    again.go_to(after[1])
    try:
        for batch in seen[2:]:
            assert all((one == other).all() for one, other in zip(leaves(next(again)), leaves(batch), strict=True))
    finally:
        again.close()
    assert "note: record left out, number 1 of 24:" in capfd.readouterr().err


def test_layouts_of_other_weights_act_as_they_were_trained_unless_this_run_trains_them():
    """Its own settings say nothing of suites that take no part."""
    weights, task = FIXTURES / "versions/weights", get("classic/cartpole")
    base = run_settings(weights)
    start, console = Tokenizers.load(weights, base), Console(record=True, width=200)
    known = start.layouts[task.layout]
    others = {name: dataclasses.replace(known, name=name) for name in ("babyai", "classic/acrobot")}
    start = dataclasses.replace(start, layouts={task.layout: known} | others)
    classic = Classic(tasks="cartpole", episodes=2, steps=5, hide_actions=0.0)
    data = dataclasses.replace(base.data.with_sources(classic=classic), only=("classic",))
    opened = stored(dataclasses.replace(base, data=data))
    recorded = FIXTURES / "versions/episodes/classic/cartpole/1.0.0"
    opened.readers[classic.folder(task, opened)] = EpisodeReader(recorded, EpisodeCache(1))
    learnt = learn_tokenizers(dataclasses.replace(base, data=data), opened, start, console=console)
    assert learnt.layouts[task.layout].acting == Acting(steps=5, hide_actions=False)
    assert learnt.model_spec().action_dimensions == 0
    # With parallel actions, the layouts that are trained have them, and the others stay as they were.
    tokens = dataclasses.replace(base.tokens, actions="parallel")
    together = learn_tokenizers(dataclasses.replace(base, data=data, tokens=tokens), opened, start)
    assert together.layouts[task.layout].acting == Acting(steps=5, hide_actions=False, parallel=True)
    assert {name: together.layouts[name] for name in others} == others
    assert together.model_spec().action_dimensions == together.assembler.action_dimensions == 1
    assert {
        name: learnt.layouts[name] for name in others
    } == others  # also of a suite that takes part, with other tasks
    assert others["babyai"].acting == Acting(temperature=0.5)
    shown = console.export_text()
    assert "classic/cartpole: acts with steps = 5 from now on; training.start had 8\n" in shown
    assert "classic/cartpole: acts with temperature = 0.0 from now on; training.start had 0.5\n" in shown


def test_actions_with_text_stay_sequential_in_a_parallel_run():
    base = debug()
    config = dataclasses.replace(base, tokens=dataclasses.replace(base.tokens, actions="parallel"))
    say = gym.spaces.Dict(say=gym.spaces.Text(20), turn=gym.spaces.Discrete(9))
    assert acting_in(config, "classic/told", gym.spaces.Box(-1, 1, (2,))).parallel
    assert not acting_in(config, "classic/told", say).parallel
    assert not acting_in(base, "classic/told", gym.spaces.Box(-1, 1, (2,))).parallel


def test_recording_takes_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of a machine's 64, a scheduler may have given it two."""
    taken: list[int] = []
    monkeypatch.setattr("generalist.run.tasks.record", lambda *_, workers, **__: taken.append(workers))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5}, raising=False)
    record_missing(debug(), Console(quiet=True))
    assert taken == [2]
