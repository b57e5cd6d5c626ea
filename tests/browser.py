"""A headless Chromium, driven over the DevTools protocol through a pipe; it reaches no network."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--mute-audio",
    ),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--metrics-recording-only", "--no-default-browser-check"),
    *("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
]

STILL = """addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = "*, *::before, *::after { transition: none !important; animation: none !important }";
  document.head.append(style);
});"""  # nothing is measured while it moves


class Browser:
    """One browser with one tab.

    Args:
        home: an empty folder for its profile.
    """

    def __init__(self, home: Path) -> None:
        assert PROGRAM, "no Chromium on this machine"
        (their_in, self.to), (self.back, their_out) = os.pipe(), os.pipe()

        def pipes() -> None:  # the protocol wants file descriptors 3 and 4
            low = [os.dup(fd) for fd in (their_in, their_out)]
            spare = [os.dup(fd) for fd in low]
            for fd, number in zip(spare, (3, 4), strict=True):
                os.dup2(fd, number)

        self.process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=pipes, close_fds=False,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        self.numbers, self.events, self.rest, self.session = itertools.count(1), [], b"", ""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.command(f"{domain}.enable")
        self.command("Page.addScriptToEvaluateOnNewDocument", source=STILL)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call the protocol and wait for the answer; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> list[dict[str, Any]]:
        """Show a page, wait until it is loaded and its equations are set; returns the events on the way."""
        self.events.clear()
        self.command("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.run("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 1) : 1")
        return list(self.events)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def look(self, width: int, scheme: str) -> None:
        """Set the width in pixels and the colour scheme, ``light`` or ``dark``."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.to)
        os.close(self.back)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            piece = os.read(self.back, 1 << 20)
            assert piece, "the browser has gone"
            self.rest += piece
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)
