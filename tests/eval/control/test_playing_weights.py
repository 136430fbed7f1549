"""Saved weights play: in `generalist play`, which tells the tasks they know, and in the report's clips."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from generalist.cli.main import main
from generalist.eval.results import file as report
from generalist.inference.fingerprint import fingerprint


@pytest.mark.slow
def test_saved_weights_play(
    tmp_path: Path, weights: Callable, results: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
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
    report.save(tmp_path / "results.json", results({"babyai/GoToObj": [1.0]}, weights=fingerprint(weights(0))))
    page = tmp_path / "report.html"
    shown = ["eval", "report", str(tmp_path / "results.json"), "--videos", "--weights", str(folder), "--out", str(page)]
    assert main(shown) == 0
    assert page.read_text(encoding="utf-8").count("data:image/webp;base64,") == 1
    report.save(tmp_path / "results.json", results({"babyai/GoToObj": [1.0]}))
    assert main(shown) == 1 and "of other weights" in capsys.readouterr().out
