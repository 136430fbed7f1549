"""Many environments at once: the same as one after the other."""

import numpy as np
import pytest

from generalist.envs.pool import Act, Acted, EnvPool, Start, Started
from generalist.envs.registry import get
from generalist.system.processes import WorkerError

CARTPOLE = get("classic/cartpole")
SEEDS = [1, 2, 3]


def test_lanes_play_like_single_environments():
    pool = EnvPool(3, workers=2)
    begun = pool.run({lane: Start(CARTPOLE, seed) for lane, seed in enumerate(SEEDS)})
    envs = [CARTPOLE.make() for _ in SEEDS]
    for lane, (env, seed) in enumerate(zip(envs, SEEDS, strict=True)):
        started = begun[lane]
        assert isinstance(started, Started) and started.instruction == CARTPOLE.instruction
        np.testing.assert_array_equal(env.reset(seed=seed)[0], started.observation)
    for _ in range(3):
        results = pool.run({0: Act(1), 1: Act(0)})
        assert results.keys() == {0, 1}
        for lane, action in ((0, 1), (1, 0)):
            observation, reward, *_ = envs[lane].step(action)
            acted = results[lane]
            assert isinstance(acted, Acted) and acted.reward == reward
            np.testing.assert_array_equal(observation, acted.observation)
    pool.close()


def test_a_lane_takes_another_task():
    pool, other = EnvPool(1, workers=1), get("classic/pendulum")
    pool.run({0: Start(CARTPOLE, 1)})
    started = pool.run({0: Start(other, 5)})[0]
    assert isinstance(started, Started) and started.instruction == other.instruction
    np.testing.assert_array_equal(other.make().reset(seed=5)[0], started.observation)
    pool.close()


def test_a_failing_environment_is_named():
    pool = EnvPool(1, workers=1)
    pool.run({0: Start(CARTPOLE, 1)})
    with pytest.raises(WorkerError, match="classic/cartpole failed"):
        pool.run({0: Act("left")})
    pool._workers[0][0].kill()
    with pytest.raises(WorkerError, match="classic/cartpole died"):
        pool.run({0: Act(1)})
    pool.close()
