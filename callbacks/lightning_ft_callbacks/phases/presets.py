"""Schedules that have a name."""

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.phases.phase import Phase

PRESETS = ("linear_probe", "lp_ft", "gradual", "chain_thaw", "full")


def preset_phases(preset: str, block_map: BlockMap, *, thaw_frozen: bool = False) -> list[Phase]:
    """Return a preset's phases for those of a module's blocks that can be trained: no frozen teacher has a phase.

    - ``linear_probe``: the last block alone.
    - ``lp_ft``: the last block for an epoch, then all (Kumar et al. 2022, arXiv:2202.10054).
    - ``gradual``: one block more each epoch, from the last down (Howard and Ruder 2018, arXiv:1801.06146).
    - ``chain_thaw``: the last block, then each alone from the first up, an epoch each, then all (Felbo et al. 2017,
      arXiv:1708.00524).
    - ``full``: all.

    Args:
        preset: Its name.
        block_map: The blocks.
        thaw_frozen: Whether parameters that do not require gradients are trained too.
    """
    learning = [n for n in block_map.names if thaw_frozen or any(p.requires_grad for p in block_map.parameters(n))]
    names = [_literal(name) for name in learning or block_map.names]
    head, everything = names[-1], Phase(["*"])
    match preset:
        case "linear_probe":
            return [Phase([head])]
        case "lp_ft":
            return [Phase([head], epochs=1), everything]
        case "gradual":
            return [*(Phase(names[lowest:], epochs=1) for lowest in range(len(names) - 1, 0, -1)), everything]
        case "chain_thaw":
            return [*(Phase([name], epochs=1) for name in [head, *names[:-1]]), everything]
        case "full":
            return [everything]
    raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")


def _literal(name: str) -> str:
    """Return a pattern that matches a name and no other."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
