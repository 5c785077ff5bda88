"""What people and programs send on purpose: stored as it was, or a dead letter; no 500 and nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_support import PAGE, PERSON, Api, Json, Owner

AT = 1_700_000_000_123


def event(**parts: Any) -> Json:
    return {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "timestamp": AT, **parts}


def message(text: Any, mid: Any = "m_1", **more: Any) -> Json:
    return event(message={"mid": mid, "text": text, **more})


def delivery(*events: Any) -> Json:
    return {"object": "page", "entry": [{"id": PAGE, "time": AT, "messaging": list(events)}]}


def wire(document: object) -> bytes:
    """As Meta writes it: ASCII, escaped."""
    return json.dumps(document).replace("/", "\\/").encode("ascii")


def rows(owner: Owner, query: str) -> list[Json]:
    return owner.execute(query.encode()).fetchall()


def stored(owner: Owner) -> dict[str, Json]:
    return {
        row["message_id"]: row for row in rows(owner, "select * from convsync.contact_interaction_events")
    }


def letters(owner: Owner) -> list[Json]:
    return rows(owner, "select * from convsync.dead_letters")


# --- texts


TEXTS = {
    "quotes": "' \" ` '' \"\" '; drop table convsync.pages; -- $$ $1 %s %(x)s {0} {x}",
    "backslashes": "\\ \\\\ \\n \\u0041 \\x00 C:\\new\\table \\",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "bidi": "\u202etxet\u202c \u2066left\u2069 \u200f\u200e \ufeff",
    "joined": "👨‍👩‍👧‍👦 🏴󠁧󠁢󠁳󠁣󠁴󠁿 é e\u0301 \u0340 क्षि",
    "planes": "\U0001f6b2 \U0010ffff \ufffe \uffff \ue000",
    "markup": "<script>alert(1)</script> ${7*7} {{7*7}} ]]> <!--",
    "json": '{"a": [1, null]}',
    "long": "ü🚲" * 16_384,
    "lines": "\r\n\n\u2028\u2029\x85",
    "spaces": "   ",
    "number": "NaN",
}


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_is_kept_as_it_is_and_read_as_it_is(api: Api, owner: Owner, name: str) -> None:
    text = TEXTS[name]
    for mid, raw in (("m_1", wire(delivery(message(text)))), ("m_2", None)):
        body = raw or json.dumps(delivery(message(text, mid)), ensure_ascii=False).encode()
        assert (await api.deliver(body)).status == 200
        assert stored(owner)[mid]["body"] == text
    assert letters(owner) == []
    [conversation] = (await api.get(f"/api/pages/{PAGE}/conversations"))["conversations"]
    assert conversation["last_message"] == text
    found = await api.get(f"/api/pages/{PAGE}/conversations/{conversation['conversation_id']}/events")
    assert [one["body"] for one in found["events"]] == [text, text]
    if len(text) < 100:
        found = await api.get(f"/api/pages/{PAGE}/conversations", q=text)
        assert len(found["conversations"]) == 1


@pytest.mark.parametrize(
    ("escaped", "kept"),
    [
        (r"a\u0000b", "a\ufffdb"),
        (r"\ud83d alone", "\ufffd alone"),
        (r"\udeb2\ud83d turned", "\ufffd\ufffd turned"),
        (r"\ud83d\ud83d\udeb2", "\ufffd🚲"),
    ],
)
async def test_what_postgresql_cannot_hold_is_marked(api: Api, owner: Owner, escaped: str, kept: str) -> None:
    raw = wire(delivery(message("TEXT", more={"KEY": ["TEXT"]}))).decode()
    assert (await api.deliver(raw.replace("TEXT", escaped).replace("KEY", escaped).encode())).status == 200
    event_row = stored(owner)["m_1"]
    assert event_row["body"] == kept
    assert event_row["metadata"]["webhook"]["more"] == {kept: [kept]}
    assert letters(owner) == []


async def test_edits_postbacks_and_payloads_are_no_safer_than_texts(api: Api, owner: Owner) -> None:
    texts = [text[:9_000] for text in TEXTS.values()]
    for number, text in enumerate(texts):
        answer = await api.deliver(
            wire(
                delivery(
                    message("before", f"m_{number}"),
                    event(
                        message_edit={"mid": f"m_{number}", "text": text, "num_edit": 1}, timestamp=AT + 1000
                    ),
                    event(postback={"mid": f"p_{number}", "title": text, "payload": text}),
                    event(referral={"ref": text, "source": text}),
                    event(
                        reaction={"mid": f"m_{number}", "action": "react", "reaction": text, "emoji": text}
                    ),
                )
            )
        )
        assert answer.status == 200
    assert letters(owner) == []
    known = stored(owner)
    for number, text in enumerate(texts):
        assert known[f"m_{number}"]["body"] == text
        assert known[f"m_{number}"]["metadata"]["reactions"][0]["emoji"] == text
        assert known[f"p_{number}"]["metadata"]["webhook"]["payload"] == text


# --- ids


@pytest.mark.parametrize(
    "mid",
    [
        "m_'; drop table x; --",
        'm_"\\',
        "m_%s%(x)s",
        "m_" + "x" * 500,
        "m_ä🚲",
        "m_.-_=/+",
        "erased:1",
        "thread:t",
    ],
)
async def test_any_printable_id_up_to_its_length_is_a_message(api: Api, owner: Owner, mid: str) -> None:
    assert (await api.deliver(wire(delivery(message("x", mid))))).status == 200
    assert list(stored(owner)) == [mid]
    assert letters(owner) == []


HOSTILE_IDS: list[Any] = [
    "x" * 600,
    "x" * 100_000,
    "",
    "  ",
    "a\0b",
    "a\nb",
    "\ud800",
    "\u202e1",
    None,
    True,
    1.5,
    -1,
    [],
    {},
    ["1"],
    {"id": "1"},
]


@pytest.mark.parametrize("bad", HOSTILE_IDS, ids=repr)
async def test_what_cannot_be_an_id_is_a_dead_letter_and_its_neighbours_pass(
    api: Api, owner: Owner, bad: Any
) -> None:
    answer = await api.deliver(
        wire(
            delivery(
                message("before", "m_before"),
                message("x", bad),
                {**message("x", "m_sender"), "sender": {"id": bad}},
                message("after", "m_after"),
            )
        )
    )
    assert answer.status == 200
    assert {"m_before", "m_after"} <= set(stored(owner))
    kept = letters(owner)
    assert len(kept) + len(stored(owner)) == 4
    assert kept


@pytest.mark.parametrize("bad", [*HOSTILE_IDS, "1e3", 2**70], ids=repr)
async def test_a_page_that_cannot_be(api: Api, owner: Owner, bad: Any) -> None:
    document = delivery(message("x"))
    document["entry"][0]["id"] = bad
    assert (await api.deliver(wire(document))).status == 200
    assert len(letters(owner)) + len(stored(owner)) == 1


async def test_a_sender_that_looks_like_ours_is_a_dead_letter(api: Api, owner: Owner) -> None:
    """`erased:1` is the name of a row that has to stay nobody's."""
    for number in range(3):
        hostile = {**message("x", f"m_{number}"), "sender": {"id": f"erased:{number}"}}
        answer = await api.deliver(wire(delivery(hostile, message("fine", f"m_fine{number}"))))
        assert answer.status == 200
    assert sorted(stored(owner)) == ["m_fine0", "m_fine1", "m_fine2"]
    assert len(letters(owner)) == 3


