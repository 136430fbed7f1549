"""YAML files of settings: read without constructing objects, and refused where PyYAML would lose or multiply something."""

from typing import Any

import yaml

MOST_VALUES = 10_000
"""Of a file, with what its aliases repeat: a few lines of aliases of aliases can stand for billions."""


def load_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, names a key twice, asks for Python objects, or its aliases repeat too much.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and _values(root, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases repeat more than {MOST_VALUES:,} values: write them out")
        return yaml.safe_load(text)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; `known` has those of nodes that were met before, since aliases share them."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 1
    children = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} stands twice, of which one would be lost: remove or rename one")
        children = [child for pair in node.value for child in pair]
    known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]
