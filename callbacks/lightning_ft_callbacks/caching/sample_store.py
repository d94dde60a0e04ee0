"""SampleStore: tensors of single samples, without padding, found again by the sample's number."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_ft_callbacks.caching.sample_shapes import CannotCacheError, Samples, SampleShape
from lightning_ft_callbacks.caching.storage import Storage, room_in_file

INDEX = "index.bin"
SEGMENT, OFFSET, LENGTH = range(3)


class SampleStore:
    """Keeps some tensors for each sample of a data set.

    A sample's parts stand behind one another, as long as the sample has tokens; an index says where. What was
    written is never changed, and the index is written last, so that other processes that map the same files see a
    sample whole or not at all.

    Args:
        num_samples: Samples of the data set.
        shapes: The shapes of the tensors.
        storage: Where the bytes go.
        dtype: The type to keep floating-point numbers in; None for their own.
        index: A file for the index, shared by processes; None for memory.

    Raises:
        CannotCacheError: If a tensor is not one of samples.
    """

    def __init__(
        self,
        num_samples: int,
        shapes: Sequence[SampleShape],
        storage: Storage,
        *,
        dtype: torch.dtype | None = None,
        index: Path | None = None,
    ) -> None:
        for shape in shapes:
            if not shape.by_sample:
                raise CannotCacheError("what the upper blocks read has not one row a sample")
        self.num_samples = num_samples
        self.shapes = list(shapes)
        self.storage = storage
        self.dtype = dtype
        self._dtypes = [dtype if dtype and shape.dtype.is_floating_point else shape.dtype for shape in shapes]
        self._index = open_index(num_samples, index)
        self._index_file = index
        self._layout = [shape.token_dims for shape in shapes]

    def holds(self, ids: Sequence[int]) -> bool:
        """Tell whether all of some samples are there."""
        return bool(self._index[list(ids), SEGMENT].all())

    @property
    def num_held(self) -> int:
        """Samples that are there."""
        return int(self._index[:, SEGMENT].count_nonzero())

    def some_held(self, num_samples: int) -> tuple[int, ...]:
        """Return the numbers of some samples that are there, spread over all that are."""
        held = self._index[:, SEGMENT].nonzero()[:, 0]
        return tuple(held[:: max(1, len(held) // num_samples)][:num_samples].tolist())

    def share_held(self, ids: Tensor | None = None) -> float:
        """Return the share that is there of some samples, by their numbers, shape (sample,); of all by default."""
        held = self._index[:, SEGMENT] if ids is None else self._index[ids, SEGMENT]
        return int(held.count_nonzero()) / max(1, len(held))

    def sample_bytes(self, length: int | None) -> int:
        """Return the bytes of a sample with some tokens."""
        return sum(map(_room, self._sizes(length)))

    def _sizes(self, length: int | None) -> list[int]:
        """Return the bytes of each tensor of a sample with some tokens."""
        return [
            prod(shape.of_sample(length)) * dtype.itemsize
            for shape, dtype in zip(self.shapes, self._dtypes, strict=True)
        ]

    def put(self, samples: Samples, tensors: Sequence[Tensor]) -> None:
        """Keep the samples of a batch that are not there yet.

        Args:
            samples: The samples.
            tensors: As many as there are shapes, each of shape (batch, ...).

        Raises:
            StorageFullError: If there is no room.
            CannotCacheError: If a number is too large for the type that it is kept in, or tensors have turned out not
                to have one row a sample.
        """
        self._follow_shapes()
        if not all(shape.by_sample for shape in self.shapes):
            raise CannotCacheError("what the upper blocks read has not one row a sample")
        new = [row for row, number in enumerate(samples.ids) if not self._index[number, SEGMENT]]
        if not new:
            return
        here = [_narrowed(tensor.detach(), dtype) for tensor, dtype in zip(tensors, self._dtypes, strict=True)]
        entries: list[tuple[int, int, int, int]] = []
        for row in new:
            length = None if samples.lengths is None else samples.lengths[row]
            segment, offset, room = self.storage.reserve(self.sample_bytes(length))
            start = 0
            for tensor, shape in zip(here, self.shapes, strict=True):
                part = _without_padding(tensor[row], shape.token_dims, samples, row)
                size = part.numel() * part.element_size()
                room[start : start + size].view(part.dtype).view(part.shape).copy_(part)
                start += _room(size)
            entries.append((samples.ids[row], offset, length or 0, segment))
        with self._alone():
            for number, offset, length, segment in entries:
                entry = self._index[number]
                if not entry[SEGMENT]:  # another process may have kept it meanwhile
                    entry[OFFSET], entry[LENGTH] = offset, length
                    entry[SEGMENT] = segment

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from the index, which may have drawn a sample too, and keep it at the same time."""
        if self._index_file is None:
            yield
            return
        with self._index_file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get(self, samples: Samples) -> list[Tensor]:
        """Return the tensors of a batch on the CPU, each of shape (batch, ...), with zeros for padding.

        Args:
            samples: Samples that are there.
        """
        self._follow_shapes()
        entries = self._index[list(samples.ids)].tolist()
        sizes = {length: self._sizes(length) for _, _, length in entries}
        found: list[Tensor] = []
        for number, (shape, dtype) in enumerate(zip(self.shapes, self._dtypes, strict=True)):
            parts = {length: shape.of_sample(length) for length in sizes}
            before = {length: sum(map(_room, size[:number])) for length, size in sizes.items()}
            views = [
                self.storage.view(segment, offset + before[length], dtype, parts[length])
                for segment, offset, length in entries
            ]
            batch = _padded(views, shape.token_dims, samples)
            found.append(batch if dtype == shape.dtype else batch.to(shape.dtype))
        return found

    def lengths(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of samples that are there."""
        return tuple(self._index[list(ids), LENGTH].tolist())

    def close(self) -> None:
        """Let go of the memory; what is in files stays there."""
        self._index = torch.zeros(self.num_samples, 3, dtype=torch.int64)
        self.storage.close()

    def _follow_shapes(self) -> None:
        """Begin anew where batches have shown that a dimension is that of the tokens, which nobody could know."""
        layout = [shape.token_dims for shape in self.shapes]
        if layout != self._layout:
            self._layout = layout
            self._index.zero_()
            self.storage.close()


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU in the type that it is kept in.

    Raises:
        CannotCacheError: If a number is too large for that.
    """
    kept = tensor.to("cpu", dtype)
    if dtype != tensor.dtype and bool((kept.isinf() & tensor.to("cpu").isfinite()).any()):
        raise CannotCacheError(f"a number is too large for {dtype}: keep them with dtype='bf16', or leave dtype out")
    return kept


def _room(num_bytes: int) -> int:
    """Return bytes, rounded up so that a part of any type can stand behind them."""
    return -(-num_bytes // 8) * 8


def _padded(parts: Sequence[Tensor], token_dims: Sequence[int], samples: Samples) -> Tensor:
    """Return samples' tensors as a batch, with zeros for padding."""
    if not token_dims:
        return torch.stack([*parts])
    if token_dims == (1,) and max(map(len, parts)) == samples.num_tokens:
        return pad_sequence([*parts], batch_first=True, padding_side="left" if samples.left else "right")
    rows = list(parts[0].shape)
    for dim in token_dims:
        rows[dim - 1] = samples.num_tokens or 0
    batch = parts[0].new_zeros(len(parts), *rows)
    for row, part in enumerate(parts):
        _without_padding(batch[row], token_dims, samples, row).copy_(part)
    return batch


def _without_padding(tensor: Tensor, token_dims: Sequence[int], samples: Samples, row: int) -> Tensor:
    for dim in token_dims:
        place = samples.place(row)
        tensor = tensor.narrow(dim - 1, place.start, place.stop - place.start)
    return tensor


def open_index(num_samples: int, file: Path | None) -> Tensor:
    """Return where each sample is: its segment (0 if nowhere), the offset [byte], and tokens, shape (sample, 3).

    Args:
        num_samples: Samples of the data set.
        file: A file that it is in, made where it is missing; None for memory.

    Raises:
        StorageFullError: If there is no room for the file.
    """
    if file is None:
        return torch.zeros(num_samples, 3, dtype=torch.int64)
    return room_in_file(file, num_samples * 3 * torch.int64.itemsize).view(torch.int64).view(num_samples, 3)
