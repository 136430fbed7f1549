"""Scores of captions: CIDEr (Vedantam et al., 2015) and BLEU (Papineni et al., 2002) as COCO's evaluation computes them.

The scorers are coco-caption's own (the package pycocoevalcap). Its tokenizer is a Java program; `tokens` replaces it.

Dimension key: N captions.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

# Tokens that coco-caption drops. Its list has brackets in capitals (-LRB-), but tokens are in small letters, so brackets stay.
_LEFT_OUT = {"'", "''", "`", "``", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
# Single characters as PTBTokenizer writes them.
_WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"},
    **dict.fromkeys("‘’“”«»\"'", "'"),
    **dict.fromkeys("–—", "-"),
    "…": "...",
}
# Abbreviations that keep their full stop, besides single letters.
_SHORT = (
    "mr|mrs|ms|dr|st|mt|ft|prof|gen|sgt|capt|rev|gov|sen|ave|blvd|rd|jr|sr|vs|etc|dept|inc|ltd|co|corp|sq|ph\\.d|"
    "jan|feb|mar|apr|aug|sept|oct|nov|dec"
)
_LETTER, _SIGN = r"[^\W\d_]", r"[^\W_]"  # a letter; a letter or digit
# The first alternative that matches decides, so the order matters: addresses before words, abbreviations before letters.
_TOKEN = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)[^\s\"<>()]*[^\s\"<>().,;:!?]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # addresses
            r"</?[A-Za-z][^<>\s]*>",
            r"[@#](?:[A-Za-z]\w*)",  # a name, a hashtag
            rf"(?<!{_SIGN})(?:{_SHORT})\.(?!{_SIGN})",
            r"(?<!\w)no\.(?=\s*\d)",
            rf"(?<!{_SIGN})(?:[A-Za-z]\.)+(?!{_SIGN})",  # a.m., U.S., and any single letter
            rf"[-+]?\d+(?:[.,:]\d+)+|[-+]?\.\d+|[-+]\d+(?!{_SIGN})",
            rf"(?<!{_SIGN})['’](?:\d0s|em|till?|cause|n['’]?)(?!{_SIGN})",
            rf"(?<!{_SIGN})(?:['’](?:s|m|d|re|ve|ll)|n['’]t)(?!{_SIGN})|(?<!{_SIGN})['’]t(?=(?:is|was)\b)",
            r"(?<!\w)(?-i:[A-Z]+(?:&[A-Z]+)+)(?!\w)|c\+\+|c#",
            # Words, including hyphens, slashes, full stops between letters, and contractions, which `_apart` separates.
            rf"{_SIGN}+(?:(?:[-/_]|(?<={_LETTER})[.!?](?={_LETTER})){_SIGN}+)*(?:['’]{_LETTER}+)*",
            r"[?!]{2,}|\*+|[^\w\s]|_",
        )
    ),
    re.IGNORECASE,
)
_CONTRACTION = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")
_JOINED = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}
_JOINED |= {"lemme": "lem me", "y'all": "y' all"}
# Apostrophes within a word: o'clock, ma'am, c'mon. Any other apostrophe separates two words.
_WITHIN = re.compile(rf"(?![iy]'){_LETTER}'{_LETTER}{{2,}}|{_LETTER}*[aeiouy]'[aeiou]{_LETTER}*")
EXTRA = "scoring captions needs pycocoevalcap: install the extra `captions` (pip install 'generalist[captions]')"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of several captions."""

    cider: Float64[np.ndarray, "N"]
    """CIDEr of each caption, between 0 and 10; that of all is their mean. A word's weight depends on how many images have it in
    their references: with few images scores mean little, and with one image they are 0."""
    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of all captions together, between 0 and 1."""


def tokens(caption: str) -> str:
    """A caption as coco-caption's tokenizer (Stanford's PTBTokenizer 3.4.1) returns it: in small letters, contractions separated,
    most punctuation dropped, a space between tokens."""
    found: list[str] = []
    for match in _TOKEN.finditer(caption.replace("&amp;", "&")):
        found += _apart(match.group().lower().replace("’", "'"))
    return " ".join(token for token in found if token not in _LEFT_OUT)


def _apart(word: str) -> list[str]:
    """The tokens of one match, which is in small letters."""
    if len(word) == 1:
        return [_WRITTEN.get(word, word)] if word < "\U00010000" else []  # the official tokenizer drops emoji
    # Contractions are taken off from the end: a word may have several ("wouldn't've").
    ends: list[str] = []
    while (parts := _CONTRACTION.fullmatch(word)) and word not in ("'s", "n't"):
        word, ends = parts[1], [parts[2], *ends]
    if word in _JOINED:
        return [*_JOINED[word].split(), *ends]
    if "'" in word[1:] and not word.startswith("'") and not _WITHIN.fullmatch(word):
        return [*re.split(r"('n'|')", word), *ends]
    return [word, *ends]


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """CIDEr (coco-caption's, which is CIDEr-D with σ = 6) and BLEU of captions, each against its image's references.

    Args:
        captions: one per image.
        references: each image's references.

    Raises:
        ValueError: there is no caption, or an image without a reference.
        ImportError: the extra `captions` is not installed.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"every one of {len(captions)} captions needs references, got {len(references)} lists of them, "
            f"{sum(not one for one in references)} of them empty"
        )
    cider, bleu = scorers()
    # The scorers take both by image id, captions as lists of one.
    given = {number: [tokens(caption)] for number, caption in enumerate(captions)}
    right = {number: [tokens(one) for one in several] for number, several in enumerate(references)}
    _, each = cider().compute_score(right, given)
    # BLEU is of the whole corpus: it counts n-grams of all captions together, so it has no mean over captions.
    together, _ = bleu(4).compute_score(right, given, verbose=0)
    one, two, three, four = (float(value) for value in together)
    return CaptionScores(cider=np.asarray(each, np.float64), bleu=(one, two, three, four))


def scorers() -> tuple[type, type]:
    """The published scorers' classes: CIDEr's and BLEU's. Also checks early that they are installed.

    Raises:
        ImportError: the extra `captions` is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError(EXTRA) from error
    return Cider, Bleu
