"""The manifest of a bundle: the typed contract between export and everyone else.

A bundle is a folder; `manifest.json` in it says what the model is (network, process, tokens, standardisation)
and lists its graphs with digests, inputs and outputs. The records here are frozen and plain; reading one
imports neither torch nor onnx. Everything is checked on reading: an unknown key, another schema number or a
digest that does not match is a `ManifestError` that says what, what was found, and what to do.

    manifest = read_manifest(Path("bundles/ecg"))
    manifest.network.num_tokens, manifest.graphs["layer_00"].inputs
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

SCHEMA = 1  # bump when an older reader would misread a newer manifest
MANIFEST_FILE = "manifest.json"
NETWORKS = ("transformer", "lstm", "mlp")  # backbones that are written as graphs
BACKBONES = (*NETWORKS, "gaussian", "none")  # and scores in closed form, which are served without files
PROCESSES = {"vp": ("beta_0", "beta_1"), "ve": ("sigma_min", "sigma_max")}  # and their parameters, rising
FLOAT32_PARTS = ("embed", "head")  # compute in float32 in every precision, as graphs and within `step`

Record = TypeVar("Record")


class ManifestError(Exception):
    """A bundle or its manifest is missing, damaged, or of another kind."""


@dataclass(frozen=True)
class Source:
    """Where the bundle came from."""

    checkpoint: str  # file name, without folders
    digest: str  # SHA-256 of the checkpoint file
    run_id: str | None = None
    data: str | None = None  # name of the data set trained on
    producer: str = ""  # name and version of the exporter


@dataclass(frozen=True)
class Network:
    """Facts of the score network."""

    backbone: str  # one of BACKBONES; those without K/V say so by num_heads = 0
    num_tokens: int  # N
    num_channels: int  # C
    d_model: int  # D
    num_heads: int  # H
    num_layers: int  # L
    d_ff: int

    @property
    def head_dim(self) -> int:
        """Dh, the width of one attention head."""
        return self.d_model // self.num_heads


@dataclass(frozen=True)
class Diffusion:
    """The diffusion process and the domain it runs in."""

    process: str  # one of PROCESSES
    parameters: dict[str, float]
    eps: float  # smallest time
    domain: str  # "frequency" or "time"


@dataclass(frozen=True)
class Tokens:
    """What each of the N tokens means, [N] each."""

    frequency: list[int]  # f(k); in the time domain the time step
    noise_shape: list[float]  # G
    spectral_weight: list[float]  # sum over channels of std^2, the token's energy in data units; time domain: 1


@dataclass(frozen=True)
class Standardisation:
    """`tokens = mean + std * z`; [N][C] each. A std of 0 marks a token that is constant in the data."""

    mean: list[list[float]]
    std: list[list[float]]


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph; named dimensions are dynamic."""

    name: str
    dtype: str  # "float32", "float16", "bfloat16", "int64"
    shape: list[int | str]