# --- numbers, depth, shapes


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**63, 2**64 + 1, -(2**70), 10**400])
async def test_a_number_is_kept_to_its_last_digit(api: Api, owner: Owner, number: int) -> None:
    document = delivery(message("x", sticker_id=number, more=[{"n": number}]))
    assert (await api.deliver(wire(document))).status == 200
    kept = stored(owner)["m_1"]["metadata"]["webhook"]
    assert (str(kept["sticker_id"]), str(kept["more"][0]["n"])) == (str(number), str(number))
    [conversation] = (await api.get(f"/api/pages/{PAGE}/conversations"))["conversations"]
    found = await api.get(f"/api/pages/{PAGE}/conversations/{conversation['conversation_id']}/events")
    assert str(found["events"][0]["metadata"]["webhook"]["sticker_id"]) == str(number)


@pytest.mark.parametrize(
    "digits", ["1e400", "-1e400", "1e-400", "0.1", "1.7976931348623157e308", "123456789.123456789123456789"]
)
async def test_a_fraction_does_no_harm(api: Api, owner: Owner, digits: str) -> None:
    raw = wire(delivery(message("x", more="NUMBER"))).replace(b'"NUMBER"', digits.encode())
    assert (await api.deliver(raw)).status == 200
    assert len(stored(owner)) + len(letters(owner)) == 1


