"""Text to image from nothing: trains an image tokenizer, two pairs of towers and weights that draw, and evaluates them.

    python benchmarks/drawing.py [--scale 1] [--items 100] [--runs runs/drawing]

Takes hours on two cores at scale 1. Every stage is a command like those of docs/drawing.md; the same command again goes
on where this one stopped. The results are in results.json of the runs `codes` and `artist`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

STEPS = {"codes": 4000, "judge": 1500, "ranker": 1500, "artist": 9000}


def main() -> None:
    """Runs the stages in order; the first that fails ends the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps (default 1)")
    parser.add_argument("--items", type=int, default=100, help="names that are drawn per split (default 100)")
    parser.add_argument("--runs", type=Path, default=Path("runs/drawing"), help="folder of the runs")
    arguments = parser.parse_args()
    for name, words in stages(arguments.runs, arguments.items).items():
        steps = max(2, round(STEPS[name] * arguments.scale))
        command = ["train.py", *words, "--name", name, "--runs", str(arguments.runs), "--training.steps", str(steps)]
        print(" ".join(command), flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=Path(__file__).parent.parent)


def stages(runs: Path, items: int) -> dict[str, list[str]]:
    """The words of each stage's command, by the name of its run."""
    evaluation = {"items": items, "judge": runs / "judge", "towers": runs / "ranker"}
    return {
        "codes": ["image_tokenizer"],
        "judge": ["contrastive"],
        # Another seed and another loss: a judge that errs as the ranker does would praise its choices.
        "ranker": ["contrastive", "--loss", "clip", "--training.seed", "1"],
        "artist": [
            *("--tokens.image-tokenizer", str(runs / "codes" / "tokenizer")),
            *("--data.only", "drawing", "--data.drawing.weight", "1", "--data.rows", "16", "--data.length", "112"),
            *("--model.vision.encoder", "none", "--tokens.documents", "frame"),
            *(word for key, value in evaluation.items() for word in (f"--data.drawing.evaluation-{key}", str(value))),
        ],
    }


if __name__ == "__main__":
    main()
