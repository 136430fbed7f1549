"""The language part: how well the weights predict held-out prose."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.prose import prose
from generalist.data.sources.prose import Prose
from generalist.eval.held_out import language
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


class Language(Part):
    """Language; one job per source of prose."""

    name = "language"
    title = "Language"
    seeds: ClassVar[Mapping[str, int]] = {"text": language.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        sources = self.sources(generalist.config)
        return [_job(generalist, name, one) for name, one in sources.items() if isinstance(one, Prose)]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {f"{name}, perplexity": Estimate(**one["perplexity"]) for name, one in results["language"].items()}

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(
                label=f"{name} perplexity",
                value=str(Estimate(**found["perplexity"])),
                against=f"unigram {found['unigram_perplexity']['value']:.0f}",
                source=f"{found['tokens']:,} tokens",
            )
            for name, found in results["language"].items()
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = []
        for name, found in results["language"].items():
            perplexity, unigram = (str(Estimate(**found[key])) for key in ("perplexity", "unigram_perplexity"))
            bits = f"{found['bits_per_byte']['value']:.2f}"
            rows.append([name, perplexity, unigram, bits, f"{found['tokens']:,}"])
        headers = ("held-out text", "perplexity per token", "of a unigram model", "bits per byte", "tokens")
        return [element("h2", self.title), table(headers, rows)]


def _job(generalist: "Generalist", name: str, source: Prose) -> Job:
    config = generalist.config
    tokens = config.data.length - 1  # the beginning marker takes one position
    megabytes, count = source.megabytes, source.evaluation_windows

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        # The training texts are needed too: the unigram model counts their tokens.
        training, heldout = (
            [document.text for document in prose(config.data.folder / "prose", split, megabytes)]
            for split in ("train", "heldout")
        )
        return language.evaluate_language(
            partial(generalist.assembler.text, eos=False),
            partial(log_likelihood, generalist),
            generalist.tokenizers.text.encode,
            generalist.vocabulary.text,
            training,
            heldout,
            tokens=tokens,
            count=count,
            progress=progress,
        )

    settings = {"megabytes": megabytes, "windows": count, "tokens": tokens, "seed": language.SEED}
    return Job(part=Language.name, key=name, settings=settings, compute=compute)
