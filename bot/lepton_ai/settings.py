# SPDX-License-Identifier: Apache-2.0
"""A site's settings: `lepton.yml` in the site's folder, then the environment, which wins. Secrets only there or in files."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lepton_ai.access.rules import Rules
from lepton_ai.alerts.rules import AlertRule
from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Catalog, load_catalog
from lepton_ai.paths import builtin_playbooks
from lepton_ai.timetable import Schedule

SITE_FILE = "lepton.yml"
CASES_FILE = "access-tests.yml"
SITE_VARIABLE = "LEPTON_SITE"


class SlackSettings(BaseModel):
    """How Slack is reached. `base_url` is Slack's own unless a sandbox stands in for it."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = "https://slack.com/api/"
    command: str = "/lepton"
    mode: str = Field(default="socket", pattern="^(socket|http)$")
    update_seconds: float = Field(default=1.2, gt=0)  # chat.update is tier 3: 50 a minute and workspace
    approvals_channel: str | None = None  # where plans wait that were asked for outside Slack
    alerts_channel: str | None = None  # where alerts are shown; nowhere without it


class ScalingSettings(BaseModel):
    """Where scaling policies stand, and whom their signals are asked of. Without a Prometheus nothing is scaled."""

    model_config = ConfigDict(extra="forbid")

    policies: Path = Path("policies")
    prometheus: str = ""


class Settings(BaseModel):
    """Everything a site says. Paths are absolute; `state_dir` holds the databases, the socket and private folders."""

    model_config = ConfigDict(extra="forbid")

    site: Path
    inventory: Path
    playbooks: Path
    state_dir: Path
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8010
    public_url: str = ""  # where people's browsers reach it, for links to run pages; none without it
    max_runs: int = Field(default=8, ge=1)
    reconcile_seconds: float = Field(default=30.0, ge=0)  # between two looks at services; 0: none
    environment: list[str] = Field(default_factory=list)
    label: str = Field(default="", max_length=40)  # shown in every message: stage, prod
    time_zone: str | None = None  # of rules with hours; this machine's own by default
    slack: SlackSettings = Field(default_factory=SlackSettings)
    scaling: ScalingSettings = Field(default_factory=ScalingSettings)
    access: Rules = Field(default_factory=Rules)
    alerts: list[AlertRule] = Field(default_factory=list)  # what alerts ask for; the first rule that fits counts
    schedules: list[Schedule] = Field(default_factory=list)  # operations at times of the week
    alertmanager: str = ""  # its address, for silences

    @property
    def socket(self) -> Path:
        return self.state_dir / "lepton.sock"

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in available_timezones():
            raise ValueError(f"{name} is not a time zone: expected a name such as Europe/Berlin")
        return name

    @property
    def zone(self) -> datetime.tzinfo | None:
        """The site's time zone; None stands for this machine's own."""
        return None if self.time_zone is None else ZoneInfo(self.time_zone)

    def catalog(self) -> Catalog:
        """Read the operations: the site's own first, then the built-in ones."""
        return load_catalog({"site": self.playbooks, "built-in": builtin_playbooks()})


class Secrets(BaseSettings):
    """Credentials under their usual names. Never written to `Settings`, so never shown with it."""

    model_config = SettingsConfigDict(extra="ignore")

    slack_bot_token: SecretStr | None = None
    slack_app_token: SecretStr | None = None
    slack_signing_secret: SecretStr | None = None
    lepton_alert_token: SecretStr | None = None  # what Alertmanager shows; no alert is taken without it


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of a site's file, for editors: in it everything may be left out, and the site is where it stands."""
    schema = Settings.model_json_schema()
    del schema["properties"]["site"], schema["required"]
    return schema


def load_settings(site: Path | None = None) -> Settings:
    """Return the settings of a site: the folder given, else $LEPTON_SITE, else the nearest folder upwards with a lepton.yml.

    Raises LeptonError that names the file and the key when something is wrong with it.
    """
    folder = site or _find_site()
    path = folder / SITE_FILE
    try:
        loaded: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LeptonError(f"{folder} is not a Lepton site: it has no {SITE_FILE}", hint=f"make one: lepton init {folder}") from error
    except yaml.YAMLError as error:
        raise LeptonError(f"{path} is not YAML: {error}") from error
    raw = {} if loaded is None else loaded
    if not isinstance(raw, dict):
        raise LeptonError(f"{path}: expected a mapping of settings")
    folder = folder.resolve()
    defaults = {"inventory": "inventory", "playbooks": "playbooks", "state_dir": ".lepton"}
    for key, default in defaults.items():
        raw[key] = folder / Path(str(raw.get(key, default))).expanduser()
    try:
        return Settings(site=folder, **raw)
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise LeptonError("\n".join(lines)) from error


def _find_site() -> Path:
    named = os.environ.get(SITE_VARIABLE)
    if named:
        return Path(named).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / SITE_FILE).is_file():
            return folder
    raise LeptonError("there is no Lepton site here", hint=f"make one: lepton init DIR, then work in it or set {SITE_VARIABLE}")
