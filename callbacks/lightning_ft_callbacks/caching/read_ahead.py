"""ReadAhead: the kept values of the next batch, read by a thread while a step is under way."""

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from lightning_ft_callbacks.caching.sample_shapes import Samples
from lightning_ft_callbacks.caching.sample_store import SampleStore


class ReadAhead:
    """Reads one batch at a time, which may turn out to be another one than is asked for."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[SampleStore, Samples, Future[list[Tensor]]] | None = None

    def begin(self, store: SampleStore, ids: tuple[int, ...], like: Samples) -> None:
        """Begin to read samples, if all are there.

        Args:
            store: Where they are.
            ids: Their numbers.
            like: Another batch of the same loader; where that has more padding than it needs, nobody knows how much
                the next one has, and nothing is read.
        """
        if not store.holds(ids):
            return
        samples = Samples(ids)
        if like.lengths is not None:
            if max(like.lengths) != like.num_tokens:
                return
            lengths = store.lengths(ids)
            samples = Samples(ids, lengths, max(lengths), like.left)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "prefix-cache")
        self._begun = store, samples, self._thread.submit(store.get, samples)

    def get(self, store: SampleStore, samples: Samples) -> list[Tensor]:
        """Return what ``store.get`` does, read already if it was begun.

        Args:
            store: Where the samples are.
            samples: The samples.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            return store.get(samples)
        its_store, its_samples, reading = begun
        found = reading.exception() or reading.result()  # waits, so that nothing is changed under its hands
        if its_store is store and its_samples == samples and isinstance(found, list):
            return found
        return store.get(samples)

    def stop(self) -> None:
        """Wait for what was begun, and forget it."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun[2].exception()

    def close(self) -> None:
        """End the thread, until there is something to read again."""
        self.stop()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
