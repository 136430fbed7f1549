"""Seeing it: every suite gives frames, an episode becomes a video, and what is missing is told."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from generalist.cli import play
from generalist.cli.main import main
from generalist.envs import video, watching
from generalist.envs.registry import get
from generalist.envs.rendering import NoGraphics, frame
from generalist.envs.suites.babyai import BabyAITask
from generalist.envs.task import GaveUp, Policy
from generalist.inference.generalist import Generalist
from generalist.run import named_weights

# One a suite; MuJoCo's are skipped where there is no OpenGL.
FRAMES = {
    "atari/freeway": (210, 160, 3),
    "babyai/GoToObj": (128, 128, 3),
    "classic/cartpole": (400, 600, 3),
    "classic/lunar-lander": (400, 600, 3),
    "classic/reacher": (240, 240, 3),
    "metaworld/door-open": (240, 240, 3),
}
WITHOUT_GL = ("atari/freeway", "babyai/GoToObj", "classic/cartpole")


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a context that could not be made
@pytest.mark.parametrize("name", FRAMES)
def test_every_suite_shows_what_happens(name: str) -> None:
    env = get(name).make()
    env.reset(seed=1)
    try:
        first = frame(env)
    except NoGraphics as error:  # a machine without OpenGL's libraries; what is said then has a test of its own
        pytest.skip(str(error))
    assert first.shape == FRAMES[name] and first.dtype == np.uint8 and first.std() > 5, "it is no plain colour"
    env.action_space.seed(1)
    seen = []
    for _ in range(8):
        env.step(env.action_space.sample())
        seen.append(frame(env))
    assert not all(np.array_equal(one, first) for one in seen), "and it moves"
    env.close()


def test_drawing_changes_no_episode() -> None:
    def rewards(drawn: bool) -> list[Any]:
        env = get("babyai/GoToObj").make()
        seen = [env.reset(seed=3)[0]]
        for action in (0, 2, 2, 1, 2):
            if drawn:
                frame(env)
            seen.append(env.step(action)[0])
        return seen

    for one, other in zip(rewards(True), rewards(False), strict=True):
        np.testing.assert_array_equal(one, other)


def frames_of(path: Path) -> list[np.ndarray]:
    if path.suffix == ".mp4":
        av = pytest.importorskip("av", reason="MP4 needs the extra video")
        with av.open(str(path)) as container:
            return [decoded.to_ndarray(format="rgb24") for decoded in container.decode(video=0)]
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        return [np.asarray(image.convert("RGB")) for index in range(count) if image.seek(index) is None]


@pytest.mark.parametrize("name", WITHOUT_GL)
@pytest.mark.parametrize("suffix", video.SUFFIXES)
def test_an_episode_becomes_a_video(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = dataclasses.replace(get(name), max_steps=12)
    monkeypatch.setattr(play, "get", {name: shorter}.__getitem__)
    path = tmp_path / f"episode{suffix}"
    assert main(["play", name, "--random", "--seed", "5", "--video", str(path)]) == 0
    text = capsys.readouterr().out
    (steps,) = [int(line.split()[0]) for line in text.splitlines() if "steps, score" in line]
    frames = frames_of(path)
    assert len(frames) == steps + 1, "the start and one after each action"
    assert f"({steps + 1} frames" in text and list(tmp_path.iterdir()) == [path]
    height, width = FRAMES[name][:2]
    scale = -(-video.LEAST_WIDTH // width)
    assert frames[0].shape[1] == scale * width and frames[0].shape[0] > scale * height, "a caption stands below"
    original = get(name).make()
    original.reset(seed=5)
    shown = frames[0][: scale * height : scale, ::scale].astype(int)
    assert np.abs(shown - frame(original)).mean() < 12, "the first frame is the start of the seed's episode"


def test_several_episodes_in_one_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.webp"
    assert main(["play", "babyai/GoToObj", "--expert", "--episodes", "2", "--video", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps, score 1: " in line]
    assert len(lines) == 2, "the expert solves both"
    assert len(frames_of(path)) == sum(int(line.split()[0]) + 1 for line in lines)


def test_a_caption_keeps_the_size_whatever_the_text() -> None:
    picture = np.zeros((33, 50, 3), np.uint8)
    short, long = (video.captioned(picture, text, "step 1") for text in ("go", "go to the red ball and " * 30))
    assert short.shape == long.shape and short.shape[0] % 2 == short.shape[1] % 2 == 0
    assert not np.array_equal(short, long)


def test_a_small_webp_is_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    data = video.small_webp(list(noise), fps=10, limit=30_000)
    assert len(data) <= 30_000 and data[8:12] == b"WEBP"
    with pytest.raises(ValueError, match="more than 100 bytes"):
        video.small_webp(list(noise), fps=10, limit=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random"], "there is no display for a window: write a video with --video"),
        (["--random", "--video", "a.avi"], "--video must end in .mp4, .gif, .webp, got a.avi"),
        (["--random", "--video", "nowhere/a.gif"], "there is no folder nowhere"),
        (["--random", "--video", "a.gif", "--episodes", "0"], "--episodes must be at least 1"),
        (["--random", "--video", "a.gif", "--fast"], "does not know --fast"),
        (["--random", "--video", "a.gif", "--seed", "-1"], "--seed 0, got 1 and -1"),
        (
            ["--video", "a.gif", "--weights", "none"],
            "no weights in none (there is no config.json in it): name a folder of",
        ),
        (["--video", "a.gif", "--run", "none", "--runs", "nowhere"], "no run in nowhere/none: train it first"),
    ],
)
def test_what_does_not_fit_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "classic/cartpole", *arguments]) == 1
    assert message in " ".join(capsys.readouterr().out.split())


def test_what_is_advised_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    """`--random` and `--run` exclude each other."""
    assert main(["play", "own/thing", "--random", "--video", "a.gif"]) == 1
    assert "name them with --run or --weights, and leave --random out" in capsys.readouterr().out


class Unseen(gym.Env):
    """An environment that is not to be seen, or whose drawing fails."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def __init__(self, drawn: Any = NotImplementedError()):
        self.drawn, self.render_mode = drawn, None

    def render(self) -> Any:
        if isinstance(self.drawn, Exception):
            raise self.drawn
        return self.drawn


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (
            NotImplementedError(),
            r"Unseen has no render\(\), so it can be played and scored but not shown: write one",
        ),
        (
            KeyError("surface"),
            r"Unseen cannot be shown: its render\(\) fails \(KeyError: 'surface'\): write one that gives",
        ),
        (None, r"Unseen cannot be shown: its render\(\) returns NoneType: write one that gives \(H, W, 3\) bytes"),
        (np.zeros((4, 4)), r"its render\(\) returns an array of float64 \(4, 4\): write one"),
    ],
)
def test_what_can_not_be_drawn_says_so(drawn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame(Unseen(drawn))


def test_no_shipped_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(named_weights, "SHIPPED", tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match="name a run's folder, or a folder of"):
        named_weights.shipped_weights()
    (tmp_path / "weights").mkdir()
    assert named_weights.shipped_weights() == tmp_path / "weights"


def test_mp4_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(video.MissingVideo, match=r"pip install 'generalist\[video\]', or choose .gif or .webp"):
        video.check_path(tmp_path / "a.mp4")
    video.check_path(tmp_path / "a.gif")


def test_a_failing_episode_leaves_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("stopped")

    for suffix in video.SUFFIXES:
        with pytest.raises(RuntimeError, match="stopped"):
            video.write(tmp_path / f"a{suffix}", frames(), 10)
    with pytest.raises(ValueError, match="no frames"):
        video.write(tmp_path / "a.gif", iter(()), 10)
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stuck(BabyAITask):
    """A level whose bot never has a plan."""

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        def fail(observation: Any) -> int:
            raise GaveUp("no plan")

        return fail


def test_an_expert_that_gives_up_says_so() -> None:
    task = get("babyai/GoToObj")
    stuck = Stuck(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
    env = stuck.make()
    with pytest.raises(ValueError, match="the expert of babyai/GoToObj gave up on seed 3: try another --seed"):
        list(watching.episode(stuck, env, watching.expert, 3))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_opengl_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    env = get("classic/reacher").make()
    monkeypatch.setenv("MUJOCO_GL", "no such library")
    env.reset(seed=1)
    with pytest.raises(NoGraphics, match="cannot draw without OpenGL .*no such library.*install Mesa's EGL"):
        frame(env)


def test_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[str] = []
    flip = pygame.display.flip
    monkeypatch.setattr(pygame.display, "flip", lambda: (shown.append(pygame.display.get_caption()[0]), flip()))
    task = get("babyai/GoToObj")
    play.show(watching.episode(task, task.make(), watching.expert, 1_000_000), fps=1000, title="a task")
    assert len(shown) > 2 and set(shown) == {"a task"}
    assert not pygame.display.get_init(), "the window is closed"


def test_a_run_is_found_wherever_its_folder_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run in"):
        Generalist.from_run(named_weights.run_settings(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        Generalist.from_run(named_weights.run_settings(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"name": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match="name"):
        Generalist.from_run(named_weights.run_settings(tmp_path))
