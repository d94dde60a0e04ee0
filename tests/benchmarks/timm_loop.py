"""timm_loop: training as timm's train script does it."""

import logging
import time
from pathlib import Path

import torch
from clock import Clock, Contender
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import nn

from lightning_ft.data.image_transforms import FINE_TUNING

LOG_INTERVAL = 50


def timm_loop(
    model: nn.Module, folder: Path, steps: int, *, batch_size: int, image_size: int, lr: float, weight_decay: float
) -> Contender:
    """Return a training by the loop of timm's train script, without prefetcher, mixed precision and loss smoothing.

    Its augmentations are those of ImageClassificationData.

    Args:
        model: A timm model with its classifier.
        folder: Images, in a folder a class.
        steps: Batches to train.
        batch_size: Images a batch.
        image_size: Height and width [pixel].
        lr: Learning rate.
        weight_decay: Weight decay.

    Source: ``train_one_epoch`` in https://github.com/huggingface/pytorch-image-models/blob/main/train.py
    """

    def train(clock: Clock) -> None:
        device, logger = torch.device("cpu"), logging.getLogger("train")
        config = resolve_model_data_config(model)
        loader = create_loader(
            create_dataset("", root=str(folder), split="train", is_training=True),
            input_size=(3, image_size, image_size),
            batch_size=batch_size,
            is_training=True,
            use_prefetcher=False,
            num_workers=0,
            **{key: config[key] for key in ("interpolation", "mean", "std")},
            **FINE_TUNING,
        )
        optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay)
        schedule, _ = create_scheduler_v2(
            optimizer, sched="cosine", num_epochs=1, step_on_epochs=False, updates_per_epoch=len(loader)
        )
        criterion = nn.CrossEntropyLoss()
        losses, update_time, data_time = AverageMeter(), AverageMeter(), AverageMeter()
        model.train()
        optimizer.zero_grad()
        data_start = update_start = time.time()
        for index, (images, targets) in enumerate(loader):
            if index == 0:
                clock.begin()
            images, targets = images.to(device), targets.to(device)
            data_time.update(time.time() - data_start)
            loss = criterion(model(images), targets)
            loss.backward(create_graph=False)
            optimizer.step()
            losses.update(loss.item(), images.size(0))
            optimizer.zero_grad()
            update_time.update(time.time() - update_start)
            update_start = time.time()
            if index % LOG_INTERVAL == 0:
                logger.info(
                    f"Train: [{index}/{len(loader)}] Loss: {losses.val:#.3g} ({losses.avg:#.3g}) "
                    f"Time: {update_time.val:.3f}s Data: {data_time.val:.3f}"
                )
            schedule.step_update(num_updates=index + 1, metric=losses.avg)
            data_start = time.time()
            clock.count(len(images), images.numel())
            clock.end_step()
            if index + 1 == steps:
                break

    return train
