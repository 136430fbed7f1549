"""The command as a process, on a mesh of two simulated devices: killed under load and started again, it answers as before."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import asked

from generalist.inference.generalist import Generalist

FOLDER = Path(__file__).parent.parent / "fixtures" / "language" / "mistral"
CHAT = "/v1/chat/completions"
PLACES = ("--mesh", "tensor=2", "--weights-type", "int8", "--cache-type", "bfloat16")


@contextlib.contextmanager
def served(cache: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A server as a process, its port, and what it said when it was ready."""
    hidden = ("JAX_COMPILATION", "JAX_PERSISTENT", "JAX_ENABLE_COMPILATION")  # the tests' own cache
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "GENERALIST_CACHE": str(cache),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "generalist", "serve", "--weights", str(FOLDER), "--port", "0", "--lanes", "2"]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready in"):
                break
        else:
            raise AssertionError("".join(lines))
        yield process, int(line.rsplit(":", 1)[1]), line
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def body(number: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"a photo of the red dog {number}"}]
    return {"model": "mistral", "messages": messages, "temperature": 0, "max_tokens": 8}


@pytest.mark.slow
def test_killed_under_load_it_starts_again_and_answers_as_before(tmp_path: Path) -> None:
    with served(tmp_path, *PLACES) as (process, port, line):
        assert re.match(r"ready in [\d.]+ s, \d+ programs, 0 of them from the cache, 2 lanes: http://127", line), line
        before = [asked(port, CHAT, body(number)) for number in range(3)]
        assert [status for status, _ in before] == [200] * 3
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            cut_off = [pool.submit(asked, port, CHAT, body(number) | {"max_tokens": 90}) for number in range(8)]
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
            concurrent.futures.wait(cut_off)
    # Killed while it wrote a program: half of it is there, and no note of its use.
    (folder,) = (tmp_path / "compiled").iterdir()
    torn = max(folder.glob("*-cache"), key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    torn.with_name(torn.name.removesuffix("-cache") + "-atime").unlink()
    with served(tmp_path, *PLACES) as (_, port, line):
        programs, found = (int(one) for one in re.findall(r"(\d+) (?:programs|of them)", line))
        assert found == programs - 1 > 5, "all but the torn one, which is compiled and kept again"
        assert torn.with_name(torn.name.removesuffix("-cache") + "-atime").exists()
        after = [asked(port, CHAT, body(number)) for number in range(3)]
    assert [found["choices"] for _, found in after] == [found["choices"] for _, found in before]
    alone = Generalist.load(FOLDER, weights_type="int8", cache_type="bfloat16")
    texts = [found["choices"][0]["message"]["content"] for _, found in after]
    assert texts == [alone.prompt([f"a photo of the red dog {number}"], tokens=8) for number in range(3)]
