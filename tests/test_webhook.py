"""Door 1 by HTTP: what Segment is told, and what is on disk when it is told so."""

import gzip
import hashlib
import hmac
import io
import resource
import sqlite3
import sys
import threading
import time
import tracemalloc
import zlib
from contextlib import closing

import pytest
from flask import Flask

from adapter import delivery, ingestion, keys, webhook
from adapter.app import ErrorAnswer, House, create_app
from adapter.config import Settings
from adapter.store import read_report
from tests.conftest import on_both, on_sqlite, raw, rows, stored_bodies
from tests.endpoint import Answer
from tests.processes import free_port

SECRET, OLD_SECRET = "new-secret", "old-secret"
TOKEN, OLD_TOKEN = "new-token", "old-token"


@pytest.fixture
def settings(database_url, request):
    """Loopback and the sandbox; a test asks for secrets by `configured`."""
    return Settings(database_url=database_url, **getattr(request, "param", {}))


def configured(**values):
    return pytest.mark.parametrize("settings", [values], indirect=True, ids=["+".join(values)])


signed = configured(shared_secrets=(SECRET,))
signed_and_token = configured(shared_secrets=(SECRET,), webhook_tokens=(TOKEN,))


def sign(body, secret=SECRET):
    return hmac.new(secret.encode(), body, hashlib.sha1).hexdigest()


def send(client, body, **headers):
    return client.post("/webhook", data=body, content_type="application/json", headers=headers)


