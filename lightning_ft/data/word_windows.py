"""WordWindows: texts of words as windows of tokens, each word's class at its first token."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from lightning_ft.tasks.entities import IGNORED

WORD = re.compile(r"\w+|[^\w\s]")
Place = tuple[int, int]  # the characters between which a word stands in its text


@dataclass(frozen=True, slots=True)
class WordWindows:
    """One text for a model.

    Attributes:
        inputs: What the model reads of each window, by name: ``input_ids``, ``attention_mask`` and others.
        labels: Of each window the class of each word at its first token, and ``IGNORED`` at other tokens.
        characters: Of each window and token the place of the word that begins there, (0, 0) where none does.
        num_lost: Words that the tokenizer makes no token of.
    """

    inputs: dict[str, list[list[int]]]
    labels: list[list[int]]
    characters: list[list[Place]]
    num_lost: int


def joined(words: Sequence[str]) -> tuple[str, list[Place]]:
    """Return words as a text, with a space between two, and their places."""
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), places


def words_in(text: str) -> list[Place]:
    """Return the places of words in a text: letters and digits together, any other sign alone."""
    return [match.span() for match in WORD.finditer(text)]


def word_windows(
    texts: Sequence[str],
    places: Sequence[Sequence[Place]],
    classes: Sequence[Sequence[int]],
    tokenizer: Any,
    limit: int | None,
    overlap: int,
) -> list[WordWindows]:
    """Tokenise texts, in overlapping windows where they are too long for the model.

    Each word belongs to one window, that in which more of the text stands around it.

    Args:
        texts: The texts.
        places: The places of their words.
        classes: The words' classes.
        tokenizer: A fast tokenizer of transformers.
        limit: Tokens of a window, at most; None for no limit.
        overlap: Tokens that neighbouring windows share.
    """
    encoded = tokenizer(
        list(texts),
        truncation=limit is not None,
        max_length=limit,
        stride=overlap if limit is not None else 0,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    hidden = ("overflow_to_sample_mapping", "offset_mapping", "special_tokens_mask")
    names = [name for name in encoded if name not in hidden]
    of_text: list[list[int]] = [[] for _ in texts]
    for window, text in enumerate(encoded["overflow_to_sample_mapping"]):
        of_text[text].append(window)
    found = []
    for text, windows in enumerate(of_text):
        tokens = [_tokens(texts[text], encoded, window) for window in windows]
        labels, characters = _at_first_tokens(tokens, places[text], classes[text])
        num_held = sum(label != IGNORED for row in labels for label in row)
        inputs = {name: [encoded[name][window] for window in windows] for name in names}
        found.append(WordWindows(inputs, labels, characters, len(places[text]) - num_held))
    return found


def _tokens(text: str, encoded: Any, window: int) -> list[Place | None]:
    """Return the place of each token of a window, without spaces before it; None for special tokens."""
    found: list[Place | None] = []
    for (start, end), special in zip(
        encoded["offset_mapping"][window], encoded["special_tokens_mask"][window], strict=True
    ):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        found.append(None if special or start >= end else (start, end))
    return found


def _at_first_tokens(
    windows: Sequence[Sequence[Place | None]], places: Sequence[Place], classes: Sequence[int]
) -> tuple[list[list[int]], list[list[Place]]]:
    """Return words' classes and places at their first tokens, each in the one window that it belongs to."""
    labels = [[IGNORED] * len(tokens) for tokens in windows]
    characters: list[list[Place]] = [[(0, 0)] * len(tokens) for tokens in windows]
    starts = [start for start, _ in places]
    bounds = [-inf, *_middles(windows), inf]
    for number, tokens in enumerate(windows):
        seen: set[int] = set()
        for position, token in enumerate(tokens):
            if token is None:
                continue
            word = bisect_right(starts, token[1] - 1) - 1
            # a token may begin before the word, with a sign that is no word
            while word > 0 and places[word - 1][1] > token[0]:
                word -= 1
            if word < 0 or word in seen or places[word][1] <= token[0]:
                continue
            seen.add(word)
            if bounds[number] <= starts[word] < bounds[number + 1]:
                labels[number][position] = classes[word]
                characters[number][position] = places[word]
    return labels, characters


def _middles(windows: Sequence[Sequence[Place | None]]) -> list[float]:
    """Return the middle of what each two neighbouring windows share."""
    ranges = []
    for tokens in windows:
        real = [token for token in tokens if token is not None]
        ranges.append((real[0][0], real[-1][1]) if real else (0, 0))
    return [(before[1] + after[0]) / 2 for before, after in pairwise(ranges)]
