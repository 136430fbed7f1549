"""A results file as the evaluation writes it, made from given scores: what the tests of reading, comparing and showing use."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flax import nnx

from generalist.config.presets import debug
from generalist.envs.suites.babyai import BabyAIEnv
from generalist.eval.results.manifest import manifest
from generalist.eval.results.scores import bootstrap, domain, percent, proportion
from generalist.inference.generalist import Generalist
from generalist.model.transformer import create
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer


def _task_summary(scores: Sequence[float], *, random: float = 0.0, expert: float = 1.0, seed: int = 1_000_000) -> dict:
    """A task's part of the file; every episode has 10 of 200 steps."""
    scaled = np.array([percent(score, random, expert) for score in scores])
    return {
        "percent": dataclasses.asdict(bootstrap([scaled])),
        "score": float(np.mean(scores)),
        "random_score": random,
        "expert_score": expert,
        "human_score": None,
        "max_steps": 200,
        "cut_off": 0,
        "episodes": [{"seed": seed + i, "score": float(score), "steps": 10} for i, score in enumerate(scores)],
    }


def _suite_summary(tasks: Mapping[str, dict]) -> dict[str, Any]:
    """A domain's part of the file."""
    scaled = [
        np.array([percent(one["score"], task["random_score"], task["expert_score"]) for one in task["episodes"]])
        for task in tasks.values()
    ]
    episodes = sum(len(task["episodes"]) for task in tasks.values())
    return domain(scaled) | {"tasks": dict(tasks), "episodes": episodes, "cut_off": 0}


Weights = Callable[[int], Generalist]


@pytest.fixture(scope="session")
def weights() -> Weights:
    """Makes tiny random weights that know the layout of BabyAI: `weights(seed)`."""
    config = debug()
    text = TextTokenizer.train(["go to the red ball", "pick up the blue key"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    observation = SpaceTokenizer.from_space(
        BabyAIEnv.observation_space, tensors="projected", images="frame", **settings
    )
    layout = TaskLayout("babyai", observation, SpaceTokenizer.from_space(BabyAIEnv.action_space, **settings))
    tokenizers = Tokenizers(
        config=config, text=text, layouts={"babyai": layout}, projection_width=49 * (11 + 6 + 3) + 4
    )

    def make(seed: int) -> Generalist:
        graph, params = nnx.split(create(tokenizers.model_spec(), seed), nnx.Param)
        return Generalist(tokenizers, graph, nnx.to_pure_dict(params), step=7)

    return make


Results = Callable[..., dict[str, Any]]


@pytest.fixture
def results() -> Results:
    """Makes a results file: `results({"suite/task": [scores of its episodes]}, weights="other")`."""
    return _results


def _results(scores: Mapping[str, Sequence[float]], **changed: Any) -> dict[str, Any]:
    """All of it, from each task's scores between 0 (random) and 1 (expert)."""
    suites: dict[str, dict[str, dict]] = {}
    for name, several in scores.items():
        suites.setdefault(name.split("/")[0], {})[name] = _task_summary(several)
    found = manifest(
        ["train.py", "debug"], {"name": "debug"}, 20, {"evaluation": 1_000_000}, "cpu:0", weights="ab" * 32
    )
    answers = [{"code": "1f600", "thing": "cat", "answer": answer} for answer in ("cat", "cat", "dog")]
    interval = {"value": 6.0, "low": 5.0, "high": 7.0}
    naming = {"accuracy": dataclasses.asdict(proportion(2, 3)), "answers": answers, "items": 3, "chance": 10.0}
    for name in ("blind_accuracy", "imageless_accuracy", "caption_gain_over_wrong", "caption_gain_over_none"):
        naming[name] = interval
    text = dict.fromkeys(("perplexity", "unigram_perplexity", "bits_per_byte", "unigram_bits_per_byte"), interval)
    return (
        found
        | {
            "control": {suite: _suite_summary(tasks) for suite, tasks in suites.items()},
            "naming": {"drawings": naming},
            "language": {"prose": text | {"tokens": 1000}},
            "failed": {},
        }
        | changed
    )
