"""The site is built strictly and without a network; its links, its pictures and its list of commands are complete."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from lossmap.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mkdocs", "material", "mkdocstrings", "griffe")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install 'lossmap[docs]')"),
]


class Page(HTMLParser):
    """What a built page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        for key in ("src", "href"):
            if values.get(key) and (tag in ("img", "script") or (tag == "link" and values.get("rel") != "canonical")):
                self.loaded.append(values[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was built strictly, in an environment in which every request to the network fails."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https")}
    environ = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_internal_link_leads_somewhere(site, pages):
    assert len(pages) > 25
    for path, page in pages.items():
        for link in page.links + page.loaded:
            target = urlsplit(link)
            if target.scheme or link == ".":
                continue
            file = path if not target.path else (path.parent / unquote(target.path)).resolve()
            if file.is_dir():
                file = file / "index.html"
            assert file.exists(), f"{path.relative_to(site)} links to {link}"
            if target.fragment and file.suffix == ".html" and target.fragment != "__tabbed":
                assert unquote(target.fragment) in pages[file].anchors, f"{path.relative_to(site)}: {link}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        elsewhere = [link for link in page.loaded if urlsplit(link).netloc]
        assert not elsewhere, f"{path.relative_to(site)} loads {elsewhere}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet.name


def test_no_table_or_block_is_left_as_text(site):
    for path in site.rglob("*.html"):
        visible = re.sub(r"<(code|pre|script)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"^\|.*\|$|^```|--8&lt;--|^:::", visible, re.MULTILINE), path.relative_to(site)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_every_flag_of_its_help(site, command, capsys):
    from lossmap.cli.__main__ import main

    text = re.sub(r"<[^>]+>", "", (site / "commands" / f"{command}.html").read_text())
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out)) - {"--help"}
    missing = {flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)}
    assert not missing
    assert "Exit codes" in text and "Examples" in text
