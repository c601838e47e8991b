"""Who somebody is, where a second person is asked for: one name spelled in two ways is one person."""

import unicodedata
from functools import lru_cache

from vitok.errors import InvalidInput

# Controls, formats such as zero-width and bidi marks, ends of lines, private and unassigned places.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Co", "Cn", "Cs"})
# What Unicode says to leave unseen but files under letters and marks: joiners, fillers, variation selectors; and the
# braille pattern without dots.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")


@lru_cache(maxsize=4096)
def person(name: str) -> str:
    r"""Returns the form of a name in which two spellings of one person are the same; it is compared, never stored.

    Case, white space anywhere, characters that nobody sees and the many encodings of one letter make no difference
    (NFKC and case folding, Unicode Standard Annex 15 and chapter 3.13). Accents do, and so do letters of another script
    that look alike.

    Args:
        name: The name, as it was given.

    Example:
        >>> person(" Ann\u00a0Lee") == person("ann\u200b LEE") == person("\uff41nnlee") == "annlee"
        True
        >>> person("Jos\u00e9") == person("Jose\u0301"), person("Jose") == person("Jos\u00e9")
        (True, False)
    """
    seen = name
    while True:
        # Each step may bring forth what another one takes away, such as the blank in a compatible form.
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
        left = "".join(one for one in folded if not one.isspace() and not _is_unseen(one))
        if left == seen:
            return left
        seen = left


def check_person(field: str, value: str) -> None:
    r"""Checks that a name is one that people can tell from others.

    Raises:
        InvalidInput: If it holds control characters or others that nobody sees, or nothing but them and blanks.

    Example:
        >>> check_person("actor", "Ann Lee")
        >>> check_person("actor", "ann\u200b")
        Traceback (most recent call last):
        vitok.errors.InvalidInput: actor: got 'ann\u200b', must hold no character that cannot be seen, such as U+200B...
    """
    hidden = next((one for one in value if _is_unseen(one)), None)
    if hidden is not None:
        rule = f"hold no character that cannot be seen, such as U+{ord(hidden):04X}"
        raise InvalidInput(field, value, rule, "Type the name anew")
    if not person(value):
        raise InvalidInput(field, value, "hold more than blanks", "Name who does it")


def _is_unseen(one: str) -> bool:
    selector = "\ufe00" <= one <= "\ufe0f" or "\U000e0000" <= one <= "\U000e0fff"
    return selector or one in _FILLERS or unicodedata.category(one) in _UNSEEN