def send_chunked(client, stream):
    """As a server hands over a chunked body: no Content-Length, and the stream has an end of its own."""
    as_chunked = {"wsgi.input": stream, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return client.post("/webhook", content_type="application/json", environ_overrides=as_chunked)


def send_signed(client, body, signature, **headers):
    return send(client, body, **{"X-Signature": signature}, **headers)


def refused(settings):
    return rows(settings.database_url, "SELECT endpoint, reason, body FROM refusal ORDER BY id")


def assert_error(answer, status, code):
    """The one shape of every error answer, and nothing of our insides in it."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/json"
    assert set(answer.json) == set(ErrorAnswer().fields)
    assert ErrorAnswer().validate(answer.json) == {}
    assert (answer.json["success"], answer.json["code"]) == (False, code)
    assert answer.json["message"]
    for trace in ("Traceback", 'File "', ".py", "site-packages", "sqlite", "/tmp", "/work"):  # noqa: S108 not a path here
        assert trace not in answer.text


# ---- receipts


@pytest.mark.parametrize("kind", ["identify", "track", "page", "screen", "group", "alias", "delete"])
def test_a_single_message_is_answered_with_a_receipt_and_is_on_disk(client, settings, message, kind):
    body = raw(message(kind, userId="user-1"))
    answer = send(client, body)
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json == {"success": True, "accepted": 1, "duplicates": 0, "rejected": []}
    assert answer.text.endswith("}\n"), "the prompt of who tries it by hand is on a line of its own"
    assert stored_bodies(settings.database_url) == [body]
    assert refused(settings) == []


@on_both
def test_an_array_is_taken_message_by_message(client, settings, message):
    bodies = [raw(message(messageId=f"m-{n}")) for n in range(3)]
    answer = send(client, b"[" + b",".join(bodies) + b"]")
    assert answer.json == {"success": True, "accepted": 3, "duplicates": 0, "rejected": []}
    assert stored_bodies(settings.database_url) == bodies


def test_an_array_of_one_is_an_array(client, settings, message):
    body = raw(message())
    assert send(client, b"[" + body + b"]").json["accepted"] == 1
    assert stored_bodies(settings.database_url) == [body]


@on_both
def test_a_message_sent_again_is_acknowledged_and_not_stored_twice(client, settings, message):
    body, other = raw(message()), raw(message(messageId="m-2"))
    assert send(client, body).json["accepted"] == 1
    assert send(client, body).json == {"success": True, "accepted": 0, "duplicates": 1, "rejected": []}
    later = raw(message(sentAt="2026-03-02T00:00:00Z", receivedAt="2026-03-02T00:00:01Z"))
    answer = send(client, b"[" + b",".join([later, other, other, body]) + b"]")
    assert answer.json == {"success": True, "accepted": 1, "duplicates": 3, "rejected": []}
    assert stored_bodies(settings.database_url) == [body, other]


@on_both
@pytest.mark.parametrize(
    ("change", "same_id"),
    [({"event": "Other"}, 1), ({"userId": "u-2"}, 1), ({"type": "page"}, 0), ({"projectId": "other"}, 0)],
)
def test_the_same_id_with_other_content_is_another_message_and_counted(client, settings, message, change, same_id):
    """An id is one within its source and type (design 3.8)."""
    bodies = [raw(message()), raw(message(**change))]
    for body in bodies:
        assert send(client, body).json["accepted"] == 1
    assert stored_bodies(settings.database_url) == bodies
    notes = read_report(settings.database_url).endpoints["intake"].notes
    assert notes.get("same_id_other_content", 0) == same_id


@on_both
def test_one_bad_message_does_not_cost_its_neighbours(client, settings, message):
    good = [raw(message(messageId=f"m-{n}")) for n in range(2)]
    nameless, cut = raw(message(event=None)), rb'{"type":"track","event":"\ud83d","userId":"u"}'
    answer = send(client, b"[" + b",".join([nameless, good[0], cut, good[1]]) + b"]")
    assert answer.status_code == 200
    assert (answer.json["success"], answer.json["accepted"], answer.json["duplicates"]) == (True, 2, 0)
    first, second = answer.json["rejected"]
    assert first == {"index": 0, "reason": "invalid", "errors": {"event": ["missing; expected a string"]}}
    assert (second["index"], second["reason"], [*second["errors"]]) == (2, "malformed", ["message"])
    assert stored_bodies(settings.database_url) == good
    assert refused(settings) == [("intake", "invalid", nameless), ("intake", "malformed", cut)]


@on_both
def test_duplicates_beside_a_bad_message_are_still_a_receipt(client, message):
    body = raw(message())
    send(client, body)
    answer = send(client, b"[" + body + b",5]")
    assert (answer.status_code, answer.json["accepted"], answer.json["duplicates"]) == (200, 0, 1)
    assert [one["index"] for one in answer.json["rejected"]] == [1]


@on_both
def test_a_single_bad_message_is_answered_with_its_errors_and_kept(client, settings, message):
    body = raw(message(event=None, context={"app": 5}))
    answer = send(client, body)
    assert_error(answer, 400, "invalid")
    assert answer.json["errors"] == {"event": ["missing; expected a string"], "context.app": ["expected an object"]}
    assert stored_bodies(settings.database_url) == []
    assert refused(settings) == [("intake", "invalid", body)]


def test_an_array_of_which_nothing_can_be_taken_is_refused_as_a_whole(client, settings):
    assert_error(send(client, b'[{"type":"x"},5]'), 400, "invalid")
    assert stored_bodies(settings.database_url) == []
    assert refused(settings) == [("intake", "invalid", b'{"type":"x"}'), ("intake", "invalid", b"5")]


ODD_BODIES = {
    "non-ASCII as it is": '{"type":"track","event":"Ünïcode 日本 🎉","userId":"u","messageId":"é"}'.encode(),
    "non-ASCII escaped": rb'{"type":"track","event":"\u00dcn \ud83c\udf89\/","userId":"u","messageId":"\u00e9"}',
    "blanks within": b'{ "type" :\t"track",\r\n "event": "E" , "userId":"u" }',
    "numbers as written": b'{"type":"track","event":"E","userId":1.0,"properties":{"a":1.10,"b":1E2,"c":-0.0}}',
    "keys twice": b'{"type":"track","event":"E","event":"F","userId":"u"}',
    "line separators": '{"type":"track","event":"a\u2028b\u0085c","userId":"u"}'.encode(),
}


@pytest.mark.parametrize(("before", "after"), [(b"", b""), (b"[", b"]"), (b" \n[\t", b"\r\n ]\n")])
def test_what_is_stored_is_what_was_sent_byte_for_byte(client, settings, before, after):
    for body in ODD_BODIES.values():
        assert send(client, before + body + after).json["accepted"] == 1
    assert stored_bodies(settings.database_url) == [*ODD_BODIES.values()]


@on_both
def test_delivery_is_woken_after_the_commit_and_only_for_something_new(house, settings, message):
    seen_on_disk, lanes, url = [], [], settings.database_url

    def wake(put):
        seen_on_disk.append(stored_bodies(url))
        lanes.extend(put)

    app = Flask("test")
    app.register_blueprint(webhook.blueprint(house.store, settings, wake))
    client, body = app.test_client(), raw(message())
    send(client, body)
    assert seen_on_disk == [[body]]
    send(client, body)
    send(client, b"[" + body + b",5]")
    assert len(seen_on_disk) == 1
    assert lanes == [("import", keys.lane("device-1"))]


def test_json_may_be_spelt_as_http_allows(client, message):
    for content_type in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        answer = client.post("/webhook", data=raw(message(messageId=content_type)), content_type=content_type)
        assert (answer.status_code, answer.json["accepted"]) == (200, 1)


# ---- signatures and tokens


def forgeries(body):
    """Signatures that are not the body's, however near they come (reliability.md A1)."""
    right = sign(body)
    return {
        "none": None,
        "empty": "",
        "wrong": "0" * 40,
        "another body's": sign(b'{"type":"track"}'),
        "another secret's": sign(body, "guess"),
        "no secret's": sign(body, ""),
        "upper case": right.upper(),
        "truncated": right[:-1],
        "one character": right[:1],
        "padded behind": right + "0",
        "padded before": "0" + right,
        "with its scheme": "sha1=" + right,
        "quoted": f'"{right}"',
        "blank before": " " + right,
        "twice": f"{right},{right}",
        "last character": right[:-1] + ("0" if right[-1] != "0" else "1"),
        "SHA-256": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        "non-ASCII": "é" * 40,
        "the secret": SECRET,
    }


@signed
@pytest.mark.parametrize(("before", "after"), [(b"", b""), (b"[", b"]")], ids=["object", "array"])
def test_a_body_that_is_not_signed_is_401(client, settings, message, before, after):
    body = before + raw(message()) + after
    for name, signature in forgeries(body).items():
        answer = send(client, body, **({} if signature is None else {"X-Signature": signature}))
        assert answer.status_code == 401, name
        assert_error(answer, 401, "unauthorized")
        assert "X-Signature" in answer.json["message"]
        assert SECRET not in answer.text
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])
    assert send_signed(client, body, sign(body)).status_code == 200


