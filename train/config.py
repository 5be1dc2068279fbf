"""The configuration: Hydra composes it from `train/conf`, and records with types check it.

Hydra knows which words and keys exist; the records know what their values may be, so that `batch_size=abc`,
an added `+foo=1` or `lr_max=-1` ends in a sentence and not somewhere in Lightning. `kind` in a group's file
says which record the group becomes: that table is where a data set, a process or a backbone is added.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runtime.sde import VE, VP, Process
from train.datasets import DATASETS, Dataset
from train.errors import ConfigError
from train.losses import Weighting
from train.networks import Backbone, NetworkOptions

CONF = Path(__file__).parent / "conf"

Record = TypeVar("Record")

PLACES = ("data_dir", "path", "test_path")  # of data, which may be elsewhere when a run is resumed
LOGGERS = ("csv", "wandb")  # losses always go to metrics.csv
PRECISIONS = ("32-true", "bf16-mixed")  # of the arithmetic, in Lightning's words; weights are always float32

SEE_HELP = "`e2crf train --help` lists every key"
HYDRAS_ADVICE = re.compile(r"Config search path|To append to your|1\. To use it as a list")  # not for here


@dataclass(frozen=True, kw_only=True)
class VpOptions:
    """score_model/noise_scheduler=vpsde."""

    kind: str
    beta_min: float
    beta_max: float

    def process(self) -> Process:
        """The process by these options."""
        return VP(self.beta_min, self.beta_max)


@dataclass(frozen=True, kw_only=True)
class VeOptions:
    """score_model/noise_scheduler=vesde."""

    kind: str
    sigma_min: float
    sigma_max: float

    def process(self) -> Process:
        """The process by these options."""
        return VE(self.sigma_min, self.sigma_max)


@dataclass(frozen=True, kw_only=True)
class _ScoreModelOptions:
    """What all backbones have, without the noise scheduler."""

    kind: str
    d_model: int
    num_layers: int
    lr_max: float
    likelihood_weighting: bool
    energy_weighting: float = 0.0  # runs from before this key were trained so

    def __post_init__(self) -> None:
        self.network(1, 1)  # refuses impossible shapes before any data is read
        if not 0 < self.lr_max < float("inf"):
            raise ValueError(f"lr_max must be a positive number, found {self.lr_max}; the usual value is 0.001")
        if not 0 <= self.energy_weighting <= 2:
            raise ValueError(
                f"energy_weighting must lie in [0, 2], found {self.energy_weighting}; 0 is the published loss, 0.5 "
                "learns first what has energy"
            )

    def network(self, num_tokens: int, num_channels: int) -> NetworkOptions:
        """The network for data of this shape."""
        raise NotImplementedError

    @property
    def weighting(self) -> Weighting:
        """The weighting in the loss's own words."""
        return Weighting.MAHALANOBIS if self.likelihood_weighting else Weighting.INVERSE_TRACE


@dataclass(frozen=True, kw_only=True)
class TransformerOptions(_ScoreModelOptions):
    """score_model=default."""

    n_head: int
    d_ff: int
    dropout: float

    def network(self, num_tokens: int, num_channels: int) -> NetworkOptions:
        """The network for data of this shape."""
        return NetworkOptions(
            num_tokens, num_channels, self.d_model, self.n_head, self.num_layers, self.d_ff, self.dropout
        )


@dataclass(frozen=True, kw_only=True)
class LstmOptions(_ScoreModelOptions):
    """score_model=lstm."""

    def network(self, num_tokens: int, num_channels: int) -> NetworkOptions:
        """The network for data of this shape."""
        return NetworkOptions(num_tokens, num_channels, self.d_model, 0, self.num_layers, 0, 0.0, Backbone.LSTM)


