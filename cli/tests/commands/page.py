"""The page of `fbgemm serve` in a headless Chromium, over its debugging pipe.

    python3 page.py BROWSER URL TOKEN EXPECTED [SCREENSHOT]

EXPECTED is JSON: texts, and their vectors. Types the token and the texts as a person would, and compares the heat map's
numbers and colours with the vectors' cosines; the live figures must move. Ends with `all asserted`.
"""
import base64
import fcntl
import json
import math
import os
import subprocess
import sys
import tempfile
import time

browser, url, token, expected = sys.argv[1:5]
texts, vectors = json.loads(expected)


class Page:
    """A tab."""

    def __init__(self, browser, profile):
        (from_us, self.to), (self.of, to_us) = os.pipe(), os.pipe()

        def descriptors():  # Chromium reads 3 and writes 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (from_us, to_us)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}", "--window-size=1000,900", "about:blank"]
        self.process = subprocess.Popen(command, close_fds=False, preexec_fn=descriptors, stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        self.number, self.rest, self.session, self.faults = 0, b"", None, []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log"]:
            self.do(domain + ".enable")

    def do(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                piece = os.read(self.of, 1 << 16)
                assert piece, f"the browser ended, with {self.process.wait(10)}"
                self.rest += piece
            line, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.faults.append(answer["params"]["exceptionDetails"])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.faults.append(answer["params"]["entry"])
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def get(self, expression):
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, what, expression):
        start = time.monotonic()
        while not (value := self.get(expression)):
            assert time.monotonic() < start + 60, f"not within a minute: {what}"
            time.sleep(0.05)
        return value

    def type(self, field, text):
        self.get(f"document.getElementById('{field}').select()")
        self.do("Input.insertText", text=text)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


FIGURES = "Object.fromEntries([...document.querySelectorAll('#figures div')].map(d => [d.lastChild.data, d.firstChild.textContent]))"
ROWS = """[...document.querySelectorAll('#map tr')].map(row => [row.querySelector('th').textContent,
    [...row.querySelectorAll('td')].map(cell => [cell.textContent, getComputedStyle(cell).backgroundColor])])"""

with tempfile.TemporaryDirectory() as profile:
    page = Page(browser, profile)
    try:
        page.do("Page.navigate", url=url)
        said = page.wait("that the token is asked for", "document.getElementById('error')?.textContent")
        assert "Authorization: Bearer" in said, said
        # Answers of 401, and nothing else.
        assert page.faults and all("401" in fault.get("text", "") for fault in page.faults), page.faults
        page.faults.clear()

        page.type("token", token)
        page.wait("the first texts' map", "document.querySelectorAll('#map tr').length == 5")
        assert page.get("document.getElementById('error').textContent") == ""
        assert page.get("document.getElementById('model').textContent") == "a-name"
        page.type("texts", "\n".join(texts))
        page.wait("the map of the texts", f"document.querySelectorAll('#map tr').length == {len(texts)}")
        rows = page.get(ROWS)
        assert [name for name, _ in rows] == texts, rows
        for i, (_, cells) in enumerate(rows):
            assert len(cells) == len(texts), cells
            for j, (number, colour) in enumerate(cells):
                alike = cosine(vectors[i], vectors[j])
                assert abs(float(number) - alike) < 0.0051, (i, j, number, alike)
                parts = colour[colour.index("(") + 1:-1].split(",")
                strength = float(parts[3]) if len(parts) == 4 else 1.0
                assert abs(strength - min(max(alike, 0), 1)) < 0.01, (i, j, colour, alike)

        page.wait("figures", "document.querySelectorAll('#figures div').length > 0")
        before = page.get(FIGURES)
        page.type("texts", "\n".join(texts[::-1]))
        page.wait("texts a second", f"Number(({FIGURES})['texts a second']) > 0")
        after = page.get(FIGURES)
        assert int(after["requests so far"]) > int(before["requests so far"]), (before, after)
        assert int(after["memory"].split()[0]) > 10 and int(after["connections"]) >= 1, after
        assert int(after["texts waiting"]) == 0, after
        assert not page.faults, page.faults
        if len(sys.argv) > 5:
            picture = page.do("Page.captureScreenshot", format="png")["data"]
            open(sys.argv[5], "wb").write(base64.b64decode(picture))
    finally:
        page.process.kill()
        page.process.wait()
print("all asserted")
