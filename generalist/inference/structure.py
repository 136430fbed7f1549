"""A model without its parameters, and functions that are compiled for it, on one device or on a mesh."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from generalist.system.memory import release_freed

Result = TypeVar("Result")


class Structure:
    """A model without its parameters, as a static argument of compiled functions.

    Args:
        graph: the model.
        mesh: the devices that its parameters are split over; None: one device.
        dtype: in which is computed.
    """

    def __init__(self, graph: nnx.GraphDef, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32):
        self.mesh, self.dtype = mesh, dtype
        # Every call of a compiled function asks for the hash. A graph computes its own each time, in a third of a millisecond.
        self._graph, self._hash = graph, hash((graph, mesh, jnp.dtype(dtype)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and (self._graph, self.mesh, self.dtype) == (
            other._graph,
            other.mesh,
            other.dtype,
        )

    def model(self, params: Any) -> Any:
        """The model with these parameters."""
        return nnx.merge(self._graph, params)

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Within it the mesh is the one that constraints of activations mean (`generalist.model.constrain`)."""
        # Compiled functions call one another: JAX takes a mesh only outside of them, and within it is already set.
        if self.mesh is None or jax.sharding.get_abstract_mesh() == self.mesh.abstract_mesh:
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh)


class Compiled(Generic[Result]):
    """A compiled function whose first argument is a `Structure`: it runs on the structure's mesh."""

    def __init__(self, function: Callable[..., Result], settings: dict[str, Any]):
        self._jitted: Any = jax.jit(function, **settings)
        functools.update_wrapper(self, function)

    def __call__(self, structure: Structure, *arguments: Any, **named: Any) -> Result:
        before = self.programs
        with structure.on_mesh():
            result = self._jitted(structure, *arguments, **named)
        if self.programs > before:
            release_freed()
        return result

    def lower(self, structure: Structure, *arguments: Any, **named: Any) -> Any:
        """The program for these arguments or shapes, as `jax.jit` lowers it."""
        with structure.on_mesh():
            return self._jitted.lower(structure, *arguments, **named)

    @property
    def programs(self) -> int:
        """Number of programs that were compiled so far, one per set of shapes."""
        return self._jitted._cache_size()


def compiled(**settings: Any) -> Callable[[Callable[..., Result]], Compiled[Result]]:
    """`jax.jit` with these settings, of a function whose first argument is a `Structure`."""
    return lambda function: Compiled(function, settings)
