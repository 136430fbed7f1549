"""What a published model's folder asks for, or leaves open, that whoever uses it should know: one line each."""

from typing import Any

from generalist.weights.image_cuts import prepared
from generalist.weights.language import LanguageModel
from generalist.weights.open_flamingo import OpenFlamingoFolder

# Settings of `generation_config.json` that change texts and are not applied, with the values that change nothing.
CHANGES: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "watermarking_config": (),
    "stop_strings": ([],),
}
SAMPLING: dict[str, tuple[str, Any]] = {
    "temperature": ("--temperature", 1.0),
    "top_k": ("--top-k", 50),
    "top_p": ("--top-p", 1),
}
"""Settings of sampling: our options, and what transformers takes where a file leaves them out."""


def notes(model: LanguageModel) -> list[str]:
    """What to tell about a folder before it is used.

    Raises:
        WeightsError: a file of settings is damaged.
    """
    return [*_writing(model.folder.beside("generation_config.json")), *_images(model)]


def _writing(settings: dict[str, Any]) -> list[str]:
    asked = {name: settings[name] for name, usual in CHANGES.items() if settings.get(name) not in (None, *usual)}
    found = []
    if asked:
        named = ", ".join(f"{name} = {value!r:.40}" for name, value in asked.items())
        found.append(f"its generation_config.json asks for {named}, which is not applied")
    if settings.get("do_sample") is True:
        options = " ".join(f"{option} {settings.get(name, usual)!s:.20}" for name, (option, usual) in SAMPLING.items())
        found.append(
            f"its generation_config.json asks for sampling ({options}); without these options the likeliest ids are written"
        )
    return found


def _images(model: LanguageModel) -> list[str]:
    # An OpenFlamingo's own code takes no such file either.
    if isinstance(model.folder, OpenFlamingoFolder) or not (model.images or model.gated) or prepared(model.folder):
        return []
    return [
        f"{model.folder.folder} has no preprocessor_config.json (nor image_processor in processor_config.json): images are "
        "prepared as the tower's family usually does"
    ]
