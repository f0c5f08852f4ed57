"""Lets PyPI's torchvision be imported beside a CPU build of torch: run it with the Python of the environment to fix.

PyPI's torchvision wheel for Linux is a CUDA build. Beside a torch without CUDA its compiled operators do not load, and
its import ends with ``operator torchvision::nms does not exist``, which takes transformers' image processors down with
it. Nothing here calls those operators: it is enough that their schemas are declared just before torchvision is
imported. A ``.pth`` line does that in every process of the environment, so that child processes of a launcher or a
server have it too. Where torch has CUDA, or torchvision is a ``+cpu`` build, the hook does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE = "_torchvision_cpu_schemas"
HOOK = '''"""Declares the operators of a CUDA torchvision where torch has none; made by tools/torchvision_hook.py."""

import sys


class _DeclareSchemas:
    """A finder that finds nothing: it acts once, just before torchvision is imported."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            cls._declare()
        return None

    @classmethod
    def _declare(cls):
        from importlib.metadata import PackageNotFoundError, version

        try:
            if version("torchvision").endswith("+cpu"):
                return
            import torch
        except (PackageNotFoundError, ImportError):
            return
        if torch.version.cuda is None and torch.version.hip is None:
            cls.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                cls.library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _DeclareSchemas)
'''


def main() -> None:
    """Writes the hook into the environment's site-packages and proves it where torchvision is installed."""
    folder = Path(sysconfig.get_paths()["purelib"])
    if sys.prefix == sys.base_prefix:
        sys.exit("this Python is no virtual environment: run the script with the Python of the environment to fix")
    (folder / f"{MODULE}.py").write_text(HOOK, encoding="utf-8")
    (folder / f"{MODULE}.pth").write_text(f"import {MODULE}\n", encoding="utf-8")
    code = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torchvision') is None else 3)"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode == 3:
        subprocess.run([sys.executable, "-c", "import torchvision, torchvision.transforms.v2"], check=True)
    print(f"hook in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
