"""A parser's complaint as one sentence: the file, the key, and the nearest valid one."""

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lightning_ft.extras import import_class


def explain(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Turn jsonargparse's message into one sentence.

    Args:
        message: What jsonargparse says, over several lines and without the file.
        parser: The parser of the whole command.
        arguments: The command line.

    Returns:
        The place, what is wrong, and the nearest valid name.
    """
    entries = [*_file_entries(arguments), *_argument_entries(arguments)]
    if found := re.search(r"(?:Option|does not accept option) '([^']+)'", message):
        return _unknown_key(found[1], entries, parser, arguments)
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        choices = re.findall(r"[\w-]+", found[2])
        return f"no command {found[1]!r}; the commands are {', '.join(choices)}{_near(found[1], choices)}"
    if found := re.search(r'expected "subcommand" to be one of \{(.+)\}', message):
        return f"no command given; the commands are {found[1].replace(',', ', ')}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        name = found[1]
        return f"{_place(name, entries)}no class {name!r}{_near(name, _class_names())}"
    if found := re.search(r"File does not exist: '([^']+)'", message):
        from lightning_ft.resources import nearest_path

        return f"no such file: {found[1]!r}{nearest_path(Path(found[1]))}"
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.+)", message)
    expected = list(dict.fromkeys(re.findall(r"Expected an? (?:<class ')?([\w.]+)'?>?", message)))
    if key and value and expected:
        kinds = " or ".join("null" if kind == "NoneType" else kind for kind in expected)
        return f"{_place(key[1], entries)}{key[1]}: expected {kinds}, but got {value[1]!r}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def _unknown_key(token: str, entries: list[tuple[str, str]], parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Name the file and the whole key of an option that nothing accepts, and the nearest that is accepted there."""
    last = token.rpartition(".")[2]
    exact = [entry for entry in entries if entry[1] == token or entry[1].startswith(f"{token}.")]
    where, key = next(iter(exact), None) or next(
        ((where, path[: path.index(part) + len(part)]) for where, path in entries for part in [last]
         if part in path.split(".")), ("", token)
    )
    key = token if exact else key
    parent = key.rpartition(".")[0].removesuffix(".init_args")
    class_path = dict(_class_paths(arguments)).get(parent)
    known = [*(_parameters(class_path) if class_path else ()), *_dests(parser, parent)]
    place = f"{where}: " if where else ""
    return f"{place}no key {key!r}{_near(last, known)}"


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(token: str, entries: list[tuple[str, str]]) -> str:
    """Return the file that speaks of a key or value, as a prefix of the sentence."""
    for where, entry in reversed(entries):
        if entry == token or entry.endswith((f"={token}", f".{token}")) or entry.startswith(f"{token}="):
            return f"{where}: " if where else ""
    return ""


def _files(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            file = value if equals else next(iter(arguments[position + 1 :]), "")
            try:
                yield file, yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError):
                continue


def _file_entries(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for file, content in _files(arguments):
        for path, value in _flat(content):
            yield file, path
            yield file, f"{path}={value}"


def _argument_entries(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            yield "", name
            yield "", f"{name}={value if equals else next(iter(arguments[position + 1 :]), '')}"


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path, value
        yield from _flat(value, path)


def _class_paths(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each key that holds a class, with the class."""
    for _, content in _files(arguments):
        for path, value in _flat(content):
            if path.endswith(".class_path"):
                yield path.removesuffix(".class_path"), str(value)
            elif isinstance(value, str) and value.isidentifier():
                yield path, value


def _parameters(class_path: str) -> list[str]:
    """Return the parameters of a class, those that it hands on to its bases included."""
    import lightning_ft

    try:
        found = getattr(lightning_ft, class_path, None) or import_class(class_path)
    except (ImportError, AttributeError, ValueError):
        return []
    names: dict[str, None] = {}
    for base in getattr(found, "__mro__", ()):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            names |= dict.fromkeys(list(parameters)[1:])
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return list(names)


def _dests(parser: ArgumentParser, parent: str) -> list[str]:
    """Return the last parts of the keys that the command's parser knows under a key."""
    subparsers = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subparsers.choices.values() if subparsers is not None else ())]
    prefix = f"{parent}." if parent else ""
    return sorted(
        {
            action.dest.removeprefix(prefix).partition(".")[0]
            for known in parsers
            for action in known._actions
            if action.dest.startswith(prefix)
        }
    )


def _class_names() -> list[str]:
    import lightning.pytorch.callbacks

    import lightning_ft

    return [*dir(lightning_ft), *lightning.pytorch.callbacks.__all__]
