"""Laws of the package's surface: its names, what an import of it loads, and package:// addresses."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_ft
from lightning_ft.resources import existing, nearest_path, resolve

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lightning_ft.__path__, "lightning_ft.")
    if module.name != "lightning_ft.__main__"
)
PUBLIC = {
    name: value
    for name, value in vars(lightning_ft).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}


def public_parts(owner: type) -> dict[str, object]:
    """Return what a class of ours defines under a public name."""
    return {
        name: value
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
    }


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_public_name_is_documented(name):
    assert inspect.getdoc(PUBLIC[name])
    if inspect.isclass(PUBLIC[name]):
        undocumented = [part for part, value in public_parts(PUBLIC[name]).items() if not inspect.getdoc(value)]
        assert undocumented == []


@pytest.mark.parametrize("name", MODULES)
def test_each_module_and_what_it_defines_is_documented(name):
    module = import_module(name)
    assert module.__doc__
    own = {
        key: value
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == name and not key.startswith("_") and hasattr(value, "__qualname__")
    }
    assert [key for key, value in own.items() if not value.__doc__] == []


def test_public_names_are_imported_under_their_own_name():
    assert all(value.__name__ == name for name, value in PUBLIC.items())
    assert all(value.__module__.startswith("lightning_ft.") for value in PUBLIC.values())


@pytest.mark.parametrize(
    "name",
    [
        "FineTuner",
        "TransformersBackbone",
        "TimmBackbone",
        "SequenceClassificationHead",
        "ImageClassificationHead",
        "TokenClassificationHead",
        "CausalLMHead",
        "MaskedLMHead",
        "LanguageModelingData",
        "DetectionHead",
        "SegmentationHead",
        "TextClassificationData",
        "PredictionWriter",
        "TokenClassificationData",
        "DetectionData",
        "RecommendationHead",
        "ItemEmbedding",
        "InteractionsData",
        "ImageClassificationData",
        "SegmentationData",
        "load_exported",
    ],
)
def test_the_parts_of_a_recipe_are_public(name):
    assert name in PUBLIC


def test_an_import_loads_no_optional_library():
    # transformers and matplotlib are loaded by what Lightning itself depends on, where they are installed
    script = (
        "import sys, lightning_ft, lightning_ft.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {"timm", "datasets", "sklearn"} & set(result.stdout.split())
    assert loaded == set()


WITHOUT_EXTRAS = """
import importlib.metadata, sys
from importlib.machinery import PathFinder

EXTRAS = {"timm", "transformers", "datasets", "safetensors", "tokenizers", "huggingface_hub", "torchvision", "sklearn"}

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in EXTRAS else super().find_spec(name, path, target)

def distribution(name, of=importlib.metadata.distribution):
    if name.replace("-", "_") in EXTRAS:
        raise importlib.metadata.PackageNotFoundError(name)
    return of(name)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
importlib.metadata.distribution = distribution  # by which Lightning's parts ask what is installed
import lightning_ft
from lightning_ft.__main__ import main
data = ["--data=TextClassificationData", "--data.train_file=none.csv"]
sys.exit(main(["fit", "--model.backbone=TimmBackbone", "--model.backbone.name=resnet18", *data,
               "--model.head=ImageClassificationHead"]))
"""


def test_without_extras_the_package_is_imported_and_the_command_says_what_is_lacking():
    result = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    said = "lightning-ft: TextClassificationData needs datasets: pip install 'lightning-ft[text]'"
    assert result.stderr.splitlines()[-1] == said


# package:// addresses


def test_an_address_is_a_file_inside_an_installed_package():
    path = resolve("package://sklearn/datasets/data/iris.csv")
    assert Path(path).is_file()
    assert Path(resolve("package://sklearn")) == Path(import_module("sklearn").__file__).parent
    assert Path(resolve("package://sklearn/datasets/")).is_dir()


@pytest.mark.parametrize("path", ["reviews.csv", "/data/reviews.csv", "owner/model", "packages://x", ""])
def test_anything_else_is_left_as_it_is(path):
    assert resolve(path) == path
    assert resolve(Path("a/b.csv")) == "a/b.csv"


def test_an_address_runs_nothing_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "never_imported"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError")
    (package / "data.csv").write_text("text,label\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package://never_imported/data.csv") == str(package / "data.csv")
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize("inside", ["..", "../secret.txt", "data/../../secret.txt", "link.txt", "/etc/passwd"])
def test_an_address_never_leads_out_of_its_package(tmp_path, monkeypatch, inside):
    package = tmp_path / "own_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "secret.txt").write_text("secret")
    (package / "link.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match="package://own_package/"):
        resolve(f"package://own_package/{inside}")


@pytest.mark.parametrize("name", ["no_such_package", "sklearn.datasets", "", "..", "sys", "a b"])
def test_what_is_no_package_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"package://{name}/x: no package '{name}' is installed here"):
        resolve(f"package://{name}/x")


def test_a_missing_file_of_a_package_is_named_with_the_nearest():
    with pytest.raises(
        FileNotFoundError,
        match=r"package 'sklearn' has no 'datasets/data/irs.csv'; did you mean '.*/datasets/data/iris.csv'",
    ):
        resolve("package://sklearn/datasets/data/irs.csv")


def test_the_nearest_path_corrects_the_first_part_that_is_missing(tmp_path):
    (tmp_path / "reviews" / "train").mkdir(parents=True)
    assert nearest_path(tmp_path / "revews" / "train") == f"; did you mean '{tmp_path / 'reviews'}'?"
    assert nearest_path(tmp_path / "reviews" / "trian") == f"; did you mean '{tmp_path / 'reviews' / 'train'}'?"
    assert nearest_path(tmp_path / "reviews" / "zzz") == ""
    assert nearest_path(tmp_path / "reviews") == ""


def test_an_existing_path_is_resolved(tmp_path, monkeypatch):
    (tmp_path / "a.csv").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing("~/a.csv", "train_file") == tmp_path / "a.csv"
    with pytest.raises(
        FileNotFoundError, match=r"train_file: no such file or folder: '.*b.csv'; did you mean '.*a.csv'"
    ):
        existing("~/b.csv", "train_file")
