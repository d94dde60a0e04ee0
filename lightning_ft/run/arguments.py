"""The run that a command line speaks of: ``--run``, ``--ckpt_path last``, and the configuration it implies."""

from collections.abc import Sequence
from pathlib import Path

from lightning_ft.run.folder import CONFIG, best_checkpoint, newest_checkpoint, run_folder_of

RUNS = "runs"


def expand(arguments: Sequence[str]) -> list[str]:
    """Replace a run by its configuration and checkpoint.

    ``test --run RUN`` becomes ``test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt``; ``--run last``
    is the newest run. ``--ckpt_path last`` becomes the newest whole checkpoint under ``trainer.default_root_dir``, and
    where no ``--config`` is given a checkpoint brings that of its run. What the user gave comes after and wins.

    Args:
        arguments: The command line without the program.

    Raises:
        FileNotFoundError: If there is no such run, or no whole checkpoint.
        ValueError: If the configuration is no recipe.
    """
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    command, *rest = arguments
    root = _value(rest, "--trainer.default_root_dir") or _root_in_config(_value(rest, "--config", "-c")) or RUNS
    run, given = _value(rest, "--run"), _value(rest, "--ckpt_path")
    if run is not None:
        folder = run_folder_of(newest_checkpoint(root)) if run == "last" else Path(run)
        assert folder is not None
        checkpoint = given or str(best_checkpoint(folder))
    elif given is not None:
        checkpoint = str(newest_checkpoint(root)) if given == "last" else given
        folder = run_folder_of(checkpoint)
    else:
        return list(arguments)
    brings_config = folder is not None and (run is not None or _value(rest, "--config", "-c") is None)
    rest = _without(_without(rest, "--run"), "--ckpt_path")
    return [command, *(_config_of(folder) if brings_config and folder else []), *rest, "--ckpt_path", checkpoint]


def _config_of(run: Path) -> list[str]:
    file = run / CONFIG
    return ["--config", str(file)] if file.is_file() else []


def _value(arguments: Sequence[str], *options: str) -> str | None:
    """Return the last value given for an option, as ``--option value`` or ``--option=value``."""
    value = None
    for position, argument in enumerate(arguments):
        name, equals, rest = argument.partition("=")
        if name in options:
            value = rest if equals else next(iter(arguments[position + 1 :]), None)
    return value


def _without(arguments: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept


def _root_in_config(config: str | None) -> str | None:
    """Return ``trainer.default_root_dir`` of a recipe.

    Raises:
        ValueError: If it is no mapping; what else is wrong with it the parser will say.
    """
    if config is None or not Path(config).is_file():
        return None
    import yaml

    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{config}: no recipe: it is no text") from error
    if not isinstance(content, dict):
        raise ValueError(f"{config}: no recipe: expected keys such as model, data and trainer, but got {content!r:.60}")
    trainer = content.get("trainer")
    return trainer.get("default_root_dir") if isinstance(trainer, dict) else None
