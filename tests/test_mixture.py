"""The mixture: a pure function that no machine, library or host count changes."""

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gristmill.data.mixture import Mixture, Place, row_at, step_digest

mixtures = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(0, 30), st.integers(1, 50)), min_size=1, max_size=5
).filter(lambda sources: any(weight for weight, _ in sources.values()))


def mixture(sources: dict[str, tuple[int, int]]) -> Mixture:
    total = sum(weight for weight, _ in sources.values())
    return Mixture(
        {name: Fraction(weight, total) for name, (weight, _) in sorted(sources.items())},
        {name: rows for name, (_, rows) in sources.items()},
    )


GOLDEN = mixture({"web": (3, 1000), "books": (1, 7), "code": (1, 40)})

GOLDEN_PLACES = [
    Place("web", 0, 963),
    Place("web", 0, 427),
    Place("web", 0, 686),
    Place("code", 0, 3),
    Place("books", 0, 1),
    Place("web", 0, 357),
    Place("web", 0, 703),
    Place("web", 0, 285),
    Place("code", 0, 32),
    Place("books", 0, 3),
]
GOLDEN_DIGEST = "7a2eb77e17f95daa422c428067ce57a5eab6e008d8f486bb705bd9c5263baab6"


def test_rows_are_the_pinned_ones() -> None:
    assert [row_at(GOLDEN, 7, position) for position in range(10)] == GOLDEN_PLACES
    assert row_at(GOLDEN, 7, 10**12) == Place("web", 600000000, 360)
    assert step_digest(GOLDEN, 7, 3, 4, "0" * 64) == GOLDEN_DIGEST


@given(mixtures, st.integers(0, 2**32 - 1))
def test_each_epoch_of_a_source_reads_every_row_once(sources: dict[str, tuple[int, int]], seed: int) -> None:
    mixed = mixture(sources)
    places = [row_at(mixed, seed, position) for position in range(600)]
    for name, rows in mixed.rows.items():
        read = [place for place in places if place.source == name]
        assert [place.epoch for place in read] == [index // rows for index in range(len(read))]
        for epoch in range(len(read) // rows):
            assert sorted(place.row for place in read if place.epoch == epoch) == list(range(rows))


@given(mixtures, st.integers(0, 10_000), st.integers(1, 400))
def test_any_stretch_holds_each_source_at_its_exact_share(sources: dict[str, tuple[int, int]], start: int, length: int) -> None:
    mixed = mixture(sources)
    found = Counter(row_at(mixed, 0, position).source for position in range(start, start + length))
    for name, weight in mixed.weights.items():
        assert abs(found[name] - weight * length) <= 2 * len(mixed.weights)


def test_a_source_of_weight_zero_never_appears() -> None:
    mixed = mixture({"a": (1, 5), "never": (0, 5), "z": (2, 5)})
    assert {row_at(mixed, 0, position).source for position in range(100)} == {"a", "z"}


def test_seeds_epochs_and_sources_have_orders_of_their_own() -> None:
    one = mixture({"a": (1, 100)})
    orders = [tuple(row_at(one, seed, epoch * 100 + index).row for index in range(100)) for seed in (0, 1) for epoch in (0, 1)]
    other = tuple(row_at(mixture({"b": (1, 100)}), 0, index).row for index in range(100))
    assert len({*orders, other}) == 5


def test_rows_far_apart_in_a_large_source_are_spread_evenly() -> None:
    large = mixture({"a": (1, 1_000_000)})
    rows = [row_at(large, 3, position).row for position in range(10_000)]
    assert len(set(rows)) == 10_000
    assert all(800 < count < 1200 for count in Counter(row // 100_000 for row in rows).values())
