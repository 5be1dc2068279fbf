"""Bundles travel: what is sent, what is checked on arrival, what is refused; over HTTP with the Hub's own client."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.card import write_card
from export.manifest import ManifestError, read_manifest
from export.runs import Run
from runtime.errors import HubError, OptionError
from runtime.hub import PullOptions, PushOptions, folder_of, pull, push
from tests.hub_server import TOKEN, hub_server
from tests.tiny import make_bundle
from tests.verbs import run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    make_bundle(folder / "one")
    make_bundle(folder / "two", seed=1)
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a plan, an engine and a report beside its graphs, and another one; an empty working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported / "one/bundle", tmp_path / "bundles/ecg")
    shutil.copytree(exported / "two/bundle", tmp_path / "bundles/other")
    for name in ("plan.json", "engines/key/step.engine", "reports/bench.json", "notes.txt"):
        path = tmp_path / "bundles/ecg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return Path("bundles/ecg")


@pytest.fixture
def hub(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub on this machine, by the folder that holds its repositories."""
    (tmp_path / "hub").mkdir()
    with hub_server(tmp_path / "hub") as address:
        _point_client_at(address, monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield tmp_path / "hub"


def _point_client_at(address: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pages = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", pages)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # large files by plain HTTP
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no-token"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def travelled(bundle: Path) -> list[str]:
    graphs = [graph.file for graph in read_manifest(bundle).graphs.values()]
    return sorted(["README.md", "manifest.json", "plan.json", *graphs])


def test_a_bundle_goes_to_a_folder_and_back(bundle: Path) -> None:
    assert push(PushOptions(bundle, "file:stick/ecg")) == "stick/ecg"
    assert files_of(Path("stick")) == [f"ecg/{name}" for name in travelled(bundle)]
    assert pull(PullOptions("./stick/ecg", Path("back")))
    assert files_of(Path("back")) == travelled(bundle)
    for name in travelled(bundle):
        assert (Path("back") / name).read_bytes() == (bundle / name).read_bytes()


def test_a_bundle_goes_to_the_hub_and_back(bundle: Path, hub: Path) -> None:
    address = push(PushOptions(bundle, "user/ecg"))
    assert address.endswith("/user/ecg")
    assert files_of(hub / "user/ecg") == travelled(bundle)
    assert json.loads((hub / "created.json").read_text())["visibility"] == "private"
    assert pull(PullOptions("user/ecg", Path("bundles/back")))
    assert files_of(Path("bundles/back")) == travelled(bundle)  # none of the client's own notes
    assert read_manifest(Path("bundles/back")) == read_manifest(bundle)


def test_a_second_push_removes_what_the_first_one_left(bundle: Path, hub: Path) -> None:
    push(PushOptions(bundle, "user/ecg", private=False))
    assert json.loads((hub / "created.json").read_text())["visibility"] == "public"
    (hub / "user/ecg/onnx/layer_99.onnx").write_text("of a deeper network")
    (hub / "user/ecg/.gitattributes").write_text("")
    (bundle / "plan.json").unlink()
    push(PushOptions(bundle, "user/ecg"))
    assert files_of(hub / "user/ecg") == [".gitattributes", *travelled_without_plan(bundle)]


def travelled_without_plan(bundle: Path) -> list[str]:
    return [name for name in travelled(bundle) if name != "plan.json"]


def test_a_damaged_bundle_is_not_sent(bundle: Path) -> None:
    (bundle / "onnx/head.onnx").write_bytes(b"changed")
    with pytest.raises(ManifestError, match="changed after export"):
        push(PushOptions(bundle, "file:stick"))
    assert not Path("stick").exists()


def test_what_arrives_damaged_gets_no_name(bundle: Path, hub: Path) -> None:
    push(PushOptions(bundle, "user/ecg"))
    (hub / "user/ecg/onnx/head.onnx").write_bytes(b"changed on the way")
    with pytest.raises(ManifestError, match=r"user/ecg is not a whole bundle and was dropped: .*changed after export"):
        pull(PullOptions("user/ecg", Path("bundles/back")))
    (hub / "user/ecg/onnx/head.onnx").unlink()
    with pytest.raises(ManifestError, match=r"no file onnx/head\.onnx"):
        pull(PullOptions("user/ecg", Path("bundles/back")))
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["ecg", "other"]


def test_a_repository_without_a_bundle_is_said_so(hub: Path, bundle: Path) -> None:
    (hub / "user/empty").mkdir(parents=True)
    (hub / "user/empty/README.md").write_text("nothing yet")
    with pytest.raises(ManifestError, match=r"user/empty is not a whole bundle"):
        pull(PullOptions("user/empty", Path("bundles/back")))


def test_the_same_model_is_kept_and_another_one_is_not_overwritten(bundle: Path) -> None:
    push(PushOptions(bundle, "file:stick"))
    assert not pull(PullOptions("file:stick", bundle))
    assert (bundle / "engines/key/step.engine").is_file()
    with pytest.raises(OptionError, match=r"bundles/other must be free or hold the same model.*--overwrite"):
        pull(PullOptions("file:stick", Path("bundles/other")))
    with pytest.raises(OptionError, match=r"stick must be free or hold the same model"):
        push(PushOptions(Path("bundles/other"), "file:stick"))
    assert read_manifest(Path("stick")) == read_manifest(bundle)
    assert pull(PullOptions("file:stick", Path("bundles/other"), overwrite=True))
    assert read_manifest(Path("bundles/other")) == read_manifest(bundle)
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["ecg", "other"]


def test_pulling_the_same_model_brings_what_is_lacking(bundle: Path) -> None:
    """A plan that a colleague made later; an own card stays."""
    push(PushOptions(bundle, "file:stick"))
    (bundle / "plan.json").unlink()
    (bundle / "README.md").write_text("# Mine\n")
    assert not pull(PullOptions("file:stick", bundle))
    assert (bundle / "plan.json").read_text() == Path("stick/plan.json").read_text()
    assert (bundle / "README.md").read_text() == "# Mine\n"


def test_a_push_to_the_same_model_replaces_what_it_brings_and_keeps_the_rest(bundle: Path) -> None:
    push(PushOptions(bundle, "file:stick"))
    for name in ("plan.json", "engines/there/step.engine", "reports/bench.json"):
        (Path("stick") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("stick") / name).write_text("of there")
    Path("stick/README.md").write_text("# Edited there\n")
    (bundle / "plan.json").unlink()
    push(PushOptions(bundle, "file:stick"))
    assert Path("stick/plan.json").read_text() == "of there"
    assert Path("stick/README.md").read_text() == (bundle / "README.md").read_text()
    assert files_of(Path("stick")) == sorted([*travelled(bundle), "engines/there/step.engine", "reports/bench.json"])
    (bundle / "plan.json").write_text("of here")
    (bundle / "README.md").unlink()
    push(PushOptions(bundle, "file:stick"))
    assert Path("stick/plan.json").read_text() == "of here"
    assert Path("stick/README.md").is_file()


@pytest.mark.parametrize("has_own", [False, True])
def test_pulling_the_same_model_again_replaces_what_comes_and_keeps_the_rest(bundle: Path, has_own: bool) -> None:
    push(PushOptions(bundle, "file:stick"))
    before = files_of(bundle)
    for name in ("plan.json", "README.md"):
        (bundle / name).write_text("of here")
        if not has_own:
            (Path("stick") / name).unlink()
    assert pull(PullOptions("file:stick", bundle, overwrite=True))
    assert files_of(bundle) == before
    for name in ("plan.json", "README.md"):
        assert ((bundle / name).read_text() == "of here") is not has_own


def test_pulling_another_model_keeps_nothing_that_was_said_of_the_first_one(bundle: Path) -> None:
    push(PushOptions(Path("bundles/other"), "file:stick"))
    assert pull(PullOptions("file:stick", bundle, overwrite=True))
    assert files_of(bundle) == sorted([*travelled_without_plan(Path("bundles/other")), "engines/key/step.engine",
                                       "notes.txt"])  # fmt: skip


def test_what_is_no_bundle_is_never_replaced(bundle: Path) -> None:
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(OptionError, match="precious exists and is no bundle"):
            push(PushOptions(bundle, "file:precious", overwrite=overwrite))
        with pytest.raises(OptionError, match="precious exists and is no bundle"):
            pull(PullOptions("file:bundles/ecg", Path("precious"), overwrite))
    with pytest.raises(OptionError, match="a bundle is pushed to another place"):
        push(PushOptions(bundle, f"file:{bundle}"))
    assert files_of(Path("precious")) == ["thesis.txt"]


@pytest.mark.parametrize("place", ["ecg", "user/ecg/more", "user /ecg", "", "file:", "https://hub/user/ecg", "u/..x/"])
def test_a_place_is_a_repository_or_a_folder(place: str) -> None:
    with pytest.raises(OptionError, match=r"a repository is named user/name, .*file:FOLDER"):
        folder_of(place)


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("file:a/b", "a/b"),
        ("./a/b", "a/b"),
        ("../a", "../a"),
        ("/a/b", "/a/b"),
        ("user/a", None),
        ("u-s.e_r/A.1", None),
    ],
)
def test_only_what_is_marked_as_a_folder_is_one(place: str, folder: str | None) -> None:
    assert folder_of(place) == (None if folder is None else Path(folder))
    assert folder_of("~/a") == Path.home() / "a"


