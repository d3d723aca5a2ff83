"""A headless Chromium, driven by its command line."""

import os
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# a frame may be narrower than 500 pixels, the window may not
FRAME = """
<body><iframe srcdoc="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe");
  const images = [...frame.contentDocument.images];
  const canvas = document.createElement("canvas").getContext("2d");
  const isDecoded = (image) => {{
    canvas.clearRect(0, 0, 300, 150);
    if (image.naturalWidth === 0) return false;
    canvas.drawImage(image, 0, 0, 300, 150);
    return canvas.getImageData(0, 0, 300, 150).data.some((value) => value > 0);
  }};
  document.documentElement.dataset.measured = [
    frame.contentWindow.innerWidth, frame.contentDocument.documentElement.scrollWidth,
    images.length, images.filter(isDecoded).length,
  ].join(" ");
}});
</script></body>
"""


def chromium() -> str:
    """Path of the browser; skips the test, or fails it if one is required, where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        reason = "no Chromium here: apt-get install chromium"
        if os.environ.get("MACE_TRAIN_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def look(page: Path, picture: Path, width: int, height: int, *, dark: bool = False) -> str:
    """Write a screenshot of the page and return what the browser's console said."""
    theme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = _run(page, picture.parent, width, height, [*theme, f"--screenshot={picture}"])
    return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def measure(page: Path, folder: Path, width: int) -> tuple[int, int, int, int]:
    """Width of the view and of the page in pixels; number of images, and of those decoded."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page=escape(page.read_text()), width=width))
    done = _run(frame, folder, width + 100, 1000, ["--dump-dom"])
    found = re.search(r'data-measured="(\d+) (\d+) (\d+) (\d+)"', done.stdout)
    assert found, done.stderr[-2000:]
    view, whole, images, decoded = map(int, found.groups())
    return view, whole, images, decoded


def _run(
    page: Path, folder: Path, width: int, height: int, options: list[str]
) -> subprocess.CompletedProcess[str]:
    command = [
        chromium(),
        "--headless=new",
        "--no-sandbox",  # as root, in containers
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}",
        "--enable-logging=stderr",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
