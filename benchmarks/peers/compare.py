"""Our speed beside the peers' at one backbone, in one table; nothing is fetched.

    python -m venv peers && peers/bin/pip install torch transformers
    python benchmarks/peers/compare.py --peers-python peers/bin/python

Both sides of a row run in processes of their own and take turns, so that other work on the machine slows both. A ratio is the
peer's time for a unit of work over ours, above 1 where ours is faster: the median of the rounds, with the least and the most.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from generalist.system.huge_pages import use_huge_pages

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    ours: str
    """The case of ours.py."""
    peer: str
    theirs: str
    """The case of theirs.py."""
    unit: str
    folder: str = ""
    """The model of theirs.py that is written to a folder for the case, and for our side alone unless `both` read it."""
    both: bool = False


ROWS = (
    Row("train, a token a number", "gato", "plain GPT", "gpt", "environment steps"),
    Row("train, a token a number", "gato", "NEKO's layout", "neko", "environment steps"),
    Row("train, observations embedded", "embedded", "JAT's layout", "jat", "environment steps"),
    Row("the same, parallel actions", "parallel", "JAT's layout", "jat", "environment steps"),
    Row("the same, our default of 256 bins", "parallel 256", "JAT's layout", "jat", "environment steps"),
    Row("train, images and text", "images", "IDEFICS", "idefics", "text tokens", folder="clip"),
    Row("act, number by number", "act gato", "NEKO's layout", "act neko", "environment steps"),
    Row("act, all numbers at once", "act", "JAT's layout", "act jat", "environment steps"),
    Row("the same, parallel actions", "act parallel", "JAT's layout", "act jat", "environment steps"),
    Row("act in 16 environments", "act 16", "JAT's layout, one by one", "act jat", "environment steps"),
    Row(
        "the same, parallel actions",
        "act parallel 16",
        "JAT's layout, one by one",
        "act jat",
        "environment steps",
    ),
    Row("write, GPT-2 small, 1 row", "write", "transformers", "write", "text tokens", folder="gpt2", both=True),
    Row("write, GPT-2 small, 8 rows", "write 8", "transformers", "write 8", "text tokens", folder="gpt2", both=True),
)
AT_LEAST = 1.0  # seconds that a turn lasts: short runs are repeated


class Side:
    """A worker that runs one case on request.

    Args:
        processor_time: whether turns are counted in the processors' seconds.
    """

    def __init__(self, python: str, *arguments: str, processor_time: bool = False):
        self._clock = int(processor_time)
        begun = time.perf_counter()
        # No `with`: it is open as long as the process. No pipe, which nobody would empty.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._command = [python, str(HERE / "worker.py"), *arguments]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.work = self._answer()
        self.first = time.perf_counter() - begun
        """Seconds from the start of the process to the end of its first run."""
        self._runs = max(1, round(AT_LEAST / self._run()[0]))

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it says nothing"])[-1]
            raise SystemExit(f"{' '.join(self._command)} ended early: {last}")
        return json.loads(line)

    def _run(self) -> tuple[float, float]:
        """Seconds of one run, and the processors' seconds."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def turn(self) -> float:
        """Seconds of a run, the mean of as many as make a turn, after one that does not count: on either side the first one
        after the other side's takes up to one and a half times as long, and a training does not take turns."""
        self._run()
        return sum(self._run()[self._clock] for _ in range(self._runs)) / self._runs

    def close(self) -> float:
        """The process's peak memory in MiB, once it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        memory = self._answer()
        self._process.wait()
        return memory


def measured(row: Row, python: str, rounds: int, processor_time: bool) -> str:
    """One line of the table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [folder] if row.folder else []
        if row.folder:
            made = (
                f"import sys; sys.path.insert(0, {str(HERE)!r}); import theirs; theirs.{row.folder}_folder({folder!r})"
            )
            subprocess.run([python, "-c", made], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Side(sys.executable, "ours", row.ours, *extra).close()  # leaves its compiled programs on disk
        ours = Side(sys.executable, "ours", row.ours, *extra, processor_time=processor_time)
        theirs = Side(python, "theirs", row.theirs, *(extra if row.both else []), processor_time=processor_time)
    times = np.array([[ours.turn(), theirs.turn()] for _ in range(rounds)])  # (rounds, 2) seconds
    rates = [side.work[row.unit] / np.median(times[:, at]) for at, side in enumerate((ours, theirs))]
    ratio = times[:, 1] / theirs.work[row.unit] / (times[:, 0] / ours.work[row.unit])
    return (
        f"| {row.what} | {row.peer} | **{np.median(ratio):.2f}** [{ratio.min():.2f}, {ratio.max():.2f}] "
        f"| {rates[0]:,.0f} | {rates[1]:,.0f} | {row.unit} | {ours.first:.1f} / {theirs.first:.1f} "
        f"| {ours.close():,.0f} / {theirs.close():,.0f} |"
    )


def main() -> None:
    """Measures the rows and prints them."""
    use_huge_pages()  # as train.py does; the processes of both sides inherit the setting
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processors' seconds, which other work on the machine lengthens less: with both sides on one core "
        "(taskset -c 0), since PyTorch's threads wait for one another busily",
    )
    cases = list(dict.fromkeys(row.ours for row in ROWS))
    parser.add_argument("--only", nargs="+", choices=cases, metavar="CASE", help=f"rows of these: {', '.join(cases)}")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    # Before anything is compiled.
    try:
        subprocess.run([arguments.peers_python, "-c", "import torch, transformers"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        parser.error(
            f"--peers-python {arguments.peers_python} cannot import torch and transformers: install both with its pip"
        )
    print("| what | peer | peer's time / ours | ours, per s | peer, per s | unit | first run, s | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for row in ROWS:
        if not arguments.only or row.ours in arguments.only:
            line = measured(row, arguments.peers_python, arguments.rounds, arguments.processor_time)
            print(line, flush=True)


if __name__ == "__main__":
    main()
