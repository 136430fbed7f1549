"""`train.py --help`: what all suites have in common is shown once, and still is a setting of each."""

import dataclasses
import re

import pytest

from generalist.config.presets import preset
from generalist.data.sources.control import ControlSource
from generalist.experiment.inherit import parse

SHARED = [field.name.replace("_", "-") for field in dataclasses.fields(ControlSource)]
SUITES = [name for name, one in preset("pocket").data.sources.items() if isinstance(one, ControlSource)]


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        parse(preset("pocket"), ["--help"], prog="train.py pocket")
    return capsys.readouterr().out


def test_an_option_of_all_suites_is_shown_once(capsys: pytest.CaptureFixture[str]):
    text = shown(capsys)
    assert {"metaworld", "babyai", "atari", "classic", "fetch", "own"} <= set(SUITES) and len(SHARED) > 10
    for option in SHARED:
        found = re.findall(rf"--data\.({'|'.join(('SUITE', *SUITES))})\.{option}\b", text)
        assert found == ["SUITE"], option


def test_the_help_names_every_suite_with_its_own_defaults_and_options(capsys: pytest.CaptureFixture[str]):
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", shown(capsys)).split())
    for suite in SUITES:
        assert f"- {suite} (" in text
    assert (
        "- babyai (BabyAI: instructions in a grid world): weight 0.25, episodes 150, steps 32, temperature 0.3" in text
    )
    assert "--data.own.demonstrations" in text and "Folders that `record_demonstrations` wrote" in text
    assert "--data.emoji.weight" in text and "--data.prose.weight" in text


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_takes_the_common_options(suite: str):
    given = [f"--data.{suite}.weight", "0.5", f"--data.{suite}.prompt-steps", "3"]
    source = parse(preset("pocket"), given, prog="train.py pocket").data.sources[suite]
    assert source == dataclasses.replace(preset("pocket").data.sources[suite], weight=0.5, prompt_steps=3)


def test_the_common_section_is_no_setting(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        parse(preset("pocket"), ["--data.SUITE.weight", "0.5"], prog="train.py pocket")
    assert "--data.SUITE.weight" in capsys.readouterr().err
