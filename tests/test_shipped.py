"""The weights that come with the package: whole, small, with a card, of no machine in particular, and they act."""

import json
import re

import numpy as np

from generalist.cli.main import main
from generalist.envs import registry
from generalist.envs.task import EVALUATION_SEED
from generalist.eval.control import agents
from generalist.inference.generalist import Generalist
from generalist.run import named_weights

LARGEST = 20e6  # bytes


def test_the_folder():
    folder = named_weights.shipped_weights()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("Scores", "Data", "licence", "Every task", "generalist eval control", "train.py"):
        assert word in card
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (settings["runs"], settings["data"]["folder"]) == ("runs", "data")
    assert not re.search(r"/(?:home|tmp|root|work)/", card + json.dumps(settings))


def test_they_act():
    generalist, cartpole = Generalist.load(), registry.get("classic/cartpole")
    episodes, _ = agents.play(
        generalist,
        agents.parse_agent("model"),
        [cartpole],
        2,
        agents.Demonstrations(generalist),
        workers=1,
        first_seed=EVALUATION_SEED,
    )
    mean = np.mean([episode.score for episode in episodes])
    assert mean > (cartpole.random_score + cartpole.expert_score) / 2


def test_every_command_takes_them(capsys):
    assert main(["prompt", "The", "--tokens", "3"]) == 0
    assert "weights of pocket_long" in capsys.readouterr().out
