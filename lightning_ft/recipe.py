"""What a recipe leaves open, filled in from the data and from a run's checkpoint."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lightning_ft.backbones.base import Backbone
from lightning_ft.config_errors import explain
from lightning_ft.data.base import FineTuningData
from lightning_ft.extras import import_class
from lightning_ft.heads.base import Head, heads_for
from lightning_ft.module import FineTuner
from lightning_ft.run.adapted_base import KEY


def build_data(config: Namespace) -> Any:
    """Build the data alone; the parser of a command builds all of its parts or none."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        return parser.instantiate(Namespace(data=config))["data"]
    except ValueError as error:
        raise ValueError(explain(str(error), parser, ())) from error


def check_head(head: Namespace | None, task: str, data: str) -> None:
    """Raise where a head of ours cannot learn what the data has.

    Args:
        head: The head of the configuration.
        task: The task of the data's labels.
        data: The data's name, for the message.

    Raises:
        ValueError: If it cannot, with the heads that can.
    """
    kind: Any = None if head is None else import_class(head.class_path)
    if isinstance(kind, type) and issubclass(kind, Head) and kind.tasks and task not in kind.tasks:
        fitting = ", ".join(one.__name__ for one in heads_for(task))
        raise ValueError(f"{kind.__name__} does not learn {task}, which {data} has; heads that do: {fitting}")


def fill(part: Namespace | None, **values: Any) -> None:
    """Set those of a part's arguments that it has and the recipe left open."""
    init_args = None if part is None else part.get("init_args")
    if init_args is None:
        return
    for name, value in values.items():
        if name in init_args and init_args[name] is None:
            init_args[name] = value


def move_optimizer(config: Namespace) -> None:
    """Give Lightning's top-level ``optimizer`` and ``lr_scheduler`` to the FineTuner.

    LightningCLI would replace ``configure_optimizers`` by one over all parameters alike. The optimizer's lr and
    weight_decay become the FineTuner's, so that there is one of each.

    Args:
        config: A command's configuration, changed in place.

    Raises:
        ValueError: If lr or weight_decay, the optimizer or the schedule is set in both places.
    """
    model = config.model
    moved = config.get("optimizer")
    if moved is not None:
        model.optimizer, config.optimizer = moved, None
    arguments = model.optimizer.get("init_args") or Namespace()
    own = signature(import_class(model.optimizer.class_path)).parameters
    for key in ("lr", "weight_decay"):
        if key not in arguments:
            continue
        given, ours, default = arguments[key], model[key], own[key].default
        if given not in (default, ours) and ours != _default(key):
            raise ValueError(f"model.{key}={ours} and the optimizer's {key}={given}: set one of them")
        # an optimizer at the top level trains with its own default rate, as it does in Lightning
        if given != default or (moved is not None and ours == _default(key)):
            model[key] = given
        # one rate in the configuration that the run keeps, so that it can be changed there
        if default is Parameter.empty:
            arguments[key] = model[key]
        else:
            del arguments[key]
    if (scheduler := config.get("lr_scheduler")) is not None:
        if model.lr_schedule not in (_default("lr_schedule"), scheduler):
            raise ValueError(
                f"model.lr_schedule={model.lr_schedule!r} has no effect beside lr_scheduler: set one of them"
            )
        model.lr_schedule = scheduler
        config.lr_scheduler = None


def rebuild_from(config: Namespace, checkpoint: Mapping[str, Any], *, merge: bool = False) -> None:
    """Let the backbone and the label names come from a checkpoint, so that it alone is needed to use a run.

    Where the checkpoint holds adapters alone the rest comes from where the run had it.

    Args:
        config: A command's configuration with ``ckpt_path``, changed in place.
        checkpoint: The checkpoint.
        merge: Whether the adapters of a run with ``lora`` become part of the weights.
    """
    backbone = config.model.backbone
    backbone_class = import_class(backbone.class_path)
    if "backbone" in checkpoint and (merge or KEY not in checkpoint) and issubclass(backbone_class, Backbone):
        arguments = backbone_class.rebuilt_from(config.ckpt_path, backbone.init_args.as_dict())
        # without them a backbone has those of its checkpoint merged
        backbone.init_args = Namespace(arguments | {"lora": None} if merge else arguments)
    data_class = import_class(config.data.class_path)
    state = checkpoint.get(data_class.__qualname__, {})
    if issubclass(data_class, FineTuningData) and "label_names" in state:
        fill(config.data, labels=state["label_names"] or None, task=state["task"])


def _default(name: str) -> Any:
    return signature(FineTuner).parameters[name].default
