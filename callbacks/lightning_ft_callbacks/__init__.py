"""Callbacks that freeze, thaw and rate the blocks of any LightningModule."""

from lightning_ft_callbacks.blocks import Block as Block
from lightning_ft_callbacks.blocks import BlockMap as BlockMap
from lightning_ft_callbacks.discriminative_lr import DiscriminativeLR as DiscriminativeLR
from lightning_ft_callbacks.finite_loss import FiniteLoss as FiniteLoss
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule as FreezeSchedule
from lightning_ft_callbacks.gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from lightning_ft_callbacks.lr_curve import LRCurve as LRCurve
from lightning_ft_callbacks.lr_finder import LRFinder as LRFinder
from lightning_ft_callbacks.lr_finder import lr_find as lr_find
from lightning_ft_callbacks.phases.phase import Phase as Phase
from lightning_ft_callbacks.phases.phase import Plateau as Plateau
from lightning_ft_callbacks.plan import FineTuningPlan as FineTuningPlan
from lightning_ft_callbacks.prefix_cache import FrozenPrefixCache as FrozenPrefixCache
