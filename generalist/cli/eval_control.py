"""`generalist eval control` scores agents on any tasks; `generalist eval again` checks that its results can be repeated."""

import argparse
import dataclasses
import fnmatch
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from generalist.cli.weights import PLACING, add_placing, add_weights, load_weights, placing_of
from generalist.config.plain import plain
from generalist.envs.registry import tasks
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.results.words import counted
from generalist.run.tasks import is_own, own_tasks
from generalist.system.places import check_new_file
from generalist.system.processes import cores

if TYPE_CHECKING:
    from generalist.eval.control.agents import Agent
    from generalist.inference.generalist import Generalist

EPISODES = 20


def add_played(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for the weights, the tasks that they play, and the number of processes."""
    add_weights(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="such as 'atari/*' babyai/GoTo; default: all that the weights know",
    )
    parser.add_argument("--episodes", type=int, default=EPISODES, help=f"episodes per task (default {EPISODES})")
    parser.add_argument(
        "--workers", type=int, default=cores(), help="processes that run environments (default: one per core)"
    )


def add_control(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist eval control`."""
    add_played(parser)
    add_placing(parser)
    parser.add_argument(
        "--agents",
        nargs="+",
        default=["model"],
        metavar="AGENT",
        help="model (the default); the model after a prompt: goal (the end of a demonstration), whole (a whole one), or a "
        "number of demonstrations; nearest: the nearest neighbour among all demonstrations",
    )
    parser.add_argument("--out", type=Path, default=Path("control.json"), help="results file (default control.json)")
    parser.add_argument(
        "--data", type=Path, help="folder of the recordings that demonstrations come from (default: the run's)"
    )
    parser.add_argument("--lanes", type=int, default=64, help="maximum number of environments at once (default 64)")
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        help=f"seed of a task's first episode (default {EVALUATION_SEED:,})",
    )


