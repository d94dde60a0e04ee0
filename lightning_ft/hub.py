"""The model hub: whether it can be asked, told at once instead of after half a minute of retries."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies


@cache
def hub_host() -> str:
    """Return the host of the Hugging Face hub, or of the mirror that ``HF_ENDPOINT`` names."""
    return urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""


@cache
def hub_answers() -> bool:
    """Tell whether the hub's name resolves; behind a proxy that is the proxy's affair, and the answer is yes."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(hub_host(), 443)
    except OSError:
        return False
    return True


def in_hub_cache(name: str, *files: str) -> bool:
    """Tell whether the hub's cache on this machine has one of the files of a model."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
