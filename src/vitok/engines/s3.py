"""Objects in a bucket that speaks S3: each is there as a whole or not at all, and versions of it are kept where asked.

The bucket is made by whoever runs the store, with versioning switched on. Keys come from where boto3 looks for them:
the environment, a profile, or the machine's role.
"""

import base64
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vitok.engines.address import Address
from vitok.errors import InvalidInput, MissingExtra, NotFound, StoreError

_OPTIONS = ("endpoint", "region")
_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 5, 60, 3
_AT_ONCE = 1000
_ABSENT = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound", "MethodNotAllowed"})


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object of a bucket.

    Attributes:
        name: Its name below the prefix.
        size: Length in bytes.
        modified: When it was written, in microseconds.
    """

    name: str
    size: int
    modified: int


def is_s3(address: object) -> bool:
    """Says whether something is the address of a bucket.

    Example:
        >>> is_s3("s3://models/fraud"), is_s3("models/fraud")
        (True, False)
    """
    return isinstance(address, str) and address.startswith("s3://")


def bucket_address(url: str) -> Address:
    """Takes the address of a bucket apart; its name is the host.

    Raises:
        InvalidInput: If there is no bucket, or an option that does not exist.

    Example:
        >>> address = bucket_address("s3://models/team/a?endpoint=http://127.0.0.1:8333")
        >>> address.hosts[0][0], address.path, address.options["endpoint"]
        ('models', 'team/a', 'http://127.0.0.1:8333')
    """
    place, _, query = url.removeprefix("s3://").partition("?")
    bucket, _, prefix = place.partition("/")
    if not is_s3(url) or not bucket or "@" in bucket:
        raise InvalidInput("address", url, "look like s3://bucket/prefix?endpoint=https://host:port")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise InvalidInput("option of the address", name, f"be one of {', '.join(_OPTIONS)}")
    return Address(scheme="s3", hosts=((bucket, 443),), path=prefix.strip("/"), options=options)


class Bucket:
    """The objects below a prefix of a bucket.

    Args:
        url: Address, `s3://bucket/prefix?endpoint=https://host:port&region=name`; without an endpoint, Amazon's.

    Raises:
        MissingExtra: If boto3 is not installed.
        InvalidInput: If it is no such address.
    """

    def __init__(self, url: str) -> None:
        address = bucket_address(url)
        self.url = url
        self._bucket = address.hosts[0][0]
        self._prefix = f"{address.path}/" if address.path else ""
        self._client = client_of(url)

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    def __reduce__(self) -> "tuple[type[Bucket], tuple[str]]":
        return Bucket, (self.url,)

    @property
    def location(self) -> str:
        """The address without its options, as others name it."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, name: str, content: bytes) -> str | None:
        """Writes an object, which others see when it is whole; returns its version where versions are kept.

        Raises:
            StoreError: If it cannot be written.
        """
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        with self._errors(name):
            told = self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + name, Body=content, ContentLength=len(content), ContentMD5=md5
            )
        version = told.get("VersionId")
        return None if version in (None, "null") else str(version)

    def put_file(self, name: str, path: Path, *, notes: dict[str, str] | None = None) -> None:
        """Writes a file as an object, in parts where it is long; others see it when it is whole.

        Args:
            name: Name of the object.
            path: The file.
            notes: Kept with the object, as `notes` returns them.

        Raises:
            StoreError: If it cannot be read or written.
        """
        with self._errors(name), path.open("rb") as file:
            self._client.upload_fileobj(file, self._bucket, self._prefix + name, ExtraArgs={"Metadata": notes or {}})

    def get(self, name: str, version: str | None = None) -> bytes:
        """Reads an object, or one of its versions.

        Raises:
            NotFound: If there is none.
            StoreError: If it cannot be read.
        """
        which = {} if version is None else {"VersionId": version}
        with self._errors(name):
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **which)
            return bytes(found["Body"].read())

    def get_file(self, name: str, path: Path) -> None:
        """Reads an object into a file.

        Raises:
            NotFound: If there is none.
            StoreError: If it cannot be read, or the file not be written.
        """
        with self._errors(name), path.open("wb") as file:
            self._client.download_fileobj(self._bucket, self._prefix + name, file)

    def notes(self, name: str) -> dict[str, str] | None:
        """Returns what was kept with an object, or None where there is no object.

        Raises:
            StoreError: If the store does not answer.
        """
        try:
            with self._errors(name):
                return dict(self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)["Metadata"])
        except NotFound:
            return None

    def versions(self, name: str) -> list[str]:
        """Returns the versions of an object, latest first; none where versions are not kept, or there is no object.

        Raises:
            StoreError: If the store does not answer.
        """
        return [version for key, version, marker in self._versions(name) if key == name and not marker]

    def objects(self, below: str = "") -> Iterator[Stored]:
        """Gives the objects whose names begin so, by name.

        Raises:
            NotFound: If there is no such bucket.
            StoreError: If the store does not answer.
        """
        with self._errors(below):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + below
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Stored(
                        name=item["Key"].removeprefix(self._prefix),
                        size=int(item["Size"]),
                        modified=int(item["LastModified"].timestamp() * 1_000_000),
                    )

    def remove(self, names: Sequence[str]) -> None:
        """Removes objects with all their versions; one that is not there is none to remove.

        Raises:
            StoreError: If the store does not answer, or refuses.
        """
        for name in names:
            which = [
                {"Key": self._prefix + key, "VersionId": version}
                for key, version, _ in self._versions(name)
                if key == name
            ]
            for at in range(0, len(which), _AT_ONCE):
                with self._errors(name):
                    told = self._client.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": which[at : at + _AT_ONCE], "Quiet": True}
                    )
                if told.get("Errors"):
                    raise StoreError(f"{self.location}/{name} cannot be removed: {told['Errors'][0]}")
            with self._errors(name), contextlib.suppress(NotFound):
                if not which:
                    self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def check(self) -> None:
        """Asks whether the bucket is there and may be read.

        Raises:
            NotFound: If there is no such bucket.
            StoreError: If the store does not answer, or refuses.
        """
        with self._errors(""):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _versions(self, name: str) -> Iterator[tuple[str, str, bool]]:
        with self._errors(name):
            pages = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self._bucket, Prefix=self._prefix + name
            )
            for page in pages:
                for kind in ("Versions", "DeleteMarkers"):
                    for item in page.get(kind, ()):
                        yield item["Key"].removeprefix(self._prefix), item["VersionId"], kind == "DeleteMarkers"

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.location}/{name}" if name else self.location
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _ABSENT:
                raise NotFound("object", where) from None
            if code == "NoSuchBucket":
                raise NotFound("bucket", self._bucket) from None
            raise StoreError(f"{where}: {error}") from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise StoreError(f"{where}: {error}") from error


def client_of(url: str) -> Any:
    """Opens boto3's client for a bucket's address; it may be used by several threads.

    Raises:
        MissingExtra: If boto3 is not installed.
        InvalidInput: If it is no such address.
        StoreError: If no keys are found, or the region is not known.
    """
    options = bucket_address(url).options
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtra("s3", "an S3-compatible store") from error
    endpoint = options.get("endpoint")
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"max_attempts": _TRIES, "mode": "standard"},
        # Stores other than Amazon's do not all know the newer checksums, nor a bucket as part of the host's name.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    region = options.get("region") or ("us-east-1" if endpoint else None)
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"{url.partition('?')[0]}: {error}") from error
