"""What people in the simulated inbox are called, write and send.

The words are chosen for what breaks mirrors: every script, emoji of several code points, right-to-left text,
combining marks, quotes, backslashes, line breaks, markup, and texts at the 2000-character limit of Messenger.
"""

from __future__ import annotations

from random import Random
from typing import Any

_FIRST = (
    "Anna",
    "Ben",
    "Chloé",
    "Đorđe",
    "Eirik",
    "Fátima",
    "Grace",
    "Håkon",
    "Inês",
    "José",
    "Katarzyna",
    "Liam",
    "María José",
    "Nguyễn",
    "Óscar",
    "Priya",
    "Quentin",
    "Renée",
    "Sofía",
    "Thảo",
    "Uğur",
    "Vojtěch",
    "Wanjiru",
    "Xenia",
    "Yusuf",
    "Zoë",
    "محمد",
    "ליאור",
    "Ольга",
    "さくら",
    "王",
    "지민",
    "สมชาย",
    "अर्जुन",
)
_LAST = (
    "Smith",
    "O'Neill",
    "Müller",
    "García Márquez",
    "Lindström",
    "Nowak",
    "d'Amboise",
    "Şahin",
    "Trần",
    "Kovács",
    "Okafor",
    "de la Cruz",
    "Иванова",
    "العربي",
    "כהן",
    "田中",
    "小明",
    "김",
    "ใจดี",
    "शर्मा",
    "Smith-Jones",
    "Ng",
    "Zürcher",
    "Öztürk",
)

TEXTS = (
    "Hi! Are you open on Sunday?",
    "Hello, is this still available?",
    "Yes, it is. Would you like us to keep it for you?",
    "Thank you so much 🙏",
    "👍",
    "❤️",
    "👨‍👩‍👧‍👦 we will be four people",
    "🏳️‍🌈🏴‍☠️",
    "Great 👩🏽‍🔧 will have a look at your bike tomorrow 🚲",
    "😂😂😂",
    "🇫🇷🇨🇦🇧🇷",
    "1️⃣ first, 2️⃣ second",
    "ok",
    "?",
    "...",
    "Ça marche, à bientôt !",
    "¿Cuánto cuesta el envío a Logroño?",
    "Grüße aus Köln, schönes Wochenende",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Zażółć gęślą jaźń",
    "Cafe\u0301 with a combining accent, café without",
    "İstanbul'a gönderiyor musunuz?",
    "Tiếng Việt có nhiều dấu: ậ ế ổ ữ",
    "Спасибо, жду ответа",
    "Ευχαριστώ πολύ!",
    "שלום, האם אתם פתוחים היום?",
    "مرحبا، كم سعر الدراجة رقم 42؟",
    "mixed שלום and English 123 מחיר",
    "\u200fمرحبا\u200e hello\u200f",
    "こんにちは、在庫はありますか？",
    "你好，请问什么时候发货？",
    "𠮷野家 and 𝒻𝒶𝓃𝒸𝓎 letters",
    "안녕하세요, 예약하고 싶어요",
    "สวัสดีค่ะ ราคาเท่าไหร่คะ",
    "नमस्ते, क्या यह उपलब्ध है?",
    "He said \"no\", then 'yes'",
    "C:\\new\\table\\u0041 is not a path",
    "line one\nline two\r\nline three\ttabbed",
    "<script>alert('hi')</script> & <b>bold</b>",
    "100% sure, mail me at someone@example.org / call 555-0100",
    "https://example.org/path?a=1&b=2#part",
    '{"json": [1, null, true]}',
    "Robert'); DROP TABLE messages;--",
    "  spaces around  ",
    "zero\u200bwidth\u200dand\u00a0nbsp",
    "My order number is",
    "We can do that for you by Friday.",
    "Sorry for the delay, we were at the fair.",
    "Can I return it within 30 days?",
    "The blue one please",
    "What size is it?",
    "M or L, we have both",
    "Perfect, see you then!",
    "I would like to cancel",
    "No problem, it is cancelled",
    "Do you deliver?",
    "We deliver within the city for free",
)
POSTBACK_TITLES = (
    "Get Started",
    "Talk to a person",
    "Opening hours",
    "Où êtes-vous ?",
    "注文する",
    "Track my order 📦",
)
REACTIONS = (
    ("love", "\u2764\ufe0f"),
    ("smile", "😆"),
    ("wow", "😮"),
    ("sad", "😢"),
    ("angry", "😠"),
    ("like", "👍"),
    ("other", "🚲"),
)
STICKERS = (369239263222822, 369239343222814, 369239383222810, 126361874215276)

