"""The settings as `--help` shows them: those that all control suites share once, and not once per suite."""

import dataclasses
from typing import Annotated

import tyro

from generalist.config.run import Config
from generalist.data.source import Source
from generalist.data.sources.control import ControlSource

SHARED = tuple(dataclasses.fields(ControlSource))
"""The settings that every suite has."""


def shared_once(config: Config) -> Config:
    """The settings with one more section, `data.SUITE`, that stands for every suite. Only for `--help`: it is not a setting.

    The sections of the suites keep the settings that they alone have.
    """
    suites = {name: one for name, one in config.data.sources.items() if isinstance(one, ControlSource)}
    # tyro joins the lines of a docstring, except those that do not begin with a letter.
    described = "\n".join(f"- {name} {_described(one)}" for name, one in suites.items())
    doc = f"Settings of every control suite: put its name in place of SUITE. The suites, with their own defaults:\n{described}"
    section = type("Suite", (ControlSource,), {"__doc__": doc})()
    sources: dict[str, Source] = {"SUITE": section}
    sources |= {name: _without_shared(one) if name in suites else one for name, one in config.data.sources.items()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))


def _described(suite: ControlSource) -> str:
    """What a suite is, and its values that differ from the defaults of the common section."""
    values = [(field, getattr(suite, field.name)) for field in SHARED]
    differing = [f"{field.name.replace('_', '-')} {value}" for field, value in values if value != field.default]
    return f"({(type(suite).__doc__ or '').splitlines()[0].rstrip('.')}): {', '.join(differing)}"


def _without_shared(suite: Source) -> Source:
    """The same settings with those that all suites share hidden from tyro."""
    # tyro reads the type of each entry of the mixture. Of a subclass it finds the docstrings too, which a new class would lack.
    values = {field.name: getattr(suite, field.name) for field in dataclasses.fields(suite)}
    hidden = [
        (field.name, Annotated[field.type, tyro.conf.Suppress], dataclasses.field(default=values[field.name]))
        for field in SHARED
    ]
    kind = dataclasses.make_dataclass(
        type(suite).__name__,
        hidden,
        bases=(type(suite),),
        namespace={"__doc__": type(suite).__doc__},
        frozen=True,
        kw_only=True,
    )
    return kind(**values)
