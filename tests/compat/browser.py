"""A headless chromium, driven through its DevTools protocol, that reaches 127.0.0.1 and nothing else."""

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import ClientConnection, connect

WIDTH, HEIGHT = 1400, 1500
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-crash-reporter", "--no-proxy-server", "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

# Each canvas keeps the points through which its lines go, in the order they were drawn.
REMEMBER_LINES = """
const prototype = CanvasRenderingContext2D.prototype;
const wrap = (name, note) => {
    const original = prototype[name];
    prototype[name] = function (...values) { note(this.canvas, values); return original.apply(this, values); };
};
const point = (canvas, values) => (canvas.path ??= []).push(values.slice(-2));
for (const name of ["moveTo", "lineTo", "bezierCurveTo"]) wrap(name, point);
wrap("beginPath", canvas => { canvas.path = []; });
wrap("stroke", canvas => (canvas.lines ??= []).push(canvas.path));
wrap("clearRect", canvas => { canvas.lines = []; });
"""

MIDDLE = """
(element => {
    element.scrollIntoViewIfNeeded();
    const box = element.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})(%s)
"""


class Browser:
    """One chromium with one page.

    Attributes:
        asked: all hosts that the page asked for something.
        reached: the addresses that answered.
        problems: uncaught errors of the page's scripts.

    Example:
        >>> with Browser(folder) as browser:
        ...     browser.open("http://127.0.0.1:8080/oview")
    """

    def __init__(self, folder: Path) -> None:
        self.asked: set[str] = set()
        self.reached: set[str] = set()
        self.problems: list[str] = []
        self._number = 0
        self._loaded = 0
        command = ["chromium", *SWITCHES, f"--user-data-dir={folder}"]
        environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._socket = self._connect(folder / "DevToolsActivePort")
            self._open_page()
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._kill()

    def open(self, url: str) -> None:
        """Loads the page anew; what its scripts fetch may still be under way."""
        before = self._loaded
        self._call("Page.navigate", url=url)
        # a page of several megabytes, on a machine that does other work
        self.wait("true", lambda _: self._loaded > before, seconds=90.0)

    def value(self, expression: str) -> Any:
        """What the JavaScript expression is in the page, as JSON carries it."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def wait(self, expression: str, accept: Callable[[Any], Any] = bool, seconds: float = 30.0) -> Any:
        """The first value of the expression that is accepted; while it raises, the page is not there yet."""
        limit, last = time.monotonic() + seconds, None
        while time.monotonic() < limit:
            try:
                last = self.value(expression)
                if accept(last):
                    return last
            except AssertionError as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"after {seconds} s the page shows {last!r}; its errors: {self.problems}")

    def click(self, element: str) -> None:
        """A press of the left button in the middle of the element that the expression yields, when it stands still."""
        previous, middle = None, self.wait(MIDDLE % element)
        while middle != previous:
            time.sleep(0.1)
            previous, middle = middle, self.wait(MIDDLE % element)
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": middle[0], "y": middle[1]}
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def screenshot(self, path: Path, height: int = HEIGHT) -> None:
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
        image = self._call("Page.captureScreenshot", format="png", clip=clip)
        path.write_bytes(base64.b64decode(image["data"]))

    def _connect(self, active: Path, seconds: float = 30.0) -> ClientConnection:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self._process.poll() is None:
            lines = active.read_text().splitlines() if active.exists() else []
            if len(lines) == 2:
                # events may wait unread for minutes
                limits = {"max_size": None, "max_queue": None, "ping_interval": None}
                return connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", proxy=None, **limits)
            time.sleep(0.05)
        raise AssertionError(f"chromium did not start within {seconds} s, exit status {self._process.poll()}")

    def _open_page(self) -> None:
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.addScriptToEvaluateOnNewDocument", source=REMEMBER_LINES)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._socket.send(json.dumps(command))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            if "method" in message:
                self._note(message["method"], message["params"])

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent" and details["request"]["url"].startswith(("http", "ws")):
            self.asked.add(str(urlsplit(details["request"]["url"]).hostname))
        elif event == "Network.responseReceived" and "remoteIPAddress" in details["response"]:
            self.reached.add(details["response"]["remoteIPAddress"])
        elif event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Runtime.exceptionThrown":
            thrown = details["exceptionDetails"]
            self.problems.append(thrown.get("exception", {}).get("description", thrown["text"]))

    def _kill(self) -> None:
        # the session of its own holds all of chromium's processes
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
