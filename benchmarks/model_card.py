"""Writes the model card of a folder of weights from its results files, and the tables for the documentation.

    generalist export generalist/shipped --run pocket_long --bfloat16
    generalist eval control --weights generalist/shipped --out scores.json
    generalist eval control --weights generalist/shipped --agents model goal whole 3 nearest --episodes 4 --out prompts.json
    generalist eval fewshot --weights generalist/shipped --out words.json
    python benchmarks/model_card.py generalist/shipped scores.json --prompts prompts.json --words words.json \\
        --trained "train.py pocket_long"

Every number is read from the files, which must be of these very weights. The nearest neighbour's alone may be of other ones, of
which it takes nothing but the layouts and which recordings there are.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generalist.envs.registry import tasks
from generalist.eval.report.fewshot_page import ANSWERERS
from generalist.eval.results import file as report
from generalist.eval.results.scores import Estimate
from generalist.inference.generalist import Generalist
from generalist.model.transformer import count_parameters

# Description and licence of each source.
SOURCES = {
    "metaworld": ("Meta-World MT50 from state, its scripted experts", "MIT"),
    "babyai": ("BabyAI (minigrid), its bot", "Apache-2.0"),
    "atari": ("Atari 2600 from pixels, experts by RAM and by planning, of this project", "ale-py GPL-2.0; no ROM ships"),
    "classic": ("Gymnasium's classic control, Box2D and MuJoCo from state, controllers written for this project", "MIT"),
    "fetch": ("Gymnasium-Robotics' Fetch from state, controllers written for this project", "MIT"),
    "emoji": ("Twemoji drawings with their Unicode names", "CC-BY 4.0 (Twemoji); Unicode licence (names)"),
    "fewshot": ("the same drawings under made-up names", "CC-BY 4.0"),
    "prose": ("documentation of Python, NumPy, SciPy and JAX", "PSF, BSD-3, BSD-3, Apache-2.0"),
}  # fmt: skip
DOMAINS = {
    "metaworld": "Meta-World MT50",
    "babyai": "BabyAI",
    "atari": "Atari",
    "classic": "classic control, Box2D, MuJoCo",
    "fetch": "Fetch",
}
PUBLISHED = {"metaworld": "JAT 65.5, Gato about 87", "babyai": "JAT 99.0", "atari": "JAT 14.1, with stronger experts"}


def scores_table(control: Mapping[str, Any]) -> list[str]:
    """A row a domain."""
    lines = [
        "| domain | tasks | episodes | percent of expert | middle half | tasks above 50 | published, own experts |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for suite, name in DOMAINS.items():
        if suite in control:
            one = control[suite]
            cells = (str(Estimate(**one[key])) for key in ("percent", "interquartile_mean", "tasks_above_half"))
            counts = (str(len(one["tasks"])), str(one["episodes"]))
            lines.append(f"| {' | '.join((name, *counts, *cells, PUBLISHED.get(suite, '')))} |")
    tasks = [task["percent"]["value"] for one in control.values() for task in one["tasks"].values()]
    above = sum(percent > 50 for percent in tasks)
    lines += [
        "",
        f"{above} of all {len(tasks)} tasks, {100 * above / len(tasks):.1f}%, are above half of their expert (Gato: 75%).",
    ]
    return lines


def prompts_table(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row per domain and one column per kind of prompt, from several results files with different domains or agents."""
    agents: dict[str, dict[str, Any]] = {}
    for results in files:
        for agent, control in ({results["agent"]: results["control"]} | results["policies"]).items():
            agents.setdefault(agent, {}).update(control)
    lines = [f"| | {' | '.join(agents)} |", f"|---|{'---|' * len(agents)}"]
    for suite, name in DOMAINS.items():
        cells = [Estimate(**of[suite]["percent"]) if suite in of else "" for of in agents.values()]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return lines


def tasks_table(control: Mapping[str, Any]) -> list[str]:
    """All tasks, best first, in one paragraph per domain."""
    lines = []
    for suite, one in control.items():
        ordered = sorted(one["tasks"].items(), key=lambda pair: -pair[1]["percent"]["value"])
        listed = ", ".join(f"{name.partition('/')[2]} {task['percent']['value']:.0f}" for name, task in ordered)
        lines += [f"**{DOMAINS[suite]}**: {listed}", ""]
    return lines