def test_what_the_hub_refuses_is_a_sentence_with_its_remedy(
    bundle: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"cannot pull stranger/ecg: the Hub answers 401 .*hf auth login"):
        pull(PullOptions("stranger/ecg", Path("bundles/back")))
    write_card(bundle, read_manifest(bundle), Run("tiny"), "nonsense", title="ecg")
    with pytest.raises(HubError, match=r'"license" must be one of the known; correct the name or the model card'):
        push(PushOptions(bundle, "user/ecg"))
    assert files_of(hub / "user/ecg") == []
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"cannot push bundles/other to user/x: the Hub answers 401 .*hf auth login"):
        push(PushOptions(Path("bundles/other"), "user/x"))
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["ecg", "other"]


def test_a_hub_that_cannot_be_reached_is_a_sentence(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    _point_client_at(address, monkeypatch, tmp_path)
    for call in (lambda: push(PushOptions(bundle, "user/ecg")), lambda: pull(PullOptions("user/x", Path("bundles/x")))):
        with pytest.raises(HubError, match=r"the Hub cannot be reached .*file:FOLDER"):
            call()


def test_the_commands(bundle: Path, hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("push", "ecg", "user/ecg") == 0  # a name under bundles/
    printed = capfd.readouterr()
    assert "bundles/ecg is at http://127.0.0.1" in printed.out
    assert "warning: the model card names no licence" in " ".join(printed.err.split())
    shutil.rmtree("bundles")
    assert run("pull", "user/ecg", "--json") == 0
    assert json.loads(capfd.readouterr().out) == {"bundle": "bundles/ecg", "source": "user/ecg", "is_new": True}
    assert run("pull", "user/ecg") == 0
    assert "holds this model already and keeps its own plan and card" in capfd.readouterr().out
    assert run("push", "latest", "file:stick") == 0
    assert run("pull", "stranger/ecg") == 1
    assert run("pull", "nonsense") == 2
    assert "Traceback" not in capfd.readouterr().err
    assert run("push", "ecg", "nonsense") == 2
    printed = capfd.readouterr().err
    assert 0 <= printed.find("warning: the model card") < printed.find("error: ")  # before anything is sent
    assert run("push", "gone", "user/ecg") == 2
    assert capfd.readouterr().err.startswith("error: no bundle at gone")  # and no warning of its licence before
    assert files_of(Path("stick")) == travelled(Path("bundles/ecg"))


def test_without_the_package_the_extra_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("pull", "user/ecg") == 2
    assert "pip install 'e2crf[hub]'" in " ".join(capfd.readouterr().err.split())
