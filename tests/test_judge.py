"""The judge of texts, against a real HTTP server that is well, busy, broken, or talks nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from expert_oracle.judge import Judge
from tutelage.errors import ConfigError, OracleError, Unreachable
from tutelage.protocols import Labeler
from tutelage.types import Query


class Endpoint(ThreadingHTTPServer):
    """An endpoint as OpenAI's. `reply` makes of the user's message the model's words, or a status."""

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen = reply, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class Handler(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), said))
        reply = self.server.reply(said["messages"][1]["content"])
        status, headers = 200, {}
        if isinstance(reply, tuple):
            status, headers, reply = reply
            data = json.dumps({"error": {"message": reply}}).encode()
        else:
            data = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


def shown(content):
    """The answers in the order in which the model sees them."""
    return [part.split("\n", 1)[1] for part in content.split("\n\n") if part.startswith("# Answer")]


def longest(content):
    texts = shown(content)
    better = max(range(len(texts)), key=lambda k: len(texts[k])) + 1
    return (
        f'Let me see.\n```json\n{{"reason": "number {better} has more {{in}} it", "better": {better}}}\n```'
    )


def query(*texts):
    return Query("q", "text", list(texts), {"prompt": "Why?", "rubric": "Be long."})


def judge(endpoint, **settings):
    return Judge(endpoint.url, "small", backoff_s=0.001, **settings)


def test_the_better_text_wins_whatever_the_order(monkeypatch):
    monkeypatch.setenv("TUTELAGE_JUDGE_KEY", "secret")
    with Endpoint(longest) as endpoint:
        someone = judge(endpoint)
        assert isinstance(someone, Labeler)
        first, second, third = someone.label(
            [query("long enough", "short"), query("short", "long enough"), query("a", "bbb", "cc")]
        )
        assert (first.value.tolist(), second.value.tolist(), third.value.tolist()) == (
            [1, 0],
            [0, 1],
            [0, 1, 0],
        )
        assert first.value.dtype == np.float32
        assert (first.annotator, first.cannot_tell) == ("judge small", False)
        assert "has more {in} it" in someone.reasons["q"]
        path, key, said = endpoint.seen[0]
        assert (path, key, said["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
        content = said["messages"][1]["content"]
        assert "Why?" in content
        assert "Be long." in content
        assert [shown(one[2]["messages"][1]["content"]) for one in endpoint.seen[:2]] == [
            ["long enough", "short"],
            ["short", "long enough"],
        ]


@pytest.mark.parametrize(
    ("said", "weights"),
    [
        ('{"reason": "the first one, always", "better": 1}', [0.5, 0.5]),
        ('{"better": 0}', [0.5, 0.5]),
        ('{"better": "tie"}', [0.5, 0.5]),
        ('{"better": null}', None),
        ('{"better": 7}', None),
        ("I like both.", None),
        ("", None),
    ],
)
def test_disagreement_is_a_tie_and_nonsense_cannot_tell(said, weights):
    with Endpoint(lambda _: said) as endpoint:
        answer = judge(endpoint).answer(query("a", "b"))
        assert answer.cannot_tell == (weights is None)
        if weights:
            assert answer.value.tolist() == weights


def test_it_is_patient_with_an_endpoint_that_is_busy():
    faults = [(429, {"Retry-After": "0.01"}, "slow down"), (503, {}, "starting"), (500, {}, "oops")]
    with Endpoint(lambda content: faults.pop() if faults else longest(content)) as endpoint:
        assert judge(endpoint).answer(query("aa", "b")).value.tolist() == [1, 0]
        assert len(endpoint.seen) == 5


def test_what_goes_wrong_is_one_line():
    with Endpoint(lambda _: (401, {}, "no such\nkey")) as endpoint:
        with pytest.raises(OracleError, match=r"refuses: 401 no such key"):
            judge(endpoint).answer(query("a", "b"))
        assert len(endpoint.seen) == 1
    with Endpoint(lambda _: (500, {}, "broken")) as endpoint:
        with pytest.raises(Unreachable, match=r"does not answer after 3 tries: 500 broken"):
            judge(endpoint, tries=3).answer(query("a", "b"))
        url = endpoint.url
    with pytest.raises(Unreachable, match=r"after 2 tries: "):
        Judge(url, "small", tries=2, backoff_s=0.001).answer(query("a", "b"))
    with pytest.raises(ConfigError, match=r"endpoint='ftp://x' is not of the form http://HOST/v1"):
        Judge("ftp://x", "small")
    with pytest.raises(ConfigError, match=r"tries=0"):
        Judge(url, "small", tries=0)
    with pytest.raises(ConfigError, match=r"key_file: cannot read /nowhere"):
        Judge(url, "small", key_file="/nowhere")
    with pytest.raises(ValueError, match=r"query q: a judge compares two or more texts"):
        Judge(url, "small").answer(Query("q", "text", ["a"]))
