"""The small language that the recogniser knows: about a hundred words and the ways to join them."""

from __future__ import annotations

from random import Random


def _words(text: str) -> list[str]:
    return text.split()


DIGITS = _words("zero one two three four five six seven eight nine")
TEENS = _words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
RANKS = _words("ace two three four five six seven eight nine ten jack queen king")
SUITS = _words("clubs hearts diamonds spades")
DIRECTIONS = _words("forward backward left right")
LENGTHS = _words("meter meters step steps")
ROOMS = _words("kitchen bedroom garden bathroom hall garage")
DEVICES = _words("light lamp heater fan radio camera door window")
UNITS = _words("seconds minutes hours")
OTHERS = _words("oh of go set a timer for to the on off open close is wake me at")
ROBOT = [
    "turn left", "turn right", "turn around", "stop", "go home", "come here", "do something",
    "go somewhere", "go somewhere and do something", "come here and do something",
    "go home and stop",
]  # fmt: skip
HOME = [
    "what time is it", "play some music", "volume up", "volume down", "good morning", "good night",
]  # fmt: skip


def vocabulary() -> list[str]:
    """Return every word of the language once, in alphabetical order."""
    lists = [DIGITS, TEENS, TENS, RANKS, SUITS, DIRECTIONS, LENGTHS, ROOMS, DEVICES, UNITS, OTHERS]
    return sorted({word for words in lists for word in words} | set(_words(" ".join(ROBOT + HOME))))


def sentence(draw: Random) -> str:
    """Draw a sentence: cards, numbers, orders to a robot or to a home, or words in any order."""
    kind = draw.choices([_cards, _numbers, _robot, _home, _any_words], [28, 24, 14, 18, 16])[0]
    return kind(draw)


def _number(draw: Random) -> str:
    kind = draw.random()
    if kind < 0.3:
        return draw.choice(DIGITS)
    if kind < 0.5:
        return draw.choice(TEENS)
    tens = draw.choice(TENS)
    return tens if kind < 0.7 else f"{tens} {draw.choice(DIGITS[1:])}"


def _cards(draw: Random) -> str:
    cards = [f"{draw.choice(RANKS)} of {draw.choice(SUITS)}" for _ in range(3)]
    kind = draw.random()
    if kind < 0.75:
        return " ".join(cards[: draw.choice([1, 1, 2, 3])])
    rank = draw.choice(RANKS)
    return f"{rank} {cards[0]}" if kind < 0.85 else f"{rank} {draw.choice(RANKS)}"


def _numbers(draw: Random) -> str:
    if draw.random() < 0.4:
        return " ".join(draw.choice([*DIGITS, "oh"]) for _ in range(draw.randint(1, 6)))
    kinds = [draw.random() < 0.3 for _ in range(draw.randint(1, 5))]
    return " ".join(draw.choice([*DIGITS, "oh"]) if digit else _number(draw) for digit in kinds)


def _robot(draw: Random) -> str:
    if draw.random() < 0.5:
        way, many = draw.choice(DIRECTIONS), _number(draw)
        return f"go {way} {many} {draw.choice(LENGTHS)}"
    return draw.choice(ROBOT)


def _home(draw: Random) -> str:
    room, device = draw.choice(ROOMS), draw.choice(DEVICES)
    return draw.choice([
        f"turn {draw.choice(['on', 'off'])} the {room} {device}",
        f"turn {draw.choice(['on', 'off'])} the {device}",
        f"set a timer for {_number(draw)} {draw.choice(UNITS)}",
        f"set the {room} {device} to {_number(draw)}",
        f"{draw.choice(['open', 'close'])} the {room} {draw.choice(['door', 'window'])}",
        f"is the {room} {draw.choice(['door', 'window'])} {draw.choice(['open', 'on', 'off'])}",
        f"wake me at {_number(draw)}",
        draw.choice(HOME),
    ])  # fmt: skip


def _any_words(draw: Random) -> str:
    return " ".join(draw.choices(vocabulary(), k=draw.randint(1, 5)))
