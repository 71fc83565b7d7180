"""The data of four kinds of events, which all measurements of the codec use.

Owns the samples. Never measures.
"""

from __future__ import annotations

SAMPLES = {
    "small": '{"n":12345,"t":123456789012345,"p":"' + "x" * 113 + '"}',
    "lines": "\n".join(["a line of a log, about forty bytes long"] * 20),
    "64k": "x" * 65536,
    "unicode": "Grüße, 世界, мир 🎉 " * 8,
}
