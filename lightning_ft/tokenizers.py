"""A pretrained tokenizer, ready to pad."""

from pathlib import Path
from typing import Any

from lightning_ft.extras import require

VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "merges.txt", "*.bpe")


def load_tokenizer(source: str, needed_by: str, **options: Any) -> Any:
    """Load a tokenizer with transformers.

    Args:
        source: A folder, or a name on the hub.
        needed_by: The class that needs it, for the message where transformers is missing.
        **options: Options of ``AutoTokenizer.from_pretrained``.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        FileNotFoundError: If a folder has no vocabulary; transformers would make an empty one, silently.
    """
    transformers = require("transformers", extra="text", needed_by=needed_by)
    folder = Path(source)
    alone = "gguf_file" not in options  # such a file holds a vocabulary
    if alone and folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        raise FileNotFoundError(f"{source!r} has no tokenizer: none of {', '.join(VOCABULARIES)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token is None:
        # GPT-2 and its kin have none; the mask keeps these positions out of everything
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
