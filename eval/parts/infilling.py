"""The infilling part: perplexity of the middle of held-out prose, with and without what follows it (docs/pointing.md)."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.prose import prose
from generalist.data.sources.infilling import Infilling
from generalist.eval.held_out import infilling
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


class FillInTheMiddle(Part):
    """Infilling; one job per source of prose with holes."""

    name = "infilling"
    title = "Infilling"
    seeds: ClassVar[Mapping[str, int]] = {"infilling": infilling.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        sources = self.sources(generalist.config)
        return [_job(generalist, name, one) for name, one in sources.items() if isinstance(one, Infilling)]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {f"{name}, perplexity": Estimate(**one["infilling"]) for name, one in results["infilling"].items()}

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(
                label=f"{name} perplexity",
                value=str(Estimate(**found["infilling"])),
                against=f"left to right {found['left_to_right']['value']:.1f}, gain {_nats(found['gain'])}",
                source=f"{found['tokens']:,} tokens",
            )
            for name, found in results["infilling"].items()
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [
                name,
                *(str(Estimate(**found[key])) for key in ("infilling", "left_to_right")),
                _nats(found["gain"]),
                f"{found['tokens']:,}",
            ]
            for name, found in results["infilling"].items()
        ]
        headers = (
            "middle of held-out text",
            "perplexity, both sides given",
            "left to right",
            "gain, per token",
            "tokens",
        )
        return [element("h2", self.title), table(headers, rows)]


def _nats(gain: Mapping[str, float]) -> str:
    """A gain with three decimals; `Estimate` shows one."""
    return f"{gain['value']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}] nats"


def _job(generalist: "Generalist", name: str, source: Infilling) -> Job:
    config = generalist.config
    length, megabytes, count = config.data.length, source.megabytes, source.evaluation_windows

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        heldout = [document.text for document in prose(config.data.folder / "prose", "heldout", megabytes)]
        return infilling.evaluate_infilling(
            generalist.assembler,
            partial(log_likelihood, generalist),
            heldout,
            length=length,
            count=count,
            progress=progress,
        )

    settings = {"megabytes": megabytes, "windows": count, "length": length, "seed": infilling.SEED}
    return Job(part=FillInTheMiddle.name, key=name, settings=settings, compute=compute)