_CDN = "https://scontent.sim.example/v/t1.15752-9"
_FILES = "https://cdn.sim.example/v/t59.2708-21"

EU_PLACEHOLDER = (
    "Media not available due to new privacy rules in Europe. See developer documentation for more info"
)


def person_name(rng: Random) -> str:
    """A name. Different people share one now and then, as in life: a name is no key."""
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def text(rng: Random) -> str:
    """The text of one message: mostly short, one in a hundred near 2000 characters, never empty."""
    draw = rng.random()
    words = TEXTS[int(draw * 1e6) % len(TEXTS)]
    if draw < 0.01:
        return long_text(rng)
    if draw < 0.35:
        return f"{words} {int(draw * 1e9) % 99991}"
    return words


def long_text(rng: Random) -> str:
    """A text of 1900 to 2100 characters in several scripts."""
    wanted = 1900 + int(rng.random() * 200)
    parts: list[str] = []
    length = 0
    while length < wanted:
        part = TEXTS[int(rng.random() * len(TEXTS))]
        parts.append(part)
        length += len(part) + 1
    # The limit may cut an emoji in half, as it does there; it never leaves half a code point.
    return " ".join(parts)[:wanted].strip()


def signature(rng: Random) -> str:
    """The signed, expiring query of a CDN address."""
    return f"oh=00_{rng.getrandbits(128):032x}&oe={0x69000000 + int(rng.random() * 0xFFFFFF):08X}"


def attachment(rng: Random, kind: str) -> dict[str, Any]:
    """One Graph attachment object of a kind: image, video, audio, file, gif or eu (no address at all)."""
    identity = str(10**14 + rng.getrandbits(49))
    if kind == "eu":
        return {"id": identity, "name": EU_PLACEHOLDER}
    if kind == "video":
        return {
            "id": identity,
            "mime_type": "video/mp4",
            "name": f"video-{identity}.mp4",
            "size": 100_000 + int(rng.random() * 9e6),
            "video_data": {
                "width": 720,
                "height": 1280,
                "length": 1 + int(rng.random() * 60),
                "video_type": 1,
                "url": f"{_FILES}/{identity}.mp4?{signature(rng)}",
                "preview_url": f"{_CDN}/{identity}_p.jpg?{signature(rng)}",
                "rotation": 0,
            },
        }
    if kind in ("audio", "file"):
        mime, name = (
            ("audio/mpeg", f"audioclip-{identity}.mp3")
            if kind == "audio"
            else ("application/pdf", f"Facture n° {identity[-4:]}.pdf")
        )
        return {
            "id": identity,
            "mime_type": mime,
            "name": name,
            "size": 1000 + int(rng.random() * 1e6),
            "file_url": f"{_FILES}/{identity}.{mime[-3:]}?{signature(rng)}&dl=1",
        }
    ending = "gif" if kind == "gif" else "jpeg"
    picture: dict[str, Any] = {
        "width": 1280,
        "height": 960,
        "max_width": 1280,
        "max_height": 960,
        "url": f"{_CDN}/{identity}_n.{ending}?{signature(rng)}",
        "preview_url": f"{_CDN}/p280x280/{identity}_n.{ending}?{signature(rng)}",
        "image_type": 1,
        "render_as_sticker": False,
    }
    if kind == "gif":
        picture["animated_gif_url"] = f"{_CDN}/{identity}_a.gif?{signature(rng)}"
    return {
        "id": identity,
        "mime_type": f"image/{ending}",
        "name": f"image-{identity}",
        # Known for uploads, null for pictures of the web.
        "size": None if kind == "gif" else 20_000 + int(rng.random() * 900_000),
        "image_data": picture,
    }


def sticker_url(sticker_id: int, rng: Random) -> str:
    """Where Graph says a sticker's picture is."""
    return f"{_CDN}/sticker_{sticker_id}.png?{signature(rng)}"


def share(rng: Random) -> dict[str, Any]:
    """A shared link as the `shares` edge gives it, nulls included."""
    number = int(rng.random() * 1e9)
    return {
        "id": None if number % 3 else str(10**15 + number),
        "link": f"https://example.org/articles/{number}?utm_source=fb",
        "name": "" if number % 3 else "Fünf Fahrräder im Test",
        "description": None if number % 2 else "A long read",
        "picture": None,
    }
