"""SipHash-2-4 with 128 bits and a zero key: vectors printed by OpenSSL 3 (`openssl mac -macopt size:16 SIPHASH`)."""

import polars as pl
import pytest

from vitok.features.fingerprints import fingerprint_texts

VECTORS = {"hello world, vitok": "08645e0dd2b78c3b85e71946b4b0418b"}


@pytest.mark.parametrize(("text", "expected"), VECTORS.items())
def test_vectors(text: str, expected: str) -> None:
    assert fingerprint_texts([text])[0].tobytes().hex() == expected


def test_lists_and_series_agree() -> None:
    texts = [f"txn-{i}" for i in range(100)] + ["", "ü{}", "x" * 1000]
    whole = fingerprint_texts(pl.Series(texts))
    assert (fingerprint_texts(texts) == whole).all()
    for i in (0, 100, 101, 102):
        assert (fingerprint_texts([texts[i]])[0] == whole[i]).all()
    assert (fingerprint_texts(pl.Series(texts)[5:9]) == whole[5:9]).all()
    assert len(fingerprint_texts(pl.Series([], dtype=pl.String))) == 0
    assert len({row.tobytes() for row in whole}) == len(texts)
