"""`generalist eval fewshot`: scores what weights learn from shots, on new words for new things or on a published benchmark."""

import argparse
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from generalist.cli.weights import add_weights, load_weights
from generalist.config.plain import plain
from generalist.eval.fewshot.induction import TASKS, draw_task
from generalist.eval.fewshot.published import LAYOUTS
from generalist.system.places import check_new_file

if TYPE_CHECKING:
    from generalist.eval.results.file import Parts
    from generalist.inference.generalist import Generalist

NEW_WORDS = "new-words"
METRICS = {
    "cider": "CIDEr × 100",
    "vqa": "VQA accuracy %",
    "exact": "exact match %",
    "accuracy": "accuracy %",
    "auc": "area under ROC %",
}
# Options that have no effect on new words, and are refused there.
BENCHMARKS_ALONE = ("folder", "kind", "supports", "seeds", "retrieve", "permutations", "beams", "tokens", "template")


def add_fewshot(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist eval fewshot`."""
    add_weights(parser)
    parser.add_argument(
        "--data",
        choices=[NEW_WORDS, *TASKS, *LAYOUTS],
        default=NEW_WORDS,
        help="new-words (the default): new names for drawings never trained on; a task whose rule only shots tell, drawn into "
        "--folder; or a benchmark in --folder (docs/prompts.md)",
    )
    # No defaults here: None says that an option was not given, and what it means then depends on the data.
    parser.add_argument("--folder", type=Path, help="folder of the benchmark's files")
    parser.add_argument(
        "--kind", choices=("caption", "vqa", "classify"), help="kind of task, for --data jsonl and drawn tasks"
    )
    parser.add_argument(
        "--shots", type=int, nargs="+", metavar="N", help="numbers of shots (default 0 4 8 16 32; new-words: 0 1 2 4 8)"
    )
    parser.add_argument("--queries", type=int, metavar="N", help="maximum number of queries, 0: all (default 1000)")
    parser.add_argument(
        "--supports", type=int, metavar="N", help="number of examples that shots are drawn from, 0: all (default 2048)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="number of draws of the shots (default 3)")
    parser.add_argument(
        "--retrieve", action="store_true", default=None, help="show the examples with the most similar images (RICES)"
    )
    parser.add_argument(
        "--permutations", type=int, metavar="K", help="orders of the shots to average over (default 1; Flamingo: 6)"
    )
    parser.add_argument("--beams", type=int, help="width of the beam search for written answers (default 3)")
    parser.add_argument(
        "--tokens", type=int, help="maximum ids of a written answer (default: captions 20, answers 5, TextVQA 10)"
    )
    parser.add_argument(
        "--template", help="such as 'Question: {question} Answer: {answer}' (default: the benchmark's own)"
    )
    parser.add_argument("--out", type=Path, default=Path("fewshot.json"), help="results file (default fewshot.json)")


def fewshot(arguments: argparse.Namespace, console: Console) -> int:
    """Evaluates, writes the results file and shows it; returns the exit status.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: the results file exists, or can't be written.
        ValueError: an option is out of range or has no effect on these data, or the benchmark's files are damaged.
        ImportError: a package is missing: of the extra `captions`, or of `images` for new words.
    """
    check_new_file(arguments.out, "--out")
    for name in ("queries", "supports"):
        if (value := getattr(arguments, name)) is not None and value < 0:
            raise ValueError(f"--{name} must be at least 0 (all), got {value}")
    run = _new_words if arguments.data == NEW_WORDS else _benchmark
    results, generalist = run(arguments, console)
    from generalist.eval.results import file as report

    report.save(arguments.out, _manifest(arguments, generalist) | results)
    show(results, console)
    # The file holds every answer, so that scores can be computed again, and compared query by query.
    console.print(f"all answers, with the manifest: {arguments.out}", highlight=False, soft_wrap=True)
    return 0


def _new_words(arguments: argparse.Namespace, console: Console) -> tuple[dict[str, Any], "Generalist"]:
    """Evaluates on names that occur only in the prompt (eval/fewshot/new_words.py)."""
    if given := [name for name in BENCHMARKS_ALONE if getattr(arguments, name) is not None]:
        raise ValueError(
            f"--{given[0]} is for benchmarks: name one with --data ({', '.join(LAYOUTS)}), or leave --{given[0]} out"
        )
    if arguments.queries == 0:
        raise ValueError("--queries must be at least 1, since new words can be drawn without end")
    if arguments.shots and (min(arguments.shots) < 0 or len(set(arguments.shots)) != len(arguments.shots)):
        raise ValueError(f"--shots must be different numbers of at least 0, got {arguments.shots}")
    generalist = load_weights(arguments, console)
    from generalist.eval.fewshot.new_words import SHOTS, evaluate_new_words
    from generalist.system.progress import counting

    parts = _parts(arguments)
    with counting(console, transient=True) as progress:
        found = evaluate_new_words(
            generalist,
            count=arguments.queries or 1000,
            shots=arguments.shots or SHOTS,
            console=console,
            kept=parts,
            progress=progress,
        )
    shutil.rmtree(parts.folder)  # only now: an interruption before this keeps all finished parts
    return {"data": NEW_WORDS, "new_words": found}, generalist


def _benchmark(arguments: argparse.Namespace, console: Console) -> tuple[dict[str, Any], "Generalist"]:
    """Evaluates on a published benchmark."""
    from generalist.eval.fewshot.benchmark_prompts import Asking
    from generalist.eval.fewshot.published import read_benchmark

    is_drawn = arguments.data in TASKS
    if arguments.folder is None:
        files = "it is drawn there if there is none yet" if is_drawn else LAYOUTS[arguments.data].files
        raise ValueError(f"name the folder of {arguments.data} with --folder: {files}")
    names = ("shots", "seeds", "retrieve", "permutations", "beams", "tokens", "template")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if "shots" in given:
        given["shots"] = tuple(given["shots"])
    # Settings and files are checked before the weights are loaded.
    asking = Asking(**given)
    limits = {name: value for name in ("queries", "supports") if (value := getattr(arguments, name)) is not None}
    if is_drawn and not arguments.folder.exists():
        console.print(f"drawing {arguments.data} into {arguments.folder}", highlight=False, soft_wrap=True)
        draw_task(arguments.data, arguments.folder)
    layout = "jsonl" if is_drawn else arguments.data
    benchmark = read_benchmark(layout, arguments.folder, kind=arguments.kind, **limits)
    benchmark = dataclasses.replace(benchmark, name=arguments.data)
    console.print(
        f"{benchmark.name}: {len(benchmark.queries):,} queries, shots from {len(benchmark.supports):,} examples",
        highlight=False,
    )
    generalist = load_weights(arguments, console)
    if generalist.tokenizers.published is not None:
        console.print("note: a language model sees no images: it answers from the texts alone", style="yellow")
    from generalist.eval.fewshot.scoring import evaluate
    from generalist.system.progress import counting

    parts = _parts(arguments)
    with counting(console, transient=True) as progress:
        results = evaluate(generalist, benchmark, asking, kept=parts, progress=progress)
    shutil.rmtree(parts.folder)
    return {"data": benchmark.name, "fewshot": results}, generalist


def _parts(arguments: argparse.Namespace) -> "Parts":
    """The store of finished parts of the results, from which the same command continues after an interruption."""
    from generalist.eval.results.file import Parts

    return Parts(folder=arguments.out.with_name(f".{arguments.out.name}.parts"))


def _manifest(arguments: argparse.Namespace, generalist: "Generalist") -> dict[str, Any]:
    """The manifest of the results: everything that is needed to repeat them."""
    import jax

    from generalist.eval.results.manifest import manifest
    from generalist.inference.fingerprint import fingerprint

    command = ["generalist", "eval", "fewshot"]
    # Only what was given, without the defaults of `--runs`, which has no meaning without `--run`.
    for name, value in vars(arguments).items():
        if name in ("command", "evaluation", "out") or value is None or (name == "runs" and not arguments.run):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        command += [f"--{name}", *map(str, values)]
    seeds = {"draw": 0}
    device = str(jax.devices()[0])
    return manifest(command, plain(generalist.config), generalist.step, seeds, device, fingerprint(generalist))


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints the results."""
    if "new_words" in results:
        console.print(new_words_table(results["new_words"]))
        return
    found = results["fewshot"]
    console.print(table(found))
    by = found["nearest_by"]
    nearest = f"by {by}" if by else "skipped, since a language model sees no images"
    console.print(
        f"majority: the shots' most frequent answer; nearest: that of the nearest image's shot, {nearest}; copied: the model "
        "gives the last shot's answer",
        highlight=False,
    )
    for one in found["left_out"]:
        console.print(
            f"note: {one['shots']} shots were not evaluated: the context of {one['context']} positions has room for "
            f"{one['fitting']}",
            style="yellow",
            highlight=False,
        )


def table(found: Mapping[str, Any]) -> Table:
    """The table of a benchmark's results: one row per number of shots."""
    from generalist.eval.results.scores import Estimate

    asked = found["asking"]
    title = f"{found['benchmark']}, {len(found['queries']):,} queries, with 95% intervals"
    captions, chance = found["kind"] == "caption", found["chance"]
    fixed = "BLEU-4" if captions else "chance"
    whole = _table(title, "shots", METRICS[found["metric"]], "by seed", fixed, "majority", "nearest", "copied %")
    for cell in found["cells"]:
        name = f"{cell['shots']}{' RICES' if asked['retrieve'] and cell['shots'] else ''}"
        last = f"{cell['bleu'][3]:.1f}" if captions else "" if chance is None else f"{chance:.1f}"
        seeds = " ".join(f"{value:.1f}" for value in cell["by_seed"])
        others = [cell["baselines"]["majority"], cell["baselines"]["nearest"], cell.get("copied")]
        shown = ["" if one is None else f"{one['score']['value']:.1f}" for one in others]
        whole.add_row(name, str(Estimate(**cell["score"])), seeds, last, *shown)
    return whole


def new_words_table(found: Mapping[str, Any]) -> Table:
    """The table of the results with new words: one row per number of ways and shots."""
    from generalist.eval.results.scores import Estimate

    title = f"new words for new things, {found['questions']:,} questions each: % right, 95% intervals"
    whole = _table(title, "ways", "shots", "model", "shuffled", "RICES", "nearest", "chance", "copy")
    for cell in found["cells"]:
        values = (cell[name] for name in ("model", "shuffled", "rices", "nearest"))
        shown = ["" if value is None else str(Estimate(**value)) for value in values]
        copied = "" if cell["copied"] is None else f"{cell['copied']['value']:.0f}"
        whole.add_row(str(cell["ways"]), str(cell["shots"]), *shown, f"{cell['chance']:.0f}", copied)
    return whole


def _table(title: str, *headers: str) -> Table:
    """An empty table, narrow enough for a terminal of 80 columns."""
    whole = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=0, collapse_padding=True)
    for header in headers:
        whole.add_column(header, no_wrap=True)
    return whole
