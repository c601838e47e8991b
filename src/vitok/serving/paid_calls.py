"""What calls have cost that gave no answer: it goes with the error, from target to route, to whoever pays."""

from vitok.errors import ServiceError, VitokError
from vitok.serving.targets import TargetFailed


def paid(error: VitokError) -> float:
    """Returns what was paid before an error.

    Example:
        >>> paid(TargetFailed("no answer", cost=2.0)), paid(ServiceError("no answer"))
        (2.0, 0.0)
    """
    return error.cost if isinstance(error, TargetFailed) else 0.0


def dearer(error: ServiceError, cost: float) -> ServiceError:
    """Returns an error with what else was paid.

    Example:
        >>> dearer(TargetFailed("no answer", cost=2.0), 0.5).cost
        2.5
    """
    if not cost:
        return error
    if not isinstance(error, TargetFailed):
        return TargetFailed(str(error), cost=cost)
    error.cost += cost
    return error
