"""Compares the ways in which images enter, on the same drawings, games and number of steps, in a Markdown table.

    python benchmarks/paths.py --steps 400 --data data --runs runs/paths

Every path is `train.py pocket` with a few settings. A path that is finished is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENCODER = "--model.vision.encoder efficientnet_lite0 --model.vision.size 96 --model.vision.hidden-factor 1 --model.vision.every 2"
BLIND = "--model.vision.encoder none"
# Patches need long rows: an Atari step has 36 of them.
LONG = "--data.rows 5 --data.length 384 --data.patches 1900"
PATHS = {
    "frame": f"--tokens.documents frame {BLIND}",
    "frame, documents frame+encoder": f"--tokens.documents frame+encoder {ENCODER} --data.images 72 --data.row-images 16",
    "encoder": f"--tokens.images encoder --tokens.documents encoder {ENCODER} --data.images 208 --data.row-images 64",
    "frame, documents projected": f"--tokens.documents projected {ENCODER} --model.vision.positions 9 --data.images 72 "
    "--data.row-images 16",
    "patches": f"--tokens.images patches --tokens.documents patches {LONG} {BLIND}",
    "patches+encoder": f"--tokens.images patches+encoder --tokens.documents patches+encoder {LONG} {ENCODER} --data.images 128 "
    "--data.row-images 32",
}
ONLY = "--data.only atari emoji --data.emoji.weight 0.5 --data.atari.weight 0.5"


def main() -> None:
    """Trains and evaluates every way and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recordings")
    parser.add_argument("--runs", type=Path, default=Path("runs/paths"))
    parser.add_argument("--only", nargs="+", choices=PATHS, default=list(PATHS), metavar="PATH", help="all by default")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        settings = PATHS[name]
        run = name.replace(", ", "-").replace(" ", "-")
        where = (
            f"--name {run} --runs {arguments.runs} --data.folder {arguments.data} --training.steps {arguments.steps}"
        )
        command = [sys.executable, "train.py", "pocket", *where.split(), *ONLY.split(), *settings.split()]
        print(" ".join(command[1:]), flush=True)
        if not (arguments.runs / run / "results.json").exists():
            subprocess.run(command, cwd=ROOT, check=True)
        rows.append((name, *figures(arguments.runs / run)))
    headers = ["path", "drawings %", "wrong image %", "no image %", "never named %"]
    headers += ["caption gain over wrong, nats", "over none, nats", "atari %", "ms a step", "tokens a step"]
    print("\n| " + " | ".join(headers) + " |\n|" + "---|" * len(headers))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def figures(folder: Path) -> list[str]:
    """One row of the table."""
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    settled = lines[len(lines) // 2 :]
    seconds = sorted(line["step_seconds"] for line in settled)[len(settled) // 2]
    tokens = sum(line["tokens_per_second"] * line["step_seconds"] for line in settled) / len(settled)
    naming, atari = results["naming"], results["control"]["atari"]

    def interval(estimate: dict[str, Any]) -> str:
        return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"

    return [
        interval(naming["drawings"]["accuracy"]),
        interval(naming["drawings"]["blind_accuracy"]),
        interval(naming["drawings"]["imageless_accuracy"]),
        interval(naming["names"]["accuracy"]),
        interval(naming["drawings"]["caption_gain_over_wrong"]),
        interval(naming["drawings"]["caption_gain_over_none"]),
        interval(atari["percent"]),
        f"{1000 * seconds:.0f}",
        f"{tokens:.0f}",
    ]


if __name__ == "__main__":
    main()
