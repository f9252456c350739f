"""Access to the page: pure decisions."""

from __future__ import annotations

import pytest

from raprune.page.access import Access, Admitted, Moved, Refused, Request, digest_of, is_loopback

TOKEN = "0123456789abcdef-token"
LOCAL = Access.of(None, "run")
CLOSED = Access.of(TOKEN, "run")


def request(path: str = "/", query: str = "", method: str = "GET", last: str = "", **headers: str) -> Request:
    given = {"host": "localhost:8501"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, path, last, query, [(name, value) for name, value in given.items() if value != "-"])


def status(rule: Access, asked: Request) -> int:
    decision = rule.decide(asked)
    return decision.status if isinstance(decision, Refused) else 303 if isinstance(decision, Moved) else 200


def cookie(rule: Access) -> str:
    decision = rule.decide(request(query=f"token={TOKEN}"))
    assert isinstance(decision, Moved) and decision.cookie is not None
    return f"{rule.cookie_name}={decision.cookie}"


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8501", "127.8.0.1", "[::1]:80", "LOCALHOST"])
def test_page_without_a_token_admits_loopback_names(host: str) -> None:
    assert status(LOCAL, request(host=host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "-",
        "",
        "evil.example",
        "evil.example:8501",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil@localhost",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "192.168.0.1:8501",
        "localhost:8501:1",
        "localhost evil.example",
        "2130706433",
        "127.1",
    ],
)
def test_page_without_a_token_refuses_any_other_host(host: str) -> None:
    assert status(LOCAL, request(host=host)) == 403


def test_request_with_two_hosts_is_refused() -> None:
    asked = Request("GET", "/", "", "", [("host", "localhost"), ("host", "evil.example")])
    assert status(LOCAL, asked) == 403


@pytest.mark.parametrize("rule", [LOCAL, CLOSED], ids=["local", "token"])
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (request(method="POST"), 405),
        (request(method="DELETE"), 405),
        (request(method="CONNECT"), 405),
        (request(method="X" * 300), 405),
        (request(path="/" + "a" * 600), 414),
        (request(query="a" * 3000), 414),
        (request(cookie="a" * 20_000), 431),
        (request(content_length="5"), 413),
        (request(content_length="-1"), 413),
        (request(transfer_encoding="chunked"), 413),
        (request(path="/static/../app.py"), 400),
        (request(path="/.."), 400),
        (request(path="/./api"), 400),
        (request(path="/static//x"), 400),
        (request(path="/download/..\\..\\x"), 400),
        (request(path="/download/a\x00b"), 400),
        (request(path="/api/trials/a\nb"), 400),
    ],
)
def test_malformed_request_is_refused_before_the_token_is_checked(rule: Access, asked: Request, wanted: int) -> None:
    assert status(rule, asked) == wanted


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(query="token="),
        request(query="token=wrong"),
        request(query=f"token={TOKEN}&token=wrong"),
        request(query=f"token={TOKEN[:-1]}"),
        request(query=f"token={TOKEN}%20"),
        request(query=f"Token={TOKEN}"),
        request(authorization="Bearer"),
        request(authorization="Bearer "),
        request(authorization="Bearer wrong"),
        request(authorization=f"Basic {TOKEN}"),
        request(authorization=TOKEN),
        request(authorization=f"Bearer {TOKEN} {TOKEN}"),
        request(authorization=f"Bearer {digest_of(TOKEN)}"),
        request(authorization="Bearer wrong", cookie=cookie(CLOSED)),
        request(cookie=f"{CLOSED.cookie_name}="),
        request(cookie=f"{CLOSED.cookie_name}={TOKEN}"),
        request(cookie=f"{CLOSED.cookie_name}={digest_of(TOKEN)}"),
        request(cookie=cookie(Access.of(TOKEN, "another"))),
        request(cookie=cookie(CLOSED).replace(CLOSED.cookie_name, "other")),
        request(cookie="=;=;\x7f"),
        request(authorization="Bearer \udc80\udcff"),
    ],
)
def test_request_without_the_right_token_is_refused(asked: Request) -> None:
    assert status(CLOSED, asked) == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_token_in_a_header_admits_the_request(scheme: str) -> None:
    assert isinstance(CLOSED.decide(request(authorization=f"{scheme} {TOKEN}", host="any.example")), Admitted)


def test_request_with_two_authorizations_is_refused() -> None:
    headers = [("host", "x"), ("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")]
    assert status(CLOSED, Request("GET", "/", "", "", headers)) == 401


def test_token_in_the_address_becomes_a_cookie_and_leaves_the_address() -> None:
    decision = CLOSED.decide(request("/api/pick", f"flops=0.3&token={TOKEN}&params=", last="pick"))
    assert isinstance(decision, Moved) and decision.location == "./pick?flops=0.3&params="
    assert decision.cookie is not None and TOKEN not in decision.cookie and digest_of(TOKEN) not in decision.cookie
    assert status(CLOSED, request(cookie=f"a=b; {cookie(CLOSED)}")) == 200


def test_cookie_opens_one_page_only() -> None:
    other = Access.of(TOKEN, "another")
    assert other.cookie_name != CLOSED.cookie_name
    assert cookie(other).partition("=")[2] != cookie(CLOSED).partition("=")[2]


def test_root_without_its_slash_redirects_within_the_page() -> None:
    for rule, more in ((LOCAL, {}), (CLOSED, {"authorization": f"Bearer {TOKEN}"})):
        decision = rule.decide(request("", "a=b", last="my run", **more))
        assert isinstance(decision, Moved) and decision.location == "./my%20run/?a=b" and decision.cookie is None
    decision = CLOSED.decide(request("", f"token={TOKEN}", last="run"))
    assert isinstance(decision, Moved) and decision.location == "./run/" and decision.cookie is not None


@pytest.mark.parametrize("last", ["//evil.example", "\r\nset-cookie: a=b", "a?b#c"])
def test_redirect_of_a_hostile_name_stays_on_the_page(last: str) -> None:
    decision = CLOSED.decide(request("/x", f"token={TOKEN}", last=last))
    assert isinstance(decision, Moved) and decision.location.startswith("./")
    assert not set(decision.location) & set("\r\n?#: ")


@pytest.mark.parametrize(("mode", "wanted"), [("navigate", 200), ("no-cors", 403), ("cors", 403), ("-", 403)])
def test_request_from_another_website_is_refused_unless_it_follows_a_link(mode: str, wanted: int) -> None:
    for rule, more in ((LOCAL, {}), (CLOSED, {"cookie": cookie(CLOSED)})):
        assert status(rule, request(sec_fetch_site="cross-site", sec_fetch_mode=mode, **more)) == wanted
        assert status(rule, request(sec_fetch_site="same-origin", sec_fetch_mode=mode, **more)) == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.1.2.3", False),
        ("example.com", False),
    ],
)
def test_loopback_names_are_told_from_others(host: str, local: bool) -> None:
    assert is_loopback(host) is local
