"""The public face is what `__all__` says, and each name is documented."""

import types

from vitok import decisions


def test_all_is_exactly_the_public_names():
    found = [
        name
        for name, value in vars(decisions).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert sorted(found) == sorted(decisions.__all__)
    assert all(getattr(decisions, name).__doc__ for name in decisions.__all__)