@dataclass(frozen=True, kw_only=True)
class MlpOptions(_ScoreModelOptions):
    """score_model=mlp."""

    d_mlp: int
    dropout: float

    def network(self, num_tokens: int, num_channels: int) -> NetworkOptions:
        """The network for data of this shape."""
        return NetworkOptions(
            num_tokens, num_channels, self.d_model, 0, self.num_layers, self.d_mlp, self.dropout, Backbone.MLP
        )


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """trainer=default."""

    max_epochs: int
    gradient_clip_val: float | None
    accelerator: str
    precision: str = "32-true"  # runs from before this key were trained so
    check_val_every_n_epoch: int = 1  # the same

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}; choose one")
        if self.max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, found {self.max_epochs}; choose a larger number")
        if not 1 <= self.check_val_every_n_epoch <= self.max_epochs:
            raise ValueError(
                f"check_val_every_n_epoch must lie in 1 .. max_epochs ({self.max_epochs}), found "
                f"{self.check_val_every_n_epoch}; else no checkpoint would be the best"
            )
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ValueError(
                f"gradient_clip_val must be positive, or null for no clipping, found {self.gradient_clip_val}; "
                "the usual value is 1.0"
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The keys at the top of the config."""

    random_seed: int
    fourier_transform: bool
    standardize: bool
    ema: float | None
    log_dir: str
    run_id: str | None
    resume: bool
    logger: str = "csv"  # runs from before this key

    def __post_init__(self) -> None:
        if self.logger not in LOGGERS:
            raise ValueError(f"logger must be one of {', '.join(LOGGERS)}, found {self.logger!r}; csv is the default")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, or be null, found {self.ema}; the usual value is 0.999")
        if not 0 <= self.random_seed < 2**32:
            raise ValueError(f"random_seed must lie in 0 .. 2^32 - 1, found {self.random_seed}; choose another")
        if self.run_id is not None and not re.fullmatch(r"\w[\w.-]*", self.run_id):
            raise ValueError(
                "run_id names a folder and may hold letters, digits, '.', '_' and '-', "
                f"found {self.run_id!r}; choose another"
            )


@dataclass(frozen=True)
class TrainOptions:
    """Everything a run is made from."""

    run: RunOptions
    dataset: Dataset
    score_model: TransformerOptions | LstmOptions | MlpOptions
    noise_scheduler: VpOptions | VeOptions
    trainer: TrainerOptions

    def __post_init__(self) -> None:
        self.noise_scheduler.process()  # refuses impossible parameters before any data is read


NOISE_SCHEDULERS: dict[str, type[VpOptions] | type[VeOptions]] = {"vp": VpOptions, "ve": VeOptions}
SCORE_MODELS: dict[str, type[TransformerOptions] | type[LstmOptions] | type[MlpOptions]] = {
    Backbone.TRANSFORMER: TransformerOptions,
    Backbone.LSTM: LstmOptions,
    Backbone.MLP: MlpOptions,
}


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The config of `train/conf` under Hydra overrides such as `datamodule=ucr`, resolved."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config: DictConfig = compose("train", list(overrides))
        OmegaConf.resolve(config)
    except OverrideParseException as error:
        raise ConfigError(
            f"an override must be key=value by Hydra's grammar, found {error.override!r}; {SEE_HELP}"
        ) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        told = " ".join(HYDRAS_ADVICE.split(str(error))[0].replace("\n\n", "; ").split())
        raise ConfigError(f"{told.rstrip('.')}; {SEE_HELP}") from error
    return config


def help_text(overrides: Sequence[str]) -> str:
    """The config under these overrides as YAML with the comments of its files, and below it what groups there are."""
    config = compose_config(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("train", list(overrides), return_hydra_config=True).hydra.runtime.choices
    groups = {str(path.relative_to(CONF).as_posix()) for path in CONF.rglob("*") if path.is_dir()}
    comments = _comments(CONF / "train.yaml", "")
    for group in groups & chosen.keys():
        comments |= _comments(CONF / group / f"{chosen[group]}.yaml", f"{group.replace('/', '.')}.")
    lines, above = [], [""]
    for line in OmegaConf.to_yaml(config).splitlines():
        depth, key = (len(line) - len(line.lstrip())) // 2, line.strip().partition(":")[0]
        above[depth + 1 :] = [f"{above[depth]}{key}."]
        comment = comments.get(above[depth] + key)
        lines.append(f"{line} # {comment}" if comment else line)
    choices = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in sorted(groups)}
    listed = [f"  {group}={chosen.get(group)}  one of {', '.join(names)}" for group, names in choices.items()]
    return "\n".join([*lines, "", "Groups of keys, each chosen by its name:", *listed, ""])


def _comments(file: Path, where: str) -> dict[str, str]:
    """The comments behind the keys of a config file, by the key's full name."""
    return {where + key: comment for key, comment in re.findall(r"^(\w+): .*?# (.+)$", file.read_text("utf-8"), re.M)}


def options_from_config(config: DictConfig) -> TrainOptions:
    """The config as checked records; `ConfigError` names the key that is wrong."""
    run: Any = OmegaConf.to_container(config)
    datamodule, score_model, trainer = (_group(run, name) for name in ("datamodule", "score_model", "trainer"))
    noise_scheduler = _group(score_model, "noise_scheduler")
    try:
        return TrainOptions(
            run=_record(RunOptions, run, ""),
            dataset=_record_of_kind(DATASETS, datamodule, "datamodule."),
            score_model=_record_of_kind(SCORE_MODELS, score_model, "score_model."),
            noise_scheduler=_record_of_kind(NOISE_SCHEDULERS, noise_scheduler, "score_model.noise_scheduler."),
            trainer=_record(TrainerOptions, trainer, "trainer."),
        )
    except ValueError as error:  # from the records' own checks
        raise ConfigError(str(error)) from error


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A group taken out of the keys around it."""
    group = values.pop(name, None)
    if not isinstance(group, dict):
        raise ConfigError(f"{name} must be a group of keys, found {group!r}; {SEE_HELP}")
    return group


def _record_of_kind(kinds: Mapping[str, type[Record]], values: dict[str, Any], where: str) -> Record:
    kind = str(values.get("kind"))
    if kind not in kinds:
        raise ConfigError(f"{where}kind must be one of {', '.join(kinds)}, found {kind!r}; leave it alone")
    return _record(kinds[kind], values, where)


def _record(kind: type[Record], values: dict[str, Any], where: str) -> Record:
    try:
        record = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"{where}{error.full_key}: {problem}; correct or remove it") from error
    assert isinstance(record, kind)
    return record


def resumed_config(overrides: Sequence[str], stored: DictConfig) -> DictConfig:
    """The stored config of a run that is to be continued.

    The `trainer` settings, the logger and the place of the data may be changed; anything else that the overrides name
    must agree with the run as it was started.
    """
    given, resumed = compose_config(overrides), stored.copy()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.replace("/", ".")
        wanted, found = OmegaConf.select(given, key), OmegaConf.select(stored, key)
        if key in ("run_id", "resume"):
            continue
        if key.startswith("trainer") or key in ("log_dir", "logger", *(f"datamodule.{place}" for place in PLACES)):
            OmegaConf.update(resumed, key, wanted)
            continue
        if isinstance(wanted, DictConfig):  # a group, e.g. datamodule=ecg
            wanted, found = wanted.kind, found.kind
        if wanted != found:
            raise ConfigError(
                f"{key} of a resumed run must stay {found!r}, found {wanted!r}; leave it out, or start a new run"
            )
    return resumed
