"""A real browser for the tests of pages: Debian's chromium, driven by its own driver; nothing is downloaded.

`faults` are rules of WCAG 2.2 that a program can check: names, order of headings, labels, contrast, what is too wide.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

NARROW_PX, WIDE_PX = 390, 1200
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_a_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser here: apt-get install chromium chromium-driver"
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, and without anything of its user."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.timeouts = {"pageLoad": 600_000, "script": 600_000}
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: webdriver.Chrome, *, width_px: int = WIDE_PX, dark: bool = False) -> None:
    """A window of this width, in this light."""
    light = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [light]})
    size: Mapping[str, Any] = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(size))


def said_by_the_console(driver: webdriver.Chrome) -> list[str]:
    """What went wrong on the pages so far, a policy that was broken among it; a browser's own wish for an icon is not
    the page's.
    """
    told: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [each["message"] for each in told if "favicon" not in each["message"]]


def tab_to(driver: webdriver.Chrome, selector: str, most: int = 80) -> None:
    """Press Tab until the element has the focus, which must be visible all the way."""
    wanted = driver.find_element("css selector", selector)
    for _ in range(most):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        at = driver.switch_to.active_element
        assert driver.execute_script(_HAS_A_RING, at), at.get_attribute("outerHTML")
        if at == wanted:
            return
    raise AssertionError(f"Tab does not reach {selector}")


def faults(driver: webdriver.Chrome) -> list[str]:
    """Rules of WCAG that the page breaks, a line each."""
    found: list[str] = driver.execute_script(_FAULTS)
    return found


_HAS_A_RING = """
const style = getComputedStyle(arguments[0]);
return arguments[0] === document.body || style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
"""

_FAULTS = Path(__file__).with_name("browser.js").read_text(encoding="utf-8")
