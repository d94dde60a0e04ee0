"""Block and BlockMap: a module's parameters as an ordered list of blocks, input first."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import Parameter

from lightning_ft_callbacks.block_discovery import discover
from lightning_ft_callbacks.discovery.layout import Layout

BlockSpec = Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a module that is frozen or trained as one.

    Attributes:
        name: Its name, as patterns meet it: ``"backbone.encoder.layer.5"``.
        paths: The paths of its modules and parameters in the module.
    """

    name: str
    paths: tuple[str, ...]


class BlockMap(Sequence[Block]):
    """The blocks of a module, input first; every parameter is in exactly one, tied weights in the lowest that has them.

    It holds paths, and looks parameters up when asked, because a strategy may replace them. ``print`` shows a table.

    Args:
        root: The module.
        blocks: Its blocks, input first.

    Raises:
        ValueError: If a path is not in the module, a parameter in no block or under two names, or a block empty.
    """

    def __init__(self, root: nn.Module, blocks: Iterable[Block]) -> None:
        self.root = root
        self._blocks = tuple(blocks)
        self._owner = _owners(root, self._blocks)

    @classmethod
    def of(cls, module: nn.Module, blocks: BlockSpec | None = None) -> "BlockMap":
        """Find the blocks of a module.

        Args:
            module: The module.
            blocks: Paths of modules or parameters, input first, a block each; or a mapping from names to paths. None
                asks, in this order and at every level: the module's own method ``blocks()``; timm's
                ``group_matcher(coarse=True)``; the embeddings and the layers of a transformers model; else its
                children, of which lists and Sequentials are opened. What stands beside a pretrained model is one
                block, the last.

        Raises:
            ValueError: If the module has no parameters, or the blocks given do not fit it.
        """
        if next(module.parameters(), None) is None:
            raise ValueError(f"{type(module).__name__} has no parameters, so it has no blocks")
        if blocks is None:
            layout = _without_tied(module, discover(module))
        elif isinstance(blocks, str) or not isinstance(blocks, Iterable):
            hint = f"; write [{blocks!r}]" if isinstance(blocks, str) else ""
            raise ValueError(f"expected blocks to be a list of paths, or names to paths, but got {blocks!r}{hint}")
        elif isinstance(blocks, Mapping):
            layout = {name: (paths,) if isinstance(paths, str) else tuple(paths) for name, paths in blocks.items()}
        else:
            if repeated := [path for path in blocks if list(blocks).count(path) > 1]:
                raise ValueError(f"{repeated[0]!r} is listed twice (blocks)")
            layout = {path: (path,) for path in blocks}
        return cls(module, (Block(name, tuple(paths)) for name, paths in layout.items()))

    def __getitem__(self, index: Any) -> Any:
        return self._blocks[index]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks' names, input first."""
        return tuple(block.name for block in self)

    def match(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the blocks that patterns match, input first.

        Args:
            patterns: Globs of whole names (``fnmatch``): ``layer.1`` does not match ``layer.10``.

        Raises:
            ValueError: If a pattern matches no block, with the nearest names.
        """
        matched: set[str] = set()
        for pattern in patterns:
            found = {name for name in self.names if fnmatchcase(name, pattern)}
            if not found:
                near = [*self._globs_near(pattern), *get_close_matches(pattern, self.names, n=1, cutoff=0.4)]
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.names)}"
                raise ValueError(f"no block of {type(self.root).__name__} matches {pattern!r}; {hint}")
            matched |= found
        return tuple(name for name in self.names if name in matched)

    def _globs_near(self, pattern: str) -> list[str]:
        """Return globs of names that begin with a pattern, or have it within them, if there are such names."""
        globs = (f"{pattern}.*", f"*{pattern.strip('*')}*")
        return [near for near in globs if any(fnmatchcase(name, near) for name in self.names)]

    def parameters(self, name: str) -> list[Parameter]:
        """Return a block's parameters as they are now."""
        return [parameter for _, parameter in self.named_parameters(name)]

    def named_parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """Return a block's parameters as they are now, with their names in the module."""
        return [(path, self.root.get_parameter(path)) for path, owner in self._owner.items() if owner == name]

    def owners(self) -> dict[int, str]:
        """Return the block's name of each parameter as it is now, by the parameter's ``id``."""
        return {id(self.root.get_parameter(path)): owner for path, owner in self._owner.items()}

    def modules(self, name: str) -> list[nn.Module]:
        """Return the modules of a block as they are now.

        A module that no block's path covers belongs to the blocks of all parameters in it; the root to none. One
        without parameters (a dropout, a pooling) belongs to the block that it is within; between blocks, to the one
        that comes after it, which reads it; the last ones to the last block.
        """
        return [module for module, owner in self.module_owners() if owner == name]

    def num_parameters(self, name: str) -> int:
        """Return the number of a block's scalar parameters."""
        return sum(parameter.numel() for parameter in self.parameters(name))

    def __str__(self) -> str:
        total = sum(self.num_parameters(name) for name in self.names) or 1
        rows = [("block", "parameters", "share", "of")]
        for block in self:
            count = self.num_parameters(block.name)
            of = ", ".join(block.paths) if block.paths != (block.name,) else ""
            rows.append((block.name, f"{count:,}", f"{count / total:.1%}", of))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"BlockMap({', '.join(self.names)})"

    def module_owners(self) -> list[tuple[nn.Module, str]]:
        """Return each module with the name of its block (see ``modules``), once for each block that it is in."""
        by_path = {path: block.name for block in self for path in block.paths}
        owners = self.owners()
        found: dict[str, tuple[nn.Module, list[str]]] = {}
        for path, module in self.root.named_modules():
            if listed := next((by_path[prefix] for prefix in _prefixes(path) if prefix in by_path), None):
                found[path] = (module, [listed])
                continue
            inside = {owners[id(parameter)] for parameter in module.parameters() if id(parameter) in owners}
            above = found[path.rpartition(".")[0]][1] if path else []
            found[path] = (module, [n for n in self.names if n in inside] or (above if len(above) == 1 else []))
        # backwards, so that what has no owner takes that of the module after it
        following = self.names[-1]
        resolved: list[tuple[nn.Module, str]] = []
        for module, names in reversed(found.values()):
            following = names[0] if len(names) == 1 else following
            if module is not self.root:
                resolved += [(module, name) for name in reversed(names or [following])]
        return resolved[::-1]


def _owners(root: nn.Module, blocks: Sequence[Block]) -> dict[str, str]:
    """Return the block of each parameter, by one name of the parameter.

    Raises:
        ValueError: If the blocks do not cover the module's parameters exactly.
    """
    names = [block.name for block in blocks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two blocks are called {min(repeated)!r}")
    every = dict(root.named_parameters(remove_duplicate=False))
    modules = dict(root.named_modules(remove_duplicate=False))
    claimed: dict[str, str] = {}
    owner: dict[str, str] = {}
    seen: set[int] = set()
    for block in blocks:
        before = len(owner)
        for path in block.paths:
            if path in every:
                inside = [path]
            elif path in modules:
                inside = [name for name in every if name.startswith(f"{path}.")] if path else list(every)
            else:
                near = get_close_matches(path, [*modules, *every], n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{type(root).__name__} has no module or parameter {path!r} (blocks){hint}")
            for name in inside:
                if claimed.setdefault(name, block.name) != block.name:
                    raise ValueError(f"{name!r} is in two blocks, {claimed[name]!r} and {block.name!r}")
                if id(every[name]) not in seen:
                    seen.add(id(every[name]))
                    owner[name] = block.name
        if len(owner) == before:
            raise ValueError(f"block {block.name!r} has no parameters of its own")
    left_out = [name for name, parameter in every.items() if id(parameter) not in seen]
    if left_out:
        raise ValueError(f"{len(left_out)} parameters are in no block, the first is {left_out[0]!r} (blocks)")
    return owner


def _without_tied(root: nn.Module, layout: Layout) -> Layout:
    """Leave out paths, and blocks, all of whose parameters are tied to those of lower ones."""
    seen: set[int] = set()
    kept: Layout = {}
    for name, paths in layout.items():
        own = []
        for path in paths:
            parent, _, last = path.rpartition(".")
            part = getattr(root.get_submodule(parent), last)
            inside = {id(part)} if isinstance(part, Parameter) else {id(parameter) for parameter in part.parameters()}
            if inside - seen:
                own.append(path)
            seen |= inside
        if own:
            alone = len(own) == 1 and len(paths) > 1 and name not in paths
            kept[own[0] if alone else name] = tuple(own)
    return kept


def _prefixes(path: str) -> Iterator[str]:
    """Yield a path and its parents, the longest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]
