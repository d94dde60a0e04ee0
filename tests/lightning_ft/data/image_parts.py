"""Real images in the shapes that the tests need: scikit-learn's digits and its sample photographs."""

import gzip
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

CONFIG = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5), "interpolation": "bilinear"}


def digits(num: int) -> tuple[np.ndarray, list[int]]:
    """Return handwritten digits, uint8, shape (image, 8, 8), and their labels."""
    data = load_digits()
    return np.rint(data.images[:num] * (255 / 16)).astype(np.uint8), data.target[:num].tolist()


def write_class_folders(root: Path, num: int = 60) -> Path:
    """Write digits as ``root/label/number.png``."""
    for number, (image, label) in enumerate(zip(*digits(num), strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return root


def write_photos(folder: Path) -> list[Path]:
    """Write two photographs as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "china.jpg", folder / "flower.jpg"]
    for path, photo in zip(paths, load_sample_images().images, strict=True):
        Image.fromarray(photo).save(path)
    return paths


def write_idx(path: Path, values: np.ndarray, shape: tuple[int, ...] | None = None) -> Path:
    """Write bytes as an idx file, whose header may claim another shape."""
    shape = values.shape if shape is None else shape
    content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, num: int = 60) -> Path:
    """Write digits and labels under the names that MNIST's files have."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digits(num)
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.array(labels))
    return write_idx(folder / "train-images-idx3-ubyte.gz", images)


def trainer_of(config: dict | None = None, **attributes: object) -> SimpleNamespace:
    """Return the attributes of a trainer that a data module looks at, at the start of a fit."""
    module = SimpleNamespace(backbone=SimpleNamespace(data_config=CONFIG if config is None else config))
    progress = SimpleNamespace(current=SimpleNamespace(processed=0, started=0, ready=0))
    loop = SimpleNamespace(
        epoch_progress=progress, restarting=False, epoch_loop=SimpleNamespace(batch_progress=progress)
    )
    standing = {"lightning_module": module, "fit_loop": loop, "strategy": None, "world_size": 1}
    return SimpleNamespace(**standing, num_training_batches=1, **attributes)