def words_table(found: Mapping[str, Any]) -> list[str]:
    """One row per number of ways and shots."""
    lines = [
        f"| ways | shots a class | {' | '.join(ANSWERERS.values())} | chance |",
        f"|---|---|{'---|' * len(ANSWERERS)}---|",
    ]
    for cell in found["cells"]:
        shown = [str(Estimate(**cell[name])) if cell[name] else "" for name in ANSWERERS]
        lines.append(f"| {cell['ways']} | {cell['shots']} | {' | '.join(shown)} | {cell['chance']:.0f} |")
    return lines


def command(results: Mapping[str, Any]) -> str:
    """The command that reproduces these numbers: whole suites by name, and no --tasks if all are meant."""
    words = list(results["command"])
    if "--out" in words:  # the path of the results does not matter to a reader
        del words[words.index("--out") : words.index("--out") + 2]
    if "--tasks" not in words:
        return f"`{' '.join(words)}`"
    first, last = words.index("--tasks"), words.index("--agents")
    played = set(words[first + 1 : last])
    whole = [suite for suite in DOMAINS if {task.name for task in tasks(f"{suite}/*")} <= played]
    rest = [name for name in words[first + 1 : last] if name.partition("/")[0] not in whole]
    if len(whole) == len(DOMAINS):
        return f"`{' '.join(words[:first] + words[last:])}`"
    named = [f"'{suite}/*'" for suite in whole]
    return f"`{' '.join([*words[: first + 1], *named, *rest, *words[last:]])}`"


def main() -> None:
    """Writes README.md into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scores", type=Path, help="results file of `generalist eval control`")
    parser.add_argument(
        "--prompts",
        type=Path,
        nargs="+",
        default=[],
        help="results files of `generalist eval control` with several agents",
    )
    parser.add_argument("--words", type=Path, help="results file of `generalist eval fewshot` on new words")
    parser.add_argument("--trained", required=True, help="sentence that says how the weights were trained")
    parser.add_argument("--notes", type=Path, help="text file to append: limits, other scores")
    arguments = parser.parse_args()
    generalist = Generalist.load(arguments.folder)
    scores = report.load(arguments.scores)
    report.check_weights(scores, generalist)
    data = generalist.config.data
    weights = {name: getattr(data, name).weight for name in SOURCES if getattr(data, name).weight > 0}
    size = (arguments.folder / "model.safetensors").stat().st_size / 1e6
    parameters = count_parameters(generalist.params) / 1e6
    model = generalist.config.model
    lines = [
        "# Pocket weights",
        f"One Transformer of {model.layers} layers and width {model.width}, {parameters:.2f} M parameters beside the frozen "
        f"EfficientNet-Lite0 ({size:.1f} MB in bfloat16), that acts, names drawings and reads text. Apache-2.0.",
        "",
        f"Trained: {arguments.trained}",
        "",
        "    generalist play babyai/GoTo",
        "    generalist eval control --tasks 'metaworld/*'",
        "",
        "## Scores",
        *scores_table(scores["control"]),
        "",
        command(scores),
        "",
        "Percent of the way from random (0) to the task's own scripted expert (100), unseen seeds, 95% bootstrap intervals over "
        "episodes. Published figures are of other experts and other task lists: they say what is usual, not who is better.",
        "",
    ]
    if arguments.prompts:
        prompts = [report.load(path) for path in arguments.prompts]
        for results in prompts:
            if results["asked"]["agents"] != ["nearest"]:
                report.check_weights(results, generalist)
        commands = [line for results in prompts for line in (command(results), "")]
        lines += ["## Prompts and the nearest neighbour", *prompts_table(prompts), "", *commands]
    if arguments.words:
        words = report.load_fewshot(arguments.words)
        report.check_weights(words, generalist)
        lines += [
            "## New words for new things",
            f"Drawings of things and names that training held out, {words['new_words']['questions']:,} questions a row, % right:",
            "",
            *words_table(words["new_words"]),
            "",
            command(words),
            "",
        ]
    lines += ["## Data", "| source | share of the tokens | what | licence of what it is from |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {weight / sum(weights.values()):.0%} | {' | '.join(SOURCES[name])} |"
        for name, weight in weights.items()
    ]
    lines += ["", "## Every task", *tasks_table(scores["control"])]
    if arguments.notes:
        lines += [arguments.notes.read_text(encoding="utf-8").strip(), ""]
    (arguments.folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
