"""Prints a plan: tables, and settings to change if it does not fit or leaves much of the machine idle."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from generalist.config.run import Config
from generalist.model.attend import slow_heads
from generalist.plan.estimate import Estimate
from generalist.plan.inference import Served, Serving
from generalist.plan.memory import Arithmetic
from generalist.plan.search import Candidate
from generalist.plan.target import Target
from generalist.system.chips import GIB

LONGEST, SMALLEST = 6, 0.005  # exchanges listed one by one; fraction of the step below which none is listed
HEAVIEST = 8  # operations listed by their memory traffic
WAITING = 0.1  # fraction of the step spent waiting for exchanges above which advice is given
PARTS = {
    "parameters": "trained parameters",
    "frozen": "frozen parameters",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "batch": "batch",
    "activations": "activations",
    "logits": "logits",
    "temporary": "gradients, activations, temporaries",
    "weights": "weights",
    "encoder": "frozen encoder",
    "caches": "caches",
    "code": "program",
}


def show(config: Config, target: Target, found: Estimate, console: Console) -> None:
    """Prints a compiled plan."""
    # Everything that can be said is printed before the error or the advice, even if the step does not fit.
    show_counts(found.counts.trained, found.counts.frozen, found.counts.encoder, console)
    shape = " × ".join(f"{name} {size}" for name, size in found.mesh.items() if size > 1) or "one device"
    console.print(f"mesh {shape}; {found.rows} × {found.length} positions per step", highlight=False)
    if found.memory is not None:
        parts = {name: getattr(found.memory, name) for name in found.memory.__dataclass_fields__}
        console.print(memory_table(parts, found.limit))
        console.print(_figures(target, found))
        console.print(_exchanges(found))
        for line in _longest(found):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print("operations that move the most between memory and chip:", highlight=False)
        for line in heaviest(found):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(f"it does not fit: {found.trouble}", style="bold red", highlight=False, markup=False)
    for note in found.totals.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for line in advice(config, target, found):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def show_served(serving: Serving, found: Served, console: Console) -> None:
    """Prints a plan of inference."""
    mesh = " × ".join(f"{name} {size}" for name, size in found.mesh.items() if size > 1) or "one device"
    console.print(f"parameters: {_count(found.parameters)}; mesh {mesh}", highlight=False)
    console.print(
        f"{serving.rows} × {serving.context} positions, weights in {serving.weights_type}, caches in {serving.cache_type}",
        highlight=False,
    )
    parts = {name: getattr(found, name) for name in ("weights", "encoder", "caches")} | {"activations": found.temporary}
    console.print(memory_table(parts, found.limit))
    if found.step_seconds is None or found.prompt_seconds is None:
        console.print("time: unknown, since these devices have no known speed", highlight=False)
        return
    console.print(
        f"one id in all rows, with full caches: {found.step_seconds * 1e3:.2f} ms, {found.tokens_per_second:,.0f} tokens/s",
        highlight=False,
    )
    console.print(f"a prompt of the whole context: {found.prompt_seconds * 1e3:.1f} ms", highlight=False)


def show_found(found: Sequence[tuple[Candidate, Estimate]], console: Console) -> None:
    """Prints the candidates that a search compiled."""
    table = Table(title="compiled, the best first", title_justify="left")
    for name in ("mesh and rows", "GiB per device", "ms per step", "tokens/s", "utilisation"):
        table.add_column(name, justify="left" if name == "mesh and rows" else "right")
    for candidate, one in found:
        size = f"{one.needed / GIB:.2f}" if one.needed else "?"
        if one.fits and one.seconds is not None:
            times = (f"{one.seconds * 1e3:.1f}", f"{one.tokens_per_second:,.0f}", f"{one.utilisation:.1%}")
        else:
            times = ("" if one.fits else "does not fit", "", "")
        table.add_row(candidate.name, size, *times)
    console.print(table)
    console.print(f"the best: {found[0][0].settings}", highlight=False, soft_wrap=True)


def show_arithmetic(config: Config, found: Arithmetic, most: int, console: Console) -> None:
    """Prints one GPU's memory, by arithmetic."""
    show_counts(found.trained, found.frozen, found.encoder, console)
    console.print(f"one device; {config.data.rows} × {config.data.length} positions per step", highlight=False)
    console.print(memory_table(found.parts(), found.limit))
    if slow := slow_heads(config.model.head_size):
        console.print(f"note: {slow}", highlight=False, markup=False, soft_wrap=True)
    if most:
        console.print(f"largest --data.rows that fits, payloads in proportion: {most}", highlight=False)
        return
    console.print("not even one row fits:", highlight=False)
    for line in shrinking(config):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def show_counts(trained: int, frozen: int, encoder: int, console: Console) -> None:
    """Prints the numbers of parameters."""
    held = f", {_count(frozen)} frozen" if frozen else ""
    seen = f", {_count(encoder)} of the frozen encoder" if encoder else ""
    console.print(f"parameters: {_count(trained)} trained{held}{seen}", highlight=False)


