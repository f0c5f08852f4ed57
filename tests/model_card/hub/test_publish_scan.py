"""What must not be published is found, wherever it stands, and nothing else is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model_card.hub import scan
from model_card.hub.contents import ScanReport
from model_card.hub.local import KINDS, LARGEST, list_files
from model_card.hub.scan import OWN_SECRET, Finding, LocalSecrets, problems_of, scan_text

NOBODY = LocalSecrets((), ())
# put together here, so that no scanner takes this file for a leak
SECRETS = {
    "hub": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws secret": 'aws_secret_key = "' + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" + '"',
    "github": "ghp_" + "0123456789abcdefghijABCDEFGHIJ456789",
    "slack": "xoxb-" + "123456789012-1234567890123-abcdefghijklmnop",
    "private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "anthropic": "sk-ant-" + "api03-abcdefghijklmnopqrstuvwxyz0123",
    "openai": "sk-proj-" + "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH",
    "url": "https://user:" + "S3cretPass@example.org/data",
    "npm": "npm_" + "0123456789abcdefghijABCDEFGHIJ456789",
    "replicate": "r8_" + "0123456789abcdefghijABCDEFGHIJ4567890",
    "groq": "gsk_" + "0123456789abcdefghijABCDEFGHIJ4567890123456789abcdef",
    "wandb": "wandb login " + "0123456789abcdef0123456789abcdef01234567",
    "bearer": "Authorization: Bearer " + "0123456789abcdefghijABCDEFGHIJ",
    "basic": "Authorization: Basic " + "YW5uYTpob3JzZTRiYXR0ZXJ5",
    "netrc": "machine api.example.org login anna password " + "horse4battery",
    "keyword": 'password = "' + "correct4horse9battery" + '"',
}
PATHS = [
    "/home/anna/slides/a.svs",
    "/Users/anna/x",
    "/mnt/nas/tcga/a.jpg",
    "/gpfs/scratch/u1/ckpt",
    "/" + "root/model",
]
PATHS += [r"C:\Users\anna\slides", "file:///srv/data/x.json"]
HARMLESS = [
    "https://huggingface.co/datasets/org/scale-vqa/resolve/main/data/a.parquet",
    "[docs](docs/data.md), default/test-00000-of-00001.parquet and/or ./home/x, TCGA-A1-A0SJ-01Z-00-DX1",
    "content sha256:" + "0123456789abcdef" * 4,
    'eos_token: "<|im_end|>", pad_token = "<|endoftext|>", password is not needed',
    "arXiv:2606.17412, n/a 10/40/200x, 95% interval 0.1/0.2, s3://bucket/data/x",
    '{"image_path": "SLIDE/rois/10_Y_X.jpg", "token": null}',
]


def scan_file(name: str, path: Path, own: LocalSecrets) -> list[Finding]:
    return scan.scan_file(name, path, own, ScanReport())


def kinds(found: list) -> set[str]:
    return {one.kind for one in found}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_in_text_and_masked(name: str, tmp_path: Path) -> None:
    secret = SECRETS[name]
    path = tmp_path / "notes.md"
    path.write_text(f"first line\nsee {secret}\n")
    found = scan_file("notes.md", path, NOBODY)
    assert kinds(found) == {"secret"}
    assert {one.place for one in found} == {"line 2"}
    value = secret.split('"')[1] if '"' in secret else secret
    assert value not in " ".join(str(problem) for problem in problems_of(found))


@pytest.mark.parametrize("before", ["\n", "\t", "caf\u00e9 ", '"', "\\n"])
@pytest.mark.parametrize("name", ["hub", "github", "npm", "google"])
def test_a_secret_behind_an_escaped_character_is_found(name: str, before: str, tmp_path: Path) -> None:
    value = f"x{before}{SECRETS[name]}\u00e9"
    (tmp_path / "a.json").write_text(json.dumps({"a": [{"note": value}]}))
    (tmp_path / "b.json").write_text(json.dumps({"inner": json.dumps({value: 1})}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"note": value}) + "\n")
    (tmp_path / "a.txt").write_text(json.dumps(value))
    (tmp_path / "c.json").write_text(json.dumps({"note": value}) + "not JSON")
    pq.write_table(pa.table({"text": [json.dumps({"note": value})]}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        found = scan_file(path.name, path, NOBODY)
        assert kinds(found) == {"secret"}, path.name
        assert len(found) == 1 and SECRETS[name] not in str(found[0].problem())


def test_what_parquet_and_pictures_hold_besides_values_is_read(tmp_path: Path) -> None:
    key = SECRETS["hub"]
    picture, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", f"by {key}", zip=True)
    Image.new("RGB", (8, 8)).save(picture, "PNG", pnginfo=info)
    field = pa.field("a", pa.string(), metadata={"note": key})
    pairs = pa.array([[("x", key)]], pa.map_(pa.string(), pa.string()))
    tables = {
        "column name": pa.table({key: ["x"]}),
        "field metadata": pa.table({"a": ["x"]}, schema=pa.schema([field])),
        "map": pa.table({"a": pairs}),
        "view": pa.table({"a": pa.array([f"a\n{key}"], pa.string_view())}),
        "UTF-16": pa.table({"a": [f"see {key}".encode("utf-16-le")]}),
        "picture": pa.table({"a": [picture.getvalue()]}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / "a.parquet")
        assert kinds(scan_file("a.parquet", tmp_path / "a.parquet", NOBODY)) == {"secret"}, name
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    (tmp_path / "a.txt").write_text(f"see {key}", encoding="utf-16")
    for name in ("a.png", "a.txt"):
        assert kinds(scan_file(name, tmp_path / name, NOBODY)) == {"secret"}, name


def test_the_report_says_how_files_were_read(tmp_path: Path) -> None:
    report = ScanReport()
    for name, text in (("a.json", "{}"), ("b.json", "{"), ("a.md", "# A"), ("c.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        scan.scan_file(name, tmp_path / name, NOBODY, report)
    assert report.read == {"JSON": 1, "text": 3}
    assert [note.split(" was ")[0] for note in report.notes] == ["b.json", "c.yaml"]
    assert any("not searched" in line for line in report.lines(""))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_this_machine_is_found_in_text_json_and_parquet(path: str, tmp_path: Path) -> None:
    assert kinds(scan_text("README.md", f"made from {path}, see there", NOBODY)) == {"local path"}
    (tmp_path / "a.json").write_text(json.dumps({"from": path}))
    assert kinds(scan_file("a.json", tmp_path / "a.json", NOBODY)) == {"local path"}
    pq.write_table(pa.table({"id": ["a", "b"], "image": [{"path": None}, {"path": path}]}), tmp_path / "a.parquet")
    found = scan_file("a.parquet", tmp_path / "a.parquet", NOBODY)
    assert kinds(found) == {"local path"} and "column image.path" in found[0].place


@pytest.mark.parametrize(
    "path", [r"d:\slides\a.svs", r"\\nas-01\share\slides\a.svs", "/blue/lab/u1/a.svs", "e:/slides/a.svs"]
)
def test_a_value_that_is_a_path_of_any_root_is_found(path: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"from": path}))
    pq.write_table(pa.table({"id": ["a"], "wsi_path": [path]}), tmp_path / "a.parquet")
    assert kinds(scan_file("a.parquet", tmp_path / "a.parquet", NOBODY)) == {"local path"}
    assert kinds(scan_file("a.json", tmp_path / "a.json", NOBODY)) == {"local path"}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_a_card_may_say_is_left_alone(text: str) -> None:
    assert scan_text("README.md", text, NOBODY) == []
    assert scan_text("a.json", json.dumps({"text": text}), NOBODY) == []


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_text_can_be_scanned(text: str) -> None:
    for one in scan_text("README.md", text, NOBODY):
        assert one.hint and one.place


def test_own_secrets_are_found_in_the_bytes_of_images_and_cannot_be_allowed(tmp_path: Path) -> None:
    own = LocalSecrets((TOKEN, "a-password-of-mine"), (str(tmp_path),))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = f"scanned with {TOKEN} by /home/anna/scanner"
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    image = {"bytes": buffer.getvalue(), "path": "1.jpg"}
    table = pa.table(
        {"low_mag": [image, image], "note": ["x", f"in {tmp_path}/a"], "tags": [["a-password-of-mine"], []]}
    )
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    found = scan_file("a.parquet", tmp_path / "a.parquet", own)
    assert [one.kind for one in found].count(OWN_SECRET) == 2
    places = {one.place.split(",")[0] for one in found}
    assert {"column low_mag.bytes", "column note"} <= places and any(p.startswith("column tags") for p in places)
    text = " ".join(str(problem) for problem in problems_of(found))
    assert TOKEN not in text and "a-password-of-mine" not in text
    assert not [one for one in found if one.kind == OWN_SECRET and "--allow" in str(one.problem())]


def test_header_of_safetensors_and_metadata_of_parquet_are_read(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"from": "/home/anna/run7"}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    assert kinds(scan_file("m.safetensors", tmp_path / "m.safetensors", NOBODY)) == {"local path"}
    table = pa.table({"a": [1]}).replace_schema_metadata({"source": "/mnt/nas/x.csv"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert kinds(scan_file("a.parquet", tmp_path / "a.parquet", NOBODY)) == {"local path"}


def test_a_vocabulary_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"/home/user/": 1, "/api/v1/x": 2}))
    assert scan_file("vocab.json", tmp_path / "vocab.json", NOBODY) == []


def test_files_that_do_not_belong_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "scale-vqa"
    (folder / "default").mkdir(parents=True)
    (folder / "README.md").write_text("# card\n")
    (tmp_path / "outside.json").write_text("{}")
    (folder / "linked.json").symlink_to(tmp_path / "outside.json")
    (folder / "inside.md").symlink_to(folder / "README.md")
    (folder / "more").symlink_to(tmp_path)
    for name in (".env", "scale-vqa.py", "default/rows.pkl", "default/.DS_Store"):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    with (folder / "huge.parquet").open("wb") as file:
        file.truncate(LARGEST + 1)
    files, left_out, found = list_files(folder, KINDS["dataset"])
    assert [name for name, _ in files] == ["README.md", "inside.md"]
    assert [name for name, _ in left_out] == ["__pycache__/a.pyc"]
    assert {one.file: one.kind for one in found} == {
        ".env": "hidden",
        ".git": "hidden",
        "default/.DS_Store": "hidden",
        "default/rows.pkl": "unexpected",
        "huge.parquet": "too large",
        "linked.json": "outside",
        "more": "outside",
        "scale-vqa.py": "unexpected",
    }


def test_what_a_download_from_the_hub_leaves_behind_stays_out(tmp_path: Path) -> None:
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    (tmp_path / ".cache/other").mkdir()
    names = ("README.md", ".gitattributes", ".cache/huggingface/CACHEDIR.TAG", ".cache/huggingface/download/x.lock")
    for name in (*names, ".cache/other/x.txt"):
        (tmp_path / name).write_text("x")
    files, left_out, found = list_files(tmp_path, KINDS["dataset"])
    assert [name for name, _ in files] == ["README.md"]
    assert [name for name, _ in left_out] == [".gitattributes", ".cache/huggingface/"]
    assert [one.file for one in found] == [".cache/other/x.txt"]


@pytest.mark.slow
def test_the_authors_file_with_paths_of_their_cluster_is_caught(shared: Path) -> None:
    found = scan_file("sft_val.json", shared / "scale_vqa" / "sft_val.json", NOBODY)
    assert kinds(found) == {"local path"} and len(found) > 100
    assert len(problems_of(found)) == 11
    assert scan_file("val.json", shared / "scale_vqa" / "val.json", NOBODY) == []