def control(arguments: argparse.Namespace, console: Console) -> int:
    """Plays, writes the results file and shows it; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: the results file exists, or can't be written.
        ValueError: a pattern matches no task that the weights know, an agent is unknown, or a number is too small.
    """
    from generalist.eval.control.agents import parse_agent
    from generalist.eval.results import file as report

    check_new_file(arguments.out, "--out")  # before hours of playing
    for name in ("episodes", "workers", "lanes"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.seed < EVALUATION_SEED:
        console.print(
            f"note: recordings use seeds below {EVALUATION_SEED:,}, so the weights may have been trained on these episodes",
            style="yellow",
            highlight=False,
        )
    agents = list(dict.fromkeys(parse_agent(text) for text in arguments.agents))  # each once, in the given order
    generalist = load_weights(arguments, console)
    # What decides the results, and so what `again` repeats. Workers are not among it.
    asked = {
        "tasks": [task.name for task in known_tasks(generalist, arguments.tasks)],
        "episodes": arguments.episodes,
        "agents": list(dict.fromkeys(arguments.agents)),
        "lanes": arguments.lanes,
        "seed": arguments.seed,
    }
    source = {
        "runs": str(arguments.runs) if arguments.run is not None else None,
        "run": arguments.run,
        "weights": str(arguments.weights) if arguments.weights is not None else None,
        "data": str(arguments.data) if arguments.data is not None else None,
        **({"adapter": str(arguments.adapter)} if arguments.adapter is not None else {}),
        **placing_of(arguments),
    }
    results = evaluate(generalist, agents, asked, source, arguments.workers, console)
    report.save(arguments.out, results)
    report.show(results, console)
    show_agents(results, console)
    console.print(f"all results, with the manifest: {arguments.out}", highlight=False, soft_wrap=True)
    return 0


def known_tasks(generalist: "Generalist", patterns: Sequence[str]) -> list[Task]:
    """The tasks that match a pattern and whose layouts the weights know.

    Raises:
        ValueError: there are none, or a pattern matches no task at all.
    """
    own = own_tasks(generalist.config) if _asks_for_own(generalist, patterns) else []
    mine = [task for task in own if any(fnmatch.fnmatch(task.name, one) for one in patterns)]
    rest = [one for one in patterns if one == "*" or not any(fnmatch.fnmatch(task.name, one) for task in own)]
    matching = [*(tasks(rest) if rest else []), *mine]
    known = [task for task in matching if task.layout in generalist.layouts]
    if not known:
        raise ValueError(
            f"the weights know none of {', '.join(task.name for task in matching[:5])}: they act in "
            f"{', '.join(sorted(generalist.layouts)) or 'nothing'}"
        )
    return known


def _asks_for_own(generalist: "Generalist", patterns: Sequence[str]) -> bool:
    """Whether a pattern means a user's own tasks that the weights know; only then must their episodes be there."""
    return any(fnmatch.fnmatch(layout, one) for one in patterns for layout in generalist.layouts if is_own(layout))


def evaluate(
    generalist: "Generalist",
    agents: Sequence["Agent"],
    asked: Mapping[str, Any],
    source: Mapping[str, str | None],
    workers: int,
    console: Console,
) -> dict[str, Any]:
    """Plays all agents.

    Args:
        asked: tasks, episodes, agents, lanes and seed, which decide the results.
        source: the places of the weights and of the demonstrations, and how the weights are held.
        workers: processes of environments; no result depends on their number.

    Returns:
        The contents of the results file, with the first agent as `control` and the others as `policies`.
    """
    import jax

    from generalist.eval.control.agents import Demonstrations, play
    from generalist.eval.control.lanes import summarize
    from generalist.eval.results.manifest import manifest
    from generalist.inference.fingerprint import fingerprint
    from generalist.system.progress import counting

    started = time.monotonic()
    config = generalist.config
    if source["data"] is not None:
        # Only where recordings are looked for changes; which tasks and layouts there are is a matter of the weights.
        data = dataclasses.replace(config.data, folder=Path(source["data"]))
        generalist = generalist.with_config(dataclasses.replace(config, data=data))
    played_tasks = known_tasks(generalist, asked["tasks"])
    suite_of = {task.name: task.suite for task in played_tasks}
    demonstrations, stop = Demonstrations(generalist), threading.Event()
    # Recorded now if they are missing, so that no agent has to wait for them between two others.
    if any(agent.needs_demonstrations for agent in agents):
        demonstrations.ensure(played_tasks, workers, console)
    policies: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for agent in agents:
        if stop.is_set():
            break
        console.print(
            f"{agent.name}: {counted(len(played_tasks), 'task')}, {counted(asked['episodes'], 'episode')} each",
            highlight=False,
        )
        with stopping(stop, console), counting(console, transient=True, disable=not console.is_terminal) as progress:
            episodes, notes[agent.name] = play(
                generalist,
                agent,
                played_tasks,
                asked["episodes"],
                demonstrations,
                workers=workers,
                lanes=asked["lanes"],
                first_seed=asked["seed"],
                progress=progress,
                stop=stop,
            )
        suites = dict.fromkeys(task.suite for task in played_tasks)
        by_suite = {suite: [task for task in played_tasks if task.suite == suite] for suite in suites}
        clipped = notes[agent.name].pop("clipped")
        # Stopped early, a suite may have no episode at all, and no mean.
        mine = {one.task for one in episodes}
        policies[agent.name] = {
            suite: summarize(several, [one for one in episodes if suite_of[one.task] == suite], clipped)
            for suite, several in by_suite.items()
            if any(task.name in mine for task in several)
        }
    seeds = {"evaluation": asked["seed"]}
    device, weights = str(jax.devices()[0]), fingerprint(generalist)
    seconds = time.monotonic() - started
    command = _command(asked, source)
    results = manifest(command, plain(generalist.config), generalist.step, seeds, device, weights, seconds)
    main = agents[0].name
    return results | {
        "agent": main,
        "asked": dict(asked),
        "source": dict(source),
        "control": policies.pop(main),
        "policies": policies,
        "notes": notes,
        "stopped": stop.is_set(),
        "failed": {},
    }


def _command(asked: Mapping[str, Any], source: Mapping[str, str | None]) -> list[str]:
    """The command line that gives the same results, for the manifest; arguments as in `evaluate`."""
    # Patterns of tasks are written out, since a later version may have more tasks that match them.
    several = {"--tasks": asked["tasks"], "--agents": asked["agents"]}
    given = {"--episodes": asked["episodes"], "--lanes": asked["lanes"], "--seed": asked["seed"]} | {
        f"--{name.replace('_', '-')}": value for name, value in source.items() if value is not None
    }
    command = ["generalist", "eval", "control", *(word for name, words in several.items() for word in (name, *words))]
    return command + [str(word) for pair in given.items() for word in pair]


@contextmanager
def stopping(stop: threading.Event, console: Console) -> Iterator[None]:
    """Within it, the first Ctrl-C sets `stop`, and the second one raises KeyboardInterrupt."""

    def request(signum: int, frame: FrameType | None) -> None:
        # Episodes that have begun are finished: leaving out those that take longest would bias the scores.
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("\nstopping after the episodes that have begun (Ctrl-C again: at once, and nothing is kept)")

    before = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def every_agent(results: Mapping[str, Any]) -> dict[str, Any]:
    """The summaries in a results file: agent → suite → summary."""
    return {results["agent"]: results["control"]} | results["policies"]


def show_agents(results: Mapping[str, Any], console: Console) -> None:
    """Prints a table with one row per suite and one column per agent, and what limits the results."""
    from generalist.eval.results.scores import Estimate

    agents = every_agent(results)
    if len(agents) > 1:
        table = Table("", *agents, title="percent of expert by agent, with 95% intervals", title_justify="left")
        for suite in results["control"]:
            rows = (of.get(suite) for of in agents.values())
            table.add_row(suite, *("" if one is None else str(Estimate(**one["percent"])) for one in rows))
        console.print(table)
    for name, note in results["notes"].items():
        if note["cut_demonstrations"]:
            line = f"{name}: {note['cut_demonstrations']} demonstrations were too long, and were shown without their beginning"
            console.print(line, highlight=False)
    if results["stopped"]:
        console.print("stopped early: some tasks have fewer episodes, or none", style="yellow")


def add_again(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist eval again`."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a file that `generalist eval control` wrote")
    parser.add_argument(
        "--workers", type=int, default=cores(), help="processes that run environments (default: one per core)"
    )


def again(arguments: argparse.Namespace, console: Console) -> int:
    """Repeats the evaluation of a results file with the same weights and compares every episode; exit status 1 if any differs.

    Raises:
        ValueError: the file was edited, is of other weights, was not written by `generalist eval control`, or is of an
            evaluation that was stopped.
    """
    from generalist.eval.control.agents import parse_agent
    from generalist.eval.results import file as report
    from generalist.eval.results.manifest import manifest

    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    stored = report.load(arguments.results)
    if "asked" not in stored:
        raise ValueError(
            f"{arguments.results} was not written by `generalist eval control`: repeat the command that wrote it"
        )
    if stored["stopped"]:
        raise ValueError(
            f"{arguments.results} is of an evaluation that was interrupted, at a point that cannot be repeated: evaluate again"
        )
    # The weights are named as in the first command, so they must still be in their place; their fingerprint is compared.
    source = stored["source"]
    where = argparse.Namespace(
        weights=source["weights"],
        run=source["run"],
        runs=None if source["runs"] is None else Path(source["runs"]),
        adapter=None if source.get("adapter") is None else Path(source["adapter"]),
        **{name: source.get(name) for name in PLACING},
    )
    generalist = load_weights(where, console)
    report.check_weights(stored, generalist)
    # Other versions are reported and not refused: whether they change the results is what this command finds out.
    now = manifest([], {}, generalist.step, {}, "")["versions"]
    for name in sorted(now | stored["versions"]):
        if now.get(name) != stored["versions"].get(name):
            console.print(f"note: {name} was {stored['versions'].get(name)} and is {now.get(name)}", style="yellow")
    agents = [parse_agent(text) for text in stored["asked"]["agents"]]
    results = evaluate(generalist, agents, stored["asked"], source, arguments.workers, console)
    differing = differences(every_agent(stored), every_agent(results))
    for line in differing[:20]:  # more would only repeat that something is different
        console.print(line, highlight=False, markup=False)
    count = sum(one["episodes"] for suites in every_agent(results).values() for one in suites.values())
    whole = counted(count, "episode")
    verdict = f"{len(differing)} of {whole} differ" if differing else f"identical: all {whole}"
    console.print(verdict, style="red" if differing else "green", highlight=False)
    return int(bool(differing))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Descriptions of the episodes whose score or number of steps differs, one per episode."""

    def flat(policies: Mapping[str, Any]) -> dict[tuple[str, str, int], tuple[float, int]]:
        return {
            (name, task, episode["seed"]): (episode["score"], episode["steps"])
            for name, suites in policies.items()
            for summary in suites.values()
            for task, own in summary["tasks"].items()
            for episode in own["episodes"]
        }

    old, new = flat(before), flat(after)
    return [
        f"{name}, {task}, seed {seed}: score and steps were {old.get(key)} and are {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        for name, task, seed in [key]
        if old.get(key) != new.get(key)
    ]
