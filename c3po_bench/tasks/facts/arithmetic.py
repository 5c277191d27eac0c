"""The relations of `facts` that need no table: small sums, sequences, Roman numerals and unit conversions."""

import random
from collections.abc import Iterator

UNITS = [  # larger unit, smaller unit, how many
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("centuries", "years", 100),
    ("meters", "centimeters", 100),
    ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000),
    ("centimeters", "millimeters", 10),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
]
FACTORS = (3, 7, 10, 12, 24, 60, 100, 1000)
_ROMAN = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]

Row = tuple[str, str, str, list[str]]  # entity, question, answer, wrong options


def roman(number: int) -> str:
    """The Roman numeral of 1 <= number < 400."""
    text = ""
    for value, numeral in _ROMAN:
        while number >= value:
            text, number = text + numeral, number - value
    return text


def _near(answer: int, rng: random.Random, offsets: tuple[int, ...] = (1, 2, 3, 9, 10, 11, 20)) -> list[str]:
    """Three positive numbers near `answer`, none equal to it."""
    options = sorted(
        {answer + sign * step for step in offsets for sign in (1, -1) if answer + sign * step > 0}
    )
    return [str(n) for n in rng.sample(options, 3)]


def _addition(rng: random.Random) -> Iterator[Row]:
    pairs = rng.sample([(a, b) for a in range(11, 60) for b in range(11, 40) if a > b], 100)
    for a, b in pairs:
        yield f"{a} + {b}", f"What is {a} plus {b}?", str(a + b), _near(a + b, rng)


def _subtraction(rng: random.Random) -> Iterator[Row]:
    pairs = rng.sample([(a, b) for a in range(20, 99) for b in range(5, 50) if a - b > 3], 90)
    for a, b in pairs:
        yield f"{a} - {b}", f"What is {a} minus {b}?", str(a - b), _near(a - b, rng, (1, 2, 3, 9, 10))


def _multiplication(rng: random.Random) -> Iterator[Row]:
    for a in range(2, 13):
        for b in range(a, 13):
            product = a * b
            wrong = {a * (b + 1), a * (b - 1), (a + 1) * b, (a - 1) * b, product + 2, product + 10} - {
                product
            }
            options = [str(n) for n in rng.sample(sorted(wrong), 3)]
            yield f"{a} x {b}", f"What is {a} times {b}?", str(product), options


def _sequences(rng: random.Random) -> Iterator[Row]:
    starts = rng.sample([(start, step) for start in range(1, 16) for step in range(2, 12)], 70)
    for start, step in starts:
        shown = ", ".join(str(start + step * i) for i in range(4))
        following = start + 4 * step
        yield (
            shown,
            f"Which number comes next: {shown}?",
            str(following),
            _near(following, rng, (1, 2, 3, step)),
        )


def _roman(rng: random.Random) -> Iterator[Row]:
    for number in sorted(rng.sample(range(2, 100), 70)):
        others = {number + d for d in (-20, -10, -5, -2, -1, 1, 2, 5, 10, 20)}
        wrong = [roman(n) for n in rng.sample(sorted(n for n in others if n > 0), 3)]
        yield (
            f"the number {number}",
            f"How is the number {number} written in Roman numerals?",
            roman(number),
            wrong,
        )


def _conversions(rng: random.Random) -> Iterator[Row]:
    for large, small, factor in UNITS:
        for count in rng.sample(range(2, 10), 5):
            wrong = [str(count * f) for f in rng.sample([f for f in FACTORS if f != factor], 3)]
            entity = f"{count} {large} in {small}"
            yield entity, f"How many {small} are in {count} {large}?", str(count * factor), wrong


RELATIONS = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "sequences": _sequences,
    "roman_numerals": _roman,
    "conversions": _conversions,
}


def rows(relation: str) -> list[Row]:
    """All rows of one relation; the same on every call."""
    return list(RELATIONS[relation](random.Random(f"facts:{relation}")))
