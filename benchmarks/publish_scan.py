"""What the scan of ``scale-vqa publish`` finds and misses: secrets and local paths planted in every kind of file.

``python benchmarks/publish_scan.py [--seed 0] [--rounds 1]``. Each plant is one value of one kind in one carrier (a
field of a file format); the values are random, in the format of their provider. Then files without secrets are
scanned: the metric, a release folder of synthetic slides, and lines that look like secrets but are not.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import string
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from model_card.hub.contents import ScanReport
from model_card.hub.scan import LocalSecrets, scan_file
from scale_vqa_eval.schema import METRIC_FOLDER

NOBODY = LocalSecrets((), ())
WORD = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def drawn(alphabet: str, length: int) -> Callable[[random.Random], str]:
    """Returns a generator of random texts."""
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(length))


def after(prefix: str, alphabet: str, length: int, suffix: str = "") -> Callable[[random.Random], str]:
    """Returns a generator of a prefix and a random text."""
    text = drawn(alphabet, length)
    return lambda rng: f"{prefix}{text(rng)}{suffix}"


def login(rng: random.Random) -> str:
    return "Authorization: Basic " + base64.b64encode(f"anna:{drawn(WORD, 12)(rng)}".encode()).decode()


SECRETS: dict[str, Callable[[random.Random], str]] = {
    "Hugging Face": after("hf_", WORD, 34),
    "AWS id": after("AKIA", string.ascii_uppercase + string.digits, 16),
    "AWS secret key": after("aws_secret_access_key = ", WORD + "/+", 40),
    "AWS id and key": lambda rng: f"AKIA{drawn(string.ascii_uppercase, 16)(rng)},{drawn(WORD, 37)(rng)}/+z",
    "GitHub": after("ghp_", WORD, 36),
    "GitHub fine-grained": after("github_pat_", WORD + "_", 82),
    "GitLab": after("glpat-", WORD, 20),
    "Slack": lambda rng: (
        f"xoxb-{drawn(string.digits, 12)(rng)}-{drawn(string.digits, 12)(rng)}-{drawn(WORD, 24)(rng)}"
    ),
    "Google": after("AIza", WORD, 35),
    "OpenAI": after("sk-proj-", WORD, 48),
    "Anthropic": after("sk-ant-api03-", WORD, 40),
    "npm": after("npm_", WORD, 36),
    "Replicate": after("r8_", WORD, 37),
    "Groq": after("gsk_", WORD, 52),
    "Weights & Biases": after("wandb login ", HEX, 40),
    "Weights & Biases, variable": after("WANDB_API_KEY=", HEX, 40),
    "Bearer header": lambda rng: f"Authorization: Bearer {drawn(WORD, 39)(rng)}7",
    "Basic header": login,
    "netrc": lambda rng: f"machine api.example.org login anna password {drawn(WORD, 14)(rng)}",
    "private key": lambda rng: "-----BEGIN RSA " + f"PRIVATE KEY----- {drawn(WORD, 60)(rng)}",
    "JSON web token": lambda rng: ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"HS256","typ":"JWT"}', json.dumps({"sub": drawn(WORD, 9)(rng)}).encode(), b"s" * 32)
    ),
    "Stripe": after("sk_live_", WORD, 24),
    "SendGrid": lambda rng: f"SG.{drawn(WORD, 22)(rng)}.{drawn(WORD, 43)(rng)}",
    "PyPI": after("pypi-AgEIcHlwaS5vcmc", WORD, 80),
    "URL with a password": lambda rng: f"https://anna:{drawn(WORD, 12)(rng)}@example.org/data",
    "password": lambda rng: f'password = "{drawn(WORD, 12)(rng)}1"',
}
PATHS: dict[str, Callable[[random.Random], str]] = {
    "home": lambda rng: f"/home/{drawn(string.ascii_lowercase, 6)(rng)}/slides/a.svs",
    "macOS": lambda rng: f"/Users/{drawn(string.ascii_lowercase, 6)(rng)}/run7",
    "mount": lambda rng: f"/mnt/{drawn(string.ascii_lowercase, 5)(rng)}/tcga/a.jpg",
    "cluster": lambda rng: f"/gpfs/scratch/{drawn(string.ascii_lowercase, 4)(rng)}/ckpt",
    "Windows": lambda rng: f"C:/Users/{drawn(string.ascii_lowercase, 6)(rng)}/slides",
    "file URL": lambda rng: f"file:///srv/{drawn(string.ascii_lowercase, 6)(rng)}/x.json",
}


def text_file(name: str, form: str = "see {}\n", encoding: str = "utf-8") -> Callable[[Path, str], Path]:
    """Returns a writer of a text file."""

    def write(folder: Path, value: str) -> Path:
        path = folder / name
        path.write_text(form.replace("{}", value), encoding=encoding)
        return path

    return write


def json_file(name: str, wrap: Callable[[str], object], ascii_only: bool = True) -> Callable[[Path, str], Path]:
    """Returns a writer of JSON, or of a line of it."""

    def write(folder: Path, value: str) -> Path:
        path = folder / name
        path.write_text(json.dumps(wrap(value), ensure_ascii=ascii_only) + "\n", encoding="utf-8")
        return path

    return write


def parquet(make: Callable[[str], pa.Table]) -> Callable[[Path, str], Path]:
    """Returns a writer of Parquet."""

    def write(folder: Path, value: str) -> Path:
        pq.write_table(make(value), folder / "a.parquet")
        return folder / "a.parquet"

    return write


def column(make: Callable[[str], list[object]], kind: pa.DataType | None = None) -> Callable[[Path, str], Path]:
    """Returns a writer of a Parquet column."""
    return parquet(lambda value: pa.table({"id": ["1", "2"], "a": pa.array(make(value), kind)}))


def png(value: str, chunk: str) -> bytes:
    """Returns a picture with a text in its metadata."""
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    if chunk == "iTXt":
        info.add_itxt("Comment", value, zip=True)
    else:
        info.add_text("Comment", value, zip=chunk == "zTXt")
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def jpeg(value: str, how: str) -> bytes:
    """Returns a picture with a text in its comment or its EXIF."""
    exif, buffer = Image.Exif(), io.BytesIO()
    if how == "EXIF":
        exif[0x010E] = value
    elif how == "EXIF, UTF-16":
        exif[0x9C9C] = value.encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif, comment=value.encode() if how == "comment" else b"")
    return buffer.getvalue()


def picture(name: str, make: Callable[[str], bytes]) -> Callable[[Path, str], Path]:
    """Returns a writer of a picture."""

    def write(folder: Path, value: str) -> Path:
        (folder / name).write_bytes(make(value))
        return folder / name

    return write


def safetensors(folder: Path, value: str) -> Path:
    header = json.dumps({"__metadata__": {"from": f"x\n{value}"}}).encode()
    (folder / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder / "m.safetensors"


def field_metadata(value: str) -> pa.Table:
    schema = pa.schema([pa.field("a", pa.string(), metadata={"note": value})])
    return pa.table({"a": ["x"]}, schema=schema)


CARRIERS: dict[str, Callable[[Path, str], Path]] = {
    "Markdown": text_file("README.md"),
    "text, UTF-16": text_file("a.txt", encoding="utf-16"),
    "text, UTF-16 without mark": text_file("a.txt", encoding="utf-16-le"),
    "text after a literal \\n": text_file("a.txt", "x\\n{}\\n"),
    "CSV": text_file("a.csv", "id,note\n1,{}\n"),
    "HTML": text_file("a.html", "<p>&quot;{}&quot;</p>"),
    "YAML": lambda folder, value: text_file("a.yaml", f"note: {json.dumps(value)}\n")(folder, ""),
    "Python string": lambda folder, value: text_file("a.py", f"X = {value!r}\n")(folder, ""),
    "BibTeX": text_file("a.bib", "@misc{a, note = {see {} }}\n"),
    "JSON value": json_file("a.json", lambda value: {"note": value}),
    "JSON after \\n": json_file("a.json", lambda value: {"note": f"x\n{value}\nx"}),
    "JSON after \\t": json_file("a.json", lambda value: {"note": f"x\t{value}\tx"}),
    "JSON after \\u00e9": json_file("a.json", lambda value: {"note": f"caf\u00e9 {value}\u00e9 x"}),
    "JSON after a quote": json_file("a.json", lambda value: {"note": f'"{value}"'}),
    "JSON, deep": json_file("a.json", lambda value: {"a": [[{"b": [{"c": f"\n{value}"}]}]]}),
    "JSON key": json_file("a.json", lambda value: {f"\n{value}": 1}),
    "JSON in JSON": json_file("a.json", lambda value: {"note": json.dumps({"inner": f"x\n{value}"})}),
    "JSON lines": json_file("a.jsonl", lambda value: {"response": f"x\n{value}"}),
    "notebook": json_file("a.ipynb", lambda value: {"cells": [{"source": ["import x\n", f"x = 1  # {value}\n"]}]}),
    "Parquet text": column(lambda value: ["x", value]),
    "Parquet text after a line": column(lambda value: ["x", f"y\n{value}"]),
    "Parquet large text": column(lambda value: ["x", value], pa.large_string()),
    "Parquet text view": column(lambda value: ["x", value], pa.string_view()),
    "Parquet JSON text": column(lambda value: ["x", json.dumps({"a": f"\n{value}"})]),
    "Parquet list": column(lambda value: [["x"], ["x", value]]),
    "Parquet struct": column(lambda value: [{"path": None}, {"path": value}]),
    "Parquet list of structs": column(lambda value: [[], [{"path": value}]]),
    "Parquet map key": column(lambda value: [[], [(value, "x")]], pa.map_(pa.string(), pa.string())),
    "Parquet map value": column(lambda value: [[], [("x", value)]], pa.map_(pa.string(), pa.string())),
    "Parquet dictionary": column(lambda value: ["x", value], pa.dictionary(pa.int32(), pa.string())),
    "Parquet bytes": column(lambda value: [b"x", f"y {value}".encode()]),
    "Parquet bytes, UTF-16": column(lambda value: [b"x", f"y {value}".encode("utf-16-le")]),
    "Parquet column name": parquet(lambda value: pa.table({value: ["x"]})),
    "Parquet field metadata": parquet(field_metadata),
    "Parquet file metadata": parquet(lambda value: pa.table({"a": ["x"]}).replace_schema_metadata({"note": value})),
    "Parquet PNG, compressed text": column(lambda value: [b"x", png(value, "zTXt")]),
    "Parquet JPEG, EXIF": column(lambda value: [{"bytes": jpeg("", "EXIF")}, {"bytes": jpeg(value, "EXIF")}]),
    "PNG text": picture("a.png", lambda value: png(value, "tEXt")),
    "PNG compressed text": picture("a.png", lambda value: png(value, "zTXt")),
    "PNG international text": picture("a.png", lambda value: png(value, "iTXt")),
    "JPEG comment": picture("a.jpg", lambda value: jpeg(value, "comment")),
    "JPEG EXIF": picture("a.jpg", lambda value: jpeg(value, "EXIF")),
    "JPEG EXIF, UTF-16": picture("a.jpg", lambda value: jpeg(value, "EXIF, UTF-16")),
    "safetensors header": safetensors,
}


def harmless_lines(rng: random.Random) -> list[str]:
    """Returns texts that look like secrets or paths but are not: hashes, ids, links, prose, vocabularies."""
    return [
        f"content sha256:{drawn(HEX, 64)(rng)}, commit {drawn(HEX, 40)(rng)}, blob {drawn(HEX, 32)(rng)}",
        f"TCGA-{drawn(string.ascii_uppercase, 2)(rng)}-{drawn(WORD.upper(), 4)(rng)}-01Z-00-DX1.{drawn(HEX, 8)(rng)}",
        f"{drawn(HEX, 8)(rng)}-{drawn(HEX, 4)(rng)}-4{drawn(HEX, 3)(rng)}-a{drawn(HEX, 3)(rng)}-{drawn(HEX, 12)(rng)}",
        f"https://huggingface.co/datasets/org/scale-vqa/resolve/{drawn(HEX, 40)(rng)}/data/a.parquet",
        f"data:image/png;base64,{base64.b64encode(rng.randbytes(90)).decode()}",
        zlib.compress(rng.randbytes(30)).hex(),
        "A bearer token is needed; basic understanding, basic staining and basic pathology are not secrets.",
        '{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "password": null, "api_key_env": "OPENAI_API_KEY"}',
        "default/test-00000-of-00001.parquet and/or ./home/x, 10/40/200x, n/a, 95% 0.1/0.2, s3://bucket/data/x",
        f"wandb 0.19, run {drawn(WORD.lower(), 8)(rng)}; machine learning on login nodes, no password",
    ]


def main() -> None:
    """Prints found and missed by kind and by carrier, and the false alarms."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--rounds", type=int, default=1, help="plants of each kind in each carrier")
    given = arguments.parse_args()
    rng, started = random.Random(given.seed), time.monotonic()
    planted: Counter[str] = Counter()
    missed: dict[str, list[str]] = defaultdict(list)
    for _ in range(given.rounds):
        for group, kinds in (("secret", SECRETS), ("local path", PATHS)):
            for kind, make in kinds.items():
                for carrier, write in CARRIERS.items():
                    with tempfile.TemporaryDirectory() as folder:
                        path = write(Path(folder), make(rng))
                        found = {one.kind for one in scan_file(path.name, path, NOBODY, ScanReport())}
                    planted[group] += 1
                    if group not in found:
                        missed[group].append(f"{kind} in {carrier}")
    for group, count in planted.items():
        share = 100 * (1 - len(missed[group]) / count)
        print(f"{group}: {count} planted, {count - len(missed[group])} found ({share:.1f}%)")
        for name, number in sorted(Counter(missed[group]).items()):
            print(f"  missed {number} x {name}")
    alarms, files = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [line for _ in range(200) for line in harmless_lines(rng)]
        (folder / "lines.txt").write_text("\n".join(lines))
        (folder / "lines.json").write_text(json.dumps([{"text": line} for line in lines]))
        pq.write_table(
            pa.table({"text": lines, "bytes": [rng.randbytes(2000) for _ in lines]}), folder / "lines.parquet"
        )
        build = [sys.executable, "-m", "scale_vqa_eval.cli", "build", "phantom", "--slides", "4", "--out"]
        subprocess.run([*build, str(folder / "scale-vqa")], check=True, stdout=subprocess.DEVNULL)
        for path in [*folder.rglob("*"), *METRIC_FOLDER.glob("*")]:
            if path.is_file() and path.suffix != ".pyc" and ".lock" not in path.name:
                files += 1
                alarms += [f"{path.name}: {one.what}" for one in scan_file(path.name, path, NOBODY, ScanReport())]
    print(f"without secrets: {files} files, {2 * len(lines)} lines, {len(alarms)} false alarms")
    for alarm in alarms[:20]:
        print(f"  {alarm}")
    print(f"{time.monotonic() - started:.0f} s")
    enough = all(len(missed[group]) <= 0.05 * count for group, count in planted.items())
    sys.exit(0 if enough and not alarms else 1)


if __name__ == "__main__":
    main()
