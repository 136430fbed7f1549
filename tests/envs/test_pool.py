"""Many environments at once: the same as one after the other."""

import numpy as np
import pytest

from generalist.envs.pool import EnvPool
from generalist.envs.task import get
from generalist.envs.workers import WorkerError

LANES = [(get("classic/cartpole"), seed) for seed in (1, 2, 3)]


def test_lanes_play_like_single_environments():
    pool = EnvPool(LANES, workers=2)
    observations, instructions = pool.reset()
    assert instructions == [get("classic/cartpole").instruction] * 3
    for lane, (task, seed) in enumerate(LANES):
        env = task.make()
        np.testing.assert_array_equal(env.reset(seed=seed)[0], observations[lane])
    envs = [task.make() for task, _ in LANES]
    for env, (_, seed) in zip(envs, LANES, strict=True):
        env.reset(seed=seed)
    for _ in range(3):
        results = pool.step([1, 0, None])
        assert results[2] is None
        for env, action, result in zip(envs, (1, 0), results, strict=False):
            observation, reward, *_ = env.step(action)
            np.testing.assert_array_equal(observation, result[0])
            assert reward == result[1]
    pool.close()


def test_a_failing_environment_is_named():
    pool = EnvPool(LANES[:1], workers=1)
    pool.reset()
    with pytest.raises(WorkerError, match="classic/cartpole"):
        pool.step(["left"])
    pool._workers[0][0].kill()
    with pytest.raises(WorkerError, match=r"classic/cartpole died|classic/cartpole"):
        pool.step([1])
    pool.close()


def test_the_number_of_actions_is_checked():
    pool = EnvPool(LANES, workers=1)
    with pytest.raises(ValueError, match="3 lanes"):
        pool.step([1])
    pool.close()
