"""The console, the document at `/`: one HTML document that contains its style and its scripts.

Owns the order of the scripts. Never serves the document (`relay.front.documents`).
"""

from __future__ import annotations

import importlib.resources

SCRIPTS = ("common.js", "stream.js", "tail.js", "server.js", "actions.js")
"""The parts of the script. Each uses only the parts before it while it loads."""


def read_page() -> bytes:
    """Return the document. It needs no other file, and its policy allows only this style and this script."""
    folder = importlib.resources.files("relay").joinpath("pages")
    page, style = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "console.css"))
    script = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = page.replace("<!-- style -->", f"<style>\n{style}</style>")
    return page.replace("<!-- script -->", f"<script>\n{script}</script>").encode()
