"""JudgedText: a row as the text that a language model reads, and which of it the loss judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]  # from a character up to another


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A text to learn from.

    Attributes:
        text: All of it.
        spans: The stretches of characters that are judged, in order; None for all.
        templated: Whether a chat template has written it, special tokens included.
    """

    text: str
    spans: tuple[Span, ...] | None = None
    templated: bool = False

    def tokens(self, tokenizer: Any) -> tuple[list[int], list[bool]]:
        """Return the tokens, with one that ends the text, and whether each is judged.

        A token that reaches from the prompt into the completion is judged.

        Args:
            tokenizer: A fast tokenizer with an ``eos_token``.
        """
        spans = self.spans
        encoded = tokenizer(self.text, add_special_tokens=not self.templated, return_offsets_mapping=spans is not None)
        ids = list(encoded["input_ids"])
        if spans is None:
            judged = [True] * len(ids)
        else:
            judged = [
                start < stop and any(start < last and stop > first for first, last in spans)
                for start, stop in encoded["offset_mapping"]
            ]
        if self.templated:
            return ids, judged
        if ids and ids[-1] == tokenizer.eos_token_id:
            return ids, [*judged[:-1], True]
        return [*ids, tokenizer.eos_token_id], [*judged, True]


def plain(text: str) -> JudgedText:
    """Return a text that is judged as a whole."""
    return JudgedText(text)


def completed(prompt: str, completion: str) -> JudgedText:
    """Return a prompt with its completion, which alone is judged."""
    return JudgedText(prompt + completion, ((len(prompt), len(prompt) + len(completion)),))


def chat(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> JudgedText:
    """Return a conversation as the tokenizer's chat template writes it; what the assistant says is judged.

    Args:
        messages: Turns with ``role`` and ``content``.
        tokenizer: A tokenizer with a chat template.

    Raises:
        ValueError: If the template changes earlier turns when later ones come.
    """
    whole = _rendered(tokenizer, messages)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, messages[:number], add_generation_prompt=True)
        after = _rendered(tokenizer, messages[: number + 1])
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                "the tokenizer's chat template writes earlier turns in another way when later ones come, so nobody "
                "knows what is the assistant's; give prompt_column and completion_column instead"
            )
        spans.append((len(before), len(after)))
    return JudgedText(whole, tuple(spans), templated=True)


def chat_prompt(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    """Return a conversation up to where the assistant is to speak."""
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def check_messages(messages: Any, place: str, row: int, *, trains: bool) -> None:
    """Raise unless a cell is a conversation with something to learn from.

    Args:
        messages: The cell.
        place: The file, for messages.
        row: The row, from 0.
        trains: Whether the assistant must say something in it.

    Raises:
        ValueError: If it is none, with the row.
    """
    turns = messages if isinstance(messages, list) else [messages]
    if not turns or not all(
        isinstance(turn, Mapping) and turn.get("role") and turn.get("content") is not None for turn in turns
    ):
        raise ValueError(
            f"{place}, row {row + 1}: expected a list of turns with role and content, but got {messages!r}"
        )

    if trains and not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError(f"{place}, row {row + 1}: the assistant says nothing, so that there is nothing to learn")


def prompt_of(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the tokens of a prompt: without an end that the tokenizer has put behind it, and with a start at least."""
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return ids or [start]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    if not messages:
        return ""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses a conversation: {error}") from error
