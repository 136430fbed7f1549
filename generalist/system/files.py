"""Files that are written completely or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is either complete or absent, even if the process is killed."""
    # The process's number keeps two writers apart; the name in the same folder keeps `replace` on one file system, so atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
