"""A headless Chromium, spoken to over a pipe in its own protocol (CDP): what a page does when it is opened."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ABSENT = CHROMIUM is None and os.environ.get("RDRO_NEED_BROWSER") != "1"
"""Whether tests in a browser are skipped: with RDRO_NEED_BROWSER=1 they fail instead."""


class Browser:
    """One page in a Chromium of its own, with everything it said and asked for."""

    def __init__(self, size: tuple[int, int] = (1400, 1000)):
        if CHROMIUM is None:
            raise RuntimeError("no chromium on this machine: make browser")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours_out, theirs_in = os.pipe()
        theirs_out, ours_in = os.pipe()
        # Chromium reads from 3 and writes to 4.
        script = f'exec 3<&{ours_out} 4>&{ours_in}; exec "$@"'
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
        more = (f"--user-data-dir={self._profile.name}", f"--window-size={size[0]},{size[1]}", "about:blank")
        command = ["bash", "-c", script, "bash", CHROMIUM, *flags, *more]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(ours_out, ours_in), **quiet)
        os.close(ours_out)
        os.close(ours_in)
        self._in, self._out = os.fdopen(theirs_in, "wb", 0), os.fdopen(theirs_out, "rb")
        self._number, self._session, self._page = 0, None, ""
        self.events: deque[dict[str, Any]] = deque()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._in.close()
        self._out.close()
        self._profile.cleanup()

    def open(self, page: Path) -> None:
        """Go to a file; what was said and asked for before is forgotten."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol; events that come first are kept."""
        self._number += 1
        self._page = parameters["url"] if method == "Page.navigate" else self._page
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._in.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._out.read1(1)) != b"\0":
            if not byte:
                raise RuntimeError("chromium ended")
            parts += byte
        return json.loads(parts)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, height: int | None = None) -> Path:
        """The page as a PNG."""
        if height:
            size = {"width": 1400, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **size)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def said(self) -> list[str]:
        """Errors and warnings of the console and of the page."""
        lines = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                lines.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
            if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                lines.append(told["entry"]["text"])
            if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                lines.append(" ".join(str(part.get("value")) for part in told["args"]))
        return lines

    def requests(self) -> list[str]:
        """Addresses the page asked for, itself aside."""
        asked = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        addresses = (event["params"]["request"]["url"] for event in asked)
        return [url for url in addresses if url != self._page and not url.startswith(("data:", "blob:"))]
