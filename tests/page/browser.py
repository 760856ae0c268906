"""A headless Chromium, driven through the W3C WebDriver protocol with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name
VISIBLE = "element => element.getClientRects().length > 0"
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]


@contextlib.contextmanager
def chromedriver() -> Iterator[str]:
    """The address of a running one."""
    process = subprocess.Popen(
        [CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        for line in process.stdout:
            found = re.search(r"started successfully on port (\d+)", line)
            if found:
                yield f"http://127.0.0.1:{found[1]}"
                return
        raise AssertionError("chromedriver did not start")
    finally:
        process.terminate()
        process.wait()


class Browser:
    """One window."""

    def __init__(self, driver: str, width: int, height: int, phone: bool = False):
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--window-size={width},{height}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        self.driver, self.session = driver, ""
        started = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{started['sessionId']}"
        self.requests, self.width = set(), width
        if phone:
            shape = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            self.cdp("Emulation.setDeviceMetricsOverride", **shape)
            self.cdp("Emulation.setTouchEmulationEnabled", enabled=True)

    def close(self) -> None:
        """As a person closes a window."""
        self._call("DELETE", self.session)

    def go(self, address: str) -> None:
        self._call("POST", f"{self.session}/url", {"url": address})

    def script(self, text: str, *arguments: Any) -> Any:
        return self._call("POST", f"{self.session}/execute/sync", {"script": text, "args": list(arguments)})

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict]:
        return self._call("POST", f"{self.session}/se/log", {"type": kind})

    def all(self, css: str, text: str | None = None) -> list[dict]:
        """The elements that can be seen, of that text if one is given."""
        return self.script(
            f"return [...document.querySelectorAll(arguments[0])].filter({VISIBLE})"
            ".filter(e => arguments[1] === null || e.textContent.trim() === arguments[1])", css, text,
        )  # fmt: skip

    def texts(self, css: str) -> list[str]:
        return self.script(
            f"return [...document.querySelectorAll(arguments[0])].filter({VISIBLE}).map(e => e.innerText)",
            css,
        )

    def click(self, css: str, text: str | None = None) -> None:
        """A real click, on the first of such elements."""
        (element, *_) = self.wait(lambda: self.all(css, text), f"{css} {text}")
        self.script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        time.sleep(0.3)  # the page may still scroll by itself
        self._call("POST", f"{self.session}/element/{element[ELEMENT]}/click", {})

    def type(self, element: dict, text: str) -> None:
        """Real keys; of a file input the path."""
        self._call("POST", f"{self.session}/element/{element[ELEMENT]}/value", {"text": text})

    def place(self, element: dict) -> tuple[float, float]:
        """Where the middle of an element is, scrolled to."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        box = "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]"
        time.sleep(0.5)  # it scrolls smoothly
        return tuple(self.script(box, element))

    def touch(self, x: float, y: float, dx: float, dy: float) -> None:
        """A finger that goes from one place to another."""
        for step in range(11):
            point = {"x": x + dx * step / 10, "y": y + dy * step / 10}
            kind = "touchMove" if step else "touchStart"
            self.cdp("Input.dispatchTouchEvent", type=kind, touchPoints=[point])
            time.sleep(0.03)
        self.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        """A mouse, likewise."""
        mouse = {"button": "left", "clickCount": 1}
        self.cdp("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        for step in range(1, 11):
            there = {"x": x + dx * step / 10, "y": y + dy * step / 10}
            self.cdp("Input.dispatchMouseEvent", type="mouseMoved", buttons=1, **there, **mouse)
            time.sleep(0.03)
        self.cdp("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, **mouse)

    def wait(self, found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """What `found` returns, once that is something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = found()
            if answer:
                return answer
            time.sleep(0.1)
        raise AssertionError(f"waited {seconds} s for {what}; it says {self.texts('.status span')}")

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        height = self.script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        data = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def hosts(self) -> set[str]:
        """Whom it has asked for anything so far."""
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.add(message["params"]["request"]["url"])
        return {url.split("/")[2] for url in self.requests if not url.startswith(("data:", "blob:"))}

    def _call(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.driver + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message'][:300]}") from error