@signed
def test_two_signatures_are_none(client, settings, message):
    body = raw(message())
    for signatures in ([sign(body), "0" * 40], ["0" * 40, sign(body)]):
        headers = [("X-Signature", one) for one in signatures]
        answer = client.post("/webhook", data=body, content_type="application/json", headers=headers)
        assert_error(answer, 401, "unauthorized")
    assert stored_bodies(settings.database_url) == []


@signed
def test_the_raw_bytes_are_what_is_signed(client, settings):
    for body in ODD_BODIES.values():
        assert send_signed(client, body, sign(body)).json["accepted"] == 1
        assert_error(send_signed(client, body + b" ", sign(body)), 401, "unauthorized")
    assert stored_bodies(settings.database_url) == [*ODD_BODIES.values()]


@signed
def test_an_array_may_be_signed_by_its_first_element_or_as_a_whole(client, settings, message):
    odd = ODD_BODIES["non-ASCII as it is"]
    bodies = [odd, raw(message(properties={"a": '],["'})), raw(message(messageId="m-2"))]
    array = b"[" + b",".join(bodies) + b"]"
    assert send_signed(client, array, sign(odd)).json["accepted"] == 3
    assert send_signed(client, array, sign(array)).json["duplicates"] == 3
    assert_error(send_signed(client, array, sign(bodies[1])), 401, "unauthorized")
    assert_error(send_signed(client, array, sign(array[1:-1])), 401, "unauthorized")
    assert_error(send_signed(client, b"[" + bodies[1] + b"," + odd + b"]", sign(odd)), 401, "unauthorized")
    assert stored_bodies(settings.database_url) == bodies


