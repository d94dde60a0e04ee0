"""plain_loop: the same training in plain PyTorch."""

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace

from clock import Clock, Contender

from lightning_ft import FineTuner, FineTuningData


def plain_loop(
    module: FineTuner, data: FineTuningData, steps: int, prepare: Callable[[FineTuner], object] | None = None
) -> Contender:
    """Return a training by a loop with nothing in it but what trains, over the same batches as ``lightning_fit``.

    Args:
        module: Where backbone, head, optimizer and schedule are taken from.
        data: Where the loader is taken from.
        steps: Batches to train.
        prepare: Called with the module before the first step.
    """

    def train(clock: Clock) -> None:
        trainer = SimpleNamespace(lightning_module=module, estimated_stepping_batches=steps, strategy=None)
        data.trainer = module.trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
        data.setup("fit")
        made = module.configure_optimizers()
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        module.train()
        if prepare is not None:
            prepare(module)
        for number, batch in enumerate(islice(data.train_dataloader(), steps)):
            if number == 0:
                clock.begin()
            features, target = module.head.judged(module.backbone(batch), batch["labels"])
            loss = module.head.loss(module.head.predict_from(features, batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            inputs = next(iter(batch.values()))
            clock.count(len(inputs), inputs.numel())
            clock.end_step()

    return train
