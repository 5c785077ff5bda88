"""Meta's signed_request: genuine, forged, or not one at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from convsync.webhook.compliance import BadSignedRequest, read_signed_request

SECRET = "0123456789abcdef0123456789abcdef"
PAYLOAD = {"algorithm": "HMAC-SHA256", "issued_at": 1_700_000_000, "user_id": "7300000000000011"}


def encoded(raw: bytes, padding: bool = False) -> str:
    text = base64.urlsafe_b64encode(raw).decode()
    return text if padding else text.rstrip("=")


def signed(payload: Any, secret: str = SECRET, padding: bool = False) -> str:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    body = encoded(raw, padding)
    return encoded(hmac.new(secret.encode(), body.encode(), hashlib.sha256).digest(), padding) + "." + body


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("length", range(4))
def test_a_genuine_one_is_read_with_padding_or_without(padding: bool, length: int) -> None:
    payload = {**PAYLOAD, "more": "?>~ÿ" * length}
    assert read_signed_request(signed(payload, padding=padding), [SECRET]) == payload


def test_either_of_two_secrets_will_do_while_they_are_changed() -> None:
    for secrets in ([SECRET, "other"], ["other", SECRET], ["", SECRET]):
        assert read_signed_request(signed(PAYLOAD), secrets) == PAYLOAD


@pytest.mark.parametrize("secrets", [[], [""], ["other"], [SECRET + "x"], [SECRET.upper()]])
def test_another_secret_or_none_is_refused(secrets: list[str]) -> None:
    with pytest.raises(BadSignedRequest):
        read_signed_request(signed(PAYLOAD), secrets)


def test_nobody_signs_with_an_empty_secret() -> None:
    with pytest.raises(BadSignedRequest):
        read_signed_request(signed(PAYLOAD, secret=""), ["", ""])


@pytest.mark.parametrize("place", range(3))
def test_any_change_is_refused(place: int) -> None:
    text = signed(PAYLOAD)
    at = (0, text.index(".") + 5, len(text) - 3)[place]
    with pytest.raises(BadSignedRequest):
        read_signed_request(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :], [SECRET])


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "x", "a.b", "Ä.Ä", "\ud800.x", "\0.\0", "=.=", "a b.c d", "." + encoded(b"{}"),
     encoded(b"x" * 32) + ".", signed(PAYLOAD) + ".x", "!" + signed(PAYLOAD), signed(PAYLOAD) + "\n"],
)  # fmt: skip
def test_what_is_no_signed_request_is_refused(text: str) -> None:
    with pytest.raises(BadSignedRequest):
        read_signed_request(text, [SECRET])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not JSON",
        b"[" * 5000,
        b"\xff",
        b"null",
        b"[1]",
        {"user_id": "1"},
        {**PAYLOAD, "algorithm": "none"},
        {**PAYLOAD, "algorithm": "HMAC-SHA1"},
        {**PAYLOAD, "algorithm": None},
        {**PAYLOAD, "algorithm": ["HMAC-SHA256"]},
    ],
)
def test_a_genuine_signature_of_something_else_is_refused(payload: Any) -> None:
    with pytest.raises(BadSignedRequest):
        read_signed_request(signed(payload), [SECRET])


def test_the_algorithm_may_be_written_in_any_case() -> None:
    read_signed_request(signed({**PAYLOAD, "algorithm": "hmac-sha256"}), [SECRET])


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ("73", "73"),
        (73, "73"),
        (2**60, str(2**60)),
        (0, None),
        ("0", None),
        ("", None),
        (None, None),
        (True, None),
        (False, None),
        (1.5, None),
        (["73"], None),
        ({"id": "73"}, None),
    ],
)
@pytest.mark.parametrize("name", ["user_id", "profile_id"])
def test_who_it_is_comes_as_text_or_not_at_all(name: str, told: Any, read: str | None) -> None:
    payload = read_signed_request(signed({"algorithm": "HMAC-SHA256", name: told}), [SECRET])
    assert payload.get(name) == read
    assert (name in payload) == (read is not None)
