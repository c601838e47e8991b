"""What arrays are read as, and what is refused by name."""

from collections.abc import Callable

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats import FrozenEdges, clopper_pearson
from vitok.stats.arrays import labels, numbers, vector


def test_numbers_of_any_shape_are_read_and_words_are_not() -> None:
    assert numbers("x", 3).shape == ()
    assert np.isnan(numbers("x", [[None, 1.0]])).tolist() == [[True, False]]
    for wrong in (["a"], [[1.0], [1.0, 2.0]], [object()]):
        with pytest.raises(InvalidInput, match=r"x: got .*numbers"):
            numbers("x", wrong)
        with pytest.raises(InvalidInput, match=r"x: got .*numbers"):
            vector("x", wrong)
    with pytest.raises(InvalidInput, match=r"y\[1\]: got 2"):
        labels("y", [0, 2])


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: FrozenEdges.from_values(["a"]), "values"),
        (lambda: FrozenEdges.from_values([1.0, 2.0]).count(["a"]), "values"),
        (lambda: clopper_pearson("a", 3), "successes"),
        (lambda: clopper_pearson(1, "a"), "n_obs"),
    ],
)
def test_words_are_no_numbers(call: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: got "):
        call()
