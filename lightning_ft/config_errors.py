"""A parser's complaint as one sentence: the file, the key, and the nearest valid one."""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lightning_ft.extras import import_class
from lightning_ft.resources import nearest_path

# around what a nested parser has explained, so that the outer one finds it in jsonargparse's page
OPEN, CLOSE = "\u2039", "\u203a"
AFTER_A_RUN = ("report", "export")  # commands with parsers of their own


def explain(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Turn jsonargparse's message into one sentence.

    Args:
        message: What jsonargparse says, over several lines and without the file.
        parser: The parser of the whole command.
        arguments: The command line.

    Returns:
        The place, what is wrong, and the nearest valid name.
    """
    if explained := re.findall(f"{OPEN}([^{OPEN}{CLOSE}]+){CLOSE}", message):
        key = re.search(r'Parser key "([^"]+)"', message)
        part = f"{key[1]}: " if key and explained[0].startswith("the following") else ""
        return part + explained[0]  # by the parser of a class inside
    if said := said_by_class(message):
        return said
    entries = [*_file_entries(arguments), *_argument_entries(arguments)]
    if found := re.search(r"(?:Option|does not accept option) '([^']+)'", message):
        return _unknown_key(found[1], entries, parser, arguments)
    if found := re.search(r"unrecognized arguments: --?([^\s=]+)", message):
        return f"no option --{found[1]}{_near(f'--{found[1]}', [f'--{dest}' for dest in _dests(parser)])}"
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        choices = [*re.findall(r"[\w-]+", found[2]), *AFTER_A_RUN]
        return f"no command {found[1]!r}; the commands are {', '.join(choices)}{_near(found[1], choices)}"
    if found := re.search(r'expected "subcommand" to be one of \{(.+)\}', message):
        return f"no command given; the commands are {', '.join([*found[1].split(','), *AFTER_A_RUN])}"
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.+)", message)
    literal = re.search(r"Literal\[(.+?)\]", message)
    if key and value and literal and "." not in value[1]:
        choices = re.findall(r"'([^']+)'", literal[1])
        place = _whole_key(key[1], entries)
        return f"{place}: expected {', '.join(choices)}, but got {value[1]!r}{_near(value[1], choices)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{_place(found[1], entries)}no class {found[1]!r}{_near(found[1], _class_names())}"
    if found := re.search(r"File does not exist: '([^']+)'", message):
        return f"no such file: {found[1]!r}{nearest_path(Path(found[1]))}"
    if found := re.search(r"Problems parsing config: (.+?)\s+in .*?(line \d+, column \d+)", message, re.DOTALL):
        return f"{_unreadable(arguments)}, {found[2]}: no YAML: {' '.join(found[1].split())}"
    if key and (strange := [path for where, path in entries if where and _stands_beside_class(path, key[1])]):
        return _unknown_key(strange[0], entries, parser, arguments)
    expected = list(dict.fromkeys(re.findall(r"Expected an? (?:<class ')?([\w.]+)'?>?", message)))
    if key and value and expected:
        kinds = " or ".join("null" if kind == "NoneType" else kind for kind in expected)
        return f"{_whole_key(key[1], entries)}: expected {kinds}, but got {value[1]!r}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def _unknown_key(token: str, entries: list[tuple[str, str]], parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Name the file and the whole key of an option that nothing accepts, and the nearest that is accepted there."""
    matches = [(where, path) for where, path in entries if path == token or path.endswith(f".{token}")]
    where, key = matches[-1] if matches else ("", token)
    known = _dests(parser)
    parts = key.split(".")
    tops = {dest.partition(".")[0] for dest in known}
    # where the whole command's parser does not know the first part, that one is misspelt
    depth = 1 if getattr(parser, "_subcommands_action", None) is not None and parts[0] not in tops else len(parts)
    key = ".".join(parts[:depth])
    parent, _, last = key.rpartition(".")
    class_path = dict(_class_paths(arguments)).get(parent.removesuffix(".init_args"))
    prefix = f"{parent}." if parent else ""
    candidates = {dest.removeprefix(prefix).partition(".")[0] for dest in known if dest.startswith(prefix)}
    if class_path:
        candidates |= set(_parameters(class_path)) | (
            {"class_path", "init_args"} if not parent.endswith("init_args") else set()
        )
    return f"{where}: " * bool(where) + f"no key {key!r}{_near(last, sorted(candidates))}"


def _whole_key(key: str, entries: list[tuple[str, str]]) -> str:
    """Return the file and the whole key of one that the parser of a class knows by its last part."""
    keys = [(where, path) for where, path in entries if path == key or path.endswith(f".{key}")]
    where, path = keys[-1] if keys else ("", key)
    return f"{where}: {path}" if where else path


def _stands_beside_class(path: str, key: str) -> bool:
    parent, _, last = path.partition("=")[0].rpartition(".")
    return parent == key and last not in ("class_path", "init_args", "dict_kwargs")


def _unreadable(arguments: Sequence[str]) -> str:
    """Return the first configuration file that is no YAML."""
    for file in _config_files(arguments):
        try:
            yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            return file
    return "the command line"


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(token: str, entries: list[tuple[str, str]]) -> str:
    """Return the file that speaks of a key or value, as a prefix of the sentence."""
    for where, entry in reversed(entries):
        if entry == token or entry.endswith((f"={token}", f".{token}")) or entry.startswith(f"{token}="):
            return f"{where}: " if where else ""
    return ""


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            yield value if equals else next(iter(arguments[position + 1 :]), "")


def _files(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for file in _config_files(arguments):
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
    for _, entry in _argument_entries(arguments):
        path, equals, value = entry.partition("=")
        if equals and value.isidentifier():
            yield path.removesuffix(".class_path"), value


def _parameters(class_path: str) -> list[str]:
    """Return the parameters of a class, those that it hands on to its bases included."""
    try:
        found = next((vars(home)[class_path] for home in _homes() if class_path in vars(home)), None)
        if found is None and class_path.rpartition(".")[0] not in sys.modules:
            return []  # nothing is imported to explain an error
        found = found or import_class(class_path)
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


def _dests(parser: ArgumentParser) -> list[str]:
    """Return the keys that a command's parser knows."""
    subparsers = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subparsers.choices.values() if subparsers is not None else ())]
    return sorted({action.dest for known in parsers for action in known._actions if action.dest != "help"})


def _class_names() -> list[str]:
    return sorted({name for home in _homes() for name, value in vars(home).items() if isinstance(value, type)})


def _homes() -> list[ModuleType]:
    """Return the modules whose classes a recipe may name without their module."""
    import lightning.pytorch.callbacks
    import torch.optim.lr_scheduler

    import lightning_ft
    import lightning_ft_callbacks

    return [lightning_ft, lightning_ft_callbacks, lightning.pytorch.callbacks, torch.optim, torch.optim.lr_scheduler]


def said_by_class(message: str) -> str | None:
    """Return what a class says of its own arguments, out of jsonargparse's list of all types that did not fit."""
    own = r"Errors:\s+- (?!Expected|Problem|Does not|Not a valid)"
    found = re.search(own + r"(.+?)\s+- (?:Expected|Not a valid)", message, re.DOTALL)
    found = found or re.search(own + r"([^\n]+)\s*\Z", message)
    return found[1] if found else None
