"""Classic control, Box2D and MuJoCo tasks from state, with experts that are short formulas of the observation.

Dimension key: n numbers of an observation, A numbers of an action.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Float32

from generalist.envs.task import Policy, Task

Observed = Float32[np.ndarray, "n"]
Rule = Callable[[Observed], Any]
"""Observation → action."""


def cartpole(observation: Observed) -> int:
    """Pushes in the direction in which pole and cart are falling or drifting."""
    # Cart position and speed, pole angle and angular speed.
    return int(observation @ (0.1, 0.4, 4.0, 1.2) > 0)


def mountain_car(observation: Observed) -> int:
    """Accelerates along the motion."""
    # The engine is too weak for the hill: every swing must add energy.
    return 2 if observation[1] >= 0 else 0


def mountain_car_continuous(observation: Observed) -> Float32[np.ndarray, "1"]:
    """Accelerates along the motion."""
    return np.array([1.0 if observation[1] >= 0 else -1.0], np.float32)


def pendulum(observation: Observed) -> Float32[np.ndarray, "1"]:
    """Pumps energy until it just reaches the top, then balances there."""
    cosine, sine, speed = observation
    # Near the top, where the motor's bounded torque suffices to hold it.
    if cosine > 0.85:
        torque = -(12 * np.arctan2(sine, cosine) + 3 * speed)
    else:
        energy = speed**2 / 6 + 5 * (cosine - 1)  # of a rod of length 1 under g = 10; 0 at rest at the top
        torque = (-2 if energy > 0 else 2) * (1 if speed >= 0 else -1)
    return np.array([np.clip(torque, -2, 2)], np.float32)


def acrobot(observation: Observed) -> int:
    """Swings the lower link against the motion of the upper one."""
    return 0 if observation[4] > 0 else 2


def _lander_errors(observation: Observed) -> tuple[float, float]:
    """Errors of the lander's angle and height, from the heuristic that comes with Gymnasium (`lunar_lander.heuristic`)."""
    x, y, speed_x, speed_y, angle, spin, left_leg, right_leg = observation
    # On the ground only the fall is damped; turning would tip the lander over.
    if left_leg or right_leg:
        return 0.0, float(-0.5 * speed_y)
    # It leans against its horizontal position and motion, so that the main engine pushes it back to the pad.
    target = np.clip(0.5 * x + speed_x, -0.4, 0.4)
    return float(0.5 * (target - angle) - spin), float(0.5 * (0.55 * abs(x) - y) - 0.5 * speed_y)


def lunar_lander(observation: Observed) -> int:
    """Fires the engine that reduces the larger error."""
    angle, height = _lander_errors(observation)
    if height > abs(angle) and height > 0.05:
        return 2
    return 3 if angle < -0.05 else 1 if angle > 0.05 else 0


def lunar_lander_continuous(observation: Observed) -> Float32[np.ndarray, "2"]:
    """Main and side engine proportional to the errors."""
    angle, height = _lander_errors(observation)
    return np.clip([20 * height - 1, -20 * angle], -1, 1).astype(np.float32)


def inverted_pendulum(observation: Observed) -> Float32[np.ndarray, "1"]:
    """Linear feedback from position, angle and their speeds."""
    return np.clip([observation @ (1.0, 15.0, 1.2, 3.0)], -3, 3).astype(np.float32)


# Discrete-time LQR gain for position, both angles and their speeds, from MuJoCo's own linearization about the upright rest
# with the Euler integrator (the default one has no mjd_transitionFD); state cost 1 10 10 .1 1 1, action cost 0.1.
_DOUBLE_PENDULUM_GAIN = (0.0954935, 0.8107625, 4.1874469, 0.1540338, 0.5413113, 0.6044381)


def inverted_double_pendulum(observation: Observed) -> Float32[np.ndarray, "1"]:
    """Linear-quadratic feedback."""
    # The observation's last number is a constraint force, which is no part of the state.
    position, sine1, sine2, cosine1, cosine2, *speeds = observation[:8]
    state = np.array([position, np.arctan2(sine1, cosine1), np.arctan2(sine2, cosine2), *speeds])
    return np.clip([-state @ _DOUBLE_PENDULUM_GAIN], -1, 1).astype(np.float32)


