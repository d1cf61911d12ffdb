"""The built book, opened page by page in headless Chromium: `make book-check`.

No request may leave for another host, nothing may be logged as an error, links inside the book must lead somewhere, and
three pages are held to the basics of accessibility by axe-core.
"""

import functools
import importlib.util
import shutil
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

pytestmark = pytest.mark.slow

BOOK = Path(__file__).parents[2] / "book"
HTML = BOOK / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
AXE = ("axe-core@4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745")
HELD_TO_AXE = ("intro.html", "notebooks/01_crops.html", "papers/rest.html")

if not HTML.is_dir():
    pytest.skip("the book is not built; run 'make book-check', which builds it", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("there is no Chromium; install it (Debian: apt install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="run 'make book-check', which installs playwright")

PAGES = sorted(str(path.relative_to(HTML)) for path in HTML.rglob("*.html") if "_static" not in path.parts)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("path", PAGES)
def test_no_request_leaves_and_nothing_fails(page, host, path):
    outside, wrong = [], []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith((host, "data:", "blob:")) else None)
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(f"{host}/{path}", wait_until="networkidle")
    assert not outside
    assert not wrong


def test_an_icon_is_where_browsers_ask_for_one():
    assert (HTML / "favicon.ico").is_file()  # of index.html, which names none; they do not always have the time to ask


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", [p for p in PAGES if p.startswith("notebooks/")])
def test_widgets_are_drawn_and_no_page_is_wider_than_the_screen(browser, host, path, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(f"{host}/{path}", wait_until="networkidle")
    views = page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
    own = ".rsseglab-swipe, .rsseglab-explorer, .rsseglab-points"
    if views:  # a progress bar that is done is hidden
        page.wait_for_selector(f"{own}, .widget-box", timeout=20_000, state="attached")
    if '"AnyModel"' in page.content():
        page.wait_for_selector(own, timeout=20_000)
    assert not page.locator(".jupyter-widgets-error-widget").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
    context.close()


def test_an_explorer_answers_without_a_kernel(page, host):
    page.goto(f"{host}/notebooks/05_spatial.html", wait_until="networkidle")
    explorer = page.locator(".rsseglab-explorer").first
    explorer.wait_for()
    before = explorer.locator("img").get_attribute("src")
    explorer.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowRight")
    assert explorer.locator("img").get_attribute("src") != before
    assert explorer.locator("img").get_attribute("alt")


def test_the_swipe_moves_by_keys(page, host):
    page.goto(f"{host}/notebooks/01_crops.html", wait_until="networkidle")
    swipe = page.locator(".rsseglab-swipe").first
    swipe.wait_for()
    swipe.locator("input[type=range]").focus()
    before = swipe.locator(".over").evaluate("e => e.style.clipPath")
    page.keyboard.press("PageUp")
    assert swipe.locator(".over").evaluate("e => e.style.clipPath") != before


def test_search_finds_a_word(page, host):
    page.goto(f"{host}/search.html?q=halo", wait_until="networkidle")
    page.wait_for_selector("#search-results li", timeout=20_000)


class Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors = set(), set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[k] for k in ("id", "name") if found.get(k)}
        for key in ("href", "src"):
            if found.get(key):
                self.links.add(found[key])


@functools.cache
def links_of(path):
    parser = Links()
    parser.feed((HTML / path).read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    broken = []
    for link in links_of(path).links:
        target, anchor = urldefrag(link)
        if urlsplit(link).scheme or link.startswith(("//", "data:")):
            continue
        place = (HTML / path).parent / unquote(target.partition("?")[0]) if target else HTML / path
        if not place.exists():
            broken.append(link)
        elif anchor and place.suffix == ".html":
            there = links_of(str(place.resolve().relative_to(HTML.resolve()))).anchors
            broken += [link] if unquote(anchor) not in there else []
    assert not broken


@pytest.fixture(scope="module")
def axe():
    """The script of axe-core, kept beside the built book."""
    script = BOOK / "_build" / "axe.min.js"
    if not script.is_file():
        spec = importlib.util.spec_from_file_location("offline", BOOK / "offline.py")
        offline = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(offline)
        offline.unpack(offline.fetch(*AXE), {"axe.min.js": ""}, script.parent)
    return script.read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", HELD_TO_AXE)
def test_axe_finds_no_serious_barrier(page, host, axe, path, theme):
    page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');")
    page.goto(f"{host}/{path}", wait_until="networkidle")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa']})")
    serious = [
        f"{v['id']} ({v['impact']}), {len(v['nodes'])} times: {' '.join(v['nodes'][0]['html'].split())[:160]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious
