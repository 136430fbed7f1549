"""The compiler's options for a training step on a TPU."""

import pytest

from generalist.system import tpu_options
from generalist.system.tpu_options import OPTIONS, step_options


def test_a_tpu_gets_the_options_and_others_do_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert step_options("tpu") == dict.fromkeys(OPTIONS, "true")
    assert step_options("cpu") is None and step_options("gpu") is None


def test_the_user_s_own_options_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false --xla_tpu_other=1")
    given = step_options("tpu")
    assert given is not None and set(OPTIONS) - set(given) == {"xla_enable_async_all_gather"}


def test_the_options_are_switched_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(tpu_options.VARIABLE, "off")
    assert step_options("tpu") is None
    monkeypatch.setenv(tpu_options.VARIABLE, "no")
    with pytest.raises(ValueError, match="GENERALIST_TPU_OPTIONS must be on or off, got 'no'"):
        step_options("tpu")
