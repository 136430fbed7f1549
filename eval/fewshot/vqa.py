"""VQA accuracy as the official scorer computes it (Antol et al., 2015; Goyal et al., 2017), including its peculiarities."""

import re
from collections.abc import Sequence

import numpy as np

_NUMBER_WORDS = "none zero one two three four five six seven eight nine ten"
_NUMBERS = dict(zip(_NUMBER_WORDS.split(), [0, *range(11)], strict=True))
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# A full stop that no digit follows. The lookahead before it, probably meant as a lookbehind for a digit, is always true.
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)  # the official scorer passes the flag where the count belongs
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
"""
# Each is recognised with any one of its apostrophes left out. `somebody'd` alone loses its own.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalized(answer: str) -> str:
    """Lower case, without punctuation and articles, number words as digits, contractions with their apostrophes."""
    text = answer
    for mark in _PUNCTUATION:
        # A mark beside a space is dropped, one within a word becomes a space. A number with a comma anywhere in the answer has
        # all marks dropped: the official scorer looks for it in the whole answer.
        apart = f"{mark} " in answer or f" {mark}" in answer or _NUMBER_WITH_COMMA.search(answer)
        text = text.replace(mark, "" if apart else " ")
    text = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)
    words = [str(_NUMBERS.get(word, word)) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, human: Sequence[str]) -> float:
    """The share of three people who gave the same answer, at most 1, averaged over leaving out each person.

    Args:
        answer: the answer to score.
        human: the answers of several people, ten in VQAv2.

    Raises:
        ValueError: there is no human answer.
    """
    if not human:
        raise ValueError("the question has no answer to compare with")
    given, references = _plain(answer), [_plain(one) for one in human]
    if len(set(references)) > 1:  # where all agree, the official scorer compares without normalising
        given, references = normalized(given), [normalized(one) for one in references]
    same = np.array([one == given for one in references])  # (people,)
    # Without each person in turn: a person who gave the answer leaves one fewer who did.
    return float(np.mean(np.minimum(1.0, (same.sum() - same) / 3)))


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
