"""Settings of earlier versions under today's names, with invented renames; and files of newer ones, which are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from generalist.config import versions
from generalist.config.plain import plain
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.config.versions import FORMAT, from_stored, renamed, to_stored, upgraded
from generalist.system.versions import FormatError, stored_format
from generalist.tokenizers.acting import Acting

FILE = Path("runs/a/config.json")


def test_what_is_stored_comes_back():
    assert from_stored(Config, to_stored(debug()), FILE) == debug()
    assert to_stored(debug())["format"] == FORMAT


def test_settings_that_an_earlier_version_lacked_have_their_defaults():
    stored = plain(debug())
    del stored["training"]["z_loss"], stored["cluster"]
    assert from_stored(Config, stored, FILE) == debug()


def test_settings_from_before_actions_could_be_parallel_mean_sequential_ones():
    base = debug()
    now = dataclasses.replace(base, tokens=dataclasses.replace(base.tokens, actions="parallel"))
    assert from_stored(Config, to_stored(now), FILE).tokens.actions == "parallel"
    stored = plain(now)
    del stored["tokens"]["actions"], stored["data"]["actions"]
    assert from_stored(Config, stored, FILE).tokens.actions == "sequential"
    described = Acting(hide_actions=False, parallel=True).to_json()
    assert Acting.from_json(described).parallel
    del described["parallel"]
    assert Acting.from_json(described) == Acting(hide_actions=False, parallel=False)
    with pytest.raises(ValueError, match=r"acting\.parallel must be of type bool, got 1"):
        Acting.from_json(described | {"parallel": 1})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            {"data.own": "data.sources.own"},
            {"data": {"rows": 2, "sources": {"own": {"weight": 1, "steps": 8}}}, "name": "a"},
        ),
        ({"data": "mixture"}, {"mixture": {"rows": 2, "own": {"weight": 1, "steps": 8}}, "name": "a"}),
        ({"data.own.steps": "window"}, {"data": {"rows": 2, "own": {"weight": 1}}, "name": "a", "window": 8}),
        # Both are taken out before one is put back.
        (
            {"data.own.weight": "data.own.steps", "data.own.steps": "data.own.weight"},
            {"data": {"rows": 2, "own": {"weight": 8, "steps": 1}}, "name": "a"},
        ),
        (
            {"data.atari": "x", "name.first": "y", "none.of.these": "z"},
            {"data": {"rows": 2, "own": {"weight": 1, "steps": 8}}, "name": "a"},
        ),
    ],
)
def test_settings_and_whole_sections_move(names: dict[str, str], expected: dict[str, Any]):
    settings = {"data": {"rows": 2, "own": {"weight": 1, "steps": 8}}, "name": "a"}
    assert renamed(settings, names) == expected
    assert settings == {"data": {"rows": 2, "own": {"weight": 1, "steps": 8}}, "name": "a"}


def test_the_moves_of_every_format_in_between_are_made_in_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions, "FORMAT", 4)
    monkeypatch.setattr(versions, "RENAMED", {1: {"rate": "training.rate"}, 3: {"training": "optimizer"}})
    assert upgraded({"rate": 1}, FILE) == {"optimizer": {"rate": 1}}
    assert upgraded({"format": 2, "rate": 1, "training": {}}, FILE) == {"rate": 1, "optimizer": {}}
    assert upgraded({"format": 4, "training": {"rate": 1}}, FILE) == {"training": {"rate": 1}}


def test_a_renamed_setting_of_a_run_is_read(monkeypatch: pytest.MonkeyPatch):
    """As if `training.peak` had become `training.learning_rate`, and `speech` `data.prose`, after format 1."""
    stored = plain(debug())
    stored["training"]["peak"] = stored["training"].pop("learning_rate") * 2
    stored["speech"] = stored["data"].pop("prose") | {"megabytes": 7.0}
    with pytest.raises(ValueError, match=r"runs/a/config\.json: unknown setting speech"):
        from_stored(Config, stored, FILE)
    moves = {"training.peak": "training.learning_rate", "speech": "data.prose"}
    monkeypatch.setattr(versions, "RENAMED", {1: moves})
    config = from_stored(Config, stored, FILE)
    assert (
        config.training.learning_rate == 2 * debug().training.learning_rate
        and config.data.sources["prose"].megabytes == 7
    )


def test_every_move_in_the_table_leads_to_a_setting_of_today():
    today = to_stored(debug())
    for number, names in versions.RENAMED.items():
        assert 1 <= number < FORMAT
        for new in names.values():
            place: Any = today
            for section in new.split("."):
                assert section in place, new
                place = place[section]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"global_every": 3, "window": 5}, {"layer_kinds": ["window", "window", "full"], "window": 5}),
        ({"global_every": 3, "window": 0}, {"window": 0}),  # without windows the number had no effect
        ({"global_every": 1}, {}),
        ({"global_every": "two"}, {"global_every": "two"}),  # for the check of the settings, which refuses it
    ],
)
def test_layers_without_a_window_became_kinds_of_layers(before: dict, now: dict):
    assert upgraded({"format": 2, "model": before}, FILE) == {"model": now}


def test_a_newer_format_is_refused_with_the_remedy():
    with pytest.raises(
        FormatError, match=rf"config\.json has format {FORMAT + 1}, but .* up to {FORMAT}: update the package"
    ):
        from_stored(Config, to_stored(debug()) | {"format": FORMAT + 1}, FILE)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2", None])
def test_what_is_no_format_is_refused(number: Any):
    with pytest.raises(FormatError, match="is no format number"):
        stored_format({"format": number}, FORMAT, FILE)


def test_without_a_number_it_is_the_first():
    assert stored_format({}, FORMAT, FILE) == stored_format([], FORMAT, FILE) == 1
