"""Page tokens at rest: what opens them, what does not, and the file that keeps their key."""

from __future__ import annotations

import base64
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convsync.tokens import TokenBox, TokenKeyError, key_from_file, new_key
from secrets_hunt import marked, marked_key

PAGE = "104000000000001"
TOKEN = marked("EAAtestPageToken")


def test_what_is_sealed_opens_with_the_same_key() -> None:
    key = new_key()
    sealed = TokenBox(key).seal(PAGE, TOKEN)
    assert TokenBox(key).open(PAGE, sealed) == TOKEN
    assert TokenBox(f" {key.rstrip('=')}\n").open(PAGE, sealed) == TOKEN
    assert TOKEN.encode() not in sealed
    assert len(sealed) == 12 + len(TOKEN) + 16


def test_the_same_token_is_sealed_differently_each_time() -> None:
    box = TokenBox(new_key())
    assert len({box.seal(PAGE, TOKEN) for _ in range(50)}) == 50


@pytest.mark.parametrize("token", ["", "ü", "x" * 10_000])
def test_any_text_can_be_sealed(token: str) -> None:
    box = TokenBox(new_key())
    assert box.open(PAGE, box.seal(PAGE, token)) == token


def test_another_key_does_not_open_it() -> None:
    sealed = TokenBox(new_key()).seal(PAGE, TOKEN)
    with pytest.raises(TokenKeyError, match=f"Page {PAGE} was sealed with another TOKEN_KEY") as refused:
        TokenBox(new_key()).open(PAGE, sealed)
    assert TOKEN not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_token_moved_to_another_page_does_not_open() -> None:
    box = TokenBox(new_key())
    with pytest.raises(TokenKeyError):
        box.open("104000000000002", box.seal(PAGE, TOKEN))


def test_a_changed_or_cut_token_does_not_open() -> None:
    box = TokenBox(new_key())
    sealed = box.seal(PAGE, TOKEN)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(TokenKeyError):
            box.open(PAGE, bytes(changed))
    for length in (0, 1, 11, 12, 13, 28, len(sealed) - 1):
        with pytest.raises(TokenKeyError):
            box.open(PAGE, sealed[:length])


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "short",
        "ü" * 43,
        base64.urlsafe_b64encode(b"x" * 31).decode(),
        base64.urlsafe_b64encode(b"x" * 33).decode(),
    ],
)
def test_a_key_of_another_length_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(TokenKeyError, match="32 bytes in base64url") as refused:
        TokenBox(key)
    assert not key.strip() or key not in str(refused.value)


def test_the_id_of_a_key_tells_keys_apart_and_nothing_else() -> None:
    key = new_key()
    assert TokenBox(key).key_id == TokenBox(key).key_id != TokenBox(new_key()).key_id
    assert len(TokenBox(key).key_id) == 16
    raw = base64.urlsafe_b64decode(key)
    assert TokenBox(key).key_id not in (raw.hex()[:16], key[:16])


def test_new_keys_differ() -> None:
    assert len({new_key() for _ in range(20)}) == 20


def test_the_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "token_key"
    before = os.umask(0)
    try:
        key = key_from_file(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_from_file(path) == key
    assert path.read_text(encoding="ascii") == key + "\n"
    TokenBox(key)
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_who_make_the_file_at_once_the_first_wins(tmp_path: Path) -> None:
    many = 8
    for turn in range(20):
        path = tmp_path / f"key_{turn}"
        together = threading.Barrier(many)

        def make(path: Path = path, together: threading.Barrier = together) -> str:
            together.wait()
            return key_from_file(path)

        with ThreadPoolExecutor(many) as threads:
            keys = {future.result() for future in [threads.submit(make) for _ in range(many)]}
        assert keys == {path.read_text(encoding="ascii").strip()}
    assert len(list(tmp_path.iterdir())) == 20


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "token_key"
    (tmp_path / f"token_key.{os.getpid()}").write_text("half", encoding="ascii")
    assert key_from_file(path) == path.read_text(encoding="ascii").strip()


def test_a_key_derived_for_something_else_is_the_same_everywhere_and_tells_nothing_of_the_tokens_key() -> (
    None
):
    key = marked_key()
    derived = TokenBox(key).derived_key("one purpose")
    assert derived == TokenBox(key).derived_key("one purpose")
    assert len(derived) == 32
    assert derived != TokenBox(key).derived_key("another purpose")
    assert derived != TokenBox(marked_key(100)).derived_key("one purpose")
    assert derived != base64.urlsafe_b64decode(key)
