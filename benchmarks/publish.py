"""Memory and time of a large upload, beside the Hub's own ``hf upload``, both to the test double on the loopback.

``python benchmarks/publish.py [--gigabytes 1]``. Each runs in a process of its own, the server in a third, so that the
memory is the client's. What publishing does more: it scans and hashes every file first, and reads the remote after.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVE = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from hub_server import hub_server
with hub_server(Path({store!r})) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
MEASURED = """
import resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
sys.stderr.write(done.stderr[-2000:] if done.returncode else "")
print(done.returncode, time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def make_weights(folder: Path, gigabytes: float) -> None:
    """Writes one safetensors file of random numbers, a block at a time, with a config and a card."""
    size = int(gigabytes * 1e9) // 4 * 4
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    numbers = random.Random(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, 1 << 22):
            file.write(numbers.randbytes(min(1 << 22, size - start)))
    (folder / "config.json").write_text("{}\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Random numbers\n")


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Returns seconds and peak resident megabytes of a command.

    Raises:
        SystemExit: where it fails.
    """
    line = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    status, seconds, megabytes = done.stdout.split()
    if int(status):
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return float(seconds), float(megabytes)


def main() -> None:
    """Prints a row for each size and program, and the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--gigabytes", type=float, default=1.0)
    large = arguments.parse_args().gigabytes
    figures = {}
    print(f"{'':22}{'GB':>6}{'seconds':>10}{'peak MB':>10}")
    for size in (0.01, large):
        with tempfile.TemporaryDirectory() as name:
            folder, store = Path(name) / "weights", Path(name) / "hub"
            folder.mkdir()
            make_weights(folder, size)
            code = SERVE.format(tests=str(ROOT / "tests" / "helpers"), store=str(store))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            with subprocess.Popen([sys.executable, "-c", code], **pipes) as server:
                url = server.stdout.readline().strip()
                own = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": f"{name}/home", "HF_HUB_OFFLINE": "0"}
                environment = {**os.environ, **own, "HF_TOKEN": "hf_" + "RecognisableTokenOfThisTest0123456"}
                publish = [sys.executable, "-m", "scale_vqa_eval.cli", "publish", "model", str(folder)]
                publish += ["--repo", "org/ours", "--yes", "--no-verify", "--incomplete-card"]
                upload = [str(Path(sys.executable).with_name("hf")), "upload", "org/theirs", str(folder)]
                # theirs second: it finds the content stored already unless the store is emptied, so ours is too
                for program, command in (("scale-vqa publish", publish), ("hf upload", upload)):
                    for path in store.glob("*"):
                        path.unlink()
                    figures[program, size] = measured(command, environment)
                    seconds, megabytes = figures[program, size]
                    print(f"{program:22}{size:6.2f}{seconds:10.1f}{megabytes:10.0f}", flush=True)
                server.stdin.close()
    time_ratio = figures["scale-vqa publish", large][0] / figures["hf upload", large][0]
    growth = figures["scale-vqa publish", large][1] - figures["scale-vqa publish", 0.01][1]
    print(
        f"publish takes {time_ratio:.2f} times as long as hf upload; {growth:+.0f} MB for {large - 0.01:.2f} GB more"
    )


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all")
