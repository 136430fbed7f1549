"""Shows mkdocstrings the folders that are linked into `generalist/`.

`tokenizers/`, `envs/` and `eval/` have no `__init__.py` (docs/architecture.md says why), and Griffe leaves such folders of a
package out. They are added as empty modules before it looks for what is in them.
"""

from typing import Any

from griffe import Extension, Module


class LinkedFolders(Extension):
    """Adds a module per linked folder to the package `generalist`."""

    def on_module_members(self, *, mod: Module, **kwargs: Any) -> None:
        """Griffe calls this when a module's own file is read, and its submodules are not yet."""
        if mod.path == "generalist":
            for folder in sorted(mod.filepath.parent.iterdir()):  # type: ignore[union-attr]
                if folder.is_symlink():
                    mod.set_member(folder.name, Module(folder.name, filepath=folder / "__init__.py", parent=mod))
