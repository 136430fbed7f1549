"""`generalist play` with weights: they act on tasks they know, and say which those are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from generalist.cli import main


def test_saved_weights_play(tmp_path: Path, weights: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "weights", tmp_path / "episode.webp"
    weights(0).save(folder)
    command = ["play", "babyai/GoToObj", "--weights", str(folder), "--video", str(path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "weights of debug, step 7" in told and "babyai/GoToObj: go to the " in told
    (steps,) = [int(line.split()[0]) for line in told.splitlines() if "steps, score" in line]
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == steps + 1
    assert main([*command[:1], "classic/cartpole", *command[2:]]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "the weights were not trained on classic/cartpole; the layouts they know: babyai" in told
