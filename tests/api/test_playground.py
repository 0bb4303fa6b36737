"""The page as it is served: whole, small, by itself, and with a policy; tests/ui runs it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools.discovery import PEP420PackageFinder
from starlette.testclient import TestClient

from api.app import create_app
from slm_jobs.events import JobEvents
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "api" / "playground" / "static"
MOST_BYTES = 100_000
ADDRESSES = ["/", *sorted(f"/playground/{path.name}" for path in STATIC.iterdir())]
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@pytest.fixture
def visitor(client: TestClient) -> TestClient:
    """Sends no key."""
    del client.headers["Authorization"]
    return client


def policy(header: str) -> dict[str, str]:
    directives = (part.strip().partition(" ") for part in header.split(";"))
    return {name: values for name, _, values in directives}


def references(page: str) -> list[str]:
    return re.findall(r'(?:href|src)="([^"]*)"', page)


def test_files_come_without_a_key_and_with_the_policy(visitor: TestClient) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    for address in ADDRESSES:
        response = visitor.get(address)
        assert response.status_code == 200
        assert policy(response.headers["content-security-policy"]) == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-frame-options"] == "DENY"
        kind = kinds[Path(address).suffix or ".html"]
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"


def test_a_browser_asks_again_each_time(visitor: TestClient) -> None:
    tags = set()
    for address in ADDRESSES:
        first = visitor.get(address)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        tags.add(tag)
        for known in (tag, f'"old", W/{tag}', "*"):
            again = visitor.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            kept = ("etag", "cache-control", "content-security-policy")
            assert [again.headers[name] for name in kept] == [first.headers[name] for name in kept]
        upgraded = visitor.get(address, headers={"If-None-Match": '"old"'})
        assert (upgraded.status_code, upgraded.content) == (200, first.content)
    assert len(tags) == len(ADDRESSES) - 1  # the page has two addresses


def test_head_is_answered_without_a_body(visitor: TestClient) -> None:
    for address in ADDRESSES[:2]:
        response = visitor.head(address)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["etag"] == visitor.get(address).headers["etag"]


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MOST_BYTES


def test_everything_that_it_refers_to_is_here(visitor: TestClient) -> None:
    page = visitor.get("/").text
    own = [each for each in references(page) if not each.startswith("data:")]
    assert {"docs", "playground/main.js", "playground/style.css"} <= set(own)
    for reference in own:
        assert not re.match(r"/|[a-z]+:", reference), f"{reference} breaks under a root_path"
        assert visitor.get(f"/{reference}").status_code == 200
    imported = {"main.js"}
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text("utf-8")):
            assert (STATIC / name).exists(), f"{path.name} imports {name}"
            imported.add(name)
    assert imported == {path.name for path in STATIC.glob("*.js")}


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", page)
    for path in STATIC.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"\w+://", text), path.name


def test_what_a_model_says_is_never_html() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text("utf-8")
        assert not re.search(r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write", text)
        assert not re.search(r"\beval\(|new Function", text)


def test_every_id_that_the_code_names_is_in_the_page() -> None:
    page = (STATIC / "index.html").read_text("utf-8")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for path in STATIC.glob("*.js"):
        named = re.findall(r'\$\("([^"]+)"\)', path.read_text("utf-8"))
        assert set(named) <= set(ids), path.name


def test_other_names_and_methods_are_problems(visitor: TestClient) -> None:
    for name in ("nothing.js", "..%2froutes.py", "%00", "é.css", "x" * 300):
        response = visitor.get(f"/playground/{name}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    for address in ADDRESSES[:2]:
        response = visitor.post(address)
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


@pytest.fixture
def behind_proxy(settings: Settings, store: JobStore, events: JobEvents) -> Iterator[TestClient]:
    app = create_app(settings, store, events)
    with TestClient(app, root_path="/slm", base_url="http://testserver/slm/") as client:
        yield client


def test_it_works_under_a_prefix(behind_proxy: TestClient) -> None:
    page = behind_proxy.get("http://testserver/slm/")
    assert page.status_code == 200
    for reference in references(page.text):
        if not reference.startswith("data:"):
            assert behind_proxy.get(f"http://testserver/slm/{reference}").status_code == 200


def test_the_package_carries_it() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = PEP420PackageFinder.find(str(ROOT), include=config["packages"]["find"]["include"])
    assert "api.playground" in packages
    [pattern] = config["package-data"]["api"]
    assert set((ROOT / "api").glob(pattern)) == set(STATIC.iterdir())
