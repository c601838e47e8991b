"""Takes the pictures of the console: python docs/take_screenshots.py --home .vitok/fraud --out docs/pictures.

It starts the service on the home folder (or takes a running one by --url), opens every page in headless Chromium at
laptop and phone width, light and dark, and writes PNG files. It fails where a page scrolls sideways or says anything
on the browser's console.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LAPTOP, PHONE = (1280, 800), (390, 844)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_WAIT = 60.0
_LARGEST = 150_000
_TALLEST = 4_000


def find_browser() -> str | None:
    """Finds Chromium or Chrome on the PATH; None where there is neither."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """Headless Chromium, driven over a pipe by the DevTools protocol; it needs no other package.

    Args:
        program: The browser's program.

    Attributes:
        messages: What pages have said on the console since the last `open`, and requests that failed.
    """

    def __init__(self, program: str) -> None:
        self.messages: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="vitok-browser-")
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        # The browser reads file 3 and writes file 4; the shell puts the pipes there.
        shell = f'exec "$@" 3<&{child_in} 4>&{child_out}'
        command = [
            "bash",
            "-c",
            shell,
            "browser",
            program,
            *FLAGS,
            f"--user-data-dir={self._folder.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(child_in, child_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(child_in)
        os.close(child_out)
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, url: str, *, size: tuple[int, int], dark: bool = False) -> None:
        """Opens a page and waits until it has loaded."""
        self.messages.clear()
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        while self.evaluate("document.readyState") != "complete":
            pass

    def evaluate(self, expression: str) -> Any:
        """Evaluates an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, *, height: int | None = None) -> bytes:
        """Returns what is seen as PNG, or the page down to a height."""
        if height is None:
            return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        width = self.evaluate("document.documentElement.clientWidth")
        whole = self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, whole), "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        return base64.b64decode(data)

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(OSError, RuntimeError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        # Its last helpers may still be writing their files.
        shutil.rmtree(self._folder.name, ignore_errors=True)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._listen(message.get("method", ""), message.get("params", {}))
        return message

    def _listen(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(item.get("value")) for item in about["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(about["exceptionDetails"].get("text")))
        elif method == "Log.entryAdded":
            self.messages.append(str(about["entry"]["text"]))
        elif method == "Network.loadingFailed":
            self.messages.append(f"a request failed: {about.get('errorText')}")


def sideways(browser: Browser) -> int:
    """Returns by how many pixels the page is wider than the window."""
    return int(browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextlib.contextmanager
def service(home: Path) -> Iterator[str]:
    """Starts the service on a home folder and gives its address."""
    from vitok.systems.fraud.replay import ServiceProcess

    with ServiceProcess(home, seconds=_WAIT) as process:
        yield f"http://127.0.0.1:{process.port}"


def text(url: str) -> str:
    """Reads a page; empty where it is not there."""
    try:
        with urllib.request.urlopen(url, timeout=_WAIT) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError:
        return ""


def pages(url: str) -> dict[str, str]:
    """Returns the pages to be taken: name to path; the decision is a fraud that was blocked, where there is one."""
    found = {
        "overview": "/",
        "decisions": "/decisions",
        "features": "/features",
        "view": "/features/customer",
        "models": "/models",
        "drift": "/drift",
        "calibration": "/calibration",
        "estimates": "/estimates",
        "detectors": "/detectors",
        "outcomes": "/outcomes",
        "alerts": "/alerts",
        "incidents": "/incidents",
        "releases": "/releases",
        "costs": "/costs",
    }
    for page in range(1, 40):
        rows = text(f"{url}/decisions?action=block&page={page}").split("<tr>")[2:]
        chosen = [row for row in rows if 'class="tag fraud"' in row] or rows
        match = re.search(r"/decisions/[0-9a-f-]{36}", chosen[0]) if chosen else None
        if match:
            found["decision"] = match[0]
            found["decisions"] = f"/decisions?action=block&page={page}"
        if not rows or 'class="tag fraud"' in chosen[0]:
            break
    # The version that has been judged longest has most to show.
    subjects = re.findall(r"<option[^>]*>([^<]+)</option>", text(f"{url}/estimates"))
    if subjects:
        found["estimates"] = f"/estimates?of={urllib.parse.quote(subjects[0])}"
    named = re.findall(r'href="(/incidents/incident-\d+)"', text(f"{url}/incidents"))
    bodies = {path: text(url + path) for path in named[:20]}
    # The one with something to approve, else with something done, else the one about which most is written.
    if bodies:
        marks = ("Waits for your word", "Done, and standing")
        found["incident"] = max(bodies, key=lambda path: (*(mark in bodies[path] for mark in marks), len(bodies[path])))
    versions = re.findall(r'href="(/models/\d+)"', text(f"{url}/models"))
    if versions:
        found["model"] = versions[min(1, len(versions) - 1)]
    return found


def take(url: str, out: Path, *, every: bool, whole: bool) -> list[str]:
    """Writes the pictures and returns what was wrong."""
    program = find_browser()
    if program is None:
        return ["neither chromium nor google-chrome is on the PATH; apt-get install chromium"]
    out.mkdir(parents=True, exist_ok=True)
    wrong = []
    with Browser(program) as browser:
        for name, path in pages(url).items():
            looks = [(LAPTOP, "laptop", False), (PHONE, "phone", False)]
            if every or name == "overview":
                looks += [(LAPTOP, "laptop", True), (PHONE, "phone", True)]
            for size, device, dark in looks:
                browser.open(url + path, size=size, dark=dark)
                file = out / f"console-{name}-{device}{'-dark' if dark else ''}.png"
                picture = browser.picture(height=_TALLEST if whole else None)
                height = size[1]
                while not whole and len(picture) > _LARGEST:
                    # A page full of figures is cut at its foot, so that the repository stays small.
                    height -= 40
                    picture = browser.picture(height=height)
                file.write_bytes(picture)
                wrong += [f"{file.name}: {message}" for message in browser.messages]
                if sideways(browser) > 0:
                    wrong.append(f"{file.name}: {sideways(browser)} pixels wider than the window")
    return wrong


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".vitok/fraud"), help="home folder, such as the demo's")
    parser.add_argument("--url", help="a service that runs already, instead of --home")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures", help="folder for the PNG files")
    parser.add_argument("--every", action="store_true", help="every page also in dark, not the overview alone")
    parser.add_argument("--whole", action="store_true", help="whole pages, not the first screen alone")
    given = parser.parse_args()
    with contextlib.nullcontext(given.url) if given.url else service(given.home) as url:
        wrong = take(url, given.out, every=given.every, whole=given.whole)
    for line in wrong:
        sys.stderr.write(line + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
