"""What a run makes of a source, as a section of the inspection's page."""

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from generalist.eval.report.charts import element, short, table
from generalist.eval.results.words import counted


def run_section(run: Mapping[str, Any]) -> Element:
    """Tokens, layouts and batches."""
    parts = run["parts"]
    several = len(parts) > 1
    return element(
        "section",
        element("h2", f"As a run with the preset {run['preset']} sees it"),
        *(element("p", line) for line in batch_lines(run)),
        element("p", f"Tokenizers: learnt from {run['learnt_from']}.", class_="note"),
        *(
            element("details", element("summary", part["name"]), _part(part)) if several else _part(part)
            for part in parts
        ),
    )


def batch_lines(run: Mapping[str, Any]) -> list[str]:
    """What a batch has of the source, in sentences."""
    batch = run["batch"]
    total = counted(run["examples"], "example") + (f" of {short(run['tokens'])} tokens in all" if run["tokens"] else "")
    if batch is None:
        return [f"{total}; an example does not fit into a batch."]
    beside = f"beside {', '.join(batch['others'])}" if batch["others"] else "alone"
    budgets = ", ".join(f"{name} {one['used']:,} of {one['room']:,}" for name, one in batch["budgets"].items())
    return [
        f"{total}. A batch of {batch['rows']} rows of {batch['length']} positions: {batch['share']:.1%} of its tokens are of "
        f"this source ({beside}), about {short(batch['tokens'])} tokens in {short(batch['examples'])} examples.",
        f"1,000 steps are {short(batch['epochs_per_1000_steps'])} epochs. Rows of this source alone are filled to "
        f"{batch['filled']:.0%}" + (f"; used of a shard's room: {budgets}." if budgets else "."),
    ]


def modalities(counts: Mapping[str, float]) -> str:
    """`tensor 1, frame 2, special 6`."""
    return ", ".join(f"{name} {short(count)}" for name, count in counts.items())


def part_lines(part: Mapping[str, Any]) -> list[str]:
    """Tokens of a part of the source, in sentences."""
    example = (
        f"An example has {short(part['example_tokens'])} positions ({modalities(part['example_by_modality'])}), of which "
        f"{short(part['example_predicted'])} are predicted from."
    )
    if part["layout"] is None:
        each = part.get("text_tokens_per_document")
        told = (
            f"Texts of a document have {short(each['min'])} to {short(each['max'])} tokens, median {short(each['median'])}."
            if each
            else ""
        )
        return [*filter(None, [told]), example]
    each = part["tokens_per_episode"]
    window = f"{part['window_steps']} steps"
    if part["window_seconds"] is not None:
        window += f", {short(part['window_seconds'])} seconds"
    return [
        f"{counted(part['episodes'], 'episode')} to train on. A step has {short(part['tokens_per_step'])} positions "
        f"({modalities(part['by_modality'])}), an instruction {short(part['tokens_of_instruction'])}, an episode "
        f"{short(each['min'])} to {short(each['max'])}, median {short(each['median'])}. A window is {window}.",
        example,
    ]


def _part(part: Mapping[str, Any]) -> Element:
    children = [element("p", line) for line in part_lines(part)]
    if part["layout"] is not None:
        rows = [
            [
                f"{one['role']} {one['key']}".strip(),
                one["kind"],
                " × ".join(map(str, one["shape"])),
                one["codec"],
                "varies" if one["tokens_per_step"] is None else str(one["tokens_per_step"]),
            ]
            for one in part["layout"]
        ]
        children.append(table(("part", "enters as", "shape", "codec", "positions per step"), rows))
        children += [element("p", f"Lost: {line}", class_="note") for line in part["lost"]]
    return element("div", element("h3", part["name"]), *children)
