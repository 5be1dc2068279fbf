"""Rooms import leftwards along the line and only at contracts; `import runtime` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("train", "export", "engines", "runtime", "bench")

# What each room (or file, or folder) may import of the others, by module prefix.
PROCESS = ("runtime.sde", "runtime.fourier", "runtime.errors")  # one definition of the process
BUNDLES = ("export.manifest", "export.places", "export.card")  # what a bundle is, where it lies, how it is told
ALLOWED = {
    "train": PROCESS,
    "export/manifest.py": (),
    "export/verify.py": ("export", "runtime.sampler", "runtime.score", "runtime.backends", "runtime.solvers"),
    "export/reference.py": ("export", "train.networks", "runtime.backends"),
    "export": ("train.networks", *PROCESS),
    "engines": ("export.manifest",),
    "runtime/verbs": ROOMS,  # the one place of the room that looks upward, on demand
    "runtime/compat.py": ("runtime", "export"),  # exports a checkpoint on demand, as the command line does
    "runtime/describe.py": ("runtime", *BUNDLES, "export.runs"),
    "runtime/hub.py": ("runtime", *BUNDLES),
    "runtime/backends/tensorrt.py": ("runtime", "export.manifest", "engines"),  # chooses and reads engines
    "runtime": ("export.manifest",),
    "bench": ROOMS,
}


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the room's name"
            is_room = node.module in ROOMS  # `from runtime import fourier` takes the module, not the room
            found += [f"{node.module}.{alias.name}" for alias in node.names] if is_room else [str(node.module)]
    return [name for name in found if name.partition(".")[0] in ROOMS]


def _files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def _is_allowed(file: str, module: str) -> bool:
    room, folder = file.partition("/")[0], file.rpartition("/")[0]
    allowed = ALLOWED.get(file, (*ALLOWED.get(folder, ALLOWED[room]), room))
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    file = path.relative_to(ROOT).as_posix()
    wrong = [module for module in _imports(path) if not _is_allowed(file, module)]
    assert not wrong, f"{file} imports {wrong}"


def test_the_check_can_fail() -> None:
    assert len(_files()) > 30
    assert not _is_allowed("runtime/sampler.py", "train.networks")
    assert not _is_allowed("runtime/sampler.py", "export.graphs")
    assert not _is_allowed("runtime/sampler.py", "export.places")
    assert not _is_allowed("runtime/hub.py", "export.bundle")
    assert not _is_allowed("runtime/compat.py", "train.networks")
    assert not _is_allowed("runtime/cli.py", "bench.compare")
    assert _is_allowed("runtime/verbs/measuring.py", "bench.compare")
    assert _is_allowed("runtime/sampler.py", "export.manifest")


def test_import_runtime_needs_numpy_and_onnx_runtime_only() -> None:
    """Everything else that the process loads comes from the standard library or from these two."""
    code = """
import sys
before = set(sys.modules)
import runtime, runtime.backends.ort
heavy = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(name for name in heavy if not name.startswith("_")))
"""
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = set(ast.literal_eval(printed))
    ours = {"runtime", "export"}
    assert loaded <= ours | {"numpy", "onnxruntime", "cython_runtime"}, loaded
    assert {"numpy", "runtime"} <= loaded


def test_the_sampling_commands_load_no_torch(tmp_path: Path) -> None:
    code = "import sys; from runtime.cli import main\ntry: main(['doctor', '--json'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'tensorrt', 'polygraphy', 'onnx', 'lightning') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_what_serves_a_bare_machine_imports_nothing_heavier_than_the_runtime() -> None:
    """Torch, YAML and the Hub's package come with the first call that needs them."""
    heavy = {"torch", "onnx", "yaml", "omegaconf", "rich", "typer", "huggingface_hub", "lightning"}
    code = "import sys, runtime.compat, runtime.describe, runtime.hub, export.card\n"
    code += f"print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
