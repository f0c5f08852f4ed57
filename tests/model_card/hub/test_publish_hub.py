"""``publish`` against a test double of the Hub: what is planned, sent, kept, refused and proved."""

from __future__ import annotations

import json
import shutil

import publish_runs
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hub_faults import HubFault
from hub_server import READ_ONLY, TOKEN
from paths import ROOT
from publish_runs import REPO, TAG, Publisher

from model_card.cards.dataset import croissant_metadata
from model_card.cards.text import Licence
from scale_vqa_eval.export import hub
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.release_folder.card import marked_sections
from scale_vqa_eval.schema import METRIC_FOLDER

release, publisher = publish_runs.release, publish_runs.publisher


def changes(plan: dict) -> dict[str, str]:
    return {row["path"]: row["change"] for row in plan["files"]}


def test_dry_run_sends_nothing_and_names_every_file(publisher: Publisher) -> None:
    done = publisher.run()
    assert done.returncode == 0, done.stderr
    assert not [line for line in publisher.server.requests if not line.startswith(("GET", "HEAD"))]
    assert not publisher.server.hub.repositories
    for path in publisher.folder.rglob("*.parquet"):
        assert path.relative_to(publisher.folder).as_posix() in done.stdout
    assert "dry run" in done.stdout and "with --yes publishes this" in done.stdout
    plan = publisher.plan()
    assert set(changes(plan).values()) == {"new"}
    assert {"README.md", "publish.json"} < changes(plan).keys()
    assert (plan["published"], plan["verified"], plan["remote"]["exists"]) == (False, False, False)