def memory_table(parts: dict[str, float], limit: float | None) -> Table:
    """A table of bytes per device by purpose, with the limit of programs on the device."""
    table = Table(title="memory per device", title_justify="left")
    table.add_column("")
    total = sum(parts.values())
    # Small models in MiB, or every row would read 0.000.
    unit, name = (GIB, "GiB") if total > GIB / 8 else (2**20, "MiB")
    table.add_column(name, justify="right")
    for part, size in parts.items():
        if size:
            table.add_row(PARTS[part], f"{size / unit:,.3f}")
    table.add_section()
    table.add_row("all", f"{total / unit:,.3f}")
    if limit is not None:
        table.add_row("programs may fill", f"{limit / unit:,.2f}")
        table.add_row("it fits" if total <= limit else "it does NOT fit", f"{total / limit:.0%}")
    return table


def _figures(target: Target, found: Estimate) -> Table:
    """The table of FLOPs, memory traffic and estimated times of a step."""
    table = Table(title="per step", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("model FLOPs, all devices", f"{found.model_flops:.3g}")
    table.add_row("FLOPs of the program per device", f"{found.totals.flops:.3g}")
    table.add_row("memory traffic per device", f"{found.totals.bytes / GIB:.2f} GiB")
    if found.seconds is None or target.chip is None:
        table.add_row("time", "unknown: simulated devices have no speed")
        return table
    # The rows below do not add up to the estimated time: products, traffic and exchanges overlap.
    waited = sum(one.seconds - one.hidden for one in found.totals.traffic.values())
    table.add_row("estimated time", f"{found.seconds * 1e3:.1f} ms")
    table.add_row("  products at the peak", f"{found.totals.matrix_seconds * 1e3:.1f} ms")
    table.add_row("  memory traffic at full bandwidth", f"{found.totals.bytes / target.chip.bandwidth * 1e3:.1f} ms")
    table.add_row("  waiting for exchanges", f"{waited * 1e3:.1f} ms")
    if found.encoder_seconds is not None:
        table.add_row("  of all this, the frozen encoder", f"{found.encoder_seconds * 1e3:.1f} ms")
    table.add_row("estimated tokens/s", f"{found.tokens_per_second:,.0f}")
    table.add_row("estimated model-FLOPs utilisation", f"{found.utilisation:.1%}")
    return table


def _exchanges(found: Estimate) -> Table:
    """The table of exchanges by kind."""
    table = Table(title="exchanges between devices per step", title_justify="left")
    for name in ("kind", "count", "GiB per device", "ms", "of these overlapped"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, one in sorted(found.totals.traffic.items()):
        times = (f"{one.seconds * 1e3:.1f}", f"{one.hidden * 1e3:.1f}") if found.seconds is not None else ("", "")
        table.add_row(kind, f"{one.count:,.0f}", f"{one.bytes / GIB:.3f}", *times)
    return table


def _longest(found: Estimate) -> Iterator[str]:
    """The exchanges that the step waits for longest, by the operation that caused them."""
    waited = {place: one.seconds - one.hidden for place, one in found.totals.places.items()}
    for place in sorted(waited, key=lambda place: -waited[place])[:LONGEST]:
        if found.seconds and waited[place] > SMALLEST * found.seconds:
            one = found.totals.places[place]
            yield f"waits {waited[place] * 1e3:.1f} ms for {one.count:,.0f} × {place}, {one.bytes / GIB:.3f} GiB"


def heaviest(found: Estimate) -> Iterator[str]:
    """The operations with the most memory traffic, by where in the model they come from."""
    bound = sum(one.seconds for one in found.totals.moved.values())
    for place in sorted(found.totals.moved, key=lambda place: -found.totals.moved[place].bytes)[:HEAVIEST]:
        one = found.totals.moved[place]
        # Simulated devices have no time; an operation that waits for its products has no share of the memory's.
        share = f", {one.seconds / bound:.1%} of the time that is bound by memory" if bound else ""
        yield f"{one.bytes / GIB:.2f} GiB by {one.count:,.0f} × {place}{share}"


def advice(config: Config, target: Target, found: Estimate) -> Iterator[str]:
    """Settings to change, most useful first; empty if nothing needs to change."""
    # What does not fit has no speed worth advising on.
    if not found.fits:
        yield from shrinking(config, found, target)
        return
    if found.seconds is None:
        return
    waited = {kind: one.seconds - one.hidden for kind, one in found.totals.traffic.items()}
    slowest = max(waited, key=lambda kind: waited[kind], default="")
    if slowest and sum(waited.values()) > WAITING * found.seconds:
        yield (
            f"{sum(waited.values()) / found.seconds:.0%} of the step waits for exchanges, most for {slowest} "
            f"({waited[slowest] * 1e3:.1f} ms): use more --data.rows per step or another mesh (--search tries several)"
        )
    # Only where much is free: how much memory the activations would take is not known without compiling again.
    less = {"block": "products", "products": "none"}.get(config.model.remat)
    if less and found.limit and found.needed and found.needed < 0.4 * found.limit:
        free = 1 - found.needed / found.limit
        yield f"{free:.0%} of the memory is free: --model.remat {less} recomputes less, if it still fits"


def shrinking(config: Config, found: Estimate | None = None, target: Target | None = None) -> Iterator[str]:
    """Settings that reduce the memory per device."""
    # Settings that change only speed come first, then those that change the training, then the machine.
    if config.model.remat != "block":
        yield "--model.remat block: activations of a block are recomputed instead of kept"
    if found is not None and found.mesh.get("data", 1) > 1:
        yield "--training.data-axis 1 --training.fsdp-axis -1: parameters and moments are split over all devices"
    # Each device along data and fsdp must have a whole shard in every micro-batch.
    parts = 1 if found is None else found.mesh.get("data", 1) * found.mesh.get("fsdp", 1)
    micro = 2 * config.training.parts
    if config.data.rows % (parts * micro) == 0:
        yield (
            f"--training.micro-batches {micro} --data.shards {parts * micro}: the same step, with its batch "
            f"in {micro} parts, one after the other"
        )
    if config.training.loss_chunks < 16 and config.data.length % 16 == 0:
        yield "--training.loss-chunks 16: logits of a sixteenth of the positions at a time"
    if config.data.rows > 1:
        yield f"--data.rows {config.data.rows // 2}, and the payloads (patches, frames, tensors, images, actions) halved as well"
    if config.training.ema:
        yield "--training.ema 0: one copy of the weights fewer"
    if target is not None and target.slice is not None:
        larger = list(target.slice.shape)
        larger[larger.index(min(larger))] *= 2
        yield f"a larger slice: --topology {target.slice.chip.name}:{'x'.join(map(str, larger))}"


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
