"""Build the documentation into build/docs/site: pages, search and llms.txt, all of it usable without a network.

    python .ci/build_docs.py           build it; a link or anchor that leads nowhere is an error
    python .ci/build_docs.py --serve   and look at it while you write

Pages are plain Markdown in docs/, which the project's page shows too. What is made from the code replaces the line
`<!-- made by the build: NAME -->` of its page. The pages and their order are those of docs/README.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = ROOT / "build" / "docs"
PAGES, SITE = BUILD / "pages", BUILD / "site"
HERE = "https://github.com/trutohq/checkpoint/blob/main/"
MADE = re.compile(r"^<!-- made by the build: ([\w-]+) -->\n", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^(```.*?^```\n?)", re.DOTALL | re.MULTILINE)
INDEX = "README.md"


def made(name: str) -> str:
    """Return a part of a page that is made from the code."""
    if name in reference.PAGES:
        return reference.api(name)
    return {"verbs": reference.verbs, "calls": reference.calls}[name]()


def copied() -> dict[str, str]:
    """Copy docs/ to build/docs/pages, with what is made from the code; return the text of each page by its path."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(DOCS, PAGES, ignore=shutil.ignore_patterns("*.yml"))
    texts: dict[str, str] = {}
    for path in sorted(PAGES.rglob("*.md")):
        name = path.relative_to(PAGES).as_posix()
        text = MADE.sub(lambda found: made(found[1]), path.read_text("utf-8"))
        parts = FENCED.split(text)
        parts[::2] = [LINK.sub(lambda found, name=name: _link(found, name), part) for part in parts[::2]]
        texts[name] = "".join(parts)
        path.write_text(texts[name], "utf-8")
    (PAGES / "reference" / "openapi.json").write_text(json.dumps(reference.document(), indent=1), "utf-8")
    return texts


def _link(found: re.Match[str], page: str) -> str:
    """Return a link as the built pages have it: what lies outside of docs/ is a picture here, or a file on the web."""
    image, label, target = found.groups()
    if target.startswith(("https:", "http:", "#", "mailto:")):
        return found[0]
    there = (DOCS / page).parent.joinpath(target.partition("#")[0]).resolve()
    if there.is_relative_to(DOCS):
        return found[0]
    outside = there.relative_to(ROOT)
    if not image:
        return f"[{label}]({HERE}{outside.as_posix()})"
    (PAGES / "pictures").mkdir(exist_ok=True)
    shutil.copy(there, PAGES / "pictures" / there.name)
    return f"![{label}]({'../' * page.count('/')}pictures/{there.name})"


def chapters(index: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the chapters of docs/README.md: their titles, and the title and path of each page that they list."""
    found = []
    for title, body in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", index, re.DOTALL | re.MULTILINE):
        links = [(label, path) for _, label, path in LINK.findall(body) if path.endswith(".md") and "://" not in path]
        if links:
            found.append((title, links))
    return found


def navigation(texts: dict[str, str]) -> list[dict[str, object]]:
    """Return the pages by chapter; those of a folder that the index names as a whole come below its first page."""
    pages: list[dict[str, object]] = [{"Start": INDEX}]
    for title, links in chapters(texts[INDEX]):
        entries: list[dict[str, object]] = []
        for label, path in links:
            entries.append({label: path})
            if path.endswith(f"/{INDEX}"):
                folder = path.removesuffix(INDEX)
                entries += [
                    {heading(texts[name]): name}
                    for name in dict.fromkeys(
                        f"{folder}{other.partition('#')[0]}" for *_, other in LINK.findall(texts[path])
                    )
                    if name in texts and "/" not in name.removeprefix(folder) and name != path
                ]
        pages.append({title: entries})
    return pages


def heading(text: str) -> str:
    """Return the title of a page."""
    found = re.search(r"^# (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def sentence(text: str) -> str:
    """Return the first paragraph of a page as one line."""
    body = re.sub(r"\A# .*\n+", "", FENCED.sub("", text))
    first = " ".join(body.partition("\n\n")[0].split())
    return LINK.sub(r"\2", first) if first[:1] not in ("|", "*", "#", "<", "") else ""


def write_for_models(texts: dict[str, str], pages: list[dict[str, object]]) -> None:
    """Write llms.txt (see llmstxt.org), llms-full.txt, and each page as Markdown beside its HTML."""
    lines = ["# checkpoint", "", f"> {sentence(texts[INDEX])}", ""]
    full: list[str] = []
    for chapter in pages:
        for title, entries in chapter.items():
            lines += ["", f"## {title}", ""] if isinstance(entries, list) else []
            for entry in entries if isinstance(entries, list) else [{title: entries}]:
                for label, path in entry.items():
                    said = sentence(texts[path])
                    lines.append(f"* [{label}]({path}){': ' + said if said else ''}")
                    full.append(f"<!-- {path} -->\n\n{texts[path]}")
    (SITE / "llms.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (SITE / "llms-full.txt").write_text("\n".join(full), "utf-8")
    for name, text in texts.items():
        (SITE / name).write_text(text, "utf-8")


def main() -> int:
    """Build, or serve."""
    texts = copied()
    pages = navigation(texts)
    listed = set(re.findall(r'": "([^"]+\.md)"', json.dumps(pages)))
    if left_out := sorted(set(texts) - listed):
        print(f"these pages are in no chapter of docs/README.md: {', '.join(left_out)}")
        return 1
    config = BUILD / "mkdocs.yml"
    config.write_text((DOCS / "mkdocs.yml").read_text("utf-8") + f"nav: {json.dumps(pages)}\n", "utf-8")
    if "--serve" in sys.argv[1:]:
        return subprocess.run(["zensical", "serve", "-f", config], check=False).returncode
    done = subprocess.run(["zensical", "build", "--clean", "--strict", "-f", config], check=False)
    if done.returncode == 0:
        write_for_models(texts, pages)
        print(f"{len(texts)} pages: {SITE / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
