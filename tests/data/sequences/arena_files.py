"""Files in the formats of Long Range Arena's release and of what stands in for it, for tests."""

import struct
from pathlib import Path

from flowformer.data.sequences.listops import generate_listops, write_listops
from flowformer.data.sequences.pathfinder import generate_pathfinder, write_pathfinder

AAN = {
    "train": b"1\tA\tB\tone two\tthree\n0\tA\tB\tone two\tthree\n",
    "eval": b"0\tA\tB\tx\ty\n",
}


def listops_files(folder: Path, *, seed: int = 0, max_length: int = 30) -> Path:
    data = generate_listops(
        sizes={"train": 20, "validation": 5, "test": 5},
        min_length=4,
        max_length=max_length,
        max_depth=4,
        seed=seed,
    )
    write_listops(data, folder)
    return folder


def pathfinder_files(folder: Path) -> Path:
    parts = {"train": 8, "validation": 1, "test": 1}
    write_pathfinder(generate_pathfinder(sizes=parts, size=32), folder)
    return folder


def aan_files(folder: Path, *, test: bytes = b"1\tA\tB\tthe last\tone\n") -> Path:
    folder.mkdir(exist_ok=True)
    for part, content in {**AAN, "test": test}.items():
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(content)
    return folder


def fashion_files(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for prefix in ("train", "t10k"):
        images = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes([7]) * (2 * 28 * 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 9])
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def cifar_files(folder: Path) -> Path:
    files = folder / "cifar-10-batches-bin"
    files.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (files / name).write_bytes(bytes([3, *[9] * 3072]) * 2)
    return folder
