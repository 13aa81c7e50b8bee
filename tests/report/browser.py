"""A page in Chromium, without a window: what a script finds in it, at a width and in a colour scheme.

Both Chromium and axe-core (``make browser``) may be missing; tests that want them are then skipped and say so.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
DESK, PHONE = 1200, 390  # pixels
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
needs_axe = pytest.mark.skipif(
    not CHROMIUM or not AXE.is_file(), reason="no Chromium or no axe-core here: make browser"
)


def asked(page: Path, script: str, *, width: int = DESK, dark: bool = False, before: str = "") -> Any:
    """What the body of an async function returns in the page; ``before`` is a script that is loaded first.

    Chromium's window is at least 500 pixels wide, so the page is put into a frame of ``width``.
    """
    inner = page.with_name(f"asked-{page.name}")
    telling = "parent.document.getElementById('answer').textContent = JSON.stringify"
    runs = (
        f"(async () => {{ {script} }})().then(found => {telling}(found), error => {telling}({{error: String(error)}}))"
    )
    inner.write_text(page.read_text().replace("</body>", f"<script>{before}</script><script>{runs}</script></body>"))
    outer = page.with_name(f"frame-{page.name}")
    outer.write_text(
        f"<!doctype html><title>frame</title><iframe src='{inner.name}' width='{width}' height='900' style='border:0'>"
        "</iframe><pre id='answer'></pre>"
    )
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*words, outer.as_uri()], capture_output=True, text=True, timeout=300)
    match = re.search(r"<pre id=\"answer\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert match and match[1], done.stderr[-1000:]
    answer = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert not (isinstance(answer, dict) and "error" in answer), answer
    return answer
