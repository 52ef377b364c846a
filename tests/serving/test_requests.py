"""Bodies of requests: every form gives the same images, and every bad one a sentence."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.errors import RequestError, UnknownNameError, UsageError
from headstart.serving.requests import Limits, Upload, is_key, parse_body

FORM = "multipart/form-data; boundary=cut"
FILES = [
    Upload(name="a b.png", content=b"\r\n--cu"),
    Upload(name="Ä.jpg", content=bytes(range(256))),
]


def form_of(uploads: list[Upload]) -> bytes:
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{one.name}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + one.content
        + b"\r\n"
        for one in uploads
    ]
    return b"".join(parts) + b"--cut--\r\n"


def json_of(uploads: list[Upload]) -> bytes:
    entries = [
        {"name": one.name, "data": base64.b64encode(one.content).decode()} for one in uploads
    ]
    return json.dumps({"images": entries}).encode()


def test_form_and_json_hold_the_same_images() -> None:
    assert parse_body(FORM, form_of(FILES)) == FILES
    assert parse_body("application/json; charset=utf-8", json_of(FILES)) == FILES
    (one,) = parse_body("application/json", b'{"images": ["data:image/png;base64,YQ=="]}')
    assert one == Upload(name="image 1", content=b"a")
    for kind in ("image/jpeg", "application/octet-stream", "", "application/dicom"):
        assert parse_body(kind, b"a", name="x.jpg") == [Upload(name="x.jpg", content=b"a")]


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        ("image/png", b"", 400, "The body is empty. Send an image."),
        ("text/html", b"x", 415, "'text/html' is not supported"),
        ("application/json", b"{", 400, "is no JSON"),
        ("application/json", b"[" * 100_000, 400, "is no JSON"),
        ("application/json", b"\xff", 400, "is no JSON"),
        ("application/json", b"[]", 400, "no list of images"),
        ("application/json", b'{"images": []}', 400, "no list of images"),
        ("application/json", b'{"images": [3]}', 400, "got str and int"),
        ("application/json", b'{"images": [{"name": 3, "data": ""}]}', 400, "got int and str"),
        ("application/json", '{"images": ["ä"]}'.encode(), 400, "no base64"),
        ("application/json", b'{"images": ["a"]}', 400, "no base64"),
        ("application/json", b'{"images": [""]}', 400, "'image 1' is empty"),
        ("multipart/form-data", b"x", 400, "no boundary"),
        (FORM, b"x", 400, "multipart form is damaged"),
        (FORM, form_of(FILES)[:-9], 400, "ends too early"),
        (FORM, b"--cut--\r\n", 400, "multipart form"),
        (FORM, form_of([Upload(name="a", content=b"")]), 400, "'a' is empty"),
        (FORM, form_of(FILES).replace(b"filename", b"file"), 400, "no file name"),
        (FORM, form_of(FILES * 3), 413, "more than 4 images"),
        ("application/json", json_of(FILES * 3), 413, "more than 4 images"),
    ],
)
def test_a_bad_body_is_refused_with_a_sentence(
    kind: str, body: bytes, status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=r"\.$") as caught:
        parse_body(kind, body, max_images=4)
    assert message in str(caught.value)
    assert caught.value.status == status
    assert str(caught.value).endswith(".")


def cut_body(draw: Any) -> bytes:
    body = bytearray(draw(st.sampled_from([form_of(FILES), json_of(FILES)])))
    for at in draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[at] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_give_images_or_a_refusal(data: st.DataObject) -> None:
    body = data.draw(st.one_of(st.binary(max_size=200), st.composite(cut_body)()))
    kind = data.draw(st.sampled_from([FORM, "application/json", "image/png", "a;b", ";", "\xff"]))
    uploads, status = [Upload(name="", content=b"a")], 400
    try:
        uploads = parse_body(kind, body)
    except RequestError as error:
        status = error.status
    assert 400 <= status < 500
    assert uploads
    assert all(upload.content for upload in uploads)


def test_names_are_text_of_a_limited_length() -> None:
    body = b'{"images": [{"name": "\\ud800", "data": "YQ=="}, {"name": "", "data": "YQ=="}]}'
    assert [one.name for one in parse_body("application/json", body)] == ["\\ud800", "image"]
    assert len(parse_body("image/png", b"a", name="x" * 9999)[0].name) == 500


def test_limits_are_checked() -> None:
    with pytest.raises(UsageError, match=r"`queue` must be at least 1, got 0\. Pass --queue"):
        Limits(queue=0)
    with pytest.raises(UsageError, match="--timeout"):
        Limits(timeout=float("nan"))
    with pytest.raises(UnknownNameError, match="Unknown limit: 'bodies'"):
        Limits.of({"bodies": 3})


def test_a_key_must_be_equal() -> None:
    assert is_key("one", ("one", "two"))
    assert is_key("two", ("one", "two"))
    for wrong in ("", "on", "onee", "One", "\udcff"):
        assert not is_key(wrong, ("one", "two"))