@signed
def test_the_first_element_is_cut_before_anything_is_parsed(client, settings, message):
    """A batch that the parser rejects is signed like any other, and blanks belong to no element."""
    first = raw(message(properties={"tricky": '}],"\\'}))
    cut = rb'{"type":"track","event":"\ud83d","userId":"u"}'
    answer = send_signed(client, b" [ " + first + b" , " + cut + b" ] ", sign(first))
    assert (answer.status_code, answer.json["accepted"], len(answer.json["rejected"])) == (200, 1, 1)
    assert stored_bodies(settings.database_url) == [first]


@signed
def test_an_object_is_never_signed_by_what_it_holds(client, message):
    """Only an array is signed by its first element: an object that begins with a signed one is not."""
    genuine = raw(message())
    for body in (genuine + b",", genuine + raw(message("delete")), b'{"batch":[' + genuine + b"]}"):
        assert_error(send_signed(client, body, sign(genuine)), 401, "unauthorized")


@signed
@pytest.mark.parametrize("kind", ["alias", "delete"])
def test_behind_a_genuine_first_message_nobody_can_join_or_delete(client, settings, message, kind):
    """The signature covers the first message alone: what follows may be anybody's (design 3.16)."""
    genuine, forged = raw(message()), raw(message(kind, messageId="m-2"))
    neighbour = raw(message(messageId="m-3"))
    array = b"[" + b",".join([genuine, forged, neighbour]) + b"]"
    answer = send_signed(client, array, sign(genuine))
    assert answer.status_code == 200
    assert answer.json["accepted"] == 2
    (rejected,) = answer.json["rejected"]
    assert (rejected["index"], rejected["reason"], [*rejected["errors"]]) == (1, "unauthenticated", ["type"])
    assert stored_bodies(settings.database_url) == [genuine, neighbour]
    assert refused(settings) == [("intake", "unauthenticated", forged)]


@signed
@pytest.mark.parametrize("kind", ["alias", "delete"])
@pytest.mark.parametrize("form", ["alone", "first", "whole"])
def test_a_signature_that_covers_an_alias_or_delete_lets_it_in(client, settings, message, kind, form):
    one, other = raw(message(kind)), raw(message(messageId="m-2"))
    body = {"alone": one, "first": b"[" + one + b"," + other + b"]", "whole": b"[" + other + b"," + one + b"]"}[form]
    answer = send_signed(client, body, sign(one if form == "first" else body))
    assert (answer.status_code, answer.json["rejected"]) == (200, [])
    assert one in stored_bodies(settings.database_url)


@signed_and_token
@pytest.mark.parametrize("kind", ["alias", "delete"])
def test_a_token_covers_what_the_signature_does_not(client, settings, message, kind):
    first, second = raw(message()), raw(message(kind, messageId="m-2"))
    array = b"[" + first + b"," + second + b"]"
    assert_error(send_signed(client, array, sign(first)), 401, "unauthorized")
    answer = send_signed(client, array, sign(first), Authorization=f"Bearer {TOKEN}")
    assert (answer.status_code, answer.json["accepted"], answer.json["rejected"]) == (200, 2, [])
    assert stored_bodies(settings.database_url) == [first, second]


@signed_and_token
@pytest.mark.parametrize(
    ("token", "signature"), [(TOKEN, None), (TOKEN, "0" * 40), (None, "right"), ("wrong", "right"), (None, None)]
)
def test_where_both_are_configured_both_must_hold(client, settings, message, token, signature):
    body = raw(message())
    headers = {
        "Authorization": token and f"Bearer {token}",
        "X-Signature": sign(body) if signature == "right" else signature,
    }
    answer = send(client, body, **{name: value for name, value in headers.items() if value is not None})
    assert_error(answer, 401, "unauthorized")
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


