"""Parameters by path and as nests: `blocks/attention/qkv/kernel` ↔ {"blocks": {"attention": {"qkv": {"kernel": ...}}}}.

Everything here takes any leaves: arrays, shapes, shardings or counts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import traverse_util

TRUNK = re.compile(r"(blocks|lower|final_norm)/|time_table$|(tokens|output)/text$")
"""Paths of the parameters that a pretrained language model provides."""


_STACK, _LAYER = re.compile(r"(blocks|visual/gated)/(.+)"), re.compile(r"(blocks|visual/gated)/(\d+)/(.+)")


def path_string(path: tuple) -> str:
    """A tree path as `blocks/attention/qkv/kernel`."""
    # Dictionaries, dataclasses and lists name their keys differently in JAX.
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def flat(tree: Any, whole: type | None = None) -> dict[str, Any]:
    """A tree's leaves by their paths, in the order of JAX's flattening.

    Args:
        whole: a type of node that counts as a leaf.
    """
    # Not flax's flatten_dict, which takes dictionaries alone: optimizer states hold tuples and dataclasses too.
    leaves = jax.tree_util.tree_leaves_with_path(tree, lambda node: whole is not None and isinstance(node, whole))
    return {path_string(path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their paths as nested dictionaries, the form in which modules take parameters."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def layers_apart(path: str, array: Any) -> dict[str, Any]:
    """A stack's layers by their paths, as views: `blocks/out/kernel` → `blocks/0/out/kernel`, ...; any other array itself."""
    found = _STACK.fullmatch(path)
    if found is None:
        return {path: array}
    return {f"{found[1]}/{layer}/{found[2]}": of_layer for layer, of_layer in enumerate(array)}


def layers_together(paths: Iterable[str]) -> dict[str, list[str]]:
    """The path of each stack with those of its layers in order, the inverse of `layers_apart`; any other path with itself."""
    together: dict[str, list[tuple[int, str]]] = {}
    for path in paths:
        found = _LAYER.fullmatch(path)
        stack, layer = (path, 0) if found is None else (f"{found[1]}/{found[3]}", int(found[2]))
        together.setdefault(stack, []).append((layer, path))
    return {stack: [path for _, path in sorted(layers)] for stack, layers in together.items()}


def united(params: Any, others: Any) -> Any:
    """Two nests as one; `others` wins where both have a parameter."""
    if not (isinstance(params, dict) and isinstance(others, dict)):
        return others
    return params | {name: united(params.get(name, {}), value) for name, value in others.items()}
