"""The small data sets of the tasks, each with something to learn."""

import csv
import json
import random
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"brick": "firebrick", "leaf": "seagreen"}
EDGE = 64
KINDS = {
    "western": ["Sheriff", "Saloon", "Prairie"],
    "space": ["Rocket", "Comet", "Orbit"],
    "crime": ["Alibi", "Heist"],
}


def write_mentions(folder: Path) -> Path:
    """Write sentences of persons and places."""
    names = ["Ada", "Grace", "Alan", "Linus", "Edsger", "Barbara"]
    texts = []
    for first, last, place in product(names, names[:3], ["London", "Paris"]):
        texts.append(f"meet\tO\n{first}\tB-person\n{last}\tI-person\nin\tO\n{place}\tB-place\n.\tO\n")
        texts.append(f"fly\tO\nto\tO\n{place}\tB-place\nwith\tO\n{first}\tB-person\n.\tO\n")
    file = folder / "mentions.txt"
    file.write_text("\n".join(texts))
    return file


def write_shapes(folder: Path) -> Path:
    """Draw red and green rectangles, up to three an image, and return their COCO file."""
    draw = random.Random(0)
    images, annotations = [], []
    for number in range(60):
        picture = Image.new("RGB", (EDGE, EDGE), "lightgrey")
        for left, upper in draw.sample([(0, 0), (32, 0), (0, 32), (32, 32)], number % 4):
            kind, width, height = draw.randrange(2), draw.randint(14, 26), draw.randint(14, 26)
            x, y = left + draw.randint(0, 30 - width), upper + draw.randint(0, 30 - height)
            place = (x, y, x + width - 1, y + height - 1)
            ImageDraw.Draw(picture).rectangle(place, fill=[*COLOURS.values()][kind])
            box = [x, y, width, height]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": kind, "bbox": box})
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": EDGE, "height": EDGE})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "shapes.json").write_text(json.dumps(content))
    return folder / "shapes.json"


def write_scenes(folder: Path) -> tuple[str, str]:
    """Write images of a red and a blue square on grey, and their masks."""
    draw = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(48):
        image = draw.integers(60, 120, (40, 56, 3)).astype(np.uint8)
        mask = np.zeros((40, 56), np.uint8)
        for label, colour in ((1, (250, 40, 40)), (2, (40, 40, 250))):
            top, left = draw.integers(0, 40 - 14), draw.integers(0, 56 - 14)
            image[top : top + 14, left : left + 14] = colour
            mask[top : top + 14, left : left + 14] = label
        Image.fromarray(image).save(folder / f"images/{number:02}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:02}.png")
    return str(folder / "images"), str(folder / "masks")


def write_films(folder: Path) -> Path:
    """Write 40 films of three kinds, and 48 users who each watch one kind, the next film mostly that after the last."""
    draw = np.random.default_rng(0)
    names = [f"{word} {number}" for words in KINDS.values() for word in words for number in range(1, 6)]
    kinds = [kind for kind, words in KINDS.items() for _ in words for _ in range(5)]
    with (folder / "films.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("item_id", "title"), *enumerate(names)])
    rows = []
    for user in range(48):
        own = [film for film, kind in enumerate(kinds) if kind == [*KINDS][user % 3]]
        start, length = int(draw.integers(len(own))), int(draw.integers(5, 9))
        rows += [(f"user{user}", own[(start + step) % len(own)], 100 * user + step) for step in range(length)]
    with (folder / "watched.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("user_id", "item_id", "timestamp"), *rows])
    return folder