@configured(shared_secrets=(SECRET, OLD_SECRET), webhook_tokens=(TOKEN, OLD_TOKEN))
@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
def test_while_secrets_rotate_either_is_good(client, message, secret, token):
    body = raw(message())
    for sent in (body, b"[" + body + b"]"):
        answer = send_signed(client, sent, sign(body, secret), Authorization=f"Bearer {token}")
        assert answer.status_code == 200
    rotated = {"Authorization": f"Bearer {TOKEN},{OLD_TOKEN}"}
    assert_error(send_signed(client, body, sign(body, f"{SECRET},{OLD_SECRET}"), **rotated), 401, "unauthorized")
    assert_error(send_signed(client, body, sign(body, "third"), Authorization=f"Bearer {token}"), 401, "unauthorized")


@configured(shared_secrets=(SECRET, OLD_SECRET), webhook_tokens=(TOKEN, OLD_TOKEN))
@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_every_secret_is_compared_in_constant_time_whichever_is_right(client, message, monkeypatch, secret, token):
    compared = []

    def compare_digest(given, expected):
        compared.append(expected.decode())
        return given == expected

    monkeypatch.setattr(webhook.hmac, "compare_digest", compare_digest)
    body = raw(message())
    assert send_signed(client, body, sign(body, secret), Authorization=f"Bearer {token}").status_code == 200
    assert compared == [TOKEN, OLD_TOKEN, sign(body, SECRET), sign(body, OLD_SECRET)]