def test_a_folder_with_the_config_hub_is_published_as_a_benchmark(publisher: Publisher) -> None:
    assert "eval.yaml" not in changes(publisher.plan())
    made = CliRunner().invoke(hub, [str(publisher.folder), "--config", "default"], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    plan = publisher.plan("--yes", "--no-verify")
    assert changes(plan)["eval.yaml"] == "new" and plan["findings"] == []
    content = publisher.server.hub.bytes_of(publisher.repository().files()["eval.yaml"])
    tasks = parse_yaml(content.decode(), "eval.yaml")["tasks"]
    assert [task["id"] for task in tasks] == ["default_test", "default_test_blind"]
    assert changes(publisher.plan())["eval.yaml"] == "same"


def test_a_card_that_owns_up_to_what_it_lacks_goes_and_one_that_does_not_is_refused(publisher: Publisher) -> None:
    path = publisher.folder / "README.md"
    built = path.read_text()
    dry = publisher.run()
    assert "card: INCOMPLETE" in dry.stdout and "because the card says so itself" in dry.stdout
    assert "This card is not complete" in built and publisher.plan()["card"]["undeclared"] == []
    silent = built.replace(marked_sections(built)["incomplete"], "")
    for text, gaps in ((silent, ("a licence", "section audit")), (built + "\nTODO: results\n", ("no blank",))):
        path.write_text(text)
        preview = publisher.run()
        assert preview.returncode == 0 and "--yes refuses the card as it is" in preview.stdout
        publisher.server.requests.clear()
        refused = publisher.run("--yes", "--json")
        assert refused.returncode == 1 and "--incomplete-card" in refused.stderr
        undeclared = json.loads(refused.stdout)["undeclared"]
        for gap in gaps:
            assert any(gap in line for line in undeclared) and gap in refused.stderr
        assert not publisher.server.requests, "nothing was even asked"
    done = publisher.run("--yes", "--no-verify", "--incomplete-card")
    assert done.returncode == 0 and "card: INCOMPLETE" in done.stdout, done.stderr


def test_what_a_completed_card_no_longer_says_goes_from_the_hub(publisher: Publisher) -> None:
    assert publisher.run("--yes", "--no-verify").returncode == 0
    path = publisher.folder / "README.md"
    path.write_text(path.read_text().replace(marked_sections(path.read_text())["incomplete"], ""))
    plan = publisher.plan("--yes", "--no-verify", "--incomplete-card")
    assert (plan["card"]["kept"], plan["card"]["only_remote"]) == ([], [])
    now = publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode()
    assert "not complete" not in now and now.count("## Columns") == 1


def test_published_data_is_verified_tagged_and_not_sent_twice(publisher: Publisher) -> None:
    done = publisher.run_alone("--yes", "--private")
    assert done.returncode == 0, done.stderr
    assert "verified: 4 files" in done.stdout
    assert "accuracy of right answers 1.0" in done.stdout
    assert publisher.is_published()
    assert publisher.repository().private
    again = publisher.plan("--yes", "--no-verify")
    assert {row["change"] for row in again["files"] if row["path"] != ".gitattributes"} == {"same"}
    assert again["published"] and not again["verified"]
    assert len(publisher.repository().log) == 2, "the initial commit, and one with everything"
    assert publisher.server.count("PUT /lfs/") == 2
    assert TOKEN not in publisher.said


def test_metric_is_published_as_a_space_and_scores_by_id(publisher: Publisher) -> None:
    done = publisher.run("--yes", "--private", kind="metric", repo="org/scale_vqa_acc")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout and "as the folder's" in done.stdout
    space = publisher.repository("spaces", "org/scale_vqa_acc")
    assert space.sdk == "gradio" and space.private
    assert not [path for path in space.files() if "__pycache__" in path]
    card = publisher.server.hub.bytes_of(space.files()["README.md"])
    assert card == (METRIC_FOLDER / "README.md").read_bytes(), "the card that the Hub makes is not one by hand"
    other = publisher.run(kind="metric", repo="org/other-name")
    assert other.returncode == 2 and "scale_vqa_acc" in other.stderr


def test_what_a_person_wrote_on_the_hub_stays(publisher: Publisher) -> None:
    assert publisher.run("--yes", "--no-verify").returncode == 0
    card = publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode()
    by_hand = card.replace("license: other", "license: cc-by-4.0").replace(
        "## Columns\n", "## Notes of the maintainers\n\nWritten by hand.\n\n## Columns\n"
    )
    publisher.repository().change(files={"README.md": by_hand, "thanks.txt": "to all"})
    local = publisher.folder / "README.md"
    local.write_text(local.read_text().replace("## Citation\n", "## Citation\n\nRendered anew.\n"))
    plan = publisher.plan("--yes", "--no-verify")
    assert (plan["card"]["kept"], plan["card"]["only_remote"]) == (["license"], ["## Notes of the maintainers"])
    assert changes(plan)["thanks.txt"] == "kept"
    now = publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode()
    assert "license: cc-by-4.0" in now and "Written by hand." in now and "Rendered anew." in now
    assert now.index("Written by hand.") < now.index("## Columns") < now.index("Rendered anew.")
    assert "thanks.txt" in publisher.repository().files()
    taken = publisher.plan("--yes", "--no-verify", "--replace", "license")
    assert "license: other" in publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode()
    assert taken["card"]["kept"] == []


def test_dataset_info_that_is_true_stays_and_a_false_one_is_refused(publisher: Publisher) -> None:
    local = (publisher.folder / "README.md").read_text()
    true = local.replace("download_size: ", "download_size: 9", 1)
    publisher.server.hub.create("datasets", REPO).change(files={"README.md": true})
    plan = publisher.plan("--yes", "--no-verify")
    assert plan["card"]["kept"] == ["dataset_info:default"]
    assert publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode() == true
    false = local.replace("num_examples: 12", "num_examples: 13", 1)
    publisher.repository().change(files={"README.md": false})
    refused = publisher.run("--yes", "--no-verify", "--tag", "v9.1")
    assert refused.returncode == 1
    assert "dataset_info of default" in refused.stderr and "12 rows of test" in refused.stderr
    assert publisher.server.hub.bytes_of(publisher.repository().files()["README.md"]).decode() == false
    assert publisher.run("--yes", "--no-verify", "--replace", "dataset_info:default").returncode == 0


def test_croissant_of_other_rows_is_refused(publisher: Publisher) -> None:
    path = publisher.folder / "croissant.json"
    path.write_text(croissant_metadata(publisher.folder, REPO, Licence("mit")))
    assert publisher.run().returncode == 0
    content = json.loads(path.read_text())
    shard = next(one for one in content["distribution"] if "sha256" in one)
    shard["sha256"] = "0" * 64
    for stale in (json.dumps(content), "[]"):
        path.write_text(stale)
        refused = publisher.run("--yes")
        assert refused.returncode == 1 and shard["contentUrl"] in refused.stderr
        assert "croissant.json: expected the SHA-256" in refused.stderr
    assert not publisher.server.hub.repositories


def test_a_folder_whose_files_are_not_those_of_its_card_is_refused(publisher: Publisher) -> None:
    shard = next((publisher.folder / "text").glob("*.parquet"))
    pq.write_table(pq.read_table(shard).slice(0, 5), shard)
    refused = publisher.run("--yes")
    assert refused.returncode == 1 and "README.md, dataset_info of text: expected 5 rows" in refused.stderr
    assert "on the Hub" not in refused.stderr and not publisher.server.hub.repositories


def test_a_remote_that_changed_since_the_dry_run_is_refused(publisher: Publisher) -> None:
    assert publisher.run("--yes", "--no-verify").returncode == 0
    (publisher.folder / "CITATION.cff").write_text("cff-version: 1.2.0\n")
    assert publisher.run("--tag", "v9.2").returncode == 0
    head = publisher.repository().change(files={"CITATION.cff": "by somebody else\n"})
    refused = publisher.run("--yes", "--tag", "v9.2")
    assert refused.returncode == 1
    assert "CITATION.cff (added)" in refused.stderr and "changed by somebody else" in refused.stderr
    assert publisher.repository().refs["main"] == head
    assert publisher.run("--tag", "v9.2").returncode == 0, "a new dry run shows the new state"
    assert publisher.run("--yes", "--no-verify", "--tag", "v9.2").returncode == 0


def test_a_folder_that_its_user_changed_since_the_dry_run_is_published(publisher: Publisher) -> None:
    assert publisher.run().returncode == 0
    card = publisher.folder / "README.md"
    card.write_text(card.read_text().replace("## Citation\n", "## Citation\n\nMended after a look at the plan.\n"))
    (publisher.folder / "CITATION.cff").write_text("cff-version: 1.2.0\n")
    done = publisher.run("--yes", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert publisher.is_published() and len(publisher.repository().log) == 2


def test_a_commit_between_plan_and_upload_is_refused(publisher: Publisher) -> None:
    publisher.server.hub.create("datasets", REPO)
    someone = HubFault("POST .*/commit/main", "call", do=lambda: publisher.repository().change(files={"a.txt": "x"}))
    publisher.server.problems = [someone]
    refused = publisher.run("--yes", "--no-verify")
    assert refused.returncode == 1
    assert "a.txt (added)" in refused.stderr
    assert sorted(publisher.repository().files()) == [".gitattributes", "a.txt"]
    assert not publisher.repository().tags


def test_old_shards_beside_new_ones_are_refused_until_they_are_deleted(publisher: Publisher) -> None:
    stale = {"default/test-00001-of-00002.parquet": b"PAR1 old", "notes/old.parquet": b"PAR1"}
    publisher.server.hub.create("datasets", REPO).change(files=stale)
    refused = publisher.run("--yes", "--no-verify")
    assert refused.returncode == 1 and "default/test-00001-of-00002.parquet" in refused.stderr
    plan = publisher.plan("--yes", "--no-verify", "--delete", "default/*")
    assert changes(plan)["default/test-00001-of-00002.parquet"] == "delete"
    files = publisher.repository().files()
    assert "default/test-00001-of-00002.parquet" not in files and "notes/old.parquet" in files
    assert publisher.is_published()


def test_a_version_that_was_published_stays_as_it_is(publisher: Publisher) -> None:
    assert publisher.run("--yes", "--no-verify").returncode == 0
    (publisher.folder / "CITATION.cff").write_text("cff-version: 1.2.0\n")
    refused = publisher.run("--yes", "--no-verify")
    assert refused.returncode == 1 and TAG in refused.stderr and "CITATION.cff" in refused.stderr
    assert publisher.run("--yes", "--no-verify", "--tag", "v9.1").returncode == 0
    assert publisher.repository().tags.keys() == {TAG, "v9.1"}
    again = publisher.run("--yes", "--no-verify")
    assert again.returncode == 1, "main holds every file by now, the old tag does not"
    publisher.repository().change(files={"README.md": None})
    card = publisher.run("--yes", "--no-verify", "--tag", "v9.1")
    assert card.returncode == 0 and "it remains at" in card.stdout


def test_one_pull_request_however_often(publisher: Publisher) -> None:
    publisher.server.hub.create("datasets", REPO)
    publisher.server.problems = [HubFault("POST .*/commit/main", "drop after")]
    first = publisher.run("--yes", "--pr")
    assert first.returncode == 0, first.stderr
    assert "refs/pr/1" in first.stdout and "verified: 4 files" in first.stdout
    second = publisher.run("--yes", "--pr", "--no-verify")
    assert second.returncode == 0 and "refs/pr/1" in second.stdout
    repository = publisher.repository()
    assert len(repository.pulls) == 1 and not repository.tags
    assert sorted(repository.files()) == [".gitattributes"]
    assert "publish.json" in repository.files("refs/pr/1")


def test_with_the_clients_default_transport(publisher: Publisher) -> None:
    """Xet is on, as the client has it by default. Small files only: they go without Xet."""
    metric = {"kind": "metric", "repo": "org/scale_vqa_acc", "HF_HUB_DISABLE_XET": "0"}
    assert publisher.run("--yes", "--no-verify", **metric).returncode == 0
    space = publisher.repository("spaces", "org/scale_vqa_acc")
    assert [ref for ref, _ in space.log] == ["main", "main"] and space.tags[TAG] == space.refs["main"]
    space.change(files={"README.md": None})
    publisher.server.problems = [HubFault("POST .*/commit/main", "hang after")]
    publisher.kill_when_hanging("--yes", "--no-verify", "--pr", **metric)
    done = publisher.run("--yes", "--no-verify", "--pr", **metric)
    assert done.returncode == 0, done.stderr
    assert [pull["status"] for pull in space.pulls] == ["open"] and "README.md" in space.files("refs/pr/1")


def test_private_is_not_made_public(publisher: Publisher) -> None:
    publisher.server.hub.create("datasets", REPO, private=False)
    refused = publisher.run("--yes", "--private")
    assert refused.returncode == 1 and "public" in refused.stderr
    assert sorted(publisher.repository().files()) == [".gitattributes"]


@pytest.mark.parametrize(
    ("arguments", "env", "status", "says"),
    [
        (("--yes",), {"HF_TOKEN": "", "HF_TOKEN_PATH": "/nonexistent"}, 2, "hf auth login"),
        ((), {"HF_TOKEN": "hf_" + "x" * 34}, 1, "log in again"),
        (("--yes",), {"HF_TOKEN": READ_ONLY}, 1, "write access"),
        ((), {"HF_HOME": "/dev/null/home"}, 1, "HF_HOME"),
        (("--yes",), {"HF_HUB_OFFLINE": "1"}, 1, "HF_HUB_OFFLINE"),
        (("--yes",), {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "cannot reach http://127.0.0.1:9"),
        (("--tag", "../v1"), {}, 2, "a tag is"),
    ],
)
def test_one_clear_error(
    publisher: Publisher, arguments: tuple[str, ...], env: dict[str, str], status: int, says: str
) -> None:
    done = publisher.run_alone(*arguments, **env)
    assert done.returncode == status, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.lower().startswith("error")]) == 1
    for secret in (TOKEN, READ_ONLY, env.get("HF_TOKEN") or TOKEN):
        assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"HF_TOKEN": "", "HF_TOKEN_PATH": "/nonexistent"}, "no token, and no public repository"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9"),
    ],
)
def test_the_plan_and_the_scan_need_neither_token_nor_network(
    publisher: Publisher, env: dict[str, str], says: str
) -> None:
    done = publisher.run_alone(**env)
    assert done.returncode == 0, done.stderr
    assert f"NOT READ: {says}" in done.stdout.replace("reading org/scale-vqa: ", "") and "scan: 3 files" in done.stdout
    assert "unknown" in done.stdout and "nothing was sent" in done.stdout
    assert not list(publisher.home.rglob("*.json")), "what was not read is not noted as seen"
    (publisher.folder / "notes.txt").write_text("see /home/anna/slides\n")
    refused = publisher.run_alone(**env)
    assert refused.returncode == 1 and "no local path" in refused.stderr