@pytest.mark.parametrize("number", [2**62 + 3, 10**17 + 1])
async def test_an_id_may_be_a_number_beyond_what_a_double_holds(api: Api, owner: Owner, number: int) -> None:
    document = {**message("x"), "sender": {"id": number}}
    assert (await api.deliver(wire(delivery(document)))).status == 200
    found = rows(owner, "select sender_id from convsync.messenger_conversations")
    assert found == [{"sender_id": str(number)}]


@pytest.mark.parametrize(
    "stamp", [0, -1, 10**30, "soon", "1700000000123", 1.5, None, True, [], 253402300799999]
)
async def test_a_time_that_cannot_be(api: Api, owner: Owner, stamp: Any) -> None:
    hostile = {**message("x"), "timestamp": stamp}
    assert (await api.deliver(wire(delivery(hostile)))).status == 200
    assert len(stored(owner)) + len(letters(owner)) == 1
    await api.get(f"/api/pages/{PAGE}/conversations") if stored(owner) else None


@pytest.mark.parametrize("depth", [50, 200, 245, 260, 500, 900, 2_000, 100_000])
@pytest.mark.parametrize("kind", ["lists", "objects"])
async def test_depth_is_kept_or_a_dead_letter_or_no_json(
    api: Api, owner: Owner, depth: int, kind: str
) -> None:
    nested = b"[" * depth + b"]" * depth if kind == "lists" else b'{"a":' * depth + b"1" + b"}" * depth
    raw = wire(delivery(message("x", more="DEEP"), message("beside", "m_2"))).replace(b'"DEEP"', nested)
    status = (await api.deliver(raw)).status
    assert status in (200, 400)
    kept = stored(owner)
    if status == 200:
        assert "m_2" in kept
        assert len(kept) + len(letters(owner)) == 2
    else:
        assert depth >= 900, "400 is for what no reader of JSON takes"
        assert kept == {}


SHAPES: list[Any] = [
    None,
    1,
    "x",
    [],
    {},
    True,
    [[]],
    {"message": None},
    {"message": []},
    {"message": "x"},
    {"message": {"text": 5}},
    event(message=None),
    event(message={"mid": "m"}, sender=None),
    event(message={"mid": "m", "text": {"a": 1}}),
    event(message={"mid": "m", "attachments": "x" * 1000}),
    event(delivery={"watermark": "x"}),
    event(read={"watermark": -5}),
    event(reaction={"mid": "m", "action": "explode"}),
    event(message_edit={"mid": "m", "text": "x", "num_edit": 2**40}),
    event(postback={"mid": 7, "title": ["x"]}),
    event(**{"'; drop table x": {"a": "b"}}),
    event(**{"": 1}),
    event(**{"k" * 70_000: 1}),
    {"sender": "x", "recipient": [], "timestamp": {}, "message": {"mid": "m"}},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: repr(shape)[:60])
async def test_whatever_an_event_is_the_one_beside_it_is_kept(api: Api, owner: Owner, shape: Any) -> None:
    answer = await api.deliver(wire(delivery(shape, message("beside", "m_beside"))))
    assert answer.status == 200
    assert "m_beside" in stored(owner)
    beyond = rows(owner, "select count(*) as n from convsync.pending_amendments")[0]["n"]
    receipts = rows(
        owner,
        """select count(*) as n from convsync.messenger_conversations
           where read_watermark is not null or delivered_watermark is not null""",
    )[0]["n"]
    assert len(stored(owner)) - 1 + len(letters(owner)) + beyond + receipts >= 1


async def test_all_of_it_at_once_and_the_dead_letters_can_be_looked_at(api: Api, owner: Owner) -> None:
    hostile = [message(text, f"m_{n}") for n, text in enumerate(TEXTS.values())]
    hostile += [message("x", bad) for bad in HOSTILE_IDS] + SHAPES
    assert (await api.deliver(wire(delivery(*hostile)))).status == 200
    assert {f"m_{n}" for n in range(len(TEXTS))} <= set(stored(owner))
    kept = (await api.get("/api/dead-letters", limit="500"))["dead_letters"]
    assert len(kept) == len(letters(owner)) > 20
    for letter in kept:
        number = letter["dead_letter_id"]
        assert (await api.get(f"/api/dead-letters/{number}"))["bytes"] > 0
        answer = await api("POST", f"/api/dead-letters/{number}/replay")
        assert answer.status == 422, (letter, answer.body)
    assert len(letters(owner)) == len(kept)
