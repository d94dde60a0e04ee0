"""Entities: stretches of words, and the tags of words that stand for them.

Tags are those of IOB2: ``O`` for no entity, ``B-person`` for the first word of one, ``I-person`` for its others.
Classes have this order, so that a number alone says what it is: 0 for ``O``, then ``B-`` and ``I-`` of each kind in
turn.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ft.tasks.targets import IGNORED as IGNORED  # here: no word, or one that another window judges

NONE, BEGINS, GOES_ON = "O", "B-", "I-"
CONTINUES = -101  # the same, first in a row that goes on with the text of the row before
PREFIXES = frozenset("BIESLU")  # of all schemes: IOB1, IOB2, IOBES, BILOU
FIRST, LAST, SINGLE = frozenset("BSU"), frozenset("ESLU"), frozenset("SU")


class Entity(NamedTuple):
    """A stretch of words.

    Attributes:
        kind: Its kind, numbered from 0.
        start: Its first word.
        stop: The word after its last.
    """

    kind: int
    start: int
    stop: int


def are_entities(tags: Iterable[str]) -> bool:
    """Tell whether tags mark entities, and are not one class a word, as parts of speech are."""
    found = {tag for tag in tags if tag != NONE}
    return bool(found) and all(tag[:1] in PREFIXES and tag[1:2] == "-" and tag[2:] for tag in found)


def kinds_of(tags: Iterable[str]) -> list[str]:
    """Return the kinds of entities that tags mark, sorted."""
    return sorted({tag[2:] for tag in tags if tag != NONE})


def tag_names(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the tags of kinds of entities, in the order of their classes."""
    return (NONE, *(prefix + kind for kind in kinds for prefix in (BEGINS, GOES_ON)))


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return the tags of a text in IOB2, from IOB1, IOB2, IOBES or BILOU.

    An ``I-`` that goes on with nothing begins an entity, as conlleval counts it
    (https://www.clips.uantwerpen.be/conll2002/ner/bin/conlleval.txt).

    Args:
        tags: The tags of a text's words.
    """
    found, before = [], ""  # the kind of the entity that can go on
    for tag in tags:
        prefix, kind = tag[:1], tag[2:]
        if tag == NONE:
            found.append(NONE)
            before = ""
            continue
        found.append((BEGINS if prefix in FIRST or kind != before else GOES_ON) + kind)
        before = "" if prefix in LAST else kind
    return found


def entities_of(tags: Sequence[int]) -> list[Entity]:
    """Return the entities of a text, by the classes of its words.

    Any sequence of classes has some: an ``I-`` that goes on with nothing begins an entity.

    Args:
        tags: Classes, 0 for ``O``, then ``B-`` and ``I-`` of each kind.
    """
    found: list[Entity] = []
    start, before = 0, -1
    for word, tag in enumerate([*tags, 0]):
        kind, begins = (tag - 1) // 2, tag % 2 == 1
        goes_on = tag > 0 and kind == before and not begins
        if before >= 0 and not goes_on:
            found.append(Entity(before, start, word))
        if not goes_on:
            start, before = word, kind if tag > 0 else -1
    return found


def words_of_texts(target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return where the words of each text stand in a batch.

    Args:
        target: Classes of words at their tokens, ``IGNORED`` at others, shape (window, token); the first of a row is
            ``CONTINUES`` where it goes on with the text of the row before.

    Returns:
        For each text the rows and the columns of its words, in order, each of shape (word,).
    """
    text = (target[:, 0] != CONTINUES).cumsum(0) - 1
    rows, columns = (target >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(text[rows], minlength=int(text[-1]) + 1 if len(text) else 0).tolist()
    return list(zip(rows.split(counts), columns.split(counts), strict=True))
