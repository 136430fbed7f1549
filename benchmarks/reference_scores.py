"""Measures the scores of a random policy and of the expert in every task, and writes `envs/reference_scores.json`.

    python benchmarks/reference_scores.py --tasks 'atari/*' --episodes 10
    python benchmarks/reference_scores.py --table      # only writes the tables of docs/tasks.md

The measure is evaluation's: the same cut-off after `max_steps`, the same score of an episode; no action noise. The seeds are
neither those of recording nor those of evaluation. Tasks that are not asked for keep their rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.progress import track

from generalist.envs.reference import Job, play, with_tables
from generalist.envs.registry import get, tasks
from generalist.system.processes import cores, run_jobs

ROOT = Path(__file__).parent.parent
PATH, DOCS = ROOT / "envs" / "reference_scores.json", ROOT / "docs" / "tasks.md"
EPISODES = 20
COLUMNS = ("random", "expert", "episodes", "max_steps")


def main() -> None:
    """Runs the measurements and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="*", help="shell pattern of the tasks' names")
    parser.add_argument(
        "--episodes", type=int, help=f"episodes per task and policy (default: as in the file, else {EPISODES})"
    )
    parser.add_argument("--workers", type=int, default=cores(), help="number of processes")
    parser.add_argument("--only", choices=("random", "expert"), help="measure only one of the two policies")
    parser.add_argument("--table", action="store_true", help="measure nothing: write the tables of docs/tasks.md")
    arguments = parser.parse_args()
    if arguments.table:
        DOCS.write_text(with_tables(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
        return
    rows = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    policies = {"random": (False,), "expert": (True,)}.get(arguments.only, (False, True))
    jobs = [
        Job(task.name, expert, arguments.episodes or rows.get(task.name, {}).get("episodes", EPISODES))
        for task in tasks(arguments.tasks)
        for expert in policies
    ]
    for job, scores in track(run_jobs(play, jobs, workers=arguments.workers), total=len(jobs), description="playing"):
        row = rows.setdefault(job.task, {})
        row |= {"expert" if job.expert else "random": round(float(np.mean(scores)), 4)}
        row |= {"episodes": job.episodes, "max_steps": get(job.task).max_steps}
        print(f"{job}: mean {np.mean(scores):.2f}, from {min(scores):.2f} to {max(scores):.2f}", flush=True)
        PATH.write_text(lines(rows), encoding="utf-8")


def lines(rows: dict[str, dict[str, float]]) -> str:
    """One row per line, sorted, so that changes to different tasks can be merged."""
    ordered = {name: {key: rows[name][key] for key in COLUMNS if key in rows[name]} for name in sorted(rows)}
    return "{\n" + ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in ordered.items()) + "\n}\n"


if __name__ == "__main__":
    main()