@pytest.mark.parametrize("repo", ["scale-vqa", "org/a/b", "org/..", "org/a--b", "-org/a", "org/a b", "https://x/y"])
def test_repository_names_are_checked(publisher: Publisher, repo: str) -> None:
    done = publisher.run(repo=repo)
    assert done.returncode == 2 and "ORG/NAME" in done.stderr
    assert not publisher.server.requests


def test_the_token_is_never_shown(publisher: Publisher) -> None:
    leak = (("X-Error-Message", f"bad token {TOKEN}"),)
    publisher.server.problems = [HubFault("POST .*/commit/main", "status", 400, headers=leak)]
    done = publisher.run_alone("--yes", HF_DEBUG="1", HF_HUB_VERBOSITY="debug")
    assert done.returncode == 1
    assert "hf_***" in done.stderr, "the server said it, and it was masked"
    code = f"""
import sys, logging, warnings
from model_card.hub.command import mask_streams
logging.basicConfig(level=0)
mask_streams({TOKEN!r})
print({TOKEN!r}); logging.error({TOKEN!r}); warnings.warn({TOKEN!r})
raise RuntimeError({TOKEN!r})"""
    import subprocess
    import sys

    crash = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert crash.returncode == 1 and crash.stderr.count("hf_***") >= 3 and "hf_***" in crash.stdout
    lines = [line for line in crash.stderr.splitlines() if "mask_streams(" not in line and "raise" not in line]
    preview = " ".join(lines)
    assert TOKEN not in publisher.said + crash.stdout + preview
    kept = [path for path in publisher.home.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if TOKEN.encode() in path.read_bytes()]


