"""An image of any environment's current state, for people; policies never see it.

Gymnasium's and MuJoCo's environments render themselves; the other suites here implement `render`. MuJoCo draws with OpenGL: on
Linux through EGL, which needs no display, unless the environment variable MUJOCO_GL names another library.

Dimension key: H height, W width of the image.
"""

import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8

from generalist.envs.task import Task

MUJOCO_SIDE = 240  # pixels; a software renderer draws about 50 such frames per second
DRAW = "write one that gives (H, W, 3) bytes where render_mode is rgb_array"  # the remedy in messages about custom environments
FRAMES_A_SECOND = 15.0  # for environments that do not define it


class NoGraphics(ImportError):
    """No OpenGL library is available."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(
            f"MuJoCo cannot draw without OpenGL ({type(reason).__name__}: {reason}): install Mesa's EGL (libegl1 and "
            "libgl1-mesa-dri on Debian), or set MUJOCO_GL=osmesa and install libosmesa6, or MUJOCO_GL=glfw "
            "if there is a display"
        )


def frame(env: gym.Env) -> UInt8[np.ndarray, "H W 3"]:
    """The environment's current state as an image of equal size throughout an episode.

    Raises:
        NoGraphics: it is drawn with OpenGL, which is not available.
        ValueError: it has no `render`, or `render` fails.
    """
    world: Any = env.unwrapped
    # pygame needs no display to draw into memory, but insists on one.
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if world.render_mode is None:
        world.render_mode = "rgb_array"  # Gymnasium's environments read it at every call
    # Meta-World keeps its simulator in an attribute; the others are simulators themselves.
    renderer = getattr(getattr(world, "simulator", world), "mujoco_renderer", None)
    if renderer is not None and renderer.viewer is None:
        _open(world, renderer)
    name = type(world).__name__
    try:
        shown = world.render()
    except NotImplementedError as error:
        raise ValueError(f"{name} has no render(), so it can be played and scored but not shown: {DRAW}") from error
    except Exception as error:  # a custom environment may raise anything
        raise ValueError(
            f"{name} cannot be shown: its render() fails ({type(error).__name__}: {error}): {DRAW}"
        ) from error
    if not isinstance(shown, np.ndarray) or shown.dtype != np.uint8 or shown.ndim != 3 or shown.shape[-1] != 3:
        given = (
            f"an array of {shown.dtype} {shown.shape}" if isinstance(shown, np.ndarray) else f"{type(shown).__name__}"
        )
        raise ValueError(f"{name} cannot be shown: its render() returns {given}: {DRAW}")
    return shown


def make(task: Task) -> gym.Env:
    """The task's environment, to be rendered.

    Raises:
        MissingExtra: the suite's package is not installed.
        NoGraphics: MUJOCO_GL names a missing library, which MuJoCo loads when it is imported.
    """
    # What MuJoCo raises for a library that is missing, or that it does not know.
    try:
        return task.make()
    except (AttributeError, RuntimeError) as error:
        if "MUJOCO_GL" in os.environ:
            raise NoGraphics(error) from error
        raise


def has_display() -> bool:
    """Whether a window can be opened."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def frames_a_second(env: gym.Env) -> float:
    """Decisions per second at the environment's real speed."""
    return float(env.unwrapped.metadata.get("render_fps") or FRAMES_A_SECOND)


def _open(world: Any, renderer: Any) -> None:
    """Creates MuJoCo's drawing context: small, without shadows and reflections, which take most of a software renderer's time."""
    import mujoco

    # EGL draws without a display.
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    renderer.width = renderer.height = MUJOCO_SIDE
    try:
        world.render()
    except Exception as error:  # each OpenGL library raises its own type of error
        raise NoGraphics(error) from error
    for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.viewer.scn.flags[effect] = 0
