"""The signature of a delivery and the verification handshake."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from convsync.webhook.signature import verification_challenge, verify

SECRET = "0123456789abcdef0123456789abcdef"
# As it is on the wire: escaped, lower hex digits, and the characters Meta is known to escape or not.
BODY = rb'{"object":"page","entry":[{"id":"1","t":"\u00e4\u00f6\ud83d\ude00 https:\/\/x <%@>"}]}'


def sign(body: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    return f"{algorithm}=" + hmac.new(secret.encode(), body, algorithm).hexdigest()


def test_the_signature_of_the_raw_bytes_is_accepted() -> None:
    assert verify(BODY, sign(BODY), [SECRET])


def test_one_changed_byte_is_refused() -> None:
    assert not verify(BODY + b" ", sign(BODY), [SECRET])


def test_the_same_json_written_otherwise_is_refused() -> None:
    assert not verify(BODY.replace(rb"\/", b"/"), sign(BODY), [SECRET])


def test_any_of_several_secrets_is_accepted_during_a_rotation() -> None:
    assert verify(BODY, sign(BODY, "old"), ["new", "old"])
    assert not verify(BODY, sign(BODY, "older"), ["new", "old"])


@pytest.mark.parametrize("change", [str.upper, str.strip, lambda h: f" {h} ", lambda h: h.split("=")[1]])
def test_case_blanks_and_prefix_do_not_matter(change) -> None:  # type: ignore[no-untyped-def]
    assert verify(BODY, change(sign(BODY)), [SECRET])


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        "sha256=zz",
        "sha256=" + "g" * 64,
        "sha256=" + "00 " * 20 + "0000",
        "sha256=" + "\u0660" * 64,
        sign(BODY)[:-1],
        sign(BODY) + "00",
        sign(BODY, algorithm="sha1"),
        sign(BODY).replace("sha256", "sha1"),
        sign(BODY).replace("sha256", "md5"),
        "=" + sign(BODY).split("=")[1],
    ],
)
def test_anything_else_is_refused(header: str | None) -> None:
    assert not verify(BODY, header, [SECRET])


def test_without_a_secret_nothing_is_accepted() -> None:
    empty = "sha256=" + hmac.new(b"", BODY, hashlib.sha256).hexdigest()
    assert not verify(BODY, empty, [])
    assert not verify(BODY, empty, [""])


QUERY = {"hub.mode": "subscribe", "hub.verify_token": "tökn", "hub.challenge": "1158201444"}


def test_the_challenge_is_returned_for_the_right_token() -> None:
    assert verification_challenge(QUERY, "tökn") == "1158201444"


@pytest.mark.parametrize(
    ("change", "configured"),
    [
        ({"hub.verify_token": "other"}, "tökn"),
        ({"hub.verify_token": ""}, ""),
        ({}, ""),
        ({"hub.verify_token": "\udcff"}, "tökn"),
        ({"hub.mode": "unsubscribe"}, "tökn"),
        ({"hub.mode": ""}, "tökn"),
        ({"hub.challenge": ""}, "tökn"),
    ],
)
def test_a_wrong_handshake_gets_no_challenge(change: dict[str, str], configured: str) -> None:
    assert verification_challenge({**QUERY, **change}, configured) is None


@pytest.mark.parametrize("missing", list(QUERY))
def test_a_handshake_without_one_of_its_parameters_gets_no_challenge(missing: str) -> None:
    query = {key: value for key, value in QUERY.items() if key != missing}
    assert verification_challenge(query, "tökn") is None
