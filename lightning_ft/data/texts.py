"""TextData: what data of texts share: the tokenizer, and how long a text may be."""

import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.data.base import FineTuningData
from lightning_ft.data.tables import kind_of
from lightning_ft.data.written_rows import WrittenRows
from lightning_ft.extras import require
from lightning_ft.resources import resolve
from lightning_ft.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


class TextData(FineTuningData):
    """Texts that are tokenised for a model.

    Args:
        *arguments: As FineTuningData takes them.
        tokenizer: A tokenizer, or the name or folder of one; None for that of the module's backbone.
        max_length: Tokens that the model gets of a text at once, at most; None for what it takes.
        **options: As FineTuningData takes them.
    """

    def __init__(self, *arguments: Any, tokenizer: Any, max_length: int | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if max_length is not None and max_length < 1:
            raise ValueError(f"expected max_length to be a positive number of tokens, but got {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length

    @cached_property
    def written(self) -> WrittenRows:
        """The rows to predict as they stand in their file."""
        file = self.files["predict"]
        path = Path(resolve(file or ""))
        if file is None or (path.suffix and kind_of(path) is None):  # texts or words in a file of no table
            return super().written
        return WrittenRows.of_file(file, "predict_file", type(self).__name__)

    def _tokenizer(self) -> Any:
        """Return the tokenizer given, or that of the module's backbone.

        Raises:
            ValueError: If there is neither.
        """
        if isinstance(self.tokenizer, str | Path):
            self.tokenizer = load_tokenizer(resolve(self.tokenizer), type(self).__name__)
        tokenizer = self.tokenizer or getattr(self._backbone(), "tokenizer", None)
        if tokenizer is None:
            raise ValueError(
                f"{type(self).__name__} needs a tokenizer: train a FineTuner with a TransformersBackbone of a text "
                "model, or give tokenizer"
            )
        return tokenizer

    def _limit(self, tokenizer: Any) -> int | None:
        """Return the tokens that the model gets of a text at most; None for no limit.

        Raises:
            ValueError: If max_length is more than the model takes.
        """
        limits = [getattr(self._backbone(), "max_length", None), tokenizer.model_max_length]
        # a tokenizer that knows no limit says 1e30
        model_limit = min((limit for limit in limits if limit is not None and limit < 1e9), default=None)
        if self.max_length is not None and model_limit is not None and self.max_length > model_limit:
            raise ValueError(f"max_length={self.max_length} is more than the {model_limit} tokens that the model takes")
        return self.max_length or model_limit

    def _backbone(self) -> Any:
        return getattr(getattr(self.trainer, "lightning_module", None), "backbone", None)


def tokenised_name(table: "Dataset", tokenizer: Any, **settings: Any) -> str:
    """Return a name in the cache of datasets for a tokenised table; a tokenizer's own hash changes as it is used.

    Args:
        table: What is tokenised.
        tokenizer: The tokenizer.
        **settings: What else decides about the tokens, plain data.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    rules |= {"truncation": None, "padding": None, "class": type(tokenizer).__name__, **settings}
    text = table._fingerprint + json.dumps(rules, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:32]


def read_texts(path: Path, what: str, column: str, needed_by: str) -> "Dataset":
    """Read a file of texts with blank lines between them.

    Args:
        path: The file, UTF-8.
        what: What it is, for messages: ``"train_file"``.
        column: The name that the column of texts gets.
        needed_by: The class that reads it, for the message where ``datasets`` is missing.

    Raises:
        ValueError: If it is no text, or there is none in it.
    """
    datasets = require("datasets", extra="text", needed_by=needed_by)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {str(path)!r} is no UTF-8 text: byte {error.start}") from error
    texts: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            texts[-1].append(line)
        elif texts[-1]:
            texts.append([])
    found = ["\n".join(text) for text in texts if text]
    if not found:
        raise ValueError(f"{what} {str(path)!r} has no texts")
    return datasets.Dataset.from_dict({column: found})