@dataclass(frozen=True)
class Graph:
    """One ONNX file of the bundle."""

    file: str  # relative to the bundle
    digest: str  # SHA-256 of the file
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to run a bundle.

    `parity` is the largest relative error against PyTorch in an fp32 bundle, the least SQNR in dB in any other.
    """

    schema: int
    source: Source
    network: Network
    diffusion: Diffusion
    tokens: Tokens
    standardisation: Standardisation
    graphs: dict[str, Graph]
    parity: dict[str, float] = field(default_factory=dict)  # by part, chain, step, trajectory; see below
    precision: str = "fp32"  # of the graphs: "fp32", "fp16", "bf16"

    def parity_in_words(self, name: str) -> str:
        """What was measured of a part: 1.2e-07, 61.3 dB, or - if nothing was."""
        if (measured := self.parity.get(name)) is None:
            return "-"
        return f"{measured:.1e}" if self.precision == "fp32" else f"{measured:.1f} dB"

    def shares_origin(self, other: "Manifest") -> bool:
        """Whether both were made from one checkpoint, read the same way: plan, reports and card hold for both.

        Precision and exporter may differ.
        """
        is_same_checkpoint = self.source.digest == other.source.digest
        is_read_alike = (self.diffusion, self.standardisation) == (other.diffusion, other.standardisation)
        return is_same_checkpoint and is_read_alike  # what the tokens mean follows from these

    def to_json(self) -> str:
        """The manifest as it stands in `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def layer_name(index: int) -> str:
    """The graph name of layer `index`: layer_00, layer_01, ..."""
    return f"layer_{index:02d}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_from_json(kind: type[Record], value: Any, where: str) -> Record:
    """Build a frozen record from parsed JSON; unknown, missing or mistyped keys are errors that name `where`."""
    if not isinstance(value, dict):
        raise ManifestError(f"{where} must be an object, found {type(value).__name__}; export the bundle again")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(fields)):
        raise ManifestError(
            f"{where} has the unknown key {unknown[0]!r}; the known ones are {', '.join(fields)}. "
            "Use the version of e2crf that wrote it, or export the bundle again"
        )
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(value)):
        raise ManifestError(f"{where} lacks the key {missing[0]!r}; export the bundle again")
    return kind(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return record_from_json(hint, value, where)  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        return [_typed(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _typed(args[1], item, f"{where}.{key}") for key, item in value.items()}
    allowed = args if origin in (typing.Union, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return _float(value, where)
        if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise ManifestError(f"{where} must be {names}, found {value!r:.60}; export the bundle again")


def _float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ManifestError(
            f"{where} must be a number that float64 holds, found {value!r:.60}; export the bundle again"
        ) from None


def read_manifest(bundle: Path, *, verify_digests: bool = True) -> Manifest:
    """Read and check the manifest of a bundle folder; with `verify_digests` also every graph file."""
    path = bundle / MANIFEST_FILE
    if not path.is_file():
        raise ManifestError(f"no bundle at {bundle}: {MANIFEST_FILE} is missing; make one with `e2crf export`")
    try:
        manifest = _read(path)
    except RecursionError:
        raise ManifestError(f"{path} has lists within lists, too many of them; export the bundle again") from None
    if verify_digests:
        for name, graph in manifest.graphs.items():
            check_graph_file(bundle, name, graph)
    return manifest


def _read(path: Path) -> Manifest:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}); export the bundle again") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise ManifestError(
            f"{path} has schema {schema!r}, this version reads schema {SCHEMA}; "
            "export the bundle again, or use the version of e2crf that wrote it"
        )
    manifest = record_from_json(Manifest, value, str(path))
    _check_shapes(manifest, path)
    _check_values(manifest, path)
    _check_parts(manifest, path)
    return manifest


def check_graph_file(bundle: Path, name: str, graph: Graph) -> None:
    """Raise unless the file of a graph is there, inside the bundle, and byte for byte the one exported."""
    path = bundle / graph.file
    if not path.resolve().is_relative_to(bundle.resolve()):
        raise ManifestError(f"graph {name} of {bundle} points outside the bundle: {graph.file}; do not use it")
    if not path.is_file():
        raise ManifestError(f"graph {name} of {bundle} is missing: no file {graph.file}; export the bundle again")
    if (found := digest_of(path)) != graph.digest:
        raise ManifestError(
            f"{graph.file} of {bundle} was changed after export: its SHA-256 is {found[:12]}..., "
            f"the manifest says {graph.digest[:12]}...; export the bundle again"
        )


def _check_shapes(manifest: Manifest, path: Path) -> None:
    """Raise unless all that is said by token has N entries of C channels, and the step graph is of this network."""
    network = manifest.network
    per_token: dict[str, list[Any]] = {
        "tokens.frequency": manifest.tokens.frequency,
        "tokens.noise_shape": manifest.tokens.noise_shape,
        "tokens.spectral_weight": manifest.tokens.spectral_weight,
        "standardisation.mean": manifest.standardisation.mean,
        "standardisation.std": manifest.standardisation.std,
    }
    for name, values in per_token.items():
        if len(values) != network.num_tokens:
            raise ManifestError(
                f"{path}: {name} has {len(values)} entries, the network {network.num_tokens} tokens; "
                "export the bundle again"
            )
    widths = {len(row) for rows in (manifest.standardisation.mean, manifest.standardisation.std) for row in rows}
    if widths != {network.num_channels}:
        raise ManifestError(
            f"{path}: mean and std have rows of {sorted(widths)} channels, the network {network.num_channels}; "
            "export the bundle again"
        )
    if (step := manifest.graphs.get("step")) is not None:
        _check_step(step, network, path)


def _check_step(step: Graph, network: Network, path: Path) -> None:
    found = {tensor.name: tensor.shape[1:] for tensor in step.inputs}
    caches = {name: shape for name, shape in found.items() if name.startswith(("past_key", "past_value"))}
    heads = network.num_heads
    cache = [heads, network.num_tokens, network.head_dim if heads else 0]
    fits = found.get("z", [0])[-1] == network.num_channels and all(shape == cache for shape in caches.values())
    if not fits or (caches and len(caches) != 2 * network.num_layers):
        raise ManifestError(
            f"{path}: the inputs of graph step, {found}, are not those of a network of {network.num_layers} layers, "
            f"{network.num_channels} channels and caches {cache}; export the bundle again"
        )


def _check_values(manifest: Manifest, path: Path) -> None:
    """Raise unless the numbers and words are some that a sampler can work with."""
    network, tokens, scale = manifest.network, manifest.tokens, manifest.standardisation
    mean, std = ([value for row in rows for value in row] for rows in (scale.mean, scale.std))
    facts: dict[str, tuple[bool, object]] = {
        f"network.backbone must be one of {', '.join(BACKBONES)}": (network.backbone in BACKBONES, network.backbone),
        "diffusion.process must be vp or ve": (manifest.diffusion.process in PROCESSES, manifest.diffusion.process),
        "diffusion.parameters must be beta_0 and beta_1 of vp or sigma_min and sigma_max of ve, positive and rising": (
            _is_process(manifest.diffusion), manifest.diffusion.parameters
        ),
        "diffusion.domain must be frequency or time": (
            manifest.diffusion.domain in ("frequency", "time"), manifest.diffusion.domain
        ),
        "diffusion.eps must lie between 0 and 1": (0 < manifest.diffusion.eps < 1, manifest.diffusion.eps),
        "precision must be fp32, fp16 or bf16": (manifest.precision in ("fp32", "fp16", "bf16"), manifest.precision),
        "tokens.frequency must lie in 0 .. N - 1": (
            all(0 <= one < network.num_tokens for one in tokens.frequency), tokens.frequency
        ),
        "tokens.frequency must leave no number out below the largest": (
            len(set(tokens.frequency)) == 1 + max(tokens.frequency, default=-1), tokens.frequency
        ),
        "tokens.noise_shape must be positive": (
            all(0 < one < math.inf for one in tokens.noise_shape), tokens.noise_shape
        ),
        "tokens.spectral_weight must not be negative": (
            all(0 <= one < math.inf for one in tokens.spectral_weight), tokens.spectral_weight
        ),
        "standardisation.mean must be finite": (all(map(math.isfinite, mean)), mean),
        "standardisation.std must be positive somewhere and negative nowhere": (
            all(0 <= one < math.inf for one in std) and any(std), std
        ),
        "parity must be finite": (all(map(math.isfinite, manifest.parity.values())), manifest.parity),
    }  # fmt: skip
    for what, (holds, value) in facts.items():
        if not holds:
            raise ManifestError(f"{path}: {what}, found {value!r:.60}; export the bundle again")


def _is_process(diffusion: Diffusion) -> bool:
    """Whether `runtime.sde` has this process; that room is no import of this file."""
    low_name, high_name = PROCESSES.get(diffusion.process, ("", ""))
    if set(diffusion.parameters) != {low_name, high_name}:
        return False
    low, high = diffusion.parameters[low_name], diffusion.parameters[high_name]
    return 0 < low <= high < math.inf and (low < high or diffusion.process == "vp")


def _check_parts(manifest: Manifest, path: Path) -> None:
    """Raise unless a network has all its graphs: embed, one per layer, head, step."""
    num_layers = manifest.network.num_layers
    layers = [name for name in manifest.graphs if name.startswith("layer_")]
    wanted = {"embed", "head", "step", *map(layer_name, range(len(layers)))}
    is_whole = len(layers) == num_layers and wanted <= manifest.graphs.keys()
    if manifest.network.backbone in NETWORKS and not is_whole:
        raise ManifestError(
            f"{path}: a network of {num_layers} layers has the graphs embed, layer_00 and so on, head and step, "
            f"found {', '.join(manifest.graphs) or 'none'}; export the bundle again"
        )
