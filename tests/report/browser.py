"""A headless Chromium, driven by its command line."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MEASURE = """
<script>
addEventListener("load", () => {
  const images = [...document.images];
  const canvas = document.createElement("canvas").getContext("2d");
  const isDecoded = (image) => {
    canvas.clearRect(0, 0, 300, 150);
    if (image.naturalWidth === 0) return false;
    canvas.drawImage(image, 0, 0, 300, 150);
    return canvas.getImageData(0, 0, 300, 150).data.some((value) => value > 0);
  };
  document.documentElement.dataset.measured = [
    innerWidth, document.documentElement.scrollWidth, images.length,
    images.filter(isDecoded).length,
  ].join(" ");
});
</script>
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
    """Width of the window and of the page in pixels; number of images, and of those decoded."""
    copy = folder / "measured.html"
    copy.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    done = _run(copy, folder, width, 900, ["--dump-dom"])
    found = re.search(r'data-measured="(\d+) (\d+) (\d+) (\d+)"', done.stdout)
    assert found, done.stderr[-2000:]
    window, whole, images, decoded = map(int, found.groups())
    return window, whole, images, decoded


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
