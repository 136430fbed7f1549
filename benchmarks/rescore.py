"""Recomputes the percents of results files with today's reference scores; the episodes' scores are unchanged.

    python benchmarks/rescore.py generalist/shipped/scores.json

Prints the domains that move.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generalist.envs.registry import get
from generalist.eval.control.lanes import Episode, summarize
from generalist.eval.results import file as report
from generalist.eval.results.scores import Estimate


def rescored(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's summary with today's reference scores."""
    listed = [get(name) for name in summary["tasks"]]
    played = [
        Episode(**one, task=task.name, cut_off=one["steps"] >= task.max_steps)
        for task in listed
        for one in summary["tasks"][task.name]["episodes"]
    ]
    return summarize(listed, played, summary.get("clipped"))


def main() -> None:
    """Rewrites each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    for path in parser.parse_args().results:
        results = report.load(path)
        for agent, control in ((results["agent"], results["control"]), *results["policies"].items()):
            for suite, before in control.items():
                control[suite] = rescored(before)
                percents = [str(Estimate(**one["percent"])) for one in (before, control[suite])]
                print(f"{path}: {agent}, {suite}: {' to '.join(dict.fromkeys(percents))}")
        report.save(path, results)  # with a new digest: the old one is of the scores before


if __name__ == "__main__":
    main()
