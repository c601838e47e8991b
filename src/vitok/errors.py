"""One tree of exceptions: catch `VitokError` to catch everything that vitok raises on purpose.

A message names the field, the value, the rule and the next step, in that order.
"""

from collections.abc import Iterable


class VitokError(Exception):
    """Base of all errors that vitok raises on purpose."""


class InvalidInput(VitokError, ValueError):
    """A value that breaks a rule, with the field it came in and how to mend it.

    Args:
        field: Name of the field, as the caller wrote it.
        value: The value that was given.
        rule: What the field must be, as a phrase that follows "must".
        fix: What to do next; optional where the rule says it all.

    Example:
        >>> print(InvalidInput("amount", -3.0, "be at least 0"))
        amount: got -3.0, must be at least 0
    """

    def __init__(self, field: str, value: object, rule: str, fix: str = "") -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.fix = fix
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{field}: got {shown}, must {rule}" + (f". {fix}" if fix else ""))


class ContractBroken(VitokError):
    """Data that cannot be used at all: its schema is not what the contract says."""


class NotFound(VitokError, LookupError):
    """Something named does not exist; the message lists what does.

    Example:
        >>> print(NotFound("model version", "fraud/9", ["fraud/1", "fraud/2"]))
        model version 'fraud/9' does not exist; there is: fraud/1, fraud/2
    """

    def __init__(self, kind: str, name: object, known: Iterable[object] = ()) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        names = ", ".join(str(item) for item in self.known[:12]) or "nothing yet"
        super().__init__(f"{kind} {name!r} does not exist; there is: {names}")


class MissingExtra(VitokError, ImportError):
    """A part of vitok needs a package that is not installed.

    Example:
        >>> print(MissingExtra("mlflow", "tracking runs"))
        tracking runs needs the extra 'mlflow'; install it with: pip install 'vitok[mlflow]'
    """

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the extra {extra!r}; install it with: pip install 'vitok[{extra}]'")


class StoreError(VitokError):
    """A store could not be read or written: it is down, full, locked, or damaged."""


class Conflict(VitokError):
    """Somebody else changed the thing first, or the same id came with other contents."""


class GateRefused(VitokError):
    """A version was not promoted because a gate refused it; the verdict is in the ledger."""


class ServiceError(VitokError):
    """The service did not start, stopped, or answered with an error."""