#: What is no token, however near it comes.
NO_TOKENS = [
    *(None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN.upper()}"),
    *(f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer x{TOKEN}", f'Bearer "{TOKEN}"', f"BearerX {TOKEN}"),
    *(f"Bearer {TOKEN}, Bearer {TOKEN}", "Bearer é", "Basic bmV3LXRva2VuOg=="),
]


@configured(webhook_tokens=(TOKEN,))
def test_without_the_token_it_is_401(client, settings, message):
    for authorization in NO_TOKENS:
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = send(client, raw(message()), **headers)
        assert answer.status_code == 401, authorization
        assert_error(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


@pytest.mark.parametrize(("token", "named"), [("guess", "WEBHOOK_TOKEN"), (TOKEN, "X-Signature")])
@signed_and_token
def test_the_answer_and_the_log_name_the_secret_that_does_not_hold(client, message, caplog, token, named):
    answer = send_signed(client, raw(message()), "0" * 40, Authorization=f"Bearer {token}")
    assert named in answer.json["message"]
    (line,) = [record for record in caplog.records if record.message == "a request was turned away"]
    assert line.detail == answer.json["message"]


@configured(webhook_tokens=(TOKEN,))
def test_the_token_alone_covers_the_whole_body(client, message):
    array = b"[" + raw(message()) + b"," + raw(message("alias", messageId="m-2")) + b"]"
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = send(client, array, Authorization=f"{scheme} {TOKEN}")
        assert (answer.status_code, answer.json["accepted"] + answer.json["duplicates"]) == (200, 2)


@configured(webhook_tokens=(TOKEN,))
def test_a_token_in_the_address_is_none(client, message):
    answer = client.post(f"/webhook?token={TOKEN}", data=raw(message()), content_type="application/json")
    assert_error(answer, 401, "unauthorized")


@signed
def test_who_cannot_sign_learns_nothing_of_what_would_be_wrong(client, settings):
    for body in (b"", b"[", b"[]", b'{"type":"x"}', b"[" * 5_000, b"[" + b"5," * 4_001 + b"5]"):
        assert_error(send_signed(client, body, "0" * 40), 401, "unauthorized")
    assert refused(settings) == []


# ---- what is not taken at all


class Endless(io.RawIOBase):
    """A body without end; it knows how much of it was read."""

    n_read = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self.n_read += len(buffer)
        buffer[:] = b" " * len(buffer)
        return len(buffer)


def test_a_body_that_says_it_is_too_large_is_413(client, settings):
    answer = send(client, b" " * (webhook.MAX_BODY_BYTES + 1))
    assert_error(answer, 413, "request_entity_too_large")
    assert "8,000,000 bytes, or of 4,000 messages" in answer.json["message"]
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


def test_a_body_that_does_not_say_how_large_it_is_is_413_as_soon_as_it_is(client, settings):
    endless = Endless()
    answer = send_chunked(client, endless)
    assert_error(answer, 413, "request_entity_too_large")
    assert endless.n_read < 2 * webhook.MAX_BODY_BYTES
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


def test_a_chunked_body_that_is_too_large_is_never_cut_short_and_acknowledged(client, settings, message):
    """The messages behind the cut would be lost: Segment believes a 200."""
    bodies = [raw(message(messageId=f"m-{n}", properties={"a": "x" * 900_000})) for n in range(10)]
    answer = send_chunked(client, io.BytesIO(b"[" + b",".join(bodies) + b"]"))
    assert_error(answer, 413, "request_entity_too_large")
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


def test_a_chunked_body_is_taken_like_any_other(client, settings, message):
    body = raw(message())
    answer = send_chunked(client, io.BytesIO(body))
    assert (answer.status_code, answer.json["accepted"]) == (200, 1)
    assert stored_bodies(settings.database_url) == [body]


def test_the_largest_body_is_taken(client, settings, message):
    body = raw(message())
    answer = send(client, body.ljust(webhook.MAX_BODY_BYTES))
    assert (answer.status_code, answer.json["accepted"]) == (200, 1)
    assert stored_bodies(settings.database_url) == [body]


@pytest.mark.parametrize("last", [b"5", rb'"\ud83d"'], ids=["well formed", "broken"])
def test_more_than_four_thousand_messages_are_413(client, settings, last):
    answer = send(client, b"[" + b"5," * 4_000 + last + b"]")
    assert_error(answer, 413, "too_many_messages")
    assert "4000" in answer.json["message"]
    assert refused(settings) == []


def test_what_does_not_call_itself_json_is_415(client, settings, message):
    for content_type in (None, "", "text/plain", "text/json", "application/x-www-form-urlencoded", "json", "é"):
        answer = client.post("/webhook", data=raw(message()), content_type=content_type)
        assert_error(answer, 415, "unsupported_media_type")
        assert "application/json" in answer.json["message"]
    assert stored_bodies(settings.database_url) == []


def test_a_compressed_body_is_415(client, settings, message):
    for encoding in ("gzip", "GZIP", "x-gzip", "gzip, gzip", "deflate", "br", "zstd", "identity, gzip"):
        answer = send(client, gzip.compress(raw(message())), **{"Content-Encoding": encoding})
        assert_error(answer, 415, "unsupported_encoding")
    assert (stored_bodies(settings.database_url), refused(settings)) == ([], [])


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {}], ids=["said to be", "not said to be"])
def test_a_gzip_bomb_is_never_inflated(client, headers):
    inflated_bytes = 50_000_000
    packer = zlib.compressobj(1, wbits=31)
    bomb = b"".join(packer.compress(b"[" * 1_000_000) for _ in range(inflated_bytes // 1_000_000)) + packer.flush()
    tracemalloc.start()
    try:
        answer = send(client, bomb, **headers)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_error(answer, *((415, "unsupported_encoding") if headers else (400, "malformed")))
    assert peak_bytes < inflated_bytes / 10


def test_only_post_is_taken(client, settings, message):
    for method in ("GET", "PUT", "PATCH", "DELETE", "TRACE"):
        answer = client.open("/webhook", method=method, data=raw(message()), content_type="application/json")
        assert_error(answer, 405, "method_not_allowed")
    assert client.head("/webhook").status_code == 405
    assert stored_bodies(settings.database_url) == []


def test_405_names_the_methods_there_are(client):
    """RFC 9110 15.5.6: the answer must carry Allow."""
    assert "POST" in client.get("/webhook").headers.get("Allow", "")


def test_an_unknown_address_is_404(client, message):
    for path in ("/", "/webhooks", "/webhook/", "/webhook/x", "/../etc/passwd", "/%00", "/é", "/{}"):
        assert_error(client.get(path), 404, "not_found")
        assert "POST /webhook" in client.get(path).json["message"]
        assert_error(client.post(path, data=raw(message()), content_type="application/json"), 404, "not_found")


# ---- the store cannot take it


@on_sqlite
def test_a_store_that_is_held_by_somebody_else_is_503_in_time(client, settings, message):
    """Segment waits 5 s for an answer. What was answered 503 is sent again, and is there once."""
    body = raw(message())
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        answer = send(client, body)
        took_s = time.monotonic() - began
        other.execute("ROLLBACK")
    assert_error(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert took_s < 4.5
    again = send(client, body)
    assert again.status_code == 200
    assert again.json["accepted"] + again.json["duplicates"] == 1
    assert stored_bodies(settings.database_url) == [body]


@on_sqlite
def test_a_store_that_is_held_for_a_moment_is_waited_for(client, settings, message):
    """Somebody looked into the file with a tool that writes: no reason to turn Segment away, there are 3 s."""
    body = raw(message())
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        release.start()
        answer = send(client, body)
        release.join()
    assert (answer.status_code, answer.json.get("accepted")) == (200, 1)
    assert stored_bodies(settings.database_url) == [body]


@on_sqlite
def test_a_full_disk_is_503_and_costs_nothing_once_there_is_room_again(client, settings, message):
    """The system refuses to let files grow, as a full disk does."""
    before = raw(message())
    large = [raw(message(messageId=f"large-{n}", properties={"a": "x" * 400_000})) for n in range(2)]
    array = b"[" + b",".join(large) + b"]"
    assert send(client, before).status_code == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        answer = send(client, array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_error(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert stored_bodies(settings.database_url) == [before]
    assert send(client, array).json == {"success": True, "accepted": 2, "duplicates": 0, "rejected": []}
    assert stored_bodies(settings.database_url) == [before, *large]


@on_sqlite
def test_a_broken_store_is_503_for_the_webhook_and_for_readyz(client, settings, message):
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE entry")
        other.execute("DROP TABLE fact")
        other.commit()
    for answer in (send(client, raw(message())), client.get("/readyz")):
        assert_error(answer, 503, answer.json["code"])
        assert int(answer.headers["Retry-After"]) > 0
    assert stored_bodies(settings.database_url) == []
    assert client.get("/healthz").status_code == 200


# ---- health


def test_a_serving_process_is_healthy_and_ready(client):
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (
        200,
        {"status": "ready", "delivery": {"faults": [], "no_answer": []}, "turned_away": {}},
    )


@configured(shared_secrets=(SECRET,), webhook_tokens=(TOKEN,))
def test_health_needs_no_secret_and_tells_none(client):
    for path in ("/healthz", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert TOKEN not in answer.text


def test_a_fault_of_the_endpoint_is_shown_and_messages_are_still_taken(database_url, endpoint, message):
    settings = Settings(database_url=database_url, ingestion_url=endpoint.url, mixpanel_token="t")
    endpoint.answers.append(Answer(status=401, body={"code": 401, "error": "no", "status": "error"}))
    with closing(House.open(settings)) as house, closing(ingestion.Client(settings, endpoint.url)) as posts:
        house.store.leases.renew()
        client = create_app(house).test_client()
        assert send(client, raw(message())).status_code == 200
        delivery.Line(house.store, "import", settings, posts).work()
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json["delivery"]) == (200, {"faults": ["import"], "no_answer": []})
        assert send(client, raw(message(messageId="m-2"))).json["accepted"] == 1


@on_sqlite
def test_an_endpoint_that_gives_no_answer_is_named_and_the_log_says_why(database_url, message, caplog):
    address = f"http://127.0.0.1:{free_port()}"
    settings = Settings(database_url=database_url, ingestion_url=address, mixpanel_token="t")
    with closing(House.open(settings)) as house, closing(ingestion.Client(settings, address)) as posts:
        house.store.leases.renew()
        client = create_app(house).test_client()
        assert send(client, raw(message())).status_code == 200
        delivery.Line(house.store, "import", settings, posts).work()
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json["delivery"]) == (200, {"faults": [], "no_answer": ["import"]})
    [line] = [record for record in caplog.records if record.message == "the endpoint did not take a batch"]
    assert line.answer == "no answer, ConnectionRefusedError (nobody listens there)"


def test_requests_that_are_turned_away_are_counted_and_said_once_a_second(client, caplog):
    for _ in range(5):
        client.post("/webhook", data="x", content_type="text/plain")
    assert client.get("/readyz").json["turned_away"] == {"unsupported_media_type": 5}
    lines = [record for record in caplog.records if record.message == "a request was turned away"]
    assert [record.code for record in lines] == ["unsupported_media_type"]


@signed
def test_forgeries_in_masses_cost_a_line_a_second_and_no_message_that_is_signed(client, message, caplog):
    began, forged = time.monotonic(), raw(message())
    for n in range(300):
        assert send_signed(client, forged, "0" * 40).status_code == 401
        if n % 30 == 0:
            body = raw(message(messageId=f"m-{n}"))
            assert send_signed(client, body, sign(body)).json["accepted"] == 1
    assert client.get("/readyz").json["turned_away"] == {"unauthorized": 300}
    assert 1 <= len(caplog.records) <= 1 + time.monotonic() - began


@pytest.mark.parametrize(
    ("code", "said"), [(503, "the store cannot take a message"), (400, "messages were rejected")]
)
def test_what_can_happen_with_each_request_is_said_once_a_second(client, house, message, caplog, code, said):
    if code == 503:
        house.store._room._database.lacks_room = lambda *_: "the disk is nearly full"
    for _ in range(5):
        assert send(client, raw(message(event=None if code == 400 else "E"))).status_code == code
    (line,) = [record for record in caplog.records if record.message == said]
    assert line.count == 1


class Unread:
    """A body that must not be waited for."""

    def read(self, *_):
        raise AssertionError("the body was read")

    readline = readlines = __iter__ = read


def test_who_has_no_token_is_turned_away_before_a_body_is_read(database_url):
    settings = Settings(database_url=database_url, webhook_tokens=("token",))
    with closing(House.open(settings)) as house:
        answer = send_chunked(create_app(house).test_client(), Unread())
    assert answer.status_code == 401


@pytest.mark.parametrize("missing", [1, 9])
def test_a_body_that_was_cut_short_is_not_taken_for_whole(client, settings, message, missing):
    body = raw([message(messageId="m-1"), message(messageId="m-2")])
    answer = client.post(
        "/webhook",
        content_type="application/json",
        environ_overrides={"wsgi.input": io.BytesIO(body[:-missing]), "CONTENT_LENGTH": str(len(body))},
    )
    assert answer.status_code == 400
    assert stored_bodies(settings.database_url) == []
    assert rows(settings.database_url, "SELECT * FROM refusal") == []


@pytest.mark.parametrize("fails", ["schemas.segment.read", "adapter.mapping.destinations"])
def test_a_fault_of_ours_in_one_message_costs_its_neighbours_nothing(client, settings, message, monkeypatch, fails):
    module, name = fails.rsplit(".", 1)
    real = getattr(sys.modules[module], name)

    def failing(given, *more):
        if b'"Trouble"' in (given if isinstance(given, bytes) else given.event.join('""').encode()):
            raise RuntimeError("canary")
        return real(given, *more)

    monkeypatch.setattr(fails, failing)
    bodies = [raw(message(messageId="a")), raw(message(event="Trouble")), raw(message(messageId="c"))]
    answer = send(client, b"[" + b",".join(bodies) + b"]")
    assert (answer.status_code, answer.json["accepted"]) == (200, 2)
    assert [(one["index"], one["reason"]) for one in answer.json["rejected"]] == [(1, "validation_failed")]
    assert "canary" not in answer.text
    assert stored_bodies(settings.database_url) == [bodies[0], bodies[2]]
