"""The facade: weights with methods to prompt them with words, images and shots."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from generalist.contrastive.dual import DualEncoder
from generalist.inference import adapters, publish
from generalist.inference import best_of as ranking
from generalist.inference import prompt as prompting
from generalist.inference.drawing import Progress, drawable, part_of
from generalist.inference.drawing_settings import DrawingSettings, check_counts
from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights


@dataclasses.dataclass(frozen=True)
class Generalist(Weights):
    """One set of weights, its tokenizers and its task layouts, to load, save, prompt and act with."""

    def prompt(
        self,
        parts: Any,
        *,
        after: prompting.Reading | None = None,
        choices: Sequence[str] | None = None,
        **decoding: Any,
    ) -> Any:
        """The text that the model writes after a prompt, the likeliest of the given choices or, for an agent, its action.

            model.prompt([image, "a picture of"])
            model.prompt([[one, "a picture of"], [other, "a picture of"]], beams=3)   # several prompts: a list of texts
            model.prompt([image], after=model.read([shot, " tomi", shot, " zuka"]), choices=[" tomi", " zuka"])
            model.prompt(AgentPrompt(layout="babyai", observation=..., instruction="go to the red ball"))

        Args:
            parts: images (uint8 arrays or paths) and texts in any order, or a list of such lists, or an `AgentPrompt`.
            after: parts that were read before, such as shots.
            choices: texts of which the likeliest is returned; nothing is written then.
            decoding: see `generalist.inference.sampling.Decoding`.

        Raises:
            ValueError: the prompt is empty, too long, or has a part that is neither image nor text.
            DocumentError: an image file is broken or too large.
        """
        if isinstance(parts, prompting.AgentPrompt):
            if after is not None or choices is not None or decoding:
                raise ValueError("an AgentPrompt takes neither choices nor after nor decoding settings: leave them out")
            return prompting.act(self, parts)
        # No part is a list, so a list of lists can only mean several prompts.
        several = bool(len(parts)) and all(isinstance(part, (list, tuple)) for part in parts)
        prompts = parts if several else [parts]
        # Ranking computes the likelihood of given texts, in which nothing is decoded.
        if choices is not None:
            if decoding:
                raise ValueError(f"choices are ranked, not written: leave out {', '.join(decoding)}")
            best = prompting.rank(self, prompts, choices, after).argmax(axis=1)
            texts = [choices[one] for one in best]
        else:
            texts = prompting.prompt(self, prompts, Decoding(**decoding), after)
        return texts if several else texts[0]

    def chat(self, messages: Sequence[Mapping[str, Any]], **decoding: Any) -> Iterator[str]:
        """A published language model's answer to messages, piece by piece, by the chat template of its folder.

            "".join(model.chat([{"role": "user", "content": "hello"}], tokens=64))
            "".join(model.chat([{"role": "user", "content": [image, "what is this?"]}], tokens=64))

        Args:
            messages: each with a `role` (system, user or assistant) and its `content`, a text or a list of images (uint8 arrays
                or paths) and texts.
            decoding: as in `prompt`.

        Raises:
            WeightsError: the folder has no chat template, or one that cannot be used.
            ValueError: the weights are no published language model, or see no images, or a message is damaged or has a control
                token in it.
            DocumentError: an image file is broken or too large.
        """
        return prompting.chat(self, messages, Decoding(**decoding))

    def read(self, parts: Sequence[Any]) -> prompting.Reading:
        """Reads shots once; any number of prompts can continue `after` them.

        Raises:
            ValueError, DocumentError: as `prompt`.
        """
        return prompting.Reading(self, parts)

    def stream(self, parts: Sequence[Any], *, after: prompting.Reading | None = None, **decoding: Any) -> Iterator[str]:
        """The text of `prompt`, piece by piece.

        Raises:
            ValueError, DocumentError: as `prompt`.
        """
        return prompting.stream(self, parts, Decoding(**decoding), after)

    def compile_ahead(self, longest: int, tokens: int = 32, rows: int = 1) -> int:
        """Compiles what prompts of text need up to that many positions, so that none waits for it; returns for how many lengths.
        Lengths between them are filled up with padding.

        Args:
            longest: positions of the longest prompt.
            tokens: as it will be given to `prompt`.
            rows: number of prompts that are given at once.

        Raises:
            ValueError: the context has no room for such a prompt.
        """
        return prompting.compile_ahead(self, longest, tokens, rows)

    def draw(
        self,
        text: str,
        *,
        count: int = 1,
        best_of: int | None = None,
        towers: DualEncoder | None = None,
        image: UInt8[np.ndarray, "_H _W _C"] | None = None,
        box: tuple[int, int, int, int] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "N S S 3"]:
        """Images of a text, uint8.

            model.draw("a red heart", guidance=3, best_of=16)          # (1, 72, 72, 3)
            model.draw("a crying face", image=face, box=(40, 0, 72, 72))  # what is in the box is drawn anew

        Args:
            count: N, number of images.
            best_of: drawings that they are the best of, the best first; None: `count`.
            towers: ranks the drawings; None: the weights themselves do (`inference.best_of`).
            image: an image of which a part is drawn anew.
            box: this part: first row, first column, and one past the last of each, in pixels of the image as drawings are sized;
                every cell that it touches is drawn.
            progress: called with the number of passes that are done and that of all.
            settings: see `generalist.inference.drawing_settings.DrawingSettings`.

        Raises:
            ValueError: the weights have no image tokenizer, `image` and `box` are not given together, the box is outside the
                image, the text is empty, or a number is not possible.
        """
        # All numbers and the text first: an image that is edited is encoded by a program that takes seconds to compile.
        how, candidates = DrawingSettings(**settings), count if best_of is None else best_of
        check_counts(count, candidates)
        drawable(self, [text])
        edited = part_of(self, image, box)
        found = ranking.best_of(
            self,
            text,
            how,
            count=count,
            candidates=candidates,
            towers=towers,
            given=edited[0],
            drawn=edited[1],
            progress=progress,
        )
        return found.images

    def save_published(self, folder: Path | str, dtype: Any = None) -> list[str]:
        """Writes the language model alone in HuggingFace's layout, for other tools to load; it is complete or absent. The folder
        that it came from, of the published model itself or of the run's trunk (`model.trunk`), gives settings and tokenizer.

        Args:
            dtype: of the stored parameters: float32, float16 or bfloat16; None: each tensor's in the folder it came from.

        Returns:
            The paths of the parameters that were left out: what a run adds to its trunk has no place in that layout.

        Raises:
            FileExistsError: the folder exists.
            WeightsError: the weights have no published architecture, the folder they came from is gone or holds another model, or
                a parameter has no place in the architecture.
            ValueError: the weights were rounded to int8.
        """
        return publish.save_published(self, Path(folder), dtype)

    def with_adapter(self, folder: Path | str) -> "Generalist":
        """These weights with a low-rank adapter of their language model merged into them.

        Args:
            folder: in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            WeightsError: the weights have no published architecture, or the folder holds no adapter that fits it or is
                supported.
        """
        return self.with_arrays(adapters.with_adapter(self, Path(folder)))
