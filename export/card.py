"""The model card of a bundle: `README.md`, as the Hugging Face Hub shows it; no torch.

A head in YAML (licence, library, tags) and below it what a stranger wants to know before using a model: the
data, the network, how it was trained and how well, the process, how exactly the graphs are the network, and
how to sample. It holds what the manifest and the folder of the run know, and leaves the rest out.

A card may be edited. It is written with the bundle and then left alone, also where the same model is exported again
in the same precision; only `license:` is set again when somebody names a licence. Nothing reads anything from it but
that line.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.manifest import Manifest
from export.runs import Run

CARD_FILE = "README.md"
UNKNOWN_LICENSE = "unknown"  # one of the Hub's words
_REMINDER = " # set it before you share: e2crf export <model> --license apache-2.0"
_LICENSE_LINE = re.compile(r"\A(---\n(?:(?!---\n).*\n)*?license:)[ \t]*([^\s#]*).*$", re.MULTILINE)
_SETTINGS = (  # of the config of a run: what the card calls it, and where it stands
    ("batch size", "datamodule", "batch_size"),
    ("largest learning rate", "score_model", "lr_max"),
    ("dropout", "score_model", "dropout"),
    ("likelihood weighting", "score_model", "likelihood_weighting"),
    ("energy weighting", "score_model", "energy_weighting"),
    ("arithmetic", "trainer", "precision"),
    ("moving average of the weights", "ema", None),
    ("seed", "random_seed", None),
)


def write_card(bundle: Path, manifest: Manifest, run: Run, license: str | None = None, *, title: str) -> None:
    """Write the card of a bundle; where one is, set its licence, if there is one to set, and nothing else."""
    if (there := read_card(bundle)) is None:
        text = card_of(manifest, run, license or UNKNOWN_LICENSE, title)
    elif license is not None:
        text = _with_license(there[0], license)
    else:
        return
    stage = bundle / f".{CARD_FILE}.{os.getpid()}"
    try:
        stage.write_text(text, encoding="utf-8")
        os.replace(stage, bundle / CARD_FILE)
    finally:
        stage.unlink(missing_ok=True)


def read_card(bundle: Path) -> tuple[str, str] | None:
    """The text of a card and the licence it names, None for a bundle without one."""
    path = bundle / CARD_FILE
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _LICENSE_LINE.match(text)
    return text, (found[2] if found else "") or UNKNOWN_LICENSE


def card_of(manifest: Manifest, run: Run, license: str, title: str) -> str:
    """The text of a card."""
    network, source, domain = manifest.network, manifest.source, manifest.diffusion.domain
    tags = ["time-series", "diffusion", f"{domain}-domain", "e2-crf", "onnx"]
    head = [f"license: {_license(license)}", "library_name: e2crf", "tags:", *(f"- {tag}" for tag in tags)]
    sections = {
        "Data": _table({
            "data set": source.data or "not known",
            "series": f"{network.num_tokens} time steps, channels: {network.num_channels}",
        }),
        "Network": _table(_words(asdict(network)) | {"precision of the graphs": manifest.precision}),
        "Training": _table(_training(manifest, run)),
        "Process": _table({"process": manifest.diffusion.process, **_words(manifest.diffusion.parameters),
                           "smallest time": manifest.diffusion.eps, "domain": domain}),
        "Parity": "Largest error of each graph against the PyTorch network, relative to its largest value; "
                  "in dB: signal to quantisation noise.\n\n"
                  + _table({name: manifest.parity_in_words(name) for name in manifest.parity}),
        "Sample": f"```python\nimport runtime\n\nmodel = runtime.load(\"bundles/{title}\")\n"
                  "out = model.sample(64, seed=0)\nout.series  # float32 [n, N, C], time domain, data units\n```",
    }  # fmt: skip
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    about = (
        f"A diffusion model that generates time series, in the {domain} domain; its network ({network.backbone}) as "
        f"split ONNX graphs, to be sampled with E2-CRF caching. Written by {source.producer}."
    )
    return "\n".join(["---", *head, "---", "", f"# {title}", "", about, "", body, ""])


def _training(manifest: Manifest, run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "run": manifest.source.run_id,
        "checkpoint": f"{manifest.source.checkpoint}, SHA-256 {manifest.source.digest[:12]}...",
        "epochs": run.epochs,
        "steps": run.steps,
        "best validation loss": _loss(run.best_val_loss, f" (epoch {run.best_epoch})"),
        "training loss at the end": _loss(run.train_loss),
    }
    for name, group, key in _SETTINGS:
        value = run.config.get(group)
        facts[name] = value.get(key) if isinstance(value, dict) else value if key is None else None
    return facts


def _loss(value: float | None, more: str = "") -> str | None:
    return None if value is None else f"{value:.3e}{more}"


def _words(values: dict[str, Any]) -> dict[str, Any]:
    """Fields as words; without those that are 0 because the network has no such part."""
    return {name.replace("_", " "): value for name, value in values.items() if value != 0}


def _table(rows: dict[str, Any]) -> str:
    known: Iterable[tuple[str, Any]] = ((name, value) for name, value in rows.items() if value is not None)
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in known)])


def _license(license: str) -> str:
    return license + (_REMINDER if license == UNKNOWN_LICENSE else "")


def _with_license(text: str, license: str) -> str:
    """The card with another licence; a card without a head gets one."""
    if _LICENSE_LINE.match(text):
        return _LICENSE_LINE.sub(lambda found: f"{found[1]} {_license(license)}", text, count=1)
    head = f"---\nlicense: {_license(license)}\n"
    return head + text.removeprefix("---\n") if text.startswith("---\n") else f"{head}---\n\n{text}"