def test_manifest_lets_a_stranger_check_every_file(publisher: Publisher) -> None:
    assert publisher.run("--yes", "--no-verify").returncode == 0
    files = publisher.repository().files()
    manifest = json.loads(publisher.server.hub.bytes_of(files["publish.json"]))
    assert manifest["files"].keys() == files.keys() - {".gitattributes", "publish.json"}
    assert {name: blob.sha256 for name, blob in files.items() if name in manifest["files"]} == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }


def test_an_app_that_cannot_start_is_not_sent(publisher: Publisher) -> None:
    shutil.rmtree(publisher.folder)
    shutil.copytree(ROOT / "model_card/leaderboard", publisher.folder, ignore=shutil.ignore_patterns("__pycache__"))
    space = {"kind": "space", "repo": "org/board"}
    assert publisher.plan(**space)["card"]["gaps"] == []
    card = publisher.folder / "README.md"
    whole = card.read_text()
    card.write_text(whole.replace("app_file: app.py", "app_file: other.py"))
    refused = publisher.run("--yes", **space)
    assert refused.returncode == 1 and "an app_file that exists" in refused.stderr
    card.write_text(whole)
    (publisher.folder / "app.py").write_text("def (\n")
    refused = publisher.run("--yes", **space)
    assert refused.returncode == 1 and "app.py: expected a readable .py file" in refused.stderr
    assert not publisher.server.hub.repositories
