"""The tutorial, typed as a reader types it: every file is saved, every command runs, every screen is what comes.

`CHECKPOINT_SCREENS=write` puts what comes into the pages.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shell_blocks import Reader, blocks, installs, steady

FOLDER = Path(__file__).parent.parent / "docs" / "tutorial"
HOME = "/home/me/contacts"
LESSONS = ("first-connector.md", "looking-after.md")


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Each block that is typed, with its exit status and what came."""
    found = []
    with Reader(tmp_path_factory.mktemp("tutorial")) as reader:
        for lesson in LESSONS:
            for block in blocks((FOLDER / lesson).read_text("utf-8")):
                if block.language == "python":
                    assert reader.save(block.text), f"{lesson}: the block names no file:\n{block.text}"
                elif not installs(block.text):
                    status, came = reader.type(block.text)
                    found.append((lesson, block, status, came.replace(str(reader.folder), HOME)))
    if os.environ.get("CHECKPOINT_SCREENS") == "write":
        write(found)
    return found


def write(found):
    """Write all screens of a lesson of which one differs, so that they are of one session."""
    shown = [(lesson, block, came) for lesson, block, _, came in found if block.shown is not None]
    for lesson in {lesson for lesson, block, came in shown if steady(block.shown) != steady(came)}:
        text = (FOLDER / lesson).read_text("utf-8")
        for _, block, came in (each for each in shown if each[0] == lesson):
            before = f"```sh\n{block.text}```\n\n```text\n"
            assert f"{before}{block.shown}```" in text
            text = text.replace(f"{before}{block.shown}```", f"{before}{came}```", 1)
        (FOLDER / lesson).write_text(text, "utf-8")


def test_every_command_of_the_tutorial_succeeds(typed):
    assert [(lesson, block.text, came) for lesson, block, status, came in typed if status] == []
    assert len(typed) > 10


def test_every_screen_of_the_tutorial_is_what_comes(typed):
    shown = [(lesson, block, came) for lesson, block, _, came in typed if block.shown is not None]
    assert len(shown) > 7
    for lesson, block, came in shown:
        assert steady(came) == steady(block.shown), f"{lesson}:\n{block.text}"


def test_no_other_page_lies_in_the_tutorial():
    assert {path.name for path in FOLDER.glob("*.md")} == set(LESSONS)
