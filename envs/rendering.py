"""A picture of any environment as it is now, for people to look at; no policy sees it.

Gymnasium's own environments and those built on MuJoCo draw what they are asked to; ours have a `render` of their own. MuJoCo
draws with OpenGL: on Linux through EGL, which needs no display, unless the variable MUJOCO_GL says otherwise.
"""

import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.envs.task import Task

MUJOCO_SIDE = 240  # pixels; a software renderer draws about 50 of these a second
DRAW = "write one that gives (H, W, 3) bytes where render_mode is rgb_array"  # for environments of one's own
FRAMES_A_SECOND = 15.0  # where an environment does not say


class NoGraphics(ImportError):
    """There is no OpenGL library to draw with."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(
            f"MuJoCo cannot draw without OpenGL ({type(reason).__name__}: {reason}): install Mesa's EGL (libegl1 and "
            "libgl1-mesa-dri, where packages are called so), or set MUJOCO_GL=osmesa and install libosmesa6, or MUJOCO_GL=glfw "
            "where there is a display"
        )


def frame(env: gym.Env) -> np.ndarray:
    """What the environment looks like now: (H, W, 3) uint8, of equal size throughout an episode.

    Raises:
        NoGraphics: it is drawn with OpenGL, which is not there.
        ValueError: it draws nothing, or fails to.
    """
    world: Any = env.unwrapped
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame would complain, though it draws into memory
    if world.render_mode is None:
        world.render_mode = "rgb_array"  # Gymnasium's environments look at it whenever they draw
    renderer = getattr(getattr(world, "simulator", world), "mujoco_renderer", None)
    if renderer is not None and renderer.viewer is None:
        _open(world, renderer)
    name = type(world).__name__
    try:
        shown = world.render()
    except NotImplementedError as error:
        raise ValueError(
            f"{name} has no render(), so that it can be played and scored, but not shown: {DRAW}"
        ) from error
    except Exception as error:  # whatever an environment raises, from outside
        raise ValueError(
            f"{name} can't be shown, its render() fails ({type(error).__name__}: {error}): {DRAW}"
        ) from error
    if not isinstance(shown, np.ndarray) or shown.dtype != np.uint8 or shown.ndim != 3 or shown.shape[-1] != 3:
        given = (
            f"an array of {shown.dtype} {shown.shape}" if isinstance(shown, np.ndarray) else f"{type(shown).__name__}"
        )
        raise ValueError(f"{name} can't be shown, its render() gives {given}: {DRAW}")
    return shown


def make(task: Task) -> gym.Env:
    """The task's environment, to be drawn.

    Raises:
        MissingExtra: the suite's package is not installed.
        NoGraphics: MUJOCO_GL asks for a library that is not there, which MuJoCo already looks for when it is imported.
    """
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
    """Decisions a second at the environment's own pace."""
    return float(env.unwrapped.metadata.get("render_fps") or FRAMES_A_SECOND)


def _open(world: Any, renderer: Any) -> None:
    """Makes MuJoCo's drawing context: small and without shadows and mirrors, which take most of a software renderer's time."""
    import mujoco

    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    renderer.width = renderer.height = MUJOCO_SIDE
    try:
        world.render()
    except Exception as error:  # of many kinds: each way to OpenGL has its own
        raise NoGraphics(error) from error
    for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.viewer.scn.flags[effect] = 0
