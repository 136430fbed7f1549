"""Which data sets of recorded episodes an evaluation scores."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from generalist.config.presets import debug
from generalist.data.sources.recorded import Recorded
from generalist.eval.parts.recorded import RecordedActions


def test_a_data_set_of_one_episode_has_nothing_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "one").mkdir()
    values = np.arange(6, dtype=np.float32)[:, None]
    np.savez(tmp_path / "one" / "0.npz", **{"observation/state": values, "action": values})
    source = Recorded(path=str(tmp_path / "one"))
    config = dataclasses.replace(debug(), data=dataclasses.replace(debug().data, sources={"recorded": source}))
    assert RecordedActions().jobs(SimpleNamespace(config=config)) == []  # type: ignore[arg-type]  # needs no weights
