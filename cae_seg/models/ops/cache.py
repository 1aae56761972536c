"""Results that are kept for the next call, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keep results by key; forget those unused for longest beyond `limit` bytes.

    Args:
        limit: bytes that all results together may take.
        size_of: bytes of a result.
    """

    def __init__(self, limit: int, size_of: Callable[[T], int]) -> None:
        self.limit, self._size_of = limit, size_of
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result of `make`, which is only called where `key` is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        result = make()
        self._kept[key] = result
        self.bytes += self._size_of(result)
        while self.bytes > self.limit and len(self._kept) > 1:
            self.bytes -= self._size_of(self._kept.popitem(last=False)[1])
        return result


def cached(limit: int, size_of: Callable[[Any], int] = lambda array: array.nbytes) -> Callable:
    """Decorate a function of hashable positional arguments with a `ByteCache` of its own."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        cache: ByteCache[T] = ByteCache(limit, size_of)

        def call(*args: Hashable) -> T:
            return cache.get(args, lambda: function(*args))

        call.__doc__, call.__name__ = function.__doc__, function.__name__
        call.cache = cache
        return call

    return decorate
