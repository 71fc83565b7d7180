"""The events of the compression benchmark: quotes in JSON, tokens of a language model, fragments of HTML.

Owns these contents. They look like the events of real feeds, because the padding of `loadtest.rig.publisher` would
compress too well. The same arguments return the same events.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

SYMBOLS = ("EURUSD", "GBPUSD", "USDJPY", "USDCHF", "AUDUSD", "USDCAD", "NZDUSD", "EURGBP", "EURJPY", "GBPJPY")
VENUES = ("LMAX", "EBS", "CBOE", "HOTSPOT")
TEXT = (
    "the of and to a in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my now "
    "over such our man me even most made after also did many off before must well back through years much where "
    "your way down should because each just those people how too little state good very make world still own see "
    "men work long here between both life being under never day same another know year last might use great old "
    "come since against go came right used take"
)
WORDS = TEXT.split()
ROWS = 40
CHANGED_ROWS = 3
"""Rows of the HTML table that differ from the previous event."""


def quotes(count: int) -> Iterator[str]:
    """Yield quotes of currency pairs, about 150 bytes each."""
    chance = random.Random(1)
    for number in range(count):
        bid = 0.5 + chance.random()
        quote = {
            "symbol": chance.choice(SYMBOLS),
            "bid": round(bid, 5),
            "ask": round(bid + chance.random() / 1000, 5),
            "size": chance.randrange(1, 50) * 100_000,
            "venue": chance.choice(VENUES),
            "time": f"2026-11-26T09:{number // 600 % 60:02}:{number // 10 % 60:02}.{chance.randrange(1000):03}Z",
            "sequence": 48_000_000 + number,
            "flags": ["firm"],
        }
        yield json.dumps(quote, separators=(",", ":"))


def tokens(count: int) -> Iterator[str]:
    """Yield words as a language model sends them, about 20 bytes each; frequent words are more likely."""
    chance = random.Random(2)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    for word in chance.choices(WORDS, weights, k=count):
        yield json.dumps({"delta": f" {word}"}, separators=(",", ":"))


def fragments(count: int) -> Iterator[str]:
    """Yield a table in HTML, about 7.5 KB each; a few rows change from one event to the next."""
    chance = random.Random(3)
    rows = [_row(number, chance) for number in range(ROWS)]
    for _ in range(count):
        for number in chance.sample(range(ROWS), CHANGED_ROWS):
            rows[number] = _row(number, chance)
        yield f'<table id="positions" class="table table-striped"><tbody>{"".join(rows)}</tbody></table>'


def _row(number: int, chance: random.Random) -> str:
    price, change = chance.uniform(10, 500), chance.uniform(-5, 5)
    colour = "text-success" if change > 0 else "text-danger"
    return (
        f'<tr id="position-{number}" class="align-middle"><td>{WORDS[number].title()} Industries</td>'
        f'<td class="text-end">{price:.2f}</td><td class="text-end {colour}">{change:+.2f}&nbsp;%</td>'
        f'<td class="text-end">{chance.randrange(10_000)}</td></tr>'
    )
