"""``publish`` when the Hub fails or the process dies: nothing half done is called done, and a second run finishes."""

from __future__ import annotations

from pathlib import Path

import publish_runs
import pytest
from hub_faults import HubFault
from hub_server import hub_server
from publish_runs import REPO, TAG, Publisher

release, publisher = publish_runs.release, publish_runs.publisher

SOON = (("Retry-After", "0"),)
COMMIT, TAGGING, PUT = "POST .*/commit/main", "POST .*/tag/", "PUT /lfs/"


def published_once(publisher: Publisher) -> bool:
    commits = [title for _, title in publisher.repository().log if title.startswith("Publish")]
    return publisher.is_published() and len(commits) == 1 and list(publisher.repository().tags) == [TAG]


@pytest.mark.parametrize(
    "problem",
    [
        HubFault("GET .*/revision/main", "drop"),
        HubFault("POST /api/repos/create", "drop after"),
        HubFault("POST /api/repos/create", "status", 503, headers=SOON),
        HubFault("POST .*/preupload", "status", 500, headers=SOON),
        HubFault(PUT, "cut"),
        HubFault(PUT, "status", 500, headers=SOON),
        HubFault(COMMIT, "drop"),
        HubFault(COMMIT, "drop after"),
        HubFault(COMMIT, "status", 500, headers=SOON),
        HubFault(COMMIT, "status", 429, headers=SOON),
        HubFault(TAGGING, "drop after"),
    ],
    ids=lambda problem: f"{problem.pattern} {problem.action} {problem.status if problem.action == 'status' else ''}",
)
def test_a_passing_problem_is_survived(publisher: Publisher, problem: HubFault) -> None:
    publisher.server.problems = [problem]
    done = publisher.run("--yes", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert problem.times == 0, "the fault was met"
    assert published_once(publisher)


def test_a_repository_that_came_into_being_meanwhile(publisher: Publisher) -> None:
    make = HubFault("POST /api/repos/create", "call", do=lambda: publisher.server.hub.create("datasets", REPO))
    publisher.server.problems = [make]
    done = publisher.run("--yes", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert published_once(publisher)


def test_a_server_that_says_little_about_its_files_is_read_instead(publisher: Publisher) -> None:
    publisher.server.sparse = True
    for _ in range(2):
        done = publisher.run("--yes", "--no-verify")
        assert done.returncode == 0, done.stderr
    assert published_once(publisher)


@pytest.mark.parametrize(
    ("pattern", "status", "says"),
    [
        ("POST /api/repos/create", 403, "write access"),
        (PUT, 403, "write access"),
        (COMMIT, 400, "the Hub refused"),
        (COMMIT, 412, "a commit came in between (412)"),
        (TAGGING, 403, "write access"),
    ],
)
def test_a_lasting_problem_is_no_publication(publisher: Publisher, pattern: str, status: int, says: str) -> None:
    publisher.server.problems = [HubFault(pattern, "status", status, times=99)]
    failed = publisher.run("--yes", "--no-verify")
    assert failed.returncode == 1 and says in failed.stderr, failed.stderr
    assert "published:" not in failed.stdout and "Traceback" not in failed.stderr
    assert not [key for key, repository in publisher.server.hub.repositories.items() if repository.tags]
    publisher.server.problems = []
    again = publisher.run("--yes", "--no-verify")
    assert again.returncode == 0, again.stderr
    assert published_once(publisher)


@pytest.mark.parametrize(
    ("pattern", "action"),
    [
        ("POST /api/repos/create", "hang after"),
        (PUT, "hang"),
        (PUT, "hang after"),
        (COMMIT, "hang"),
        (COMMIT, "hang after"),
        (TAGGING, "hang"),
        (TAGGING, "hang after"),
    ],
)
def test_killed_anywhere_a_second_run_finishes(publisher: Publisher, pattern: str, action: str) -> None:
    publisher.server.problems = [HubFault(pattern, action)]
    publisher.kill_when_hanging("--yes", "--no-verify")
    uploads = publisher.server.count(PUT)
    again = publisher.run("--yes", "--no-verify")
    assert again.returncode == 0, again.stderr
    assert published_once(publisher)
    if (pattern, action) == (PUT, "hang after"):
        # the other file may not have been under way yet
        assert publisher.server.count(publisher.server.hung_on) == 1, "what arrived is not sent again"
    if pattern == COMMIT:
        assert publisher.server.count(PUT) == uploads, "what arrived is not sent again"


def test_killed_while_it_verifies_is_not_verified(publisher: Publisher) -> None:
    publisher.server.problems = [HubFault("GET /datasets/.*/resolve/.*parquet", "hang")]
    publisher.kill_when_hanging("--yes")
    assert published_once(publisher)
    again = publisher.run("--yes")
    assert again.returncode == 0 and "verified: 4 files" in again.stdout
    assert published_once(publisher)


@pytest.mark.parametrize("action", ["corrupt", "truncate"])
def test_other_bytes_than_here_are_not_verified(publisher: Publisher, action: str) -> None:
    location = PUT if action == "truncate" else "GET /datasets/.*/resolve/.*parquet"
    publisher.server.problems = [HubFault(location, action)]
    done = publisher.run("--yes", "--json")
    assert done.returncode == 1, done.stdout
    assert "NOT verified" in done.stderr
    assert '"verified": false' in done.stdout and '"published": true' in done.stdout
    again = publisher.run("--yes")
    assert again.returncode == 0 and "verified: 4 files" in again.stdout, again.stderr
    assert published_once(publisher)


def test_many_files_arrive_in_one_commit_or_not_at_all(tmp_path: Path) -> None:
    """The Hub's `upload_folder` makes several commits above 250 files; publishing makes one."""
    folder = tmp_path / "board"
    folder.mkdir()
    head = "title: Many\nlicense: mit\nsdk: gradio\nsdk_version: 6.0.0\napp_file: app.py\n"
    (folder / "README.md").write_text(f"---\n{head}---\n")
    (folder / "app.py").write_text("print('an app')\n")
    for number in range(300):
        (folder / f"result-{number:03}.json").write_text(f'{{"n": {number}}}\n')
    space = {"kind": "space", "repo": "org/board", "HF_HUB_DISABLE_XET": "0"}
    with hub_server(tmp_path / "hub") as server:
        publisher = Publisher(server, tmp_path / "home", folder)
        server.problems = [HubFault("POST .*/commit/main", "hang")]
        publisher.kill_when_hanging("--yes", "--no-verify", **space)
        repository = publisher.repository("spaces", "org/board")
        assert len(repository.log) == 1 and not repository.tags, "the initial commit alone"
        again = publisher.run("--yes", "--no-verify", **space)
        assert again.returncode == 0, again.stderr
        assert publisher.is_published("spaces", "org/board")
        assert [ref for ref, _ in repository.log] == ["main", "main"]
