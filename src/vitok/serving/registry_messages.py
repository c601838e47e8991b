"""What a client of the registry's service sends: a package, and a change of a model's stages."""

from typing import Any, Literal

import msgspec

MSGPACK = "application/msgpack"

Operation = Literal[
    "gate", "propose", "approve", "approvals", "promote", "rollback", "canary", "canary-end", "note", "remove"
]


class RegisterRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A package to register, as MessagePack, or as JSON with the files in base 64.

    Attributes:
        model: Name of the model.
        files: File name to contents.
        reason: Why, in words.
        run_id: The training run that made it.
        key: Idempotency key: the same again registers nothing.
        actor: Who registers it, where the service asks for no key; else it is whose key it is.
    """

    model: str
    files: dict[str, bytes]
    reason: str = "registered"
    run_id: str | None = None
    key: str | None = None
    actor: str | None = None


class ChangeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A change of one model; which of these count depends on what is asked for, as in `vitok.registry.Ledger`.

    Attributes:
        reason: Why, in words; the text of a note.
        version: Which version.
        stage: Where it goes.
        expected: The version that must be in Production.
        override: Why it may go although no verdict is on record.
        share: Share of a canary, in (0, 1).
        verdict: What a gate decided, as `Verdict.to_dict` writes it; or how a canary ended.
        needed: How many approvals.
        details: What belongs to a note.
        key: Idempotency key.
        actor: Who does it, where the service asks for no key.
    """

    reason: str = ""
    version: int | None = None
    stage: str | None = None
    expected: int | None = None
    override: str | None = None
    share: float | None = None
    verdict: dict[str, Any] | str | None = None
    needed: int | None = None
    details: dict[str, Any] | None = None
    key: str | None = None
    actor: str | None = None