def reacher(observation: Observed) -> Float32[np.ndarray, "2"]:
    """Inverse kinematics that keeps the side of the elbow, then proportional-derivative control of both joints."""
    upper, lower = 0.1, 0.11  # lengths of the links
    cosine, sine, target, speed = observation[0:2], observation[2:4], observation[4:6], observation[6:8]
    angles = np.arctan2(sine, cosine)
    # The law of cosines gives the elbow's angle; clipped, since a target may be out of reach.
    bend = np.clip((target @ target - upper**2 - lower**2) / (2 * upper * lower), -1, 1)
    elbow = np.arccos(bend) * (1 if angles[1] >= 0 else -1)
    shoulder = np.arctan2(target[1], target[0]) - np.arctan2(lower * np.sin(elbow), upper + lower * np.cos(elbow))
    error = np.array([shoulder, elbow]) - angles
    error = (error + np.pi) % (2 * np.pi) - np.pi  # the shorter way round
    return np.clip(0.3 * error - 0.06 * speed, -1, 1).astype(np.float32)


# Results of `benchmarks/linear_experts.py`: weights (actions, n) and offset (actions,) by the task's name.
_LINEAR = json.loads((Path(__file__).parents[1] / "linear_experts.json").read_text(encoding="utf-8"))


def linear(observation: Observed, *, name: str) -> Float32[np.ndarray, "A"]:
    """Clipped linear feedback, which suffices to swim, run and hop (Mania, Guez & Recht 2018)."""
    weights, offset = _matrix(name)
    return np.clip(weights @ observation + offset, -1, 1).astype(np.float32)


@functools.cache  # an expert is asked at every step
def _matrix(name: str) -> tuple[Float[np.ndarray, "A n"], Float[np.ndarray, "A"]]:
    """Weights and offset as arrays."""
    return np.array(_LINEAR[name]["weights"]), np.array(_LINEAR[name]["offset"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassicTask(Task):
    """A task of Gymnasium."""

    id: str
    """Gymnasium's id."""
    rule: Rule
    """The expert."""
    continuous: bool = False
    """For the lander: continuous engine power."""

    def build(self) -> gym.Env:
        """See `Task.build`; the observation is float32 without bounds, since declared bounds are often wrong."""
        # Unwrapped: Gymnasium's own time limit would end an episode before ours.
        settings = {"continuous": True} if self.continuous else {}
        env = gym.make(self.id, disable_env_checker=True, **settings).unwrapped
        space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        return gym.wrappers.TransformObservation(env, lambda observation: np.asarray(observation, np.float32), space)

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        """A formula of the observation."""
        return self.rule


def _task(name: str, id: str, rule: Rule, max_steps: int, instruction: str, *, episodes: int = 30, record_steps: int = 200,
          noise: float = 0.2, continuous: bool = False) -> ClassicTask:  # fmt: skip
    """A row of the table below."""
    return ClassicTask(
        name=f"classic/{name}",
        suite="classic",
        layout=f"classic/{name}",
        instruction=instruction,
        max_steps=max_steps,
        record_steps=min(record_steps, max_steps),
        episodes=episodes,
        seconds=0.03,
        noise=noise,
        id=id,
        rule=rule,
        continuous=continuous,
    )


TASKS = (
    _task("cartpole", "CartPole-v1", cartpole, 500, "balance the pole on the cart"),
    _task("mountain-car", "MountainCar-v0", mountain_car, 200, "drive up the hill"),
    _task("mountain-car-continuous", "MountainCarContinuous-v0", mountain_car_continuous, 999, "drive up the hill smoothly"),
    _task("pendulum", "Pendulum-v1", pendulum, 200, "swing the pendulum up", episodes=40),
    _task("acrobot", "Acrobot-v1", acrobot, 500, "swing the two links up"),
    _task("lunar-lander", "LunarLander-v3", lunar_lander, 1000, "land on the moon", episodes=60, record_steps=400, noise=0.1),
    _task("lunar-lander-continuous", "LunarLander-v3", lunar_lander_continuous, 1000, "land on the moon smoothly",
          episodes=60, record_steps=400, continuous=True),
    _task("inverted-pendulum", "InvertedPendulum-v5", inverted_pendulum, 1000, "hold the pole up"),
    _task("inverted-double-pendulum", "InvertedDoublePendulum-v5", inverted_double_pendulum, 1000, "hold both poles up",
          episodes=40),
    _task("reacher", "Reacher-v5", reacher, 50, "reach the target with the fingertip", episodes=100),
    _task("swimmer", "Swimmer-v5", functools.partial(linear, name="swimmer"), 1000, "swim to the right",
          record_steps=300, noise=0.1),
    _task("half-cheetah", "HalfCheetah-v5", functools.partial(linear, name="half-cheetah"), 1000, "run to the right",
          episodes=40, record_steps=300, noise=0.1),
    _task("hopper", "Hopper-v5", functools.partial(linear, name="hopper"), 1000, "hop to the right",
          episodes=60, record_steps=300, noise=0.1),
)  # fmt: skip
