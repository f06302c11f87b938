# SPDX-License-Identifier: MIT
"""The LRU against a list that is kept in order."""

from hypothesis import given
from hypothesis import strategies as st

from sessionstore.cache import LRUCache

STEP = st.tuples(st.sampled_from(["use", "put", "drop"]), st.sampled_from("abcdef"))


@given(capacity=st.integers(0, 4), steps=st.lists(STEP, max_size=60))
def test_the_least_recently_used_goes_first(capacity: int, steps: list[tuple[str, str]]) -> None:
    """Whatever is done, the cache holds the last used keys, with the values last put."""
    cache: LRUCache[int] = LRUCache(capacity)
    order: list[str] = []
    values: dict[str, int] = {}
    for number, (action, key) in enumerate(steps, start=1):
        known = key in order
        if known:
            order.remove(key)
        if action == "use":
            assert cache.get(key) == (values[key] if known else None)
            if known:
                cache.move_to_end(key)
                order.append(key)
        elif action == "put":
            cache.put(key, number)
            values[key] = number
            order.append(key)
            order = order[max(0, len(order) - capacity) :]
        else:
            cache.pop(key, None)
        assert len(cache) == len(order)
    assert list(cache.items()) == [(key, values[key]) for key in order]
